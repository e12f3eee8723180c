"""The rule `kept-loss-graph`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import listed
from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Call,
    Collection,
    Context,
    Delete,
    Event,
    FileFacts,
    Loop,
    Operation,
    Place,
    Result,
    Store,
    Trace,
    TrainingLoop,
    Value,
    attached,
    loops_of,
    options,
    origins,
)

if TYPE_CHECKING:
    from pytest_trainloop.rules._rule import Observation
    from pytest_trainloop.runtime.record import Run

_EXTREME = re.compile(
    r"([ \t]*)(\w+) = torch\.(?:max|min|maximum|minimum)\(\2\s*,\s*(?!(?:dim|axis|keepdim)\s*=)"
)
#: The head of a loop or a definition, on a line of its own.
_HEAD = re.compile(r"^([ \t]*)(?:async )?(for|while|def|class)\b", re.MULTILINE)
_EXTREMES = frozenset({"torch.max", "torch.min", "torch.maximum", "torch.minimum"})
_ADDING = frozenset({"append", "appendleft", "add", "insert", "extend"})


class KeptLossGraph(Rule):
    """A loss is kept past its step together with the graph that computed it.

    Symptom: memory grows with every batch and steps get slower, until the run dies of
    out-of-memory hours later, in a place that has nothing to do with the cause.

    Why: a loss tensor holds the graph of everything that led to it. Adding it to a running
    total, or appending it to a list, keeps one more graph alive at every step. After
    `backward()` the saved activations are freed but the graph's nodes stay; without
    `backward()` the activations stay too.

    What torch does: nothing. The total is a tensor like any other.

    Limits: a total that is reset inside the same loop is bounded and not reported. A list
    handed in from out of sight is not reported, because it may be summed and back-propagated.
    In a run, the graphs of eight steps must live at once, in something that has a name.
    """

    since = "0.1"
    triggers = (
        ".backward(|manual_backward(|torch.max(|torch.min(|imum(",
        "for |while ",
        "+|append|add(|insert|extend|torch.m",
    )
    sources = (
        "https://pytorch.org/docs/stable/notes/faq.html#my-model-reports-cuda-runtime-error-2-out-of-memory",
        "https://github.com/google/brax/pull/152",
        "https://github.com/BatsResearch/labelmodels/issues/4",
        "https://github.com/ray-project/ray/issues/40940",
        "https://github.com/horovod/horovod/pull/641",
        "https://github.com/TRI-ML/packnet-sfm/pull/51",
    )
    examples = (
        Bad(
            "the running loss is a tensor with a graph",
            """
            def train(model, loader, optimizer):
                running_loss = 0.0
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
                    running_loss += loss  # error
                return running_loss / len(loader)
            """,
            fixed="""
            def train(model, loader, optimizer):
                running_loss = 0.0
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
                    running_loss += loss.detach()  # error
                return running_loss / len(loader)
            """,
        ),
        Good(
            "the running loss is a tensor without a graph",
            """
            def train(model, loader, optimizer):
                running_loss = 0.0
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
                    running_loss += loss.detach()
                return running_loss / len(loader)
            """,
        ),
        Bad(
            "a list of losses",
            """
            def train(model, loader, optimizer):
                history = []
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
                    history.append(loss)  # error
            """,
            fixed="""
            def train(model, loader, optimizer):
                history = []
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
                    history.append(loss.detach())  # error
            """,
        ),
        Bad(
            "in an attribute, weighted by the batch size",
            """
            class Trainer:
                def __init__(self, model, optimizer):
                    self.model, self.optimizer = model, optimizer
                    self.total = 0

                def fit(self, loader):
                    for x, y in loader:
                        self.optimizer.zero_grad()
                        loss = F.mse_loss(self.model(x), y)
                        loss.backward()
                        self.optimizer.step()
                        self.total += loss * len(x)  # error
            """,
            fixed="""
            class Trainer:
                def __init__(self, model, optimizer):
                    self.model, self.optimizer = model, optimizer
                    self.total = 0

                def fit(self, loader):
                    for x, y in loader:
                        self.optimizer.zero_grad()
                        loss = F.mse_loss(self.model(x), y)
                        loss.backward()
                        self.optimizer.step()
                        self.total += (loss * len(x)).detach()  # error
            """,
        ),
        Bad(
            "without an augmented assignment",
            """
            def train(model, loader, optimizer, criterion):
                total = 0
                for x, y in loader:
                    optimizer.zero_grad()
                    objective = criterion(model(x), y)
                    objective.backward()
                    optimizer.step()
                    total = total + objective  # error
            """,
        ),
        Bad(
            "in a list inside a dict",
            """
            def train(model, loader, optimizer):
                history = {"loss": []}
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
                    history["loss"].append(loss)  # error
            """,
        ),
        Bad(
            "the step function returns the loss as it is",
            """
            def train_step(model, x, y, optimizer):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                return loss

            def train(model, loader, optimizer):
                total = 0
                for x, y in loader:
                    total += train_step(model, x, y, optimizer)  # error
                return total
            """,
        ),
        Bad(
            "the outputs are kept for a metric",
            """
            def train(model, loader, optimizer):
                outputs = []
                for x, y in loader:
                    optimizer.zero_grad()
                    output = model(x)
                    F.cross_entropy(output, y).backward()
                    optimizer.step()
                    outputs.append(output.cpu())  # error
                return torch.cat(outputs)
            """,
        ),
        Bad(
            "a running maximum over restarts",
            """
            def attack(model, x, y, restarts):
                worst_loss = torch.zeros(len(x))
                worst = torch.zeros_like(x)
                for _ in range(restarts):
                    delta = torch.rand_like(x)
                    loss = F.cross_entropy(model(x + delta), y, reduction="none")
                    worst[loss > worst_loss] = delta[loss > worst_loss]
                    worst_loss = torch.max(worst_loss, loss)  # error
                return worst
            """,
        ),
        Bad(
            "a DeepSpeed engine back-propagates and steps",
            """
            import deepspeed
            import torch

            def train(net, loader):
                outputs = []
                model, optimizer, _, _ = deepspeed.initialize(model=net)
                for batch in loader:
                    output = model(**batch)
                    outputs.append(output.logits.cpu())  # error
                    model.backward(output.loss)
                    model.step()
            """,
        ),
        Good(
            "losses summed before one backward",
            """
            def train(model, loader, optimizer, heads):
                for x, targets in loader:
                    optimizer.zero_grad()
                    loss = 0
                    for head, y in zip(heads, targets):
                        loss += F.cross_entropy(head(model(x)), y)
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "stacked before one backward",
            """
            def train(model, episodes, optimizer):
                for episode in episodes:
                    losses = []
                    for x, y in episode:
                        losses.append(F.mse_loss(model(x), y))
                    optimizer.zero_grad()
                    torch.stack(losses).sum().backward()
                    optimizer.step()
            """,
        ),
        Good(
            "log-probabilities of a policy gradient",
            """
            def train(policy, env, optimizer):
                saved_log_probs = []
                for episode in range(100):
                    state = env.reset()
                    for t in range(200):
                        probs = policy(state)
                        m = torch.distributions.Categorical(probs)
                        action = m.sample()
                        saved_log_probs.append(m.log_prob(action))
                        state, reward, done, _ = env.step(action)
                    loss = sum(-p * reward for p in saved_log_probs)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    del saved_log_probs[:]
            """,
        ),
        Good(
            "the loss becomes a number before it is added",
            """
            def train(model, loader, optimizer):
                total = 0
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
                    loss = loss.item()
                    total += loss
            """,
        ),
        Good(
            "the step function returns a number",
            """
            def train_step(model, x, y, optimizer):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                return loss.detach()

            def train(model, loader, optimizer):
                total = 0
                for x, y in loader:
                    loss = train_step(model, x, y, optimizer)
                    total += loss
                return total
            """,
        ),
        Good(
            "bounded: reset at every report",
            """
            def train(model, loader, optimizer):
                running = 0
                for i, (x, y) in enumerate(loader):
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
                    running += loss
                    if i % 10 == 0:
                        print(running.item())
                        running = 0
            """,
        ),
        Good(
            "truncated back-propagation through time",
            """
            def train(model, chunks, optimizer):
                for chunk in chunks:
                    loss = 0
                    hidden = None
                    for x, y in chunk:
                        output, hidden = model(x, hidden)
                        loss = loss + F.cross_entropy(output, y)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the last value only",
            """
            def train(model, loader, optimizer, log):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
                    log["loss"] = loss
            """,
        ),
        Good(
            "gradients of gradients",
            """
            def train(model, tasks, optimizer):
                for support, query in tasks:
                    optimizer.zero_grad()
                    total = 0
                    for x, y in support:
                        inner = F.mse_loss(model(x), y)
                        grads = torch.autograd.grad(inner, model.parameters(), create_graph=True)
                        total = total + sum(g.pow(2).sum() for g in grads)
                    total.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "Lightning detaches what it logs",
            """
            import lightning as L
            import torch

            class Lit(L.LightningModule):
                def training_step(self, batch, batch_idx):
                    x, y = batch
                    loss = torch.nn.functional.cross_entropy(self.net(x), y)
                    self.log("loss", loss)
                    return loss
            """,
        ),
        Good(
            "kept under no_grad",
            """
            def train(model, loader, optimizer):
                total = 0
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    with torch.no_grad():
                        total += F.cross_entropy(model(x), y)
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Yield the backward calls of a file that steps, and the running extremes of any."""
        steps = "step" in text
        for at in super().seek(text):
            if text.find("backward(", at, at + 16) >= 0:
                if steps:
                    yield at
            elif _is_in_loop(text, text.rfind("\n", 0, at) + 1):
                yield at

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look in each training loop for attached values put where they outlive a turn."""
        for loop in file.loops:
            for kept in _kept(loop):
                around = _outliving(kept, loop)
                if around is not None and self._is_harmful(kept, loop):
                    yield self._report(kept, around)
        for trace in file.traces:
            for kept, around in _running_extremes(trace):
                if not _is_back_propagated(kept, trace) and not _is_returned(kept, trace):
                    yield self._report(kept, around)

    def _is_harmful(self, kept: _Kept, loop: TrainingLoop) -> bool:
        losses = [backward.loss for backward in loop.backwards if backward.loss is not None]
        return (
            attached(kept.value, losses) is True
            and not _is_back_propagated(kept, loop.trace)
            and not _is_reset(kept, loop)
        )

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for graphs of many steps that lived at once, and whose holder has a name."""
        kept = run.kept_graphs
        if kept is None:
            return
        if kept.kind:
            cause = f"{listed(kept.names)} keeps the graph of each step: this {kept.kind} holds"
            cause += f" {kept.number} tensors with what computed them"
        else:
            keep = "keeps the graph" if len(kept.names) == 1 else "keep the graphs"
            cause = f"{listed(kept.names)} {keep} of each step: what computed"
            cause += f" {'it' if len(kept.names) == 1 else 'them'} goes back through"
            cause += f" {kept.number} steps"
        yield self.observation(
            cause, "keep the number alone: `loss.item()`, or `loss.detach()`", kept.where
        )

    def _report(self, kept: _Kept, around: Loop) -> Finding:
        return self.finding(
            kept.place,
            f"`{kept.event.text}` keeps the graph of every turn of `{around.header}`: "
            f"`{kept.text}` still holds the graph that computed it",
            f"keep the number only: `{_detached(kept)}`",
            Fix((Edit("append", kept.place, ".detach()"),), safe=True),
        )


def _is_in_loop(text: str, line: int) -> bool:
    """Whether a line keeps the extreme of itself and something in a loop of its function.

    A name that outlives its function may have its loop there.
    """
    extreme = _EXTREME.match(text, line)
    if extreme is None:
        return False
    if "nonlocal " in text or "global " in text:
        return True
    depth, is_looping = len(extreme[1]), False
    heads = list(_HEAD.finditer(text, 0, line))
    for head in reversed(heads):
        if len(head[1]) < depth:
            depth, kind = len(head[1]), head[2]
            if kind in ("def", "class"):
                return is_looping
            is_looping = True
    return is_looping


@dataclass(frozen=True, slots=True)
class _Kept:
    """A value that is put somewhere: into a total, a list, an attribute."""

    event: Event
    value: Value
    place: Place
    text: str
    #: Where the target was made; None if that is out of sight.
    made_in: Context | None
    #: What the value becomes part of.
    whole: tuple[Value, ...]
    target: str


def _detached(kept: _Kept) -> str:
    text = kept.text if kept.text.replace(".", "").replace("_", "").isalnum() else f"({kept.text})"
    return f"{text}.detach()"


def _kept(loop: TrainingLoop) -> Iterator[_Kept]:
    for store in loop.stores:
        if store.augmented == "+" and store.total is not None and store.kind != "item":
            yield _Kept(
                store,
                store.value,
                store.value_place,
                store.value_text,
                store.bound_in,
                (store.total,),
                store.target,
            )
        elif not store.augmented and store.kind == "name":
            yield from _re_added(store)
    for call in loop.calls:
        if call.method in _ADDING and call.receiver is not None and len(call.args) in (1, 2):
            yield from _added(call)


def _re_added(store: Store) -> Iterator[_Kept]:
    """`total = total + loss`: the addend is the value."""
    value = store.value
    if not (isinstance(value, Operation) and value.operator == "+"):
        return
    left, _, right = store.value_text.partition("+")
    if left.strip() == store.target:
        addend, text = value.operands[1], right.strip()
    elif right.strip() == store.target:
        addend, text = value.operands[0], left.strip()
    else:
        return
    yield _Kept(store, addend, store.value_place, text, store.bound_in, (value,), store.target)


def _running_extremes(trace: Trace) -> Iterator[tuple[_Kept, Loop]]:
    """`worst = torch.max(worst, loss)`: each turn hangs its graph onto the one before."""
    for store in trace.stores:
        value, loops = store.value, loops_of(store.context)
        if store.kind != "name" or not loops or not isinstance(value, Result):
            continue
        call = value.call
        if call.qualified not in _EXTREMES or call.argument_text(0) != store.target:
            continue
        if store.bound_in is None or loops[-1] in store.bound_in or call.argument(1) is None:
            continue
        if attached(call.args[1]) is True:
            yield (
                _Kept(
                    store,
                    call.args[1],
                    call.argument_place(1),
                    call.argument_text(1),
                    store.bound_in,
                    (value,),
                    store.target,
                ),
                loops[-1],
            )


def _is_returned(kept: _Kept, trace: Trace) -> bool:
    """Whether the whole leaves for a caller, who may back-propagate it."""
    return any(
        part is whole
        for event in trace.returns
        for part in origins(event.value)
        for whole in kept.whole
    )


def _added(call: Call) -> Iterator[_Kept]:
    position = len(call.args) - 1
    for option in options(call.receiver) if call.receiver is not None else ():
        if isinstance(option, Collection) and option.kind in ("list", "set", "dict"):
            yield _Kept(
                call,
                call.args[position],
                call.argument_place(position),
                call.argument_text(position),
                option.context,
                (option,),
                call.receiver_text,
            )


def _outliving(kept: _Kept, loop: TrainingLoop) -> Loop | None:
    """The innermost loop that the target outlives and that trains: it comes by a step each turn."""
    if kept.made_in is None:
        return None
    for around in reversed(loops_of(kept.event.context)):
        if around in kept.made_in:
            return None
        if around.kind == "comprehension" or loop.loop is None:
            continue
        if around is loop.loop or around in loop.context:
            return around
    return None


def _is_back_propagated(kept: _Kept, trace: Trace) -> bool:
    """Whether the whole that the value becomes part of reaches a backward, or may."""
    for event in trace.calls:
        if (
            event.method in ("backward", "manual_backward", "grad", "stack", "cat")
            or event.qualified == "builtins.sum"
        ):
            if event.method in ("stack", "cat") and not _reaches_backward(event, trace):
                continue
            for given in event.inputs:
                found = list(origins(given))
                if any(part is whole for part in found for whole in kept.whole):
                    return True
    return False


def _reaches_backward(call: Call, trace: Trace) -> bool:
    return any(
        getattr(part, "call", None) is call
        for backward in trace.calls
        if backward.method in ("backward", "manual_backward")
        for given in backward.inputs
        for part in origins(given)
    )


def _is_reset(kept: _Kept, loop: TrainingLoop) -> bool:
    """Whether the target is emptied or bound anew inside the loop that it outlives."""
    around = _outliving(kept, loop)
    for event in loop.trace.events:
        if around not in event.context or event is kept.event:
            continue
        if isinstance(event, Store) and event.target == kept.target and not event.augmented:
            if event is not kept.event and not _adds_to_itself(event):
                return True
        if isinstance(event, Call) and event.method in ("clear", "pop", "popleft"):
            if event.receiver_text == kept.target:
                return True
        if isinstance(event, Delete) and event.target.startswith(kept.target):
            return True
    return False


def _adds_to_itself(store: Store) -> bool:
    return isinstance(store.value, Operation) and store.target in store.value_text.split("+")[0]
