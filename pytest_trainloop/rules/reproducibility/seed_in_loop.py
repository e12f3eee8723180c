"""The rule `seed-in-loop`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import (
    Attribute,
    Branch,
    Call,
    Constant,
    Context,
    Event,
    FileFacts,
    Imported,
    Inside,
    Instance,
    Loop,
    Operation,
    Parameter,
    Result,
    Trace,
    TrainingLoop,
    Unknown,
    Value,
    With,
    global_seed,
    gradients,
    loops_of,
    options,
    origins,
    trains_automatically,
)

if TYPE_CHECKING:
    from pytest_trainloop.rules._rule import Observation
    from pytest_trainloop.runtime.record import Run
    from pytest_trainloop.runtime.sightings import Seeding

#: Functions that are seeded for a reason of their own: what they draw is to be compared.
_APART = re.compile(r"eval|valid|test|sampl|infer|generat|predict|visual|plot|log|benchmark")
_PUTS_BACK = re.compile(r"set_rng_state|setstate|set_state|restore\w*(?:rng|seed|state)|fork_rng")
_COMPARISONS = frozenset({"eq", "noteq", "lt", "lte", "gt", "gte", "is", "isnot", "in", "notin"})
_CONVERSIONS = frozenset({"builtins.int", "builtins.abs"})


class SeedInLoop(Rule):
    """The random numbers are reset in each turn of the training loop.

    Symptom: the loss falls in a regular saw tooth, or the model learns less than the data
    holds: every epoch shuffles, augments and drops out exactly like the one before.

    Why: a seed decides all random numbers that come after it. Set anew in each turn to the
    same value, it makes each turn draw the same ones.

    What torch does: nothing. `torch.manual_seed` resets the stream that the whole program
    shares, also where it is called only for the generator that it returns.

    Limits: a seed that changes with the epoch is what the rule asks for. A seed inside an
    evaluation, or one whose stream is put back afterwards, is not reported. In a run,
    only a seed of torch is seen, and only if the training draws from it.
    """

    since = "0.1"
    triggers = ("seed(|set_seed|seed_everything", ".backward(|manual_backward(|training_step|step(")
    sources = (
        "https://pytorch.org/docs/stable/notes/randomness.html",
        "https://github.com/k2-fsa/icefall/pull/221",
        "https://github.com/huggingface/diffusers/issues/175",
        "https://github.com/LucaOne/LucaOne/issues/124",
    )
    examples = (
        Bad(
            "each epoch begins with the same seed",
            """
            def train(model, loader, optimizer, epochs, seed):
                for epoch in range(epochs):
                    torch.manual_seed(seed)  # error
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "seeded once, before the loop",
            """
            def train(model, loader, optimizer, epochs, seed):
                torch.manual_seed(seed)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Bad(
            "a generator for sample images resets the shared stream",
            """
            def train(model, loader, optimizer, pipeline, epochs):
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.mse_loss(model(x), y).backward()
                        optimizer.step()
                    if epoch % 10 == 9:
                        generator = torch.manual_seed(0)  # error
                        pipeline(generator=generator).save(f"{epoch}.png")
            """,
        ),
        Bad(
            "a function of the same file seeds every batch",
            """
            import random
            import numpy as np
            import torch
            import torch.nn.functional as F

            def fix_seeds(seed):
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)

            def train(args, model, loader, optimizer):
                for x, y in loader:
                    fix_seeds(args.seed)  # error
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "in Lightning's training step",
            """
            import lightning as L
            import torch

            class Lit(L.LightningModule):
                def training_step(self, batch, batch_idx):
                    L.seed_everything(42)  # error
                    x, y = batch
                    return torch.nn.functional.cross_entropy(self.net(x), y)

                def configure_optimizers(self):
                    return torch.optim.Adam(self.parameters())
            """,
        ),
        Good(
            "a seed that changes with the epoch",
            """
            def train(model, loader, optimizer, epochs, seed):
                for epoch in range(epochs):
                    torch.manual_seed(seed + epoch)
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "a seed that is counted up",
            """
            def train(model, loader, optimizer, epochs):
                seed = 0
                for epoch in range(epochs):
                    torch.manual_seed(seed)
                    seed += 1
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "an evaluation that draws the same noise each time",
            """
            def evaluate(model, loader):
                torch.manual_seed(0)
                model.eval()
                with torch.no_grad():
                    total = sum(F.mse_loss(model(x), y).item() for x, y in loader)
                model.train()
                return total

            def train(model, loader, held_out, optimizer, epochs):
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.mse_loss(model(x), y).backward()
                        optimizer.step()
                    print(evaluate(model, held_out))
            """,
        ),
        Good(
            "the stream is put back",
            """
            def train(model, loader, optimizer, epochs):
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.mse_loss(model(x), y).backward()
                        optimizer.step()
                    with torch.random.fork_rng():
                        torch.manual_seed(0)
                        print(torch.randn(3))
                    state = torch.get_rng_state()
                    torch.manual_seed(0)
                    print(torch.randn(3))
                    torch.set_rng_state(state)
            """,
        ),
        Good(
            "a generator of its own",
            """
            def train(model, loader, optimizer, pipeline, epochs):
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.mse_loss(model(x), y).backward()
                        optimizer.step()
                    pipeline(generator=torch.Generator().manual_seed(0))
            """,
        ),
        Good(
            "one training after the other, each from the same seed",
            """
            def compare(make_model, loader, rates):
                for rate in rates:
                    torch.manual_seed(0)
                    model = make_model()
                    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "one training for each of several seeds",
            """
            def repeat(model, loader, optimizer, seeds):
                for seed in seeds:
                    torch.manual_seed(seed)
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "in the first epoch only",
            """
            def train(model, loader, optimizer, epochs):
                for epoch in range(epochs):
                    if epoch == 0:
                        torch.manual_seed(0)
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look in the loops around each training loop for a seed that no turn changes."""
        for loop in file.loops:
            yield from self._in_loop(loop)
        for trace in file.traces:
            if trains_automatically(trace):
                yield from self._in_training_step(trace)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for a seed that the same calls set again while the same optimizer goes on."""
        from pytest_trainloop.runtime.sightings import Seeding, StateLoad

        # Where weights are put back too, one training after another begins alike on purpose.
        if run.frozen or run.all(StateLoad):
            return
        seedings: dict[tuple[object, int], list[Seeding]] = {}
        for one in run.all(Seeding):
            seedings.setdefault((one.calls, one.seed), []).append(one)
        for (_, seed), repeated in seedings.items():
            stepped = [index for one in repeated for index in _stepped_after(run, one)]
            times = max(map(stepped.count, stepped), default=0)
            if times > 1:
                yield self.observation(
                    f"the seed {seed} is set again while training goes on: {times} times, what is"
                    " trained next draws the same random numbers",
                    _ADVICE,
                    repeated[-1].where,
                )

    def _in_loop(self, training: TrainingLoop) -> Iterator[Finding]:
        around = [loop for loop in loops_of(training.context) if _trains_on(training, loop)]
        for call in training.trace.calls:
            seed = global_seed(call)
            inner = [loop for loop in around if loop in call.context]
            if seed is None or not inner or not _resets(training.trace, call, seed, inner[-1]):
                continue
            shown = _at_surface(call, inner[-1])
            yield self.finding(
                shown.place,
                f"`{shown.text}` resets the random numbers in each turn of "
                f"`{inner[-1].header}`: every turn shuffles, augments and drops out alike",
                _ADVICE,
            )

    def _in_training_step(self, trace: Trace) -> Iterator[Finding]:
        for call in trace.calls:
            seed = global_seed(call)
            if seed is None or not _is_invariant(seed) or _is_apart(call, call.context):
                continue
            shown = _at_surface(call, None)
            yield self.finding(
                shown.place,
                f"`{shown.text}` resets the random numbers at each batch: every training step "
                "augments and drops out alike",
                _ADVICE,
            )


_ADVICE = (
    "seed once, before the training loop; where one draw must repeat, give it a generator of "
    "its own: `torch.Generator().manual_seed(seed)`"
)


def _stepped_after(run: Run, seeding: Seeding) -> set[int]:
    """The optimizers that step with what is drawn from a seed, before it is set again."""
    from pytest_trainloop.runtime.record import Step
    from pytest_trainloop.runtime.sightings import Seeding

    found: set[int] = set()
    begun = False
    for event in run.events:
        if event is seeding:
            begun = True
        elif begun and isinstance(event, Seeding):
            break
        elif begun and isinstance(event, Step):
            found.add(event.optimizer)
    return found


def _trains_on(training: TrainingLoop, loop: Loop) -> bool:
    """Whether the loop goes on with one training, rather than begin another in each turn."""
    if loop.kind == "comprehension":
        return False
    return not any(
        loop in option.call.context
        for step in training.steps
        for option in options(step.optimizer)
        if isinstance(option, Result) or (isinstance(option, Instance) and option.call is not None)
        if option.call is not None
    )


def _resets(trace: Trace, call: Call, seed: Value, loop: Loop) -> bool:
    """Whether a seeding gives each turn of the loop the same random numbers."""
    inner = call.context[call.context.index(loop) + 1 :]
    if not _is_invariant(seed) or _is_apart(call, inner):
        return False
    events = [event for event in trace.events if loop in event.context]
    return not _changes(call, loop, events) and not any(
        isinstance(event, Call) and _PUTS_BACK.search(event.method) for event in events
    )


def _is_invariant(seed: Value) -> bool:
    """Whether the seed is made of nothing that a loop or a call brings anew."""
    return all(
        isinstance(origin, Constant | Parameter | Unknown | Attribute | Imported | Operation)
        or (isinstance(origin, Instance) and origin.call is None)
        or (isinstance(origin, Result) and origin.call.qualified in _CONVERSIONS)
        or (isinstance(origin, Result) and origin.call.method == "parse_args")
        for origin in origins(seed)
    )


def _changes(call: Call, loop: Loop, events: list[Event]) -> bool:
    """Whether the loop binds a name, or an attribute, that the seeding mentions."""
    shown = _at_surface(call, loop)
    mentioned = {shown.text, call.text}
    return any(
        re.search(rf"(?<![\w.]){re.escape(target)}(?!\w)", text)
        for target in (*_bound(events), *loop.targets)
        for text in mentioned
    )


def _bound(events: list[Event]) -> Iterator[str]:
    for event in events:
        target = getattr(event, "target", "")
        if isinstance(target, str) and target:
            yield target


def _is_apart(call: Call, inner: Context) -> bool:
    """Whether what is drawn after the seed is meant to be the same, or the stream is put back."""
    if gradients(call.context) is not True:
        return True
    for frame in inner:
        if isinstance(frame, Inside) and _APART.search(frame.function.name.lower()):
            return True
        if isinstance(frame, With) and any(_keeps_stream(value) for value in frame.managers):
            return True
        if isinstance(frame, Branch) and _is_once(frame):
            return True
    return False


def _keeps_stream(manager: Value) -> bool:
    return any(
        isinstance(option, Result) and re.search(r"rng|seed|fork|random", option.call.name)
        for option in options(manager)
    )


def _is_once(branch: Branch) -> bool:
    """Whether a branch compares, other than by a remainder: it may be taken only once."""
    operators = {
        origin.operator for origin in origins(branch.test) if isinstance(origin, Operation)
    }
    return bool(operators & _COMPARISONS) and "%" not in operators


def _at_surface(call: Call, loop: Loop | None) -> Call:
    """Where the loop's own body comes to the seeding: itself, or the call that leads to it."""
    start = call.context.index(loop) + 1 if loop is not None else 1
    for frame in call.context[start:]:
        if isinstance(frame, Inside) and frame.call is not None:
            return frame.call
    return call
