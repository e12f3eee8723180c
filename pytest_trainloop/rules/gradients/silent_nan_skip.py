"""The rule `silent-nan-skip`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import title
from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import (
    Branch,
    Call,
    Delete,
    Event,
    FileFacts,
    Leave,
    Operation,
    Result,
    TrainingLoop,
    Value,
    before,
    is_clearing,
    is_clip,
    options,
    origins,
)

if TYPE_CHECKING:
    from pytest_trainloop.rules._rule import Observation
    from pytest_trainloop.runtime.record import Backward, Run

_ASKS = frozenset({"isnan", "isfinite", "isinf", "is_nan", "has_nan", "is_finite"})
#: Calls that leave no trace of the skip behind.
_QUIET = frozenset({"empty_cache", "collect", "synchronize", "update", *_ASKS})
_TELLS = re.compile(
    r"print|log|info|debug|warn|error|add_|update|append|write|set_|record|meter|report|track",
    re.IGNORECASE,
)


#: Losses at the end of a run that show that it will not recover.
_DEAD = 8


class SilentNanSkip(Rule):
    """Batches whose loss is not finite are skipped without a word.

    Symptom: a run that broke down hours ago looks like one that trains: no error, no line in
    the log, and a checkpoint at the end.

    Why: once a weight is not a number, every loss is, and every batch is skipped. Also where
    few are, it is the hard batches that go, and nobody knows how many.

    What torch does: nothing; `torch.autograd.set_detect_anomaly(True)` finds where it begins.

    Limits: a skip that is counted, logged or limited is a decision, and not reported; nor are
    the steps that a gradient scaler skips. In a run, only one that never recovers is reported:
    its last eight losses and more are left out.
    """

    since = "0.1"
    triggers = (
        "isnan|isfinite|isinf|is_nan|has_nan|is_finite",
        ".backward(|manual_backward(",
        "continue",
    )
    sources = (
        "https://pytorch.org/docs/stable/autograd.html#anomaly-detection",
        "https://github.com/karpathy/nanoGPT/pull/227",
        "https://github.com/WalkingMeatAxolotl/AnimaLoraStudio/issues/486",
        "https://github.com/automl/TFM-Playground/issues/20",
    )
    examples = (
        Bad(
            "a loss that is not a number is passed over",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    if torch.isnan(loss):
                        continue  # error
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "skipped, counted and limited",
            """
            def train(model, loader, optimizer):
                skipped = 0
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    if torch.isnan(loss):
                        skipped += 1
                        if skipped > 10:
                            raise RuntimeError("the loss is not a number")
                        continue
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "the gradients of the good micro-batches go too",
            """
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    loss = F.cross_entropy(model(x), y) / k
                    if torch.isnan(loss) or torch.isinf(loss):
                        optimizer.zero_grad()
                        continue  # error
                    loss.backward()
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Bad(
            "asked the other way round, of a number",
            """
            import math
            import torch.nn.functional as F

            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.mse_loss(model(x), y)
                    if math.isfinite(loss.item()):
                        loss.backward()
                        optimizer.step()
                    else:
                        continue  # error
            """,
        ),
        Bad(
            "asked of the gradients' norm",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.mse_loss(model(x), y).backward()
                    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    if not torch.isfinite(norm):
                        continue  # error
                    optimizer.step()
            """,
        ),
        Good(
            "skipped with a warning",
            """
            def train(model, loader, optimizer):
                for i, (x, y) in enumerate(loader):
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    if not torch.isfinite(loss):
                        print(f"batch {i}: the loss is {loss.item()}, skipped")
                        continue
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "every loss is logged, so this one too",
            """
            def train(model, loader, optimizer, writer):
                for i, (x, y) in enumerate(loader):
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    writer.add_scalar("loss", loss.item(), i)
                    if torch.isnan(loss):
                        continue
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the run ends",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    if torch.isnan(loss):
                        raise FloatingPointError("the loss is not a number")
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "samples that are announced as bad",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    if torch.isnan(x).any():
                        continue
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "a scaler that skips and lowers its scale",
            """
            def train(model, loader, optimizer, scaler):
                for x, y in loader:
                    optimizer.zero_grad()
                    with torch.autocast("cuda"):
                        loss = F.cross_entropy(model(x), y)
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for a `continue` that only a loss, or a norm, that is not finite comes by."""
        for loop in file.loops:
            for event in loop.events:
                if isinstance(event, Leave) and event.kind == "continue":
                    branch = event.context[-1]
                    if isinstance(branch, Branch) and _skips_silently(loop, event, branch):
                        yield self._report(event, branch)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for an end of a run in which no loss was finite, and no update was made."""
        from pytest_trainloop.runtime.record import Backward, Step

        steps = run.steps
        left_out: list[Backward] = []
        for event in reversed(run.events):
            if isinstance(event, Step):
                break
            if isinstance(event, Backward):
                left_out.insert(0, event)
        if not steps or len(left_out) < _DEAD or not all(map(_is_broken, left_out)):
            return
        optimizer = run.optimizers[steps[-1].optimizer]
        yield self.observation(
            f"the last {len(left_out)} losses are not finite, and all of them are left out: the"
            f" run went on for nothing after step {steps[-1].number} of {title(optimizer)}",
            "let the loop stop, or at least count and report what it leaves out; look for the first"
            " loss that is not finite",
            left_out[0].where,
        )

    def _report(self, event: Leave, branch: Branch) -> Finding:
        return self.finding(
            event.place,
            f"`continue` passes a batch over, by `{branch.test_text}`, without a count or a word "
            "in the log: if every batch is passed over, the run still looks finished",
            "count the skipped batches, log them, and raise an error where there are too many",
        )


def _is_broken(backward: Backward) -> bool:
    """Whether a loss is not finite, and not just because it was scaled too much."""
    loss = backward.loss
    return loss is not None and (math.isnan(loss) or (math.isinf(loss) and backward.scale == 1.0))


def _skips_silently(loop: TrainingLoop, event: Leave, branch: Branch) -> bool:
    asked = [value for value in _asked(branch.test) if _is_of_training(loop, value)]
    if not asked or not loop.guards(event) or loop.inner_loops(event):
        return False
    arm = [other for other in loop.events if branch in other.context]
    if not all(_is_quiet(other) for other in arm):
        return False
    return not any(_tells(call, value) for call in before(loop.calls, event) for value in asked)


def _asked(test: Value) -> Iterator[Value]:
    """The values of which a condition asks whether they are finite."""
    for origin in origins(test):
        if isinstance(origin, Result) and origin.call.method in _ASKS:
            call = origin.call
            asked = call.args[0] if call.args else call.receiver
            if asked is not None:
                yield asked
        elif isinstance(origin, Operation) and origin.operator == "noteq":
            first, *rest = origin.operands
            if rest and rest[0] is first:
                yield first


def _is_of_training(loop: TrainingLoop, value: Value) -> bool:
    """Whether a value is the loss that is back-propagated, or the norm of its gradients."""
    losses = {
        id(origin)
        for backward in loop.backwards
        if backward.loss is not None
        for option in options(backward.loss)
        for origin in (option, *_summands(option))
    }
    return any(
        id(origin) in losses or (isinstance(origin, Result) and is_clip(origin.call))
        for origin in _same_number(value)
    )


def _summands(loss: Value) -> Iterator[Value]:
    """What a loss is a sum, or a fraction, of."""
    if isinstance(loss, Operation) and loss.operator in ("+", "-", "*", "/"):
        for operand in loss.operands:
            for option in options(operand):
                yield option
                yield from _summands(option)


def _same_number(value: Value) -> Iterator[Value]:
    """The value, what `item()` and its kin were called on, and what it is a fraction of."""
    for option in options(value):
        yield option
        if isinstance(option, Result) and option.call.receiver is not None:
            if option.call.method in ("item", "detach", "mean", "sum", "any", "all", "cpu"):
                yield from _same_number(option.call.receiver)
        elif isinstance(option, Operation):
            yield from _summands(option)


def _is_quiet(event: Event) -> bool:
    """Whether nobody learns of the skip by what happens there."""
    if isinstance(event, Leave):
        return event.kind == "continue"
    if isinstance(event, Call):
        return is_clearing(event) or event.method in _QUIET
    return isinstance(event, Delete) or is_clearing(event)


def _tells(call: Call, value: Value) -> bool:
    """Whether the call writes the value down somewhere."""
    if call.followed or not _TELLS.search(call.method) or is_clearing(call):
        return False
    return any(
        inner in set(_same_number(value))
        for given in call.inputs[-4:]
        for inner in origins(given, 30)
    )
