"""The rule `scheduler-wrong-cadence`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Observation, Rule
from pytest_trainloop.rules.scheduler._counted import batches_counted, epochs_counted, maker_of
from pytest_trainloop.source.facts import (
    Branch,
    Call,
    Context,
    FileFacts,
    Inside,
    Instance,
    Loop,
    TrainingLoop,
    is_out_of_order,
    is_scheduler_step,
    loops_of,
    options,
    same,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run


class SchedulerWrongCadence(Rule):
    """A schedule that counts epochs moves at every batch, or one that counts batches every epoch.

    Symptom: the learning rate reaches its floor within the first epoch and the loss stops
    falling there; a cosine goes up and down many times; or a warm-up never ends.

    Why: a scheduler counts its own `step()` calls. `MultiStepLR(optimizer, [60, 120])`
    means the 60th and 120th call, whatever they are. If it was made with numbers of epochs it
    has to be called once an epoch, and if with numbers of batches, once a batch.

    What torch does: nothing, except that `OneCycleLR` raises when it is stepped more often than
    it was told. Past its `T_max`, `CosineAnnealingLR` goes up again.

    Limits: a schedule is taken to count epochs only where its numbers are made from the number
    of epochs of the loop, or where they are written down and below it; it is taken to count
    batches only where they are made from the length of what the batch loop runs over.
    """

    since = "0.1"
    triggers = ("step", "LR|WarmRestarts|schedule", ".backward(|manual_backward(")
    sources = (
        "https://pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate",
        "https://github.com/ivadomed/ivadomed/issues/55",
        "https://github.com/automl/Auto-PyTorch/issues/210",
        "https://github.com/aimagelab/meshed-memory-transformer/issues/71",
        "https://github.com/amoudgl/pygoturn/issues/16",
        "https://github.com/pytorch/tutorials/issues/640",
        "https://github.com/nodefluxio/vortex/issues/58",
    )
    examples = (
        Bad(
            "milestones in epochs, stepped at every batch",
            """
            def train(model, loader, optimizer):
                scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60, 120])
                for epoch in range(200):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        scheduler.step()  # error
            """,
            fixed="""
            def train(model, loader, optimizer):
                scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60, 120])
                for epoch in range(200):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    scheduler.step()  # error
            """,
        ),
        Good(
            "milestones in epochs, stepped every epoch",
            """
            def train(model, loader, optimizer):
                scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60, 120])
                for epoch in range(200):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    scheduler.step()
            """,
        ),
        Bad(
            "a cosine over the epochs, stepped at every batch by a helper",
            """
            from torch.optim.lr_scheduler import CosineAnnealingLR
            import torch.nn.functional as F

            def train_one_epoch(model, loader, optimizer, scheduler):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    scheduler.step()  # error

            def main(model, loader, optimizer, args):
                scheduler = CosineAnnealingLR(optimizer, T_max=args.epochs)
                for epoch in range(args.epochs):
                    train_one_epoch(model, loader, optimizer, scheduler)
            """,
        ),
        Bad(
            "one cycle over all batches, stepped every epoch",
            """
            def train(model, loader, optimizer, epochs):
                scheduler = torch.optim.lr_scheduler.OneCycleLR(
                    optimizer, max_lr=0.1, epochs=epochs, steps_per_epoch=len(loader)
                )
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    scheduler.step()  # error
                return model
            """,
            fixed="""
            def train(model, loader, optimizer, epochs):
                scheduler = torch.optim.lr_scheduler.OneCycleLR(
                    optimizer, max_lr=0.1, epochs=epochs, steps_per_epoch=len(loader)
                )
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        scheduler.step()  # error
                return model
            """,
        ),
        Bad(
            "a warm-up over the batches, stepped every epoch",
            """
            from transformers import get_linear_schedule_with_warmup

            def train(model, loader, optimizer, args):
                total = len(loader) * args.epochs
                scheduler = get_linear_schedule_with_warmup(optimizer, int(0.1 * total), total)
                for epoch in range(args.epochs):
                    for batch in loader:
                        optimizer.zero_grad()
                        model(**batch).loss.backward()
                        optimizer.step()
                    scheduler.step()  # error
            """,
        ),
        Bad(
            "stepped at every batch and once more every epoch",
            """
            from torch.optim.lr_scheduler import LambdaLR
            import torch.nn.functional as F

            def train_epoch(model, loader, optimizer, scheduler):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    scheduler.step()
                scheduler.step()  # error

            def main(model, loader, optimizer, warmup):
                scheduler = LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / warmup))
                for epoch in range(10):
                    if epoch < 5:
                        train_epoch(model, loader, optimizer, scheduler)
            """,
        ),
        Good(
            "milestones in batches",
            """
            def train(model, loader, optimizer):
                scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30000, 60000])
                for epoch in range(200):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        scheduler.step()
            """,
        ),
        Good(
            "a cosine that swings within each epoch",
            """
            def train(model, loader, optimizer):
                scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
                for epoch in range(200):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        scheduler.step()
            """,
        ),
        Good(
            "a schedule of its own says what it counts",
            """
            def train(model, loader, optimizer, epochs):
                scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.9999**i)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        scheduler.step()
            """,
        ),
        Good(
            "a cosine over all batches, stepped at every batch",
            """
            def train(model, loader, optimizer, epochs):
                scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
                    optimizer, T_max=epochs * len(loader)
                )
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        scheduler.step()
            """,
        ),
        Good(
            "at the last batch of each epoch",
            """
            def train(model, loader, optimizer, epochs):
                scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
                for epoch in range(epochs):
                    for i, (x, y) in enumerate(loader):
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        if i == len(loader) - 1:
                            scheduler.step()
            """,
        ),
        Good(
            "the whole data set in one batch, several runs",
            """
            def train(make_model, x, y, epochs):
                for run in range(10):
                    model = make_model()
                    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
                    for epoch in range(epochs):
                        optimizer.zero_grad()
                        F.mse_loss(model(x), y).backward()
                        optimizer.step()
                        scheduler.step()
            """,
        ),
        Good(
            "a warm-up within the first epoch only",
            """
            def train(model, loader, optimizer, epochs):
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)
                for epoch in range(epochs):
                    warmup = None
                    if epoch == 0:
                        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.001, 1.0, 500)
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        if warmup is not None:
                            warmup.step()
                    scheduler.step()
            """,
        ),
        Good(
            "the place within the epoch is given",
            """
            def train(model, loader, optimizer, epochs):
                scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, epochs)
                for epoch in range(epochs):
                    for i, (x, y) in enumerate(loader):
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        scheduler.step(epoch + i / len(loader))
            """,
        ),
        Good(
            "a loop of iterations, without epochs",
            """
            def train(model, batches, optimizer):
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
                for i in range(1000):
                    x, y = next(batches)
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    scheduler.step()
            """,
        ),
        Good(
            "timm's schedulers have a method for each cadence",
            """
            from timm.scheduler import CosineLRScheduler
            import torch.nn.functional as F

            def train(model, loader, optimizer, epochs):
                scheduler = CosineLRScheduler(optimizer, t_initial=epochs)
                updates = 0
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        updates += 1
                        scheduler.step_update(num_updates=updates)
                    scheduler.step(epoch + 1)
            """,
        ),
        Good(
            "torch's chained schedulers, once an epoch",
            """
            def train(model, loader, optimizer, epochs):
                warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
                cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
                scheduler = torch.optim.lr_scheduler.ChainedScheduler([warmup, cosine])
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    scheduler.step()
            """,
        ),
        Good(
            "Lightning is told the interval",
            """
            import lightning as L
            import torch

            class Lit(L.LightningModule):
                def training_step(self, batch, batch_idx):
                    return self.net(batch).loss

                def configure_optimizers(self):
                    optimizer = torch.optim.Adam(self.parameters())
                    scheduler = torch.optim.lr_scheduler.OneCycleLR(
                        optimizer, 0.1, total_steps=self.trainer.estimated_stepping_batches
                    )
                    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Compare what each scheduler was made to count with the loop that steps it."""
        for loop in file.loops:
            if loop.loop is None or not loops_of(loop.context)[:-1]:
                continue
            for call in loop.trace.calls:
                if _is_plain_step(call) and not is_out_of_order(loop, call):
                    yield from self._step(_Cadence(loop, loop.loop, call))

    def watch(self, run: Run) -> Iterator[Observation]:
        """Compare what a schedule is made for with the epochs and the batches that were made.

        Only where the numbers leave no other reading, and the run came to its own end.
        """
        from pytest_trainloop.runtime.record import SchedulerStep

        ends = _training_epochs(run)
        if run.stopped or ends is None:
            return
        epochs, batches = ends
        for number, scheduler in enumerate(run.schedulers):
            moves = [one for one in run.all(SchedulerStep) if one.scheduler == number]
            made = len(moves)
            if scheduler.optimizer is None or any(one.told for one in moves):
                continue
            if scheduler.horizon == epochs and made == epochs * batches:
                message = (
                    f"the {scheduler.kind} is made for {epochs} epochs, and steps at each of the"
                    f" {made} batches: it is through in {epochs} batches"
                )
                advice = "step it once an epoch, or make it for the number of batches"
            elif scheduler.horizon == epochs * batches and made == epochs:
                message = (
                    f"the {scheduler.kind} is made for {scheduler.horizon} batches, and steps once"
                    f" an epoch: it ends after {made} of them"
                )
                advice = "step it at each batch, or make it for the number of epochs"
            else:
                continue
            rates = [s.learning_rates[0] for s in run.steps_of(scheduler.optimizer)]
            shown = f"learning rate: {rates[0]:.3g} first, {rates[-1]:.3g} last"
            yield self.observation(message, advice, moves[0].where, (shown,))

    def _step(self, cadence: _Cadence) -> Iterator[Finding]:
        made = maker_of(cadence.call.receiver)
        if cadence.is_every_batch and made is not None:
            counted = epochs_counted(made, cadence.epochs)
            if counted:
                yield self._too_often(cadence, made, counted)
        elif cadence.is_every_epoch:
            counted = batches_counted(made, cadence.batches) if made is not None else ""
            if counted and made is not None:
                yield self._too_seldom(cadence, made, counted)
            else:
                yield from self._both(cadence)

    def _too_often(self, cadence: _Cadence, made: Call, counted: str) -> Finding:
        return self.finding(
            cadence.call.place,
            f"`{cadence.call.text}` runs at every turn of `{cadence.batches.header}`, but "
            f"`{made.method}` was made to count epochs: its {counted}",
            f"move it out of the batch loop, to the end of `{cadence.epochs.header}`",
            _moved_out(cadence),
        )

    def _too_seldom(self, cadence: _Cadence, made: Call, counted: str) -> Finding:
        return self.finding(
            cadence.call.place,
            f"`{cadence.call.text}` runs once in each turn of `{cadence.epochs.header}`, but "
            f"`{made.method}` was made to count batches: its {counted}",
            f"move it into `{cadence.batches.header}`, right after the optimizer's step",
            _moved_in(cadence),
        )

    def _both(self, cadence: _Cadence) -> Iterator[Finding]:
        for other in cadence.training.scheduler_steps:
            inner = _Cadence(cadence.training, cadence.batches, other)
            if _is_plain_step(other) and inner.is_every_batch and _is_one(cadence.call, other):
                yield self.finding(
                    cadence.call.place,
                    f"`{cadence.call.text}` moves the schedule once more in each turn of "
                    f"`{cadence.epochs.header}`, though `{other.text}` moves it at every turn of "
                    f"`{cadence.batches.header}`",
                    "step the scheduler in one of the two loops only",
                )
                return


@dataclass(frozen=True)
class _Cadence:
    """A scheduler's step, the loop over batches, and so the loop over epochs around that."""

    training: TrainingLoop
    batches: Loop
    call: Call

    @property
    def epochs(self) -> Loop:
        return loops_of(self.training.context)[-2]

    @property
    def is_every_batch(self) -> bool:
        """Whether every turn of the batch loop comes by the step, once."""
        loops = loops_of(self.call.context)
        if not loops or loops[-1] is not self.batches or "epoch" in self.batches.header:
            return False
        return not self._conditions(self.batches)

    @property
    def is_every_epoch(self) -> bool:
        """Whether every turn of the epoch loop comes by the step, once, outside the batch loop."""
        loops = loops_of(self.call.context)
        return bool(loops) and loops[-1] is self.epochs and not self._conditions(self.epochs)

    def _conditions(self, loop: Loop) -> list[Branch]:
        """The branches inside a loop that the step depends on, and the batch loop does not.

        That there is a scheduler at all is no such condition.
        """
        inner: Context = self.call.context[self.call.context.index(loop) :]
        name = re.escape(self.call.receiver_text)
        return [
            frame
            for frame in inner
            if isinstance(frame, Branch)
            and frame not in self.training.context
            and not re.fullmatch(rf"{name}( is not None| != None)?", frame.test_text)
        ]


def _is_plain_step(call: Call) -> bool:
    return is_scheduler_step(call) and not call.args and not call.keywords


def _is_one(call: Call, other: Call) -> bool:
    """Whether two steps move one and the same scheduler, that counts its steps."""
    if call.receiver is None or other.receiver is None or not same(call.receiver, other.receiver):
        return False
    return len(options(call.receiver)) == 1 and not isinstance(options(call.receiver)[0], Instance)


def _functions(context: Context) -> list[Inside]:
    return [frame for frame in context if isinstance(frame, Inside)]


def _moved_out(cadence: _Cadence) -> Fix | None:
    """The fix that steps the scheduler right after the batch loop, in the same function."""
    call, context = cadence.call, cadence.training.context
    if call.context[-1] is not cadence.batches or not call.discarded:
        return None
    outside = context[: context.index(cadence.epochs)]
    if _functions(call.context) != _functions(outside):
        return None
    return Fix((Edit("move-after", call.place, to=cadence.batches.place),), safe=False)


def _moved_in(cadence: _Cadence) -> Fix | None:
    """The fix that steps the scheduler right after the optimizer, where that is unconditional."""
    steps = [step.call for step in cadence.training.steps]
    call = cadence.call
    if len(steps) != 1 or steps[0].context[-1] is not cadence.batches or not steps[0].discarded:
        return None
    if call.context[-1] is not cadence.epochs:
        return None
    if _functions(call.context) != _functions(steps[0].context):
        return None
    return Fix((Edit("move-after", call.place, to=steps[0].place),), safe=False)


def _training_epochs(run: Run) -> tuple[int, int] | None:
    """How many epochs of how many batches the run trained for; None if not evident."""
    from pytest_trainloop.runtime.record import EpochEnd

    ends = run.all(EpochEnd)
    loaders = {end.loader for end in ends}
    lengths = {end.batches for end in ends}
    if len(loaders) != 1 or len(lengths) != 1:
        return None
    epochs, (batches,) = len(ends), tuple(lengths)
    steps = [optimizer.steps for optimizer in run.optimizers]
    alone = len(steps) == 1 and steps[0] == epochs * batches
    return (epochs, batches) if alone and min(epochs, batches) > 1 else None
