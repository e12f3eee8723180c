"""The rule `optimizer-in-loop`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import counted, title
from pytest_trainloop.rules._rule import Bad, Finding, Good, Observation, Rule
from pytest_trainloop.source.facts import (
    Branch,
    Call,
    Event,
    FileFacts,
    Instance,
    Loop,
    Operation,
    Parameter,
    Result,
    Returned,
    Store,
    TrainingLoop,
    Try,
    Value,
    constant,
    is_model,
    is_optimizer,
    is_out_of_order,
    loops_of,
    options,
    origins,
    same,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run


class OptimizerInLoop(Rule):
    """The optimizer is made anew at every batch or every epoch, for one and the same model.

    Symptom: noisy, slow convergence. Adam behaves as in its first step for ever: every
    parameter moves by the full learning rate, whatever its gradient.

    Why: momentum, Adam's averages and its step count live in the optimizer. A new one begins
    with none of them; a scheduler that was made for the old one no longer has any effect.

    What torch does: nothing. A new optimizer for an old model is legal.

    Limits: plain SGD without momentum keeps nothing, so it is not reported; nor are loops over
    anything but batches and epochs, where a new optimizer for each task, fold, client or image
    is usual.
    """

    since = "0.1"
    triggers = (".backward(|manual_backward(", "step", "optim|Adam|SGD", "parameters")
    sources = (
        "https://pytorch.org/docs/stable/optim.html#constructing-it",
        "https://github.com/alan-turing-institute/deepsensor/issues/47",
        "https://github.com/pythoncymetric/cymetric/issues/4",
        "https://github.com/OpenNMT/OpenNMT-py/issues/617",
        "https://github.com/facebookresearch/coconut/issues/39",
    )
    examples = (
        Bad(
            "a new optimizer every epoch",
            """
            def train(model, loader, epochs):
                for epoch in range(epochs):
                    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)  # error
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "one optimizer for the whole run",
            """
            def train(model, loader, epochs):
                optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Bad(
            "made anew in each of a thousand numbered steps",
            """
            def fit(x, y):
                model = nn.Linear(4, 1)
                target = nn.Linear(4, 1)
                for k in range(1000):
                    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)  # error
                    optimizer.zero_grad()
                    F.mse_loss(model(x) + target(x).detach(), y).backward()
                    optimizer.step()
                    target.load_state_dict(model.state_dict())
            """,
        ),
        Good(
            "the model itself begins anew each time",
            """
            def fit(x, y):
                model = nn.Linear(4, 1)
                start = copy.deepcopy(model.state_dict())
                for k in range(1000):
                    model.load_state_dict(start)
                    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
                    optimizer.zero_grad()
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "a few numbered tasks",
            """
            def fit(model, tasks):
                for k in range(5):
                    x, y = tasks[k]
                    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
                    optimizer.zero_grad()
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "for two models at once, and for each step",
            """
            import itertools
            import torch

            def fit(encoder, decoder, batches, steps):
                for step in range(steps):
                    both = itertools.chain(encoder.parameters(), decoder.parameters())
                    optimizer = torch.optim.Adam(both)  # error
                    x = next(batches)
                    optimizer.zero_grad()
                    torch.nn.functional.mse_loss(decoder(encoder(x)), x).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "in the function that trains one epoch",
            """
            def train_epoch(model, tasks, lr=5e-5):
                opt = torch.optim.Adam(model.parameters(), lr=lr)  # error
                losses = []
                for x, y in tasks:
                    opt.zero_grad()
                    loss = F.mse_loss(model(x), y)
                    loss.backward()
                    opt.step()
                    losses.append(loss.item())
                return losses

            def main(tasks):
                model = nn.Linear(4, 1)
                for epoch in range(100):
                    train_epoch(model, tasks)
            """,
        ),
        Bad(
            "a new optimizer at every batch",
            """
            def train(model, loader):
                for x, y in loader:
                    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)  # error
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "given, or made where it is not",
            """
            def train_epoch(model, tasks, opt=None):
                opt = opt or torch.optim.Adam(model.parameters())
                for x, y in tasks:
                    opt.zero_grad()
                    F.mse_loss(model(x), y).backward()
                    opt.step()

            def main(tasks):
                model = nn.Linear(4, 1)
                opt = torch.optim.Adam(model.parameters())
                for epoch in range(100):
                    train_epoch(model, tasks, opt)
            """,
        ),
        Good(
            "one image after the other",
            """
            def invert(net, images, steps):
                for image in images:
                    z = torch.zeros(1, 64, requires_grad=True)
                    optimizer = torch.optim.Adam([z], lr=0.01)
                    for _ in range(steps):
                        optimizer.zero_grad()
                        F.mse_loss(net(z), image).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "k folds with a new model each",
            """
            def cross_validate(make_model, folds, epochs):
                for fold in folds:
                    model = make_model()
                    optimizer = torch.optim.Adam(model.parameters())
                    for epoch in range(epochs):
                        for x, y in fold:
                            optimizer.zero_grad()
                            F.cross_entropy(model(x), y).backward()
                            optimizer.step()
            """,
        ),
        Good(
            "each client of a federation",
            """
            import copy
            import torch

            def federate(model, clients, rounds):
                for epoch in range(rounds):
                    for loader in clients:
                        local = copy.deepcopy(model)
                        optimizer = torch.optim.SGD(local.parameters(), lr=0.1, momentum=0.9)
                        for x, y in loader:
                            optimizer.zero_grad()
                            torch.nn.functional.cross_entropy(local(x), y).backward()
                            optimizer.step()
            """,
        ),
        Good(
            "LBFGS begins again at each batch",
            """
            def train(model, loader):
                for x, y in loader:
                    optimizer = torch.optim.LBFGS(model.parameters())

                    def closure():
                        optimizer.zero_grad()
                        loss = F.mse_loss(model(x), y)
                        loss.backward()
                        return loss

                    optimizer.step(closure)
            """,
        ),
        Good(
            "stages, with another rate and other parameters",
            """
            def train(model, loader, epochs, rates):
                for epoch in range(epochs):
                    if epoch == 10:
                        model.unfreeze()
                        optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
                    elif epoch == 0:
                        optimizer = torch.optim.Adam(model.head.parameters(), lr=1e-3)
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "a rate that falls by hand, without momentum",
            """
            def train(model, loader, epochs):
                for epoch in range(epochs):
                    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * 0.9**epoch)
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "its state is put back",
            """
            def train(model, loader, epochs, state):
                for epoch in range(epochs):
                    optimizer = torch.optim.Adam(model.parameters())
                    optimizer.load_state_dict(state)
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    state = optimizer.state_dict()
            """,
        ),
        Good(
            "the model begins again too",
            """
            def train(model, loader, epochs, start):
                for epoch in range(epochs):
                    model.load_state_dict(start)
                    optimizer = torch.optim.Adam(model.parameters())
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for optimizers that are made in a loop over batches or epochs that they serve."""
        for loop in file.loops:
            for made in _made_for(loop):
                around = _loop_of_batches_or_epochs(loop, made)
                if around is not None and _starts_anew(loop, made, around):
                    yield self._report(made, around)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for optimizers that are built again and again by the same calls."""
        again = [one.replaces for one in run.optimizers]
        for last, optimizer in enumerate(run.optimizers):
            times, at = 0, last
            while (before := again[at]) is not None and _goes_on(run, before, at):
                times, at = times + 1, before
            # Once more is no loop yet. Only the last of them speaks for all.
            if times < 2 or last in again or optimizer.kind == "LBFGS":  # noqa: PLR2004  # as said
                continue
            yield self.observation(
                f"{title(optimizer)} is built anew {times} times over the same parameters: what it"
                " has learned of them is lost each time",
                "build it once, before the loop",
                optimizer.built,
                (f"each made {counted(optimizer.steps, 'step')}",),
            )

    def _report(self, made: Call, around: Loop) -> Finding:
        return self.finding(
            made.place,
            f"`{made.name}` is made anew in each turn of `{around.header}`, so its averages and "
            "step counts are lost each time, while the model goes on",
            f"make it once, before `{around.header}`",
        )


def _made_for(loop: TrainingLoop) -> Iterator[Call]:
    """The calls in sight that make the optimizers that the loop steps."""
    for optimizer in loop.optimizers:
        ways = options(optimizer)
        if len(ways) == 1 and isinstance(ways[0], Result):
            call = ways[0].call
            if call.qualified.startswith("torch.optim.") and is_optimizer(ways[0]):
                yield call


def _loop_of_batches_or_epochs(loop: TrainingLoop, made: Call) -> Loop | None:
    """The innermost loop that makes the optimizer, if its turns are batches or epochs."""
    around = [frame for frame in loops_of(made.context) if frame.kind != "comprehension"]
    if not around or is_out_of_order(loop, made) or _is_conditional(made, around[-1]):
        return None
    if around[-1] is loop.loop and around[-1].kind == "for":
        counts = _COUNTS_STEPS.search(around[-1].header) or _counts_far(around[-1])
        return around[-1] if counts or _runs_over_batches(around[-1]) else None
    enclosing = [frame for frame in loops_of(loop.context) if frame is not loop.loop]
    if not enclosing or enclosing[-1] is not around[-1]:
        return None
    return around[-1] if _COUNTS_EPOCHS.search(around[-1].header) else None


_COUNTS_EPOCHS = re.compile(
    r"^for \(?_?(?:i_?)?epoch\w*\b|^for (?:e|ep) in (?:tqdm\()?t?range\("
    r"|^for \w+ in (?:tqdm\()?t?range\([^)]*epochs?\b"
)
_COUNTS_STEPS = re.compile(
    r"^for (?:\w*step|\w*iter(?:ation)?|it|t) in (?:tqdm\()?t?range\("
    r"|^for \w+ in (?:tqdm\()?t?range\([^()]*(?:steps|iter)\w*\b"
)
_BATCHES = re.compile(r"\b\w*(?:loader|batch|dataset|epoch)\w*\b", re.IGNORECASE)


#: More turns than there are folds, seeds or tasks.
_MANY = 50


def _counts_far(loop: Loop) -> bool:
    """Whether the turns are numbered, and so many that each of them can only be a step."""
    numbered = re.search(r"^for \w+ in (?:tqdm\()?t?range\((\d+)\)", loop.header)
    return numbered is not None and int(numbered[1]) >= _MANY


def _runs_over_batches(loop: Loop) -> bool:
    return bool(_BATCHES.search(loop.header))


def _is_conditional(made: Call, around: Loop) -> bool:
    inner = made.context[made.context.index(around) :]
    return any(isinstance(frame, Branch | Try) for frame in inner)


def _starts_anew(loop: TrainingLoop, made: Call, around: Loop) -> bool:
    """Whether what an optimizer keeps is lost, though the model stays."""
    if not _keeps_something(made) or _depends_on_turn(made, around):
        return False
    models = _models(made)
    if not models or any(_is_made_in(model, around) for model in models):
        return False
    turn = made.context[: made.context.index(around) + 1]
    return not any(_resets(event, models) for event in loop.trace.inside(turn))


def _keeps_something(made: Call) -> bool:
    """Whether the optimizer has a state: not plain SGD, not one that begins again anyway."""
    if made.method == "SGD":
        momentum = made.argument(2, "momentum")
        return momentum is not None and constant(momentum) not in (0, 0.0)
    return made.method not in ("LBFGS", "Rprop") and not made.starred


def _models(made: Call) -> list[Value]:
    """The models whose `parameters()` the optimizer is given, if it is given nothing else."""
    given = made.argument(0, "params")
    found = _sources(given) if given is not None else None
    return found or []


def _sources(given: Value) -> list[Value] | None:
    """The models behind `a.parameters()`, or a chain or a list of such; None for anything else."""
    if len(options(given)) != 1:
        return None
    value = options(given)[0]
    if isinstance(value, Result) and value.call.method == "parameters":
        return [value.call.receiver] if value.call.receiver is not None else None
    if isinstance(value, Result) and value.call.qualified in _JOINING and not value.call.starred:
        parts: tuple[Value, ...] = value.call.args
    elif isinstance(value, Operation) and value.operator == "+":
        parts = value.operands
    else:
        return None
    found = [_sources(part) for part in parts]
    return [model for models in found for model in models or ()] if all(found) else None


_JOINING = frozenset({"itertools.chain", "builtins.list"})


def _depends_on_turn(made: Call, around: Loop) -> bool:
    """Whether an argument is another one in each turn: a rate or a group of parameters."""
    texts = " ".join(made.argument_text(None, name) for name in made.keywords)
    texts += " ".join(made.argument_text(position) for position in range(1, len(made.args)))
    return any(re.search(rf"\b{re.escape(name)}\b", texts) for name in around.targets)


def _is_made_in(model: Value, around: Loop) -> bool:
    """Whether the model, or something it was made from, was made within the loop."""
    for value in origins(model, 60):
        if isinstance(value, Result | Returned) and around in value.call.context:
            return True
        if isinstance(value, Instance) and value.call is not None:
            if around in value.call.context:
                return True
    return not all(_is_older(option) for option in options(model))


def _is_older(model: Value) -> bool:
    return is_model(model) or isinstance(model, Parameter | Instance)


#: Methods of a model that leave it the model that it is.
_HARMLESS = re.compile(r"train|eval|parameters|zero_grad|state_dict|to|cuda|cpu|forward")


def _resets(event: Event, models: list[Value]) -> bool:
    """Whether the event puts a state back, or makes the model another one, or may."""
    if isinstance(event, Store):
        return event.kind == "attribute" and any(
            event.owner is not None and same(event.owner, model) for model in models
        )
    if not isinstance(event, Call):
        return False
    receiver = event.receiver
    if event.method == "load_state_dict":
        return receiver is None or not _is_another(receiver, models)
    if "prune" in event.method or "reset" in event.method:
        return True
    if (
        receiver is None
        or event.followed
        or _HARMLESS.fullmatch(event.method)
        or not event.discarded
    ):
        return False
    return any(same(receiver, model) for model in models)


def _is_another(model: Value, models: list[Value]) -> bool:
    """Whether a model is known to be made apart from the others: no part or wrapper of them."""
    if not all(
        isinstance(option, Instance | Result) and is_model(option) for option in options(model)
    ):
        return False
    behind = list(origins(model, 60))
    return not any(
        same(model, other) or any(same(part, other) for part in behind) for other in models
    )


def _goes_on(run: Run, old: int, new: int) -> bool:
    """Whether one optimizer carries on with the state-keeping work of another, at its rate."""
    before, after = run.steps_of(old), run.steps_of(new)
    return (
        run.optimizers[old].stateful
        and bool(before and after)
        and before[0].learning_rates == after[0].learning_rates
    )
