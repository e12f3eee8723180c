"""The rule `scheduler-before-optimizer`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import call_of, title
from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Observation, Rule
from pytest_trainloop.source.facts import (
    Branch,
    Call,
    Constant,
    FileFacts,
    Inside,
    Instance,
    Loop,
    Result,
    Step,
    TrainingLoop,
    Value,
    comes_along,
    common,
    is_out_of_order,
    is_scheduler_step,
    loops_of,
    options,
    origins,
    same,
    stepped_optimizer,
    together,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run


class SchedulerBeforeOptimizer(Rule):
    """The learning-rate scheduler steps before the optimizer does.

    Symptom: the first value of the schedule is never used. A warm-up or a decay comes one
    step (or one epoch) too early, and a resumed run is shifted once more.

    Why: the scheduler sets the first learning rate when it is made. If it steps before the
    first update, that rate is gone before anything was trained with it. Up to torch 1.0 the
    scheduler had to step first; since 1.1 it is the other way round.

    What torch does: warns once, at the first such step ("Detected call of
    `lr_scheduler.step()` before `optimizer.step()`"), in a run's output that scrolls by. Under a
    gradient scaler that leaves out the first step it gives the same warning to right code.

    Limits: only schedulers of torch and transformers are meant; one that is a parameter counts
    as theirs where the file names such schedulers. A scheduler class of the project's own may
    well count from another end, and one that is given the epoch or a metric
    (`scheduler.step(epoch)`) does not depend on the order.
    """

    since = "0.1"
    triggers = ("step", "sched|Sched|LR", ".backward(|manual_backward(")
    sources = (
        "https://pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate",
        "https://github.com/facebookresearch/ParlAI/issues/2042",
        "https://github.com/ThilinaRajapakse/pytorch-transformers-classification/issues/21",
        "https://github.com/jdonnelly36/Deformable-ProtoPNet/issues/6",
        "https://github.com/huggingface/transformers/issues/1136",
    )
    examples = (
        Bad(
            "the scheduler steps first",
            """
            def train(model, loader):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.99**i)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    scheduler.step()  # error
                    optimizer.step()
            """,
            fixed="""
            def train(model, loader):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.99**i)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    scheduler.step()  # error
            """,
        ),
        Good(
            "the optimizer steps first",
            """
            def train(model, loader):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.99**i)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    scheduler.step()
            """,
        ),
        Bad(
            "at the head of the epoch, as it was right before torch 1.1",
            """
            from torch.optim.lr_scheduler import StepLR
            import torch.nn.functional as F

            def train_one_epoch(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()

            def main(model, loader, optimizer, epochs):
                scheduler = StepLR(optimizer, step_size=30)
                for epoch in range(epochs):
                    scheduler.step()  # error
                    train_one_epoch(model, loader, optimizer)
            """,
        ),
        Bad(
            "before the scaler's step, in an accumulation",
            """
            from transformers import get_linear_schedule_with_warmup

            def train_one_step(model, batch, i, args, optimizer, scheduler, scaler):
                loss = model(**batch).loss / args.accumulate
                scaler.scale(loss).backward()
                if i % args.accumulate == 0:
                    scheduler.step()  # error
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
            """,
            fixed="""
            from transformers import get_linear_schedule_with_warmup

            def train_one_step(model, batch, i, args, optimizer, scheduler, scaler):
                loss = model(**batch).loss / args.accumulate
                scaler.scale(loss).backward()
                if i % args.accumulate == 0:
                    scaler.step(optimizer)
                    scheduler.step()  # error
                    scaler.update()
                    optimizer.zero_grad()
            """,
        ),
        Bad(
            "at the head of the batch",
            """
            class Trainer:
                def __init__(self, model, lr):
                    self.model = model
                    self.optimizer = torch.optim.Adam(model.parameters(), lr=lr)
                    self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.999)

                def train(self, loader):
                    for x, y in loader:
                        self.scheduler.step()  # error
                        self.optimizer.zero_grad()
                        F.cross_entropy(self.model(x), y).backward()
                        self.optimizer.step()
            """,
        ),
        Bad(
            "only if there is a scheduler",
            """
            def train(model, loader, optimizer, decay):
                scheduler = None
                if decay:
                    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1000)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    if scheduler is not None:
                        scheduler.step()  # error
                    optimizer.step()
            """,
        ),
        Good(
            "at the head of each epoch but the first",
            """
            def main(model, loader, optimizer, epochs):
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)
                for epoch in range(epochs):
                    if epoch > 0:
                        scheduler.step()
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "the epoch is given",
            """
            def main(model, loader, optimizer, epochs):
                scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60, 120])
                for epoch in range(epochs):
                    scheduler.step(epoch)
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "a scheduler of the project's own",
            """
            class Warmup(torch.optim.lr_scheduler.LRScheduler):
                def get_lr(self):
                    return [base * self.last_epoch / 100 for base in self.base_lrs]

            def train(model, loader, optimizer):
                scheduler = Warmup(optimizer)
                for x, y in loader:
                    scheduler.step()
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "a scheduler that was told to begin one step earlier",
            """
            def main(model, loader, optimizer, epochs, start):
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30, last_epoch=start - 2)
                for epoch in range(start, epochs):
                    scheduler.step()
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "the other optimizer's scheduler",
            """
            def train(net_g, net_d, loader, opt_g, opt_d, bce):
                sched_d = torch.optim.lr_scheduler.StepLR(opt_d, 1000)
                sched_g = torch.optim.lr_scheduler.StepLR(opt_g, 1000)
                for real, z in loader:
                    opt_d.zero_grad()
                    bce(net_d(real), net_d(net_g(z).detach())).backward()
                    opt_d.step()
                    sched_d.step()
                    opt_g.zero_grad()
                    bce(net_d(net_g(z)), 1).backward()
                    opt_g.step()
                    sched_g.step()
            """,
        ),
        Good(
            "the optimizer has stepped before, once for this purpose",
            """
            def main(model, loader, optimizer, epochs):
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)
                optimizer.step()
                for epoch in range(epochs):
                    scheduler.step()
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "a scheduler that nothing is known of, between two optimizers",
            """
            class Search:
                def train_epoch(self, loader, optimizer):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(self.model(x), y).backward()
                        optimizer.step()

                def train(self, loader, epochs):
                    for epoch in range(epochs):
                        self.train_epoch(loader, self.model_optim)
                        self.scheduler.step()
                        self.train_epoch(loader, self.arch_optim)
            """,
        ),
        Good(
            "a scheduler that nothing is known of",
            """
            def update(loss, optimizer, scheduler):
                optimizer.zero_grad()
                loss.backward()
                scheduler.step()
                optimizer.step()
            """,
        ),
        Good(
            "the discriminator starts later",
            """
            def main(net_d, loader, opt_d, start, epochs, bce):
                sched_d = torch.optim.lr_scheduler.StepLR(opt_d, 30)
                for epoch in range(epochs):
                    for i, (real, fake) in enumerate(loader):
                        if i >= start:
                            opt_d.zero_grad()
                            bce(net_d(real), net_d(fake)).backward()
                            opt_d.step()
                    sched_d.step()
            """,
        ),
        Good(
            "the rate falls once the loss has stopped falling",
            """
            def main(model, loader, optimizer, validate, epochs):
                scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
                for epoch in range(epochs):
                    scheduler.step(validate(model))
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Compare the turn of each scheduler step with that of its optimizer's step."""
        for loop in file.loops:
            for call in loop.trace.calls:
                if is_scheduler_step(call) and not call.args and not call.keywords:
                    step = _later_step(loop, call)
                    if step is not None:
                        yield self._report(loop, call, step)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for schedulers whose every step comes before one of their optimizer."""
        from pytest_trainloop.runtime.record import SchedulerStep, SkippedStep
        from pytest_trainloop.runtime.record import Step as RunStep

        for number, scheduler in enumerate(run.schedulers):
            if scheduler.optimizer is None or not scheduler.fresh:
                continue
            optimizer = run.optimizers[scheduler.optimizer]
            line = [
                event
                for event in run.events
                if (isinstance(event, SchedulerStep) and event.scheduler == number)
                or (
                    isinstance(event, (RunStep, SkippedStep))
                    and event.optimizer == scheduler.optimizer
                )
            ]
            moves = [event for event in line if isinstance(event, SchedulerStep)]
            places = {event.where for event in moves}
            # Once before the loop is a start from elsewhere, and so is `step(epoch)`.
            if (
                not optimizer.built
                or len(moves) < 2  # noqa: PLR2004  # as said
                or len(places) > 1
                or any(event.told for event in moves)
                or line[0] is not moves[0]
                or line[1] is moves[1]
            ):
                continue
            yield self.observation(
                f"the {scheduler.kind} of {title(optimizer)} steps before it: the first learning"
                " rate of the schedule is never used",
                f"call `scheduler.step()` after {call_of(optimizer, 'step')}",
                moves[0].where,
            )

    def _report(self, loop: TrainingLoop, call: Call, step: Step) -> Finding:
        around = _shared_loop(call, step)
        message = f"`{call.text}` runs before `{step.call.text}`"
        if around is not None:
            message += f" in each turn of `{around.header}`"
        return self.finding(
            call.place,
            f"{message}, so the first value of the schedule is never used",
            f"move it after `{step.call.text}`"
            if around is loop.loop
            else f"move it to the end of `{around.header if around else 'the loop'}`",
            _moved(call, step),
        )


def _later_step(loop: TrainingLoop, call: Call) -> Step | None:
    """The step of the scheduler's optimizer that comes after it in one turn, and only after."""
    if not _is_known(call.receiver) or is_out_of_order(loop, call):
        return None
    steps = [step for step in loop.steps if _belongs(loop, call, step)]
    if not steps or any(_is_earlier(loop, call, step) for step in steps):
        return None
    for step in steps:
        if step.call.index < call.index or not _shares_turn(loop, call, step):
            continue
        if not is_out_of_order(loop, step.call) and not _depends_on_turn(call, step):
            return step
    return None


def _is_known(scheduler: Value | None) -> bool:
    """Whether the scheduler counts as torch's do, as far as it is known at all."""
    return scheduler is not None and all(_counts_from_zero(each) for each in options(scheduler))


#: Libraries whose schedulers are torch's, and count each `step()`.
_COUNTING = ("torch.optim.lr_scheduler.", "transformers.", "diffusers.optimization.")


def _counts_from_zero(scheduler: Value) -> bool:
    if isinstance(scheduler, Constant):
        return scheduler.value is None
    if isinstance(scheduler, Instance):
        return False
    if not isinstance(scheduler, Result):
        return True
    call = scheduler.call
    if not call.qualified.startswith(_COUNTING):
        return False
    return "last_epoch" not in call.keywords and not call.starred and "Plateau" not in call.method


def _belongs(loop: TrainingLoop, call: Call, step: Step) -> bool:
    """Whether the scheduler sets the learning rate of the stepped optimizer."""
    for option in options(call.receiver) if call.receiver is not None else ():
        if isinstance(option, Result):
            given = option.call.argument(0, "optimizer")
            return given is not None and same(given, step.optimizer)
    return _is_only_one(loop, step) and bool(_TORCH_LIKE.search(call.file.text))


#: How a file shows that its schedulers are torch's or transformers'.
_TORCH_LIKE = re.compile(r"torch\.optim\.lr_scheduler|import lr_scheduler|\bget_\w+_schedule\w*\b")


def _is_only_one(loop: TrainingLoop, step: Step) -> bool:
    """Whether the trace steps no other optimizer, for which the scheduler may have been made."""
    stepped = (stepped_optimizer(call) for call in loop.trace.calls)
    return all(same(step.optimizer, other) for other in stepped if other is not None)


def _is_earlier(loop: TrainingLoop, call: Call, step: Step) -> bool:
    """Whether the optimizer may have stepped before the scheduler does for the first time."""
    if step.call.index < call.index and together(step.call, call):
        return True
    return any(
        other.index < call.index
        and other.method == "step"
        and other.receiver is not None
        and same(other.receiver, step.optimizer)
        for other in loop.trace.calls
    )


def _shared_loop(call: Call, step: Step) -> Loop | None:
    shared = loops_of(common(call.context, step.call.context))
    return shared[-1] if shared else None


def _shares_turn(loop: TrainingLoop, call: Call, step: Step) -> bool:
    """Whether one turn of a loop, or of the step function, comes by both."""
    if not together(call, step.call):
        return False
    shared = _shared_loop(call, step)
    own = loops_of(call.context)
    if own and own[-1] is not shared:
        return False
    if shared is not None:
        return True
    return loop.loop is None and loop.context == call.context[: len(loop.context)]


def _depends_on_turn(call: Call, step: Step) -> bool:
    """Whether the scheduler's step has a condition that the optimizer's does not have.

    Whether there is a scheduler at all is no such condition.
    """
    if comes_along(call, step.call):
        return False
    return any(
        not _asks_for(frame, call)
        for frame in call.context
        if isinstance(frame, Branch) and frame not in step.call.context
    )


def _asks_for(guard: Branch, call: Call) -> bool:
    name = re.escape(call.receiver_text)
    return bool(re.fullmatch(rf"{name}( is not None| != None)?", guard.test_text)) and any(
        call.receiver is value or same(call.receiver, value)
        for value in origins(guard.test, 20)
        if call.receiver is not None
    )


def _moved(call: Call, step: Step) -> Fix | None:
    """The fix that moves the scheduler's step after the optimizer's, if both stand in one block."""
    if call.context != step.call.context or not step.call.discarded:
        return None
    if any(isinstance(frame, Inside) and frame.handed for frame in call.context):
        return None
    return Fix((Edit("move-after", call.place, to=step.call.place),), safe=False)
