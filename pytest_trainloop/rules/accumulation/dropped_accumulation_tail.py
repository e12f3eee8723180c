"""The rule `dropped-accumulation-tail`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._rule import Bad, Finding, Good, Observation, Rule
from pytest_trainloop.source.facts import (
    Accumulation,
    Collection,
    Constant,
    Element,
    FileFacts,
    Loop,
    Operation,
    Result,
    TrainingLoop,
    Value,
    accumulations,
    cleared,
    constant,
    is_out_of_order,
    may_do_anything,
    origins,
    same,
    spelling,
    stepped_optimizer,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Backward, Run

#: `assert len(loader) % k == 0`, or a branch for the case that it is not.
_CHECK = re.compile(r"^\s*(?:assert|if|elif)\b.*\blen\(.*%")
_ENDLESS = re.compile(r"cycle|infinite|endless|forever|repeat|islice", re.IGNORECASE)


class DroppedAccumulationTail(Rule):
    """The micro-batches left over at the end of an epoch are not applied with a step.

    Symptom: with 63 batches and 8 micro-batches an update, the last 7 batches of every epoch
    are lost; or, where nothing clears their gradients, the first update of the next epoch
    sums up 15 of them. With fewer batches than micro-batches nothing is learned at all.

    Why: the step depends on the number of the batch alone, `(i + 1) % k == 0`, and that number
    begins again with each epoch.

    What torch does: nothing. The gradients wait in `.grad` for whatever comes next.

    Limits: off by default. Where the number of batches is always a multiple of `k` the code is
    right, and that cannot be seen in the source; with shuffled data a few lost batches an epoch
    may be meant. A count that goes on from epoch to epoch is not reported, nor is a loader that
    never ends.
    """

    since = "0.1"
    default = False
    precise_in_runs = True
    triggers = (".backward(|manual_backward(", "step", "%", "enumerate")
    sources = (
        "https://github.com/meta-pytorch/torchtune/pull/2745",
        "https://github.com/timoschick/pet/issues/36",
        "https://github.com/tomhosking/torchseq/issues/8",
        "https://github.com/ultralytics/ultralytics/issues/11217",
    )
    examples = (
        Bad(
            "the step depends on the number of the batch alone",
            """
            def train(model, loader, optimizer, k, epochs):
                for epoch in range(epochs):
                    for i, (x, y) in enumerate(loader):
                        (F.cross_entropy(model(x), y) / k).backward()
                        if (i + 1) % k == 0:  # error
                            optimizer.step()
                            optimizer.zero_grad()
            """,
        ),
        Good(
            "the last batch steps too",
            """
            def train(model, loader, optimizer, k, epochs):
                for epoch in range(epochs):
                    for i, (x, y) in enumerate(loader):
                        (F.cross_entropy(model(x), y) / k).backward()
                        if (i + 1) % k == 0 or i + 1 == len(loader):
                            optimizer.step()
                            optimizer.zero_grad()
            """,
        ),
        Bad(
            "the left-over gradients are cleared at the start of the next epoch",
            """
            class Trainer:
                def fit(self, epochs):
                    for epoch in range(epochs):
                        self.optimizer.zero_grad()
                        for step, batch in enumerate(self.loader):
                            loss = self.model(**batch).loss / self.args.gradient_accumulation_steps
                            loss.backward()
                            if step % self.args.gradient_accumulation_steps == 0:  # error
                                self.optimizer.step()
                                self.optimizer.zero_grad()
            """,
        ),
        Bad(
            "skipped with `continue`",
            """
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    (F.cross_entropy(model(x), y) / k).backward()
                    if (i + 1) % k != 0:  # error
                        continue
                    optimizer.step()
                    optimizer.zero_grad()
            """,
        ),
        Good(
            "what is left over is applied after the loop",
            """
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    (F.cross_entropy(model(x), y) / k).backward()
                    if (i + 1) % k == 0:
                        optimizer.step()
                        optimizer.zero_grad()
                if (i + 1) % k != 0:
                    optimizer.step()
                    optimizer.zero_grad()
            """,
        ),
        Good(
            "the loader gives a multiple of k batches",
            """
            def train(model, dataset, optimizer, k):
                whole = len(dataset) // (32 * k) * (32 * k)
                subset = torch.utils.data.Subset(dataset, range(whole))
                loader = torch.utils.data.DataLoader(subset, batch_size=32, drop_last=True)
                assert len(loader) % k == 0
                for i, (x, y) in enumerate(loader):
                    (F.cross_entropy(model(x), y) / k).backward()
                    if (i + 1) % k == 0:
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Good(
            "the loader never ends",
            """
            from itertools import cycle

            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(cycle(loader)):
                    (model(x) - y).square().mean().div(k).backward()
                    if (i + 1) % k == 0:
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Good(
            "Accelerate steps at the end of the loader",
            """
            from accelerate import Accelerator

            accelerator = Accelerator(gradient_accumulation_steps=4)

            def train(model, loader, optimizer):
                for i, batch in enumerate(loader):
                    with accelerator.accumulate(model):
                        accelerator.backward(model(**batch).loss)
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Good(
            "the count goes on from epoch to epoch",
            """
            def train(model, loader, optimizer, k, epochs):
                count = 0
                for epoch in range(epochs):
                    for x, y in loader:
                        (F.cross_entropy(model(x), y) / k).backward()
                        count += 1
                        if count % k == 0:
                            optimizer.step()
                            optimizer.zero_grad()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for steps that depend on the number of the batch alone."""
        for loop in file.loops:
            for accumulation in accumulations(loop):
                if _depends_on_number_alone(accumulation) and not _is_flushed(accumulation):
                    yield self._report(accumulation)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for micro-batches that are left at the end of an epoch.

        They are cleared before anything used them, or they make the next update a larger
        one. A loop that counts on over the epochs uses them as it uses all others.
        """
        from pytest_trainloop.runtime.record import Backward, Clearing, EpochEnd
        from pytest_trainloop.runtime.record import Step as RunStep

        usual = _usual_number(run)
        if usual is None:
            return
        waiting: list[Backward] = []
        left: list[Backward] = []
        seen = 0
        for event in run.events:
            if isinstance(event, Backward):
                waiting.append(event)
                seen += 1
            elif isinstance(event, EpochEnd):
                # Where batches are fetched ahead, this is not the end of the epoch's last turn.
                if seen != event.batches:
                    return
                seen = 0
                left = list(waiting) if len(waiting) < usual else []
            elif isinstance(event, RunStep):
                if left and len(event.backwards) == usual + len(left):
                    fate = "make the first update of the next epoch a larger one"
                    yield self._left(left, usual, fate)
                    return
                waiting, left = [], []
            elif isinstance(event, Clearing) and left and len(left) == len(waiting):
                yield self._left(left, usual, "are cleared before any update used them")
                return

    def _left(self, left: list[Backward], usual: int, fate: str) -> Observation:
        return self.observation(
            f"{len(left)} of {usual} micro-batches are left at the end of an epoch, and {fate}",
            "step also at the last batch of an epoch, or let the loader drop what does not fit",
            left[-1].where,
        )

    def _report(self, accumulation: Accumulation) -> Finding:
        step, count = accumulation.step, accumulation.modulus_text
        return self.finding(
            accumulation.guard_place,
            f"`{step.call.text}` depends on `{accumulation.header}` alone, so the last batches "
            f"of an epoch are left without a step where their number is no multiple of `{count}`",
            "step at the last batch too (`or i + 1 == len(loader)`), or once more after the loop",
        )


def _depends_on_number_alone(accumulation: Accumulation) -> bool:
    """Whether the condition is a remainder of the number that `enumerate` gives the batch."""
    loop, guard = accumulation.loop, accumulation.guard
    if (
        guard is None
        or loop.loop is None
        or accumulation.is_managed
        or not accumulation.modulus_text
    ):
        return False
    if constant(accumulation.modulus) == 1 or is_out_of_order(loop, accumulation.step.call):
        return False
    if not accumulation.is_reset_by_step or any(
        accumulation.is_every_time(step.call) for step in loop.steps
    ):
        return False
    counted = _counted(guard.test)
    return counted is not None and _is_finite(loop.loop) and _is_number(counted, loop.loop)


def _counted(test: Value) -> Value | None:
    """What `(i + 1) % k == 0` takes the remainder of; None if the condition holds more."""
    if isinstance(test, Operation) and test.operator in ("eq", "noteq", "not"):
        remainder = test.operands[0]
        if isinstance(remainder, Operation) and remainder.operator == "%":
            return remainder.operands[0]
    if isinstance(test, Operation) and test.operator == "%":
        return test.operands[0]
    return None


def _is_number(value: Value, loop: Loop) -> bool:
    """Whether a value is the number of the turn, plus or minus a constant."""
    if isinstance(value, Operation) and value.operator in ("+", "-"):
        return any(_is_number(operand, loop) for operand in value.operands) and all(
            isinstance(operand, Constant) or _is_number(operand, loop) for operand in value.operands
        )
    base = value.base if isinstance(value, Element) else None
    return isinstance(base, Result) and base.call.qualified == "builtins.enumerate"


def _is_finite(loop: Loop) -> bool:
    """Whether the loop goes over something that ends, of a length that is not known."""
    if loop.kind != "for":
        return False
    for value in origins(loop.source, 60):
        if isinstance(value, Result) and (
            _ENDLESS.search(value.call.name) or value.call.qualified == "builtins.range"
        ):
            return False
        if _ENDLESS.search(spelling(value)) or isinstance(value, Collection):
            return False
    return True


def _is_flushed(accumulation: Accumulation) -> bool:
    """Whether something after the loop, or about its length, takes care of the rest."""
    loop, optimizer = accumulation.loop, accumulation.step.optimizer
    for call in loop.trace.calls:
        if loop.loop in call.context:
            continue
        if call.index > accumulation.step.call.index:
            stepped = stepped_optimizer(call)
            if stepped is not None and same(stepped, optimizer):
                return True
            if may_do_anything(call, optimizer) and cleared(call) is None:
                return True
    return _knows_length(loop)


def _knows_length(loop: TrainingLoop) -> bool:
    """Whether the program checks the remainder of a length before the loop."""
    return any(
        call.qualified == "builtins.len"
        and loop.loop not in call.context
        and _CHECK.search(call.file.lines[call.line - 1])
        for call in loop.trace.calls
    )


def _usual_number(run: Run) -> int | None:
    """How many backward calls most updates of a run are made of, if more than one."""
    numbers = [len(step.backwards) for step in run.steps]
    if len(run.optimizers) != 1 or not numbers:
        return None
    usual = max(set(numbers), key=numbers.count)
    often = numbers.count(usual) * 2 > len(numbers)
    return usual if usual > 1 and often and numbers[0] == usual else None
