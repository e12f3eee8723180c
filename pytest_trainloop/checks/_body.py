"""The body of a test, run as often as a check asks, each time as if for the first time."""

from __future__ import annotations

import inspect
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import pytest

from pytest_trainloop.checks._fixtures import set_up_again
from pytest_trainloop.runtime.accumulation import Accumulation
from pytest_trainloop.runtime.drive import Interruption, Stopped

#: pytest leaves our frames out of a traceback of the user's code.
__tracebackhide__ = True
#: Once the runs of a body have taken longer in all, it is not run to learn more of a failure.
_PATIENCE_S = 60.0

if TYPE_CHECKING:
    from pytest_trainloop.checks._fixtures import SharedFixtures
    from pytest_trainloop.runtime.deadline import Deadline
    from pytest_trainloop.runtime.observe import Listener
    from pytest_trainloop.runtime.record import Run


@dataclass
class Stage:
    """What our fixtures hand to the body of one test; a check sets the scene between runs."""

    folder: Path
    interruption: Interruption = field(default_factory=Interruption)
    accumulation: Accumulation = field(default_factory=Accumulation)


stage_key = pytest.StashKey[Stage]()


def stage_of(item: pytest.Item) -> Stage:
    """The stage of a test, with an empty checkpoint folder to begin with."""
    stage = item.stash.get(stage_key, None)
    if stage is None:
        stage = item.stash[stage_key] = Stage(new_folder(item))
    return stage


def new_folder(item: pytest.Item, name: str = "checkpoint") -> Path:
    """An empty folder below pytest's temporary one, which pytest clears away in time."""
    factory: Any = getattr(item.config, "_tmp_path_factory", None)
    if factory is not None:
        folder: Path = factory.mktemp(name, numbered=True)
        return folder
    return Path(tempfile.mkdtemp(prefix=f"{name}-"))


class Body:
    """The function under a marker. Its global RNG is seeded anew before each run."""

    def __init__(
        self,
        item: pytest.Function,
        seed: int,
        shared: SharedFixtures,
        *,
        used: bool,
        deadline: Deadline,
    ) -> None:
        self.item = item
        self._deadline = deadline
        self.seed = seed
        #: The record of the first run, which is the one that rules are applied to.
        self.first: Run | None = None
        self._shared = shared
        #: How long its runs have taken.
        self._spent_s = 0.0
        #: Whether another check has used the fixtures that pytest made.
        self._used = used

    def run(self, *listeners: Listener) -> Run:
        """Run the body, with the fixtures that pytest made where they are as good as new.

        Whatever the body raises comes out, except a `Stopped` of ours.

        Raises:
            BrokenOffError: it took too long, or left, forked or outlived its process.
        """
        if self._used:
            return self._afresh(listeners, self.new_folder(), Interruption())
        return self._run(listeners)

    def _run(self, listeners: tuple[Listener, ...]) -> Run:
        from pytest_trainloop.runtime.guard import Guard
        from pytest_trainloop.runtime.seed import seed_all
        from pytest_trainloop.runtime.watch import watch

        item = self.item
        names = item._fixtureinfo.argnames
        self._used = True
        arguments = {name: item.funcargs[name] for name in names}
        seed_all(self.seed)
        guard = Guard(self._deadline)
        begin = time.monotonic()
        try:
            with watch(guard, *listeners) as run, suppress(Stopped), guard.kept():
                item.obj(**arguments)
        finally:
            self._spent_s += time.monotonic() - begin
        self.first = self.first or run
        return run

    def run_afresh(
        self,
        *listeners: Listener,
        folder: Path,
        title: str,
        interruption: Interruption | None = None,
    ) -> Run:
        """Set the test's own fixtures up again, then run it.

        Args:
            listeners: take part in the run.
            folder: what the fixture `checkpoint_dir` is in this run.
            title: which run it is, for the report of what the body raises.
            interruption: what the fixture `interruption` is.
        """
        try:
            return self._afresh(listeners, folder, interruption or Interruption())
        except Exception:
            self.item.add_report_section("call", "trainloop", f"raised in the {title}")
            raise

    def try_again(self, *listeners: Listener) -> Run | None:
        """As `run_afresh`, in an empty folder, to learn more of a failure.

        None if the body fails this time, whatever it raises, and if its runs have taken long.
        """
        from _pytest.outcomes import OutcomeException

        if self._spent_s > _PATIENCE_S:
            return None
        first = self.first
        try:
            return self._afresh(listeners, self.new_folder(), Interruption())
        except (Exception, OutcomeException) as failure:
            if isinstance(failure, pytest.exit.Exception):
                raise
            return None
        finally:
            self.first = first

    def _afresh(
        self, listeners: tuple[Listener, ...], folder: Path, interruption: Interruption
    ) -> Run:
        from pytest_trainloop.runtime.seed import seed_all

        stage = stage_of(self.item)
        stage.folder, stage.interruption = folder, interruption
        self._shared.put_back()
        seed_all(self.seed)
        set_up_again(self.item)
        return self._run(listeners)

    @property
    def stage(self) -> Stage:
        """What fixtures of ours hand to the body, when it is run afresh."""
        return stage_of(self.item)

    @property
    def code(self) -> CodeType | None:
        """The test function's own code; None for what is no plain function."""
        code: CodeType | None = getattr(inspect.unwrap(self.item.function), "__code__", None)
        return code

    def new_folder(self) -> Path:
        """An empty folder."""
        return new_folder(self.item)

    def uses(self, fixture: str) -> bool:
        """Whether the test, or a fixture of it, asks for a fixture."""
        return fixture in self.item.fixturenames
