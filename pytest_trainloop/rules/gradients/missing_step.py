"""The rule `missing-step`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import counted, listed
from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Observation, Rule
from pytest_trainloop.source.facts import (
    Attribute,
    Call,
    Element,
    Event,
    FileFacts,
    Function,
    Imported,
    Result,
    Return,
    Store,
    Trace,
    Value,
    cleared,
    constant,
    is_accelerator,
    is_backward,
    is_fabric,
    is_model,
    is_optimizer,
    is_scheduler_call,
    loops_of,
    may_use_gradients,
    options,
    origins,
    same,
    stepped_optimizer,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run

#: How far back it is looked for what a value was made from.
MOST_ORIGINS = 30


class MissingStep(Rule):
    """Gradients are computed and cleared, but no optimizer ever steps.

    Symptom: the loss stays where it began, and so do the weights, to the last bit.

    Why: `backward()` only fills `.grad`. The weights change in `optimizer.step()`, and
    nowhere else. A scheduler's `step()` changes the learning rate, not the weights.

    What torch does: if a scheduler steps, it warns once that `optimizer.step()` should come
    first. Without one, nothing.

    Limits: reported only where the optimizer is made in sight, is cleared in the loop that
    back-propagates, and is given to nothing that could step it.
    """

    since = "0.1"
    triggers = (".backward(|manual_backward(", "zero_grad", "torch")
    sources = (
        "https://pytorch.org/docs/stable/optim.html#taking-an-optimization-step",
        "https://pytorch.org/docs/stable/generated/torch.optim.Optimizer.step.html",
    )
    examples = (
        Bad(
            "the optimizer is cleared and never steps",
            """
            def train(model, loader):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()  # error
            """,
            fixed="""
            def train(model, loader):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()  # error
                    optimizer.step()
            """,
        ),
        Good(
            "the optimizer steps",
            """
            def train(model, loader):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "only the scheduler steps",
            """
            def train(model, loader, epochs):
                optimizer = torch.optim.Adam(model.parameters())
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()  # error
                    scheduler.step()
            """,
        ),
        Bad(
            "the step function gets the optimizer and does not use it up",
            """
            def update(model, optimizer, x, y):
                optimizer.zero_grad()
                loss = F.mse_loss(model(x), y)
                loss.backward()  # error
                return loss.item()

            def train(model, loader):
                optimizer = torch.optim.Adam(model.parameters())
                for x, y in loader:
                    update(model, optimizer, x, y)
            """,
        ),
        Bad(
            "one of two optimizers never steps",
            """
            import torch
            from accelerate import Accelerator
            from torch.nn import functional as F

            def train(net_g, net_d, loader):
                accelerator = Accelerator()
                opt_g = torch.optim.Adam(net_g.parameters())
                opt_d = torch.optim.Adam(net_d.parameters())
                net_g, net_d, opt_g, opt_d = accelerator.prepare(net_g, net_d, opt_g, opt_d)
                for real, z in loader:
                    opt_d.zero_grad()
                    F.softplus(net_d(net_g(z).detach()) - net_d(real)).mean().backward()
                    opt_d.step()
                    opt_g.zero_grad()
                    F.softplus(-net_d(net_g(z))).mean().backward()  # error
            """,
        ),
        Bad(
            "another optimizer's class, chosen, and a state that is saved",
            """
            import bitsandbytes as bnb
            import torch
            from torch.nn import functional as F

            def train(model, loader, eight_bit):
                kind = bnb.optim.AdamW8bit if eight_bit else torch.optim.AdamW
                optimizer = kind(model.parameters(), lr=1e-4)
                for x, y in loader:
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()  # error
                    optimizer.zero_grad()
                torch.save({"optimizer": optimizer.state_dict(), "model": model}, "last.pt")
            """,
        ),
        Good(
            "the optimizer itself is given away, in a dict",
            """
            import torch
            from framework import Loop
            from torch.nn import functional as F

            def train(model, loader):
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
                loop = Loop({"optimizer": optimizer})
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    loop.finish()
            """,
        ),
        Bad(
            "prepared, frozen in part, averaged and logged",
            """
            import torch
            from accelerate import Accelerator
            from diffusers.optimization import get_scheduler
            from diffusers.training_utils import EMAModel
            from torch.nn import functional as F

            def train(unet, vae, loader, args):
                accelerator = Accelerator()
                vae.requires_grad_(False)
                ema_unet = EMAModel(unet.parameters())
                optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate)
                lr_scheduler = get_scheduler(args.lr_scheduler, optimizer=optimizer)
                unet, optimizer, loader, lr_scheduler = accelerator.prepare(
                    unet, optimizer, loader, lr_scheduler
                )
                for image, noise in loader:
                    loss = F.mse_loss(unet(vae.encode(image) + noise), noise)
                    accelerator.backward(loss)  # error
                    lr_scheduler.step()
                    optimizer.zero_grad()
                    ema_unet.step(unet.parameters())
                    accelerator.log({"lr": lr_scheduler.get_last_lr()[0]})
            """,
        ),
        Bad(
            "only the environment steps",
            """
            def train(q_network, target_network, env, steps):
                optimizer = torch.optim.Adam(q_network.parameters())
                observation = env.reset()
                for step in range(steps):
                    observation, reward, done = env.step(q_network(observation).argmax())
                    optimizer.zero_grad()
                    loss = F.mse_loss(q_network(observation), reward)
                    loss.backward()  # error
            """,
        ),
        Good(
            "a trainer, which got the optimizer, steps and tells the loss",
            """
            def train(model, loader, make_trainer):
                optimizer = torch.optim.Adam(model.parameters())
                trainer = make_trainer(model, optimizer)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.mse_loss(model(x), y).backward()
                    norm = trainer.step(x)
            """,
        ),
        Bad(
            "with a penalty on the gradients of the input",
            """
            def penalty(critic, x):
                x.requires_grad_(True)
                score = critic(x)
                (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
                return (slope.norm(2, dim=1) - 1).pow(2).mean()

            def train(critic, generator, loader):
                optimizer = torch.optim.Adam(critic.parameters())
                for real, z in loader:
                    optimizer.zero_grad()
                    loss = critic(generator(z)).mean() - critic(real).mean()
                    (loss + 10 * penalty(critic, real)).backward()  # error
            """,
        ),
        Good(
            "weights that are moved along their gradients by hand",
            """
            def train(model, loader, meta_optimizer_class):
                optimizer = torch.optim.Adam(model.parameters())
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.mse_loss(model(x), y)
                    slopes = torch.autograd.grad(loss, model.parameters(), create_graph=True)
                    for p, slope in zip(model.parameters(), slopes):
                        p.data -= 0.1 * slope.data
                    F.mse_loss(model(x), y).backward()
            """,
        ),
        Good(
            "a helper out of sight steps",
            """
            from framework import apply_update

            def train(model, loader):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                for x, y in loader:
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(model(x), y).backward()
                    apply_update(optimizer)
            """,
        ),
        Good(
            "a gradient scaler steps",
            """
            def train(model, loader):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                grad_scaler = torch.amp.GradScaler()
                for x, y in loader:
                    optimizer.zero_grad()
                    grad_scaler.scale(F.cross_entropy(model(x), y)).backward()
                    grad_scaler.step(optimizer)
                    grad_scaler.update()
            """,
        ),
        Good(
            "the weights are changed by hand",
            """
            def train(model, loader, lr):
                optimizer = torch.optim.SGD(model.parameters(), lr=lr)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    with torch.no_grad():
                        for p in model.parameters():
                            p.sub_(lr * p.grad)
            """,
        ),
        Good(
            "the gradients are what is wanted",
            """
            def saliency(model, loader):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                maps = []
                for x, y in loader:
                    x.requires_grad_()
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    maps.append(x.grad.abs())
                return maps
            """,
        ),
        Good(
            "the optimizer is kept, and another method steps",
            """
            class Trainer:
                def __init__(self, model):
                    self.model = model
                    self.optimizer = torch.optim.Adam(model.parameters())

                def accumulate(self, batches):
                    self.optimizer.zero_grad()
                    for x, y in batches:
                        F.mse_loss(self.model(x), y).backward()

                def apply(self):
                    self.optimizer.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for optimizers that are made and cleared, beside a backward, and nothing else."""
        calls = [call for trace in file.traces for call in trace.calls]
        for trace in file.traces:
            for optimizer in _made(trace):
                if any(_may_step(call, optimizer) for call in calls):
                    continue
                backward = _backward_beside(trace, optimizer)
                if backward is None or _gets_away(trace, optimizer):
                    continue
                if not _another_steps_twice(backward, calls):
                    yield self._report(trace, optimizer, backward)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask whether gradients were made and cleared again and again, and never used."""
        from pytest_trainloop.runtime.record import Clearing, SkippedStep

        cleared = [one for one in run.all(Clearing) if one.by_optimizer]
        skipped = run.all(SkippedStep)
        if run.steps or skipped or run.stopped or not cleared:
            return
        reached = [parameter for parameter in run.parameters if parameter.reached]
        again = min(len(cleared), len(run.backwards))
        if again < 2 or not reached or any(p.moved is not False for p in reached):  # noqa: PLR2004  # again
            return
        yield self.observation(
            f"no optimizer stepped: {counted(len(run.backwards), 'backward call')} and"
            f" {counted(len(cleared), 'zero_grad call')} of {cleared[0].kind}, but no `step()`",
            "call `optimizer.step()` after `backward()`",
            run.backwards[-1].where,
            (f"{listed(p.name for p in reached)} got gradients and did not move",),
        )

    def _report(self, trace: Trace, optimizer: Value, backward: Call) -> Finding:
        names = [
            event.target
            for event in trace.stores
            if event.kind == "name" and same(event.value, optimizer)
        ]
        name = names[0] if names else "optimizer"
        clearing = next(event for event in trace.calls if _clears(event, optimizer))
        used = clearing.receiver_text
        is_near = clearing.context == backward.context and backward.discarded
        return self.finding(
            backward.place,
            f"`{backward.text}` computes gradients, but `{name}` never steps, so the weights "
            "stay as they are",
            f"write `{used}.step()` after `{backward.text}`",
            Fix((Edit("insert-after", backward.place, f"{used}.step()"),), safe=False)
            if is_near
            else None,
        )


def _made(trace: Trace) -> Iterator[Value]:
    """The optimizers that the trace makes, of torch's classes or of others by the same names."""
    for call in trace.calls:
        if _is_kind_of_optimizer(call) and not is_scheduler_call(call):
            for event in trace.stores:
                if event.kind == "name" and isinstance(event.value, Result):
                    if event.value.call is call and is_optimizer(event.value):
                        yield event.value


#: Algorithms whose classes step when they are told to, whatever library they are from.
_ALGORITHM = re.compile(
    r"\w*(?:Adam|SGD|RMSprop|Adagrad|Adafactor|Lion|LAMB|Lamb)\w*(?<!Optimizer)(?<!Wrapper)"
)


def _is_kind_of_optimizer(call: Call) -> bool:
    """Whether the call makes an optimizer of torch's, or of a class named for an algorithm."""
    kinds = options(call.callee)
    return call.qualified.startswith("torch.optim.") or all(
        isinstance(kind, Imported) and bool(_ALGORITHM.fullmatch(kind.qualified.rpartition(".")[2]))
        for kind in kinds
    )


def _may_step(call: Call, optimizer: Value) -> bool:
    """Whether the call may be an update by the optimizer: not if it is one by another."""
    if call.receiver is None or "step" not in call.method:
        return "minimize" in call.method or "optimizer_step" in call.method
    if call.method != "step":
        return not call.followed and "sched" not in call.name
    if any(
        isinstance(option, Result) and is_scheduler_call(option.call)
        for option in options(call.receiver)
    ):
        return False
    stepped = stepped_optimizer(call)
    if stepped is None:
        return not (_steps_an_environment(call) or _AVERAGE.search(call.name))
    return not all(_is_another(one, optimizer) for one in options(stepped))


#: `ema.step(model.parameters())`: a mean of the weights moves, and they do not.
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|EMA|averag\w*)(?:[._]\w+)?\.step$|_ema\.step$")


def _steps_an_environment(call: Call) -> bool:
    """Whether it is `observation, reward, done = env.step(action)`, or the like.

    What steps an optimizer in there must have got it: `_gets_away` asks for that.
    """
    given = call.args[0] if call.args else None
    return not call.discarded and given is not None and not isinstance(given, Function)


def _is_another(stepped: Value, optimizer: Value) -> bool:
    """Whether what is stepped is known to be made by another call."""
    return stepped is not optimizer and isinstance(stepped, Result) and is_optimizer(stepped)


def _another_steps_twice(backward: Call, calls: list[Call]) -> bool:
    """Whether the loop steps another optimizer twice, one of which may be meant for this one."""
    loops = loops_of(backward.context)
    found: list[Value] = []
    for call in calls:
        stepped = stepped_optimizer(call) if loops and loops[-1] in call.context else None
        if stepped is not None:
            if any(same(stepped, known) for known in found):
                return True
            found.append(stepped)
    return False


def _clears(event: Event, optimizer: Value) -> bool:
    target = cleared(event)
    return target is not None and same(target, optimizer)


def _backward_beside(trace: Trace, optimizer: Value) -> Call | None:
    """The backward in the same loop as a clearing of the optimizer."""
    if any(
        may_use_gradients(event) and not _makes(event, optimizer) and not _is_penalty(event)
        for event in trace.events
    ):
        return None
    loops = {
        id(loop)
        for event in trace.events
        if _clears(event, optimizer)
        for loop in loops_of(event.context)[-1:]
    }
    beside = [
        call
        for call in trace.calls
        if is_backward(call) and any(id(loop) in loops for loop in loops_of(call.context))
    ]
    own = (call for call in beside if _is_cleared_for(trace, call, optimizer))
    return next(own, beside[0] if beside else None)


def _is_cleared_for(trace: Trace, backward: Call, optimizer: Value) -> bool:
    """Whether the last clearing before a backward is the optimizer's."""
    before = [e for e in trace.events[: backward.index] if cleared(e) is not None]
    return bool(before) and _clears(before[-1], optimizer)


def _is_penalty(event: Event) -> bool:
    """Whether a gradient is taken as a part of a loss, and with respect to no weights."""
    if not isinstance(event, Call) or event.qualified != "torch.autograd.grad":
        return False
    inputs = event.argument(1, "inputs")
    return (
        constant(event.argument(None, "create_graph")) is True
        and inputs is not None
        and not any(
            is_model(part) or (isinstance(part, Result) and "param" in part.call.method)
            for part in (*options(inputs), *inputs.parts())
        )
    )


def _makes(event: Event, optimizer: Value) -> bool:
    """Whether the event is about making the optimizer, its scheduler, or clearing it."""
    if isinstance(event, Call):
        return _is_kind_of_optimizer(event) or is_scheduler_call(event) or _prepares(event)
    return isinstance(event, Store) and same(event.value, optimizer)


def _prepares(call: Call) -> bool:
    """Whether an accelerator wraps what it is given, and steps nothing."""
    receiver = call.receiver
    return call.method in ("prepare", "setup", "setup_optimizers") and (
        receiver is not None and (is_accelerator(receiver) or is_fabric(receiver))
    )


def _gets_away(trace: Trace, optimizer: Value) -> bool:
    """Whether code out of sight can get hold of the optimizer."""
    for event in trace.events:
        if isinstance(event, Return) and any(
            value is optimizer for value in origins(event.value, 30)
        ):
            return True
        if isinstance(event, Store) and event.kind != "name" and same(event.value, optimizer):
            return True
        if isinstance(event, Call) and not (
            event.followed or event.qualified in _LOOKING or _makes(event, optimizer)
        ):
            if any(_holds(given, optimizer) for given in _arguments(event)):
                return True
    return False


#: What is given a thing only to look at it, or to write it down.
_LOOKING = frozenset(
    {"torch.save", "builtins.print", "builtins.len", "builtins.str", "builtins.repr"}
    | {"builtins.type", "builtins.isinstance", "builtins.id"}
)


def _arguments(call: Call) -> tuple[Value, ...]:
    return (*call.args, *call.keywords.values())


def _holds(given: Value, optimizer: Value) -> bool:
    """Whether the optimizer can be got at through what is given; not through a state of it."""
    queue = [given]
    for value in queue:
        if value is optimizer or (isinstance(value, Attribute) and value.base is optimizer):
            return True
        if not _is_reading(value) and len(queue) < MOST_ORIGINS:
            queue.extend(value.parts())
    return False


def _is_reading(value: Value) -> bool:
    """Whether the value is what an optimizer, or its scheduler, tells of itself."""
    if isinstance(value, Result):
        return value.call.method in ("state_dict", "get_last_lr", "get_lr")
    return isinstance(value, Element) and constant(value.key) == "lr"
