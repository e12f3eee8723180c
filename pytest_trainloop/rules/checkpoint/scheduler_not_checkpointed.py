"""The rule `scheduler-not-checkpointed`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import (
    Call,
    FileFacts,
    Function,
    Result,
    Store,
    Value,
    constant,
    is_loaded,
    is_optimizer,
    is_scheduler,
    is_scheduler_step,
    loops_of,
    options,
    origins,
    start_of,
)

#: Names by which a schedule written by hand speaks of where a run begins.
_SHIFT = re.compile(r"start|resume|last_|offset|begin|init", re.IGNORECASE)


class SchedulerNotCheckpointed(Rule):
    """Training resumes without the state of its learning-rate scheduler.

    Symptom: after a restart the learning rate warms up once more, or follows the schedule
    from its beginning while the epochs count on.

    Why: a scheduler counts its own steps. The epoch and the optimizer come back from the
    checkpoint; a new scheduler counts from zero, and computes the learning rate of a run
    that has just begun.

    What torch does: nothing. The optimizer's state holds the learning rate of the moment,
    not the place in the schedule.

    Limits: the rule speaks only where the optimizer's state is restored. A scheduler that
    is told the epoch (`scheduler.step(epoch)`), is made with `last_epoch`, or has its first
    steps repeated on resume, needs no state.
    """

    since = "0.1"
    triggers = ("load_state_dict", "lr_scheduler|LRScheduler|get_", "step")
    sources = (
        "https://pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate",
        "https://github.com/ultralytics/yolov5/issues/292",
        "https://github.com/DeepLabCut/DeepLabCut/issues/2788",
        "https://github.com/KaiyangZhou/deep-person-reid/issues/270",
        "https://github.com/YehLi/xmodaler/issues/15",
    )
    examples = (
        Bad(
            "the schedule begins anew",
            """
            def train(model, loader, epochs, path, resume):
                optimizer = torch.optim.AdamW(model.parameters())
                scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                    start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    scheduler.step()
                    torch.save(  # error
                        {
                            "model": model.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "epoch": epoch,
                        },
                        path,
                    )
            """,
        ),
        Good(
            "the scheduler's state goes into the checkpoint, and comes back",
            """
            def train(model, loader, epochs, path, resume):
                optimizer = torch.optim.AdamW(model.parameters())
                scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                    scheduler.load_state_dict(checkpoint["scheduler"])
                    start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    scheduler.step()
                    torch.save(
                        {
                            "model": model.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "scheduler": scheduler.state_dict(),
                            "epoch": epoch,
                        },
                        path,
                    )
            """,
        ),
        Bad(
            "saved, but not loaded",
            """
            def train(model, loader, epochs, path):
                optimizer = torch.optim.AdamW(model.parameters())
                scheduler = torch.optim.lr_scheduler.OneCycleLR(
                    optimizer, max_lr=0.1, total_steps=epochs * len(loader)
                )
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])  # error
                for epoch in range(checkpoint["epoch"] + 1, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        scheduler.step()
                    state = {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "scheduler": scheduler.state_dict(),
                        "epoch": epoch,
                    }
                    torch.save(state, path)
            """,
        ),
        Good(
            "the scheduler is told the epoch",
            """
            def train(model, loader, epochs, path):
                optimizer = torch.optim.AdamW(model.parameters())
                scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60])
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                for epoch in range(checkpoint["epoch"] + 1, epochs):
                    scheduler.step(epoch)
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    torch.save(
                        {"m": model.state_dict(), "o": optimizer.state_dict(), "epoch": epoch}, path
                    )
            """,
        ),
        Good(
            "the scheduler is made with the last epoch",
            """
            def train(model, loader, epochs, path):
                optimizer = torch.optim.AdamW(model.parameters())
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
                    optimizer, T_max=epochs, last_epoch=checkpoint["epoch"]
                )
                for epoch in range(checkpoint["epoch"] + 1, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    scheduler.step()
                    torch.save(
                        {"m": model.state_dict(), "o": optimizer.state_dict(), "epoch": epoch}, path
                    )
            """,
        ),
        Good(
            "the steps that were done are repeated",
            """
            def train(model, loader, epochs, path):
                optimizer = torch.optim.AdamW(model.parameters())
                scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                start = checkpoint["epoch"] + 1
                for _ in range(start):
                    scheduler.step()
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    scheduler.step()
                    torch.save(
                        {"m": model.state_dict(), "o": optimizer.state_dict(), "epoch": epoch}, path
                    )
            """,
        ),
        Good(
            "the schedule is shifted by the first epoch",
            """
            def train(model, loader, epochs, path):
                optimizer = torch.optim.AdamW(model.parameters())
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                start = checkpoint["epoch"] + 1
                scheduler = torch.optim.lr_scheduler.LambdaLR(
                    optimizer, lambda epoch: 1 - (epoch + start) / epochs
                )
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    scheduler.step()
                    torch.save(
                        {"m": model.state_dict(), "o": optimizer.state_dict(), "epoch": epoch}, path
                    )
            """,
        ),
        Good(
            "another run of the same file is saved",
            """
            def scheduled(model, loader, epochs):
                adam = torch.optim.Adam(model.parameters(), lr=1e-3)
                scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs)
                for _ in range(epochs):
                    for x, y in loader:
                        adam.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        adam.step()
                    scheduler.step()

            def constant(model, loader, epochs, path):
                sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
                saved = torch.load(path)
                model.load_state_dict(saved["model"])
                sgd.load_state_dict(saved["optimizer"])
                for epoch in range(saved["epoch"] + 1, epochs):
                    for x, y in loader:
                        sgd.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        sgd.step()
                    state = {"model": model.state_dict(), "optimizer": sgd.state_dict()}
                    torch.save({**state, "epoch": epoch}, path)
            """,
        ),
        Good(
            "the learning rate is set by hand from the epoch",
            """
            def train(model, loader, epochs, path):
                optimizer = torch.optim.AdamW(model.parameters())
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                for epoch in range(checkpoint["epoch"] + 1, epochs):
                    for group in optimizer.param_groups:
                        group["lr"] = 0.1 * 0.5 ** (epoch // 30)
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    torch.save(
                        {"m": model.state_dict(), "o": optimizer.state_dict(), "epoch": epoch}, path
                    )
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Where the optimizer comes back, look for the scheduler that it is driven by."""
        checkpoints = file.checkpoints
        steps = _own_steps(file)
        driven = [loop for loop in file.loops if any(step in loop.trace.calls for step in steps)]
        restored = checkpoints.restoring_optimizers_of(driven)
        if not restored or not steps or checkpoints.restores_state_of(is_scheduler):
            return
        name = steps[0].receiver_text
        saves = checkpoints.saves_with(is_optimizer)
        if checkpoints.saves_state_of(is_scheduler):
            yield self.finding(
                restored[0].place,
                f"the optimizer's state is restored here, that of `{name}` is not, though the "
                "checkpoint holds it: the schedule begins anew",
                f"restore it too: `{name}.load_state_dict(...)`",
            )
        elif saves:
            yield self.finding(
                saves[0].told_at.place,
                f"the checkpoint that training resumes from holds no state of `{name}`: after a "
                "restart the schedule begins anew",
                f"save `{name}.state_dict()` too, and restore it where the optimizer is restored",
            )


def _own_steps(file: FileFacts) -> list[Call]:
    """The steps of schedulers that count for themselves; none if any is told or shifted."""
    around = {id(loop) for training in file.loops for loop in loops_of(training.context)}
    starts = [
        option
        for training in file.loops
        for loop in loops_of(training.context)
        for start in start_of(loop)
        for option in options(start)
    ]
    steps = [call for trace in file.traces for call in trace.calls if is_scheduler_step(call)]
    alone = all(_counts_alone(call, around, starts) for call in steps)
    return steps if alone and not any(map(_sets_count, _stores(file))) else []


def _counts_alone(step: Call, around: set[int], starts: list[Value]) -> bool:
    """Whether the scheduler's place in the schedule is known to its own counter alone."""
    receiver = options(step.receiver) if step.receiver is not None else ()
    made = [option.call for option in receiver if isinstance(option, Result)]
    if not made or not any(id(loop) in around for loop in loops_of(step.context)):
        return False
    if (step.args or step.keywords) and not made[0].method.startswith("ReduceLROnPlateau"):
        return False
    return all(_begins_anew(call, starts) for call in made)


def _begins_anew(made: Call, starts: list[Value]) -> bool:
    """Whether a scheduler that was made so begins at the beginning."""
    if (
        not made.qualified.startswith(("torch.optim.lr_scheduler.", "transformers."))
        or made.starred
    ):
        return False
    last = made.argument(None, "last_epoch")
    if last is not None and constant(last) != -1:
        return False
    return not any(_is_shifted(given, starts) for given in made.inputs if not is_optimizer(given))


def _is_shifted(given: Value, starts: list[Value]) -> bool:
    """Whether an argument of a scheduler knows where the run goes on."""
    for origin in origins(given):
        if is_loaded(origin) or any(origin is start for start in starts):
            return True
        if isinstance(origin, Function) and any(
            _SHIFT.search(name) for name in origin.definition.identifiers
        ):
            return True
    return False


def _stores(file: FileFacts) -> Iterator[Store]:
    for trace in file.traces:
        yield from trace.stores


def _sets_count(store: Store) -> bool:
    return store.target.endswith((".last_epoch", "._step_count"))
