"""The rule `forward-bypasses-ddp`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Attribute,
    Call,
    FileFacts,
    Result,
    Returned,
    TrainingLoop,
    Value,
    exclusive,
    gradients,
    is_asked_for_replica,
    is_replica,
    origins,
    replicas,
    same,
    spelling,
    unwrapped,
)

_AVERAGES = re.compile(
    r"(?:average|sync|reduce|allreduce|all_reduce)_?\w*grad|grad\w*_?(?:sync|reduce|allreduce)"
)


class ForwardBypassesDdp(Rule):
    """The loss is computed by the model inside `DistributedDataParallel`, not by the wrapper.

    Symptom: with more than one process, each trains a model of its own. Losses look right, and
    the checkpoint of one process has learned from its share of the data alone.

    Why: `DistributedDataParallel` averages the gradients of all processes, but only those of a
    forward through the wrapper: `model(x)`. A forward through `model.module`, or through the
    model as it was before it was wrapped, goes past it.

    What torch does: nothing. The weights drift apart without a word.

    Limits: only loops are reported whose loss no forward through the wrapper adds to, and that
    do not average gradients by hand.
    """

    since = "0.1"
    triggers = ("DistributedDataParallel|DDP", ".backward(|manual_backward(")
    sources = (
        "https://pytorch.org/docs/stable/notes/ddp.html#internal-design",
        "https://github.com/jingyaogong/minimind/issues/853",
        "https://github.com/bytetriper/RAE/issues/40",
        "https://github.com/pytorch/pytorch/issues/104336",
    )
    examples = (
        Bad(
            "the loss comes from the module inside",
            """
            import torch.nn.functional as F
            from torch.nn.parallel import DistributedDataParallel as DDP

            def train(net, loader, optimizer, rank):
                model = DDP(net.to(rank), device_ids=[rank])
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model.module(x), y)  # error
                    loss.backward()
                    optimizer.step()
            """,
            fixed="""
            import torch.nn.functional as F
            from torch.nn.parallel import DistributedDataParallel as DDP

            def train(net, loader, optimizer, rank):
                model = DDP(net.to(rank), device_ids=[rank])
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)  # error
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the loss comes from the wrapper",
            """
            import torch.nn.functional as F
            from torch.nn.parallel import DistributedDataParallel as DDP

            def train(net, loader, optimizer, rank):
                model = DDP(net.to(rank), device_ids=[rank])
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "unwrapped first, wherever it is wrapped",
            """
            import torch.nn.functional as F
            from torch.nn.parallel import DistributedDataParallel

            def train_epoch(model, loader, optimizer):
                for x, y in loader:
                    raw = model.module if isinstance(model, DistributedDataParallel) else model
                    loss = F.cross_entropy(raw(x), y)  # error
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
            """,
        ),
        Bad(
            "the model as it was before",
            """
            import torch
            import torch.nn.functional as F

            def train(loader, rank):
                net = torch.nn.Linear(8, 2).to(rank)
                ddp_net = torch.nn.parallel.DistributedDataParallel(net, device_ids=[rank])
                optimizer = torch.optim.SGD(ddp_net.parameters(), lr=0.1)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(net(x), y).backward()  # error
                    optimizer.step()
            """,
        ),
        Bad(
            "a method of the module that computes the loss",
            """
            from torch.nn.parallel import DistributedDataParallel

            def train(net, loader, optimizer):
                model = DistributedDataParallel(net)
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = model.module.compute_loss(x, y)  # error
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "text is generated by the module, without gradients",
            """
            import torch
            import torch.nn.functional as F
            from torch.nn.parallel import DistributedDataParallel

            def train(net, prompts, optimizer, reward):
                model = DistributedDataParallel(net)
                for prompt in prompts:
                    with torch.no_grad():
                        ids = model.module.generate(prompt)
                    loss = -(model(ids) * reward(ids)).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "a penalty on the weights, beside a forward through the wrapper",
            """
            import torch.nn.functional as F
            from torch.nn.parallel import DistributedDataParallel

            def train(net, loader, optimizer):
                model = DistributedDataParallel(net)
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y) + model.module.penalty()
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "evaluated, and saved, without the wrapper",
            """
            import torch
            import torch.nn.functional as F
            from torch.nn.parallel import DistributedDataParallel

            def train(net, loader, held_out, optimizer, distributed):
                model = net
                if distributed:
                    model = DistributedDataParallel(net)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                net.eval()
                with torch.no_grad():
                    print(sum(F.cross_entropy(net(x), y).item() for x, y in held_out))
                torch.save(net.state_dict(), "net.pt")
            """,
        ),
        Good(
            "micro-batches without synchronization",
            """
            import torch.nn.functional as F
            from torch.nn.parallel import DistributedDataParallel

            def train(net, loader, optimizer, k):
                model = DistributedDataParallel(net)
                for xs, ys in loader:
                    optimizer.zero_grad()
                    with model.no_sync():
                        for x, y in zip(xs[:-1], ys[:-1]):
                            (F.cross_entropy(model(x), y) / k).backward()
                    (F.cross_entropy(model(xs[-1]), ys[-1]) / k).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "gradients that are averaged by hand",
            """
            import torch.distributed as dist
            import torch.nn.functional as F
            from torch.nn.parallel import DistributedDataParallel

            def train(net, loader, optimizer):
                model = DistributedDataParallel(net)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model.module(x), y).backward()
                    for p in model.parameters():
                        dist.all_reduce(p.grad)
                    optimizer.step()
            """,
        ),
        Good(
            "the second wrapper is another model's",
            """
            import torch
            import torch.nn.functional as F
            from torch.nn.parallel import DistributedDataParallel

            def train(student, teacher, loader, optimizer):
                model = DistributedDataParallel(student)
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.mse_loss(model(x), teacher(x).detach())
                    loss.backward()
                    optimizer.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look behind each loss for forwards of a wrapped model that went past the wrapper."""
        for loop in file.loops:
            if _averages_by_hand(loop):
                continue
            for backward in loop.backwards:
                if backward.loss is not None:
                    yield from self._behind(loop, backward.loss)

    def _behind(self, loop: TrainingLoop, loss: Value) -> Iterator[Finding]:
        forwards = list(_calls_behind(loop, loss))
        if any(_goes_through_wrapper(call) for call in forwards):
            return
        for call in forwards:
            wrapper = _wrapper_past(loop, call)
            if wrapper and gradients(call.context) is True:
                yield self.finding(
                    call.place,
                    f"`{call.text}` goes past the `DistributedDataParallel`{wrapper}: the "
                    "gradients of this loss are not averaged over the processes",
                    f"compute the loss through the wrapper: {_advice(call)}",
                    _fix(call),
                )
                return


def _calls_behind(loop: TrainingLoop, loss: Value) -> Iterator[Call]:
    """The calls of the loop that the loss was made by, in the order of the text."""
    made = {id(origin.call) for origin in origins(loss) if isinstance(origin, Result | Returned)}
    return (call for call in loop.calls if id(call) in made)


def _goes_through_wrapper(call: Call) -> bool:
    """Whether the call runs a wrapped model, or is given one and may run it."""
    if any(unwrapped(call.callee)):
        return False
    return any(is_replica(value) for value in (call.callee, *call.args, *call.keywords.values()))


def _wrapper_past(loop: TrainingLoop, call: Call) -> str:
    """Around which model the wrapper is that the call goes past; empty if it does not."""
    for value in _run_by(call):
        for base in unwrapped(value):
            if is_replica(base) or is_asked_for_replica(loop.trace, base):
                return f" around `{spelling(base)}`" if spelling(base) else " of its model"
        for wrap, model in replicas(loop.trace):
            if wrap.index < call.index and not exclusive(wrap.context, call.context):
                if not is_replica(value) and same(value, model):
                    return f" around `{wrap.argument_text(0, 'module')}`"
    return ""


def _run_by(call: Call) -> Iterator[Value]:
    """What a call runs: the callee, and the object whose method it is."""
    yield call.callee
    if call.receiver is not None and call.method != "module":
        yield call.receiver


def _averages_by_hand(loop: TrainingLoop) -> bool:
    """Whether the loop hands gradients to other processes itself."""
    return any(
        _AVERAGES.search(call.method.lower())
        or any(isinstance(value, Attribute) and value.name == "grad" for value in _given(call))
        for call in loop.calls
        if "reduce" in call.method or _AVERAGES.search(call.method.lower())
    )


def _given(call: Call) -> Iterator[Value]:
    for value in (*call.args, *call.keywords.values()):
        yield from origins(value, 6)


def _through(call: Call) -> str:
    """The same call on the wrapper, where it is written as `model.module(...)`; else empty."""
    plain = f"{call.receiver_text}.module("
    if call.method != "module" or not call.text.startswith(plain):
        return ""
    return f"{call.receiver_text}({call.text[len(plain) :]}"


def _advice(call: Call) -> str:
    through = _through(call)
    if through:
        return f"`{through}`"
    return "call the wrapped model, and let its `forward` call what else it takes"


def _fix(call: Call) -> Fix | None:
    through = _through(call)
    return Fix((Edit("replace", call.place, through),), safe=False) if through else None
