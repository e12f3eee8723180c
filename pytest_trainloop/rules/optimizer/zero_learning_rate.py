"""The rule `zero-learning-rate`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import title
from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Observation, Rule
from pytest_trainloop.source.facts import (
    Call,
    FileFacts,
    Function,
    Result,
    Trace,
    TrainingLoop,
    Value,
    constant,
    is_known_harmless,
    is_optimizer,
    is_scheduler_call,
    may_do_anything,
    options,
    same,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run

#: Up to this part of its steps, an optimizer may wait at 0.
_FEW = 0.1


class ZeroLearningRate(Rule):
    """The learning rate is 0 for all of the run, or for all of the warm-up.

    Symptom: the loss is flat, to the last digit; the weights are those of the initialisation.

    Why: an optimizer made with `lr=0` never moves anything, and a scheduler that multiplies its
    rate cannot change that. In a `LambdaLR`, `step // warmup` divides whole numbers: it is 0
    until the warm-up ends, and then jumps to 1.

    What torch does: nothing. 0 is a legal learning rate.

    Limits: one dead step at the beginning of a warm-up from 0 (`step / warmup`) is usual, and
    is not reported. Nor are groups with a rate of 0 among others.
    """

    since = "0.1"
    triggers = ("lr", "optim|LambdaLR", "LambdaLR|lr=0|lr = 0")
    sources = (
        "https://pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.LambdaLR.html",
        "https://github.com/EleutherAI/gpt-neox/issues/1373",
        "https://github.com/huggingface/transformers/issues/34754",
        "https://github.com/Project-MONAI/tutorials/issues/630",
        "https://github.com/facebookresearch/ParlAI/issues/4384",
    )
    examples = (
        Bad(
            "a warm-up in whole numbers",
            """
            def train(model, loader, warmup):
                optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
                scheduler = torch.optim.lr_scheduler.LambdaLR(
                    optimizer,
                    lambda step: min(1.0, step // warmup),  # error
                )
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    scheduler.step()
            """,
            fixed="""
            def train(model, loader, warmup):
                optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
                scheduler = torch.optim.lr_scheduler.LambdaLR(
                    optimizer,
                    lambda step: min(1.0, step / warmup),  # error
                )
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    scheduler.step()
            """,
        ),
        Good(
            "a warm-up in fractions",
            """
            def train(model, loader, warmup):
                optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
                scheduler = torch.optim.lr_scheduler.LambdaLR(
                    optimizer,
                    lambda step: min(1.0, step / warmup),
                )
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    scheduler.step()
            """,
        ),
        Bad(
            "an optimizer with a rate of 0",
            """
            def train(model, loader):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)  # error
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1000)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    scheduler.step()
            """,
        ),
        Bad(
            "a named function, in whole numbers",
            """
            from torch.optim.lr_scheduler import LambdaLR

            def make_scheduler(optimizer, warmup_steps):
                def factor(step):
                    if step < warmup_steps:
                        return (step + 1) // warmup_steps
                    return 1.0

                return LambdaLR(optimizer, lr_lambda=factor)  # error
            """,
        ),
        Good(
            "a rate that is set at each step",
            """
            def train(model, loader, rate_at):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
                for i, (x, y) in enumerate(loader):
                    for group in optimizer.param_groups:
                        group["lr"] = rate_at(i)
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "a rate that a helper or a scheduler sets",
            """
            def train(model, loader, adjust_learning_rate):
                optimizer = torch.optim.SGD(model.parameters(), lr=0)
                other = torch.optim.SGD(model.parameters(), lr=0)
                scheduler = torch.optim.lr_scheduler.OneCycleLR(other, 0.1, total_steps=1000)
                for i, (x, y) in enumerate(loader):
                    adjust_learning_rate(optimizer, i)
                    optimizer.zero_grad()
                    other.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    other.step()
                    scheduler.step()
            """,
        ),
        Good(
            "a frozen group among others",
            """
            def train(model, loader):
                optimizer = torch.optim.SGD(
                    [
                        {"params": model.backbone.parameters(), "lr": 0.0},
                        {"params": model.head.parameters()},
                    ],
                    lr=0.1,
                )
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "a staircase: whole numbers in the exponent",
            """
            def make_scheduler(optimizer, every):
                return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda e: 0.5 ** (e // every))
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look at the rates that optimizers are made with, and at the factors of LambdaLR."""
        for loop in file.loops:
            for made in loop.trace.calls:
                if _is_made_dead(made) and _stays_dead(loop, made):
                    yield self.finding(
                        made.argument_place(1, "lr"),
                        f"`{made.name}` is made with a learning rate of 0, and nothing raises it: "
                        f"no step changes `{made.argument_text(0, 'params')}`",
                        "give it a learning rate above 0",
                    )
        for trace in file.traces:
            yield from self._factors(trace)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for optimizers whose every rate was 0, all the time or for more than one step."""
        for index, optimizer in enumerate(run.optimizers):
            steps = run.steps_of(index)
            dead = 0
            while dead < len(steps) and not any(steps[dead].learning_rates):
                dead += 1
            # A warm-up that begins at 0 has one dead step.
            if dead <= max(1, len(steps) * _FEW):
                continue
            own = {number for group in optimizer.groups for number in group}
            if dead < len(steps):
                message = f"the learning rate is 0 in the first {dead} of {len(steps)} steps"
                advice = "let the warm-up begin above 0, and step it once for each optimizer step"
            elif any(run.parameters[number].moved for number in own):
                # It takes its rate from elsewhere.
                continue
            else:
                message = f"the learning rate is 0 in all {len(steps)} steps"
                advice = "give the optimizer a learning rate above 0, or look at its scheduler"
            where = optimizer.built or steps[0].where
            yield self.observation(f"{message} of {title(optimizer)}", advice, where)

    def _factors(self, trace: Trace) -> Iterator[Finding]:
        for call in trace.calls:
            if call.qualified != "torch.optim.lr_scheduler.LambdaLR":
                continue
            for factor in options(call.argument(1, "lr_lambda") or call.callee):
                dead = _whole_quotient(factor)
                if dead:
                    yield self.finding(
                        call.argument_place(1, "lr_lambda"),
                        f"the factor `{dead}` divides whole numbers, so the learning rate is 0 "
                        "until the end of the warm-up",
                        f"write `{dead.replace('//', '/')}`",
                        _in_fractions(call),
                    )


def _is_made_dead(call: Call) -> bool:
    """Whether the call makes an optimizer of torch's, for a model's parameters, with rate 0."""
    if not call.qualified.startswith("torch.optim.") or not is_optimizer(Result(call)):
        return False
    rate = constant(call.argument(1, "lr"))
    given = call.argument(0, "params")
    is_plain = given is not None and all(
        isinstance(way, Result) and way.call.method == "parameters" for way in options(given)
    )
    return isinstance(rate, int | float) and rate is not False and rate == 0 and is_plain


#: Schedulers that multiply the first rate, so that 0 stays 0.
_MULTIPLYING = re.compile(
    r"^torch\.optim\.lr_scheduler\.(?:StepLR|MultiStepLR|ExponentialLR|LambdaLR|LinearLR|ConstantLR)$"
)
_SETS_RATE = re.compile(r"""\[["'](?:lr|initial_lr)["']\]|param_groups|base_lrs|\.lr\s*=""")
_READING = frozenset({"zero_grad", "step", "state_dict"})


def _stays_dead(loop: TrainingLoop, made: Call) -> bool:
    """Whether the loop steps the optimizer, and nothing in sight or out of sight sets its rate."""
    own = next((value for value in loop.optimizers if _is_made_by(value, made)), None)
    if own is None or _SETS_RATE.search(made.file.text):
        return False
    for call in loop.trace.calls:
        if is_scheduler_call(call) and not _MULTIPLYING.match(call.qualified):
            if any(same(given, own) for given in call.inputs):
                return False
        if is_scheduler_call(call) or is_known_harmless(call) or call.method in _READING:
            continue
        if may_do_anything(call, own):
            return False
    return True


def _is_made_by(optimizer: Value, made: Call) -> bool:
    ways = options(optimizer)
    return len(ways) == 1 and isinstance(ways[0], Result) and ways[0].call is made


def _whole_quotient(factor: Value) -> str:
    """What a function of the step returns, if that is the step divided in whole numbers."""
    if not isinstance(factor, Function) or len(factor.definition.parameters) != 1:
        return ""
    definition = factor.definition
    place = definition.place
    rows = definition.file.lines[place.line - 1 : place.end_line]
    text = "\n".join(row.partition("#")[0] for row in rows)
    step = re.escape(definition.parameters[0])
    quotient = rf"(?:{step}|\(\s*{step}\s*\+\s*1\s*\))\s*//\s*[A-Za-z_][\w.]*"
    one = r"1(?:\.0?)?"
    capped = rf"min\(\s*{one}\s*,\s*{quotient}\s*\)|min\(\s*{quotient}\s*,\s*{one}\s*\)"
    head = rf"lambda\s+{step}\s*:" if definition.name == "lambda" else r"\breturn"
    found = re.search(rf"{head}\s*({capped}|{quotient})\s*(?=[,)\n]|$)", text)
    return found.group(1) if found else ""


def _in_fractions(call: Call) -> Fix | None:
    """The fix that divides in fractions, where the function is written in the call itself."""
    text = call.argument_text(1, "lr_lambda")
    if not text.startswith("lambda") or text.count("//") != 1:
        return None
    place = call.argument_place(1, "lr_lambda")
    return Fix((Edit("replace", place, text.replace("//", "/")),), safe=False)
