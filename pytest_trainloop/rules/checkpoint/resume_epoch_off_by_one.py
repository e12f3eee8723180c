"""The rule `resume-epoch-off-by-one`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import (
    Collection,
    Constant,
    Element,
    FileFacts,
    Loop,
    Operation,
    Result,
    Save,
    TrainingLoop,
    Value,
    constant,
    is_loaded,
    loops_of,
    options,
    start_of,
)

#: A loop over a `range` whose start is given, and that does not count down.
_COUNTING = re.compile(
    r"\s*(?:async\s+)?for\s+\w+\s+in\s+[^\n]*\bt?range\(\s*(?!\d+\s*,)(?:[^(),\n]|\([^()\n]*\))+,"
    r"(?!(?:[^(),\n]|\([^()\n]*\))+,\s*-)"
)


class ResumeEpochOffByOne(Rule):
    """Training resumes with an epoch that it has already done, or leaves one out.

    Symptom: the logs show an epoch twice after each restart, and the learning-rate schedule
    is shifted by one.

    Why: the checkpoint is written at the end of epoch `n` and says `n`; the resumed loop
    begins with `n` again. (Or both sides add one, and epoch `n + 1` never happens.)

    What torch does: nothing. The number is the program's own.

    Limits: the rule compares the number that is saved with the number that the loop starts
    with, in the same file. A checkpoint that is written in the middle of an epoch, or at
    its beginning, is left alone.
    """

    since = "0.1"
    triggers = ("range(", "load", "save")
    sources = (
        "https://github.com/catalyst-team/catalyst/pull/764",
        "https://github.com/KaiyangZhou/deep-person-reid/issues/64",
        "https://github.com/facebookresearch/FFCV-SSL/issues/3",
    )
    examples = (
        Bad(
            "the epoch that was done is done again",
            """
            def train(model, loader, optimizer, epochs, path, resume):
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                    start = checkpoint["epoch"]
                for epoch in range(start, epochs):  # error
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({"epoch": epoch, **state}, path)
            """,
        ),
        Good(
            "the next epoch is saved",
            """
            def train(model, loader, optimizer, epochs, path, resume):
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                    start = checkpoint["epoch"]
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({"epoch": epoch + 1, **state}, path)
            """,
        ),
        Bad(
            "the epoch after the next one is first",
            """
            def train(model, loader, optimizer, epochs, path):
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                for epoch in range(checkpoint["epoch"] + 1, epochs):  # error
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    torch.save(
                        {
                            "model": model.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "epoch": epoch + 1,
                        },
                        path,
                    )
            """,
        ),
        Bad(
            "in the methods of a trainer",
            """
            import torch

            class Trainer:
                def __init__(self, model, loader, optimizer, path):
                    self.model = model
                    self.loader = loader
                    self.optimizer = optimizer
                    self.path = path
                    self.epochs_run = 0

                def load(self):
                    snapshot = torch.load(self.path)
                    self.model.load_state_dict(snapshot["model"])
                    self.optimizer.load_state_dict(snapshot["optimizer"])
                    self.epochs_run = snapshot["epochs_run"]

                def save(self, epoch):
                    snapshot = {
                        "model": self.model.state_dict(),
                        "optimizer": self.optimizer.state_dict(),
                        "epochs_run": epoch,
                    }
                    torch.save(snapshot, self.path)

                def train(self, epochs):
                    for epoch in range(self.epochs_run, epochs):  # error
                        for x, y in self.loader:
                            self.optimizer.zero_grad()
                            torch.nn.functional.mse_loss(self.model(x), y).backward()
                            self.optimizer.step()
                        self.save(epoch)
            """,
        ),
        Bad(
            "the same function for one process and for several",
            """
            import torch
            import torch.multiprocessing as mp

            def save_checkpoint(state, filename="checkpoint.pt"):
                torch.save(state, filename)

            def main_worker(gpu, args):
                model = torch.nn.Linear(4, 2).cuda(gpu)
                optimizer = torch.optim.Adam(model.parameters())
                if args.resume:
                    checkpoint = torch.load(args.resume)
                    args.start_epoch = checkpoint["epoch"]
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                for epoch in range(args.start_epoch, args.epochs):  # error
                    for x, y in args.loader:
                        optimizer.zero_grad()
                        torch.nn.functional.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    save_checkpoint({
                        "epoch": epoch,
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                    })

            def main(args):
                if args.distributed:
                    mp.spawn(main_worker, nprocs=2, args=(args,))
                else:
                    main_worker(0, args)
            """,
        ),
        Good(
            "one is added after loading",
            """
            def train(model, loader, optimizer, epochs, path):
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    state["epoch"] = epoch
                    torch.save(state, path)
            """,
        ),
        Good(
            "a checkpoint in the middle of an epoch",
            """
            def train(model, loader, optimizer, epochs, path):
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                for epoch in range(checkpoint["epoch"], epochs):
                    for i, (x, y) in enumerate(loader):
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        if i % 1000 == 0:
                            state = {"m": model.state_dict(), "optimizer": optimizer.state_dict()}
                            torch.save({"epoch": epoch, **state}, path)
            """,
        ),
        Good(
            "in the middle of an epoch, with several updates for each batch",
            """
            def train(model, loader, optimizer, epochs, path):
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                for epoch in range(checkpoint["epoch"], epochs):
                    for i, batch in enumerate(loader):
                        for x, y in batch:
                            optimizer.zero_grad()
                            F.cross_entropy(model(x), y).backward()
                            optimizer.step()
                        if i % 1000 == 0:
                            state = {"m": model.state_dict(), "optimizer": optimizer.state_dict()}
                            torch.save({"epoch": epoch, **state}, path)
            """,
        ),
        Good(
            "epochs are counted from 1, and the next one is first",
            """
            def train(model, loader, optimizer, epochs, path):
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                done = checkpoint["epoch"]
                for epoch in range(done + 1, epochs + 1):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({"epoch": epoch, **state}, path)
            """,
        ),
        Good(
            "counted from 1 by hand inside the loop",
            """
            def train(model, loader, optimizer, epochs, path):
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                for epoch in range(checkpoint["epoch"], epochs):
                    epoch += 1
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({"epoch": epoch, **state}, path)
            """,
        ),
        Good(
            "written at the beginning of the epoch",
            """
            def train(model, loader, optimizer, epochs, path):
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                for epoch in range(checkpoint["epoch"], epochs):
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({"epoch": epoch, **state}, path)
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Where a `for` begins to count at something other than 0."""
        for at in super().seek(text):
            if _COUNTING.match(text, text.rfind("\n", 0, at) + 1):
                yield at

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Compare what is saved of an epoch's number with what the epochs start from."""
        told: list[Loop] = []
        for training in file.loops:
            for loop in _epochs(training):
                if loop not in told:
                    told.append(loop)
                    yield from self._of_loop(file, training, loop)

    def _of_loop(self, file: FileFacts, training: TrainingLoop, loop: Loop) -> Iterator[Finding]:
        for key, added_on_load in _keys(loop):
            for save in file.checkpoints.readings_of_saves:
                added_on_save = _added(save, key, training, loop)
                if added_on_save is not None and added_on_load + added_on_save != 1:
                    yield self._report(loop, save, key, added_on_load + added_on_save)
                    return

    def _report(self, loop: Loop, save: Save, key: str, added: int) -> Finding:
        place = loop.place
        if added == 0:
            return self.finding(
                place,
                f"a resumed run does an epoch twice: the checkpoint is written at the end of the "
                f'epoch it names in "{key}" (line {save.told_at.line}), and `{loop.header}` begins '
                "with that epoch again",
                f'save the next epoch as "{key}", or add 1 to it where it is loaded',
            )
        return self.finding(
            place,
            f'a resumed run leaves an epoch out: 1 is added to "{key}" where it is saved '
            f"(line {save.told_at.line}), and again before `{loop.header}`",
            f'add 1 to "{key}" on one side only',
        )


def _epochs(training: TrainingLoop) -> Iterator[Loop]:
    """The loops around a training loop that has steps: its epochs."""
    if training.loop is None or training.is_handed:
        return
    for loop in loops_of(training.context)[:-1]:
        if loop.kind == "for":
            yield loop


def _keys(loop: Loop) -> Iterator[tuple[str, int]]:
    """The entries of a loaded checkpoint that the loop may start from, and what is added."""
    for start in start_of(loop):
        for option in options(start):
            key = _entry(option)
            if key is not None:
                yield key, 0
            for base, added in _sum(option):
                key = _entry(base)
                if key is not None:
                    yield key, added


def _entry(value: Value) -> str | None:
    """The key, if the value is an entry of a loaded checkpoint."""
    for option in options(value):
        if isinstance(option, Element) and isinstance(constant(option.key), str):
            if any(is_loaded(base) for base in options(option.base)):
                return str(constant(option.key))
    return None


def _sum(value: Value) -> Iterator[tuple[Value, int]]:
    """The two parts of `value + 1`."""
    if isinstance(value, Operation) and value.operator == "+":
        base, *rest = value.operands
        for added in rest:
            if isinstance(added, Constant) and isinstance(added.value, int):
                yield base, added.value


def _added(save: Save, key: str, training: TrainingLoop, loop: Loop) -> int | None:
    """What is added to the loop's counter where it is saved after a turn; None if it is not."""
    if training.steps[-1].call.index > save.call.index or loop not in save.call.context:
        return None
    if loops_of(save.call.context)[-1] is not loop:
        return None
    for value in _entries(save.content, key):
        for option in options(value):
            if _counts(option, loop):
                return 0
            for base, added in _sum(option):
                if any(_counts(one, loop) for one in options(base)):
                    return added
    return None


def _entries(content: Value, key: str) -> Iterator[Value]:
    for option in options(content):
        if isinstance(option, Collection) and option.kind == "dict":
            for name, value in zip(option.keys, option.items, strict=False):
                if constant(name) == key:
                    yield value
        elif isinstance(option, Result) and option.call.qualified == "builtins.dict":
            if key in option.call.keywords:
                yield option.call.keywords[key]


def _counts(value: Value, loop: Loop) -> bool:
    """Whether the value is the loop's counter."""
    return isinstance(value, Element) and any(
        base is source for base in options(value.base) for source in _sources(loop.source)
    )


def _sources(source: Value) -> Iterator[Value]:
    for option in options(source):
        yield option
        if isinstance(option, Result) and option.call.method == "tqdm":
            for given in option.call.args[:1]:
                yield from options(given)
