"""The process of its own that an isolated test runs in: one test, told to the process before it.

Not forked: threads that torch has
started do not come along into a fork, which then waits for them for ever. So it is an interpreter
that begins anew, collects the one test and sets up its fixtures.

It runs this file, and leaves it to pytest to import the package: pytest rewrites the assertions
of plugins, and warns of those that somebody has imported before it. So a plan is a plain
dictionary, and an event a pair: `report`, `warning`, `problem` or `interrupted`, and what is said.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict

import pytest

if TYPE_CHECKING:
    import warnings

#: Plugins of pytest that would write to the cache of the session that waits.
_CACHING = ("lfplugin", "nfplugin", "stepwiseplugin")


class Plan(TypedDict):
    """What the process is to run, and how the session that waits for it is set up."""

    nodeid: str
    #: The command line, and the options by their names in `config.option`.
    arguments: list[str]
    options: dict[str, Any]
    argv: list[str]
    #: The folder that the session was started in.
    folder: str
    search_path: list[str]
    #: What `coverage.Coverage` takes, where the session measures it.
    coverage: dict[str, Any] | None
    #: The file to tell events to, and the one for stacks.
    events: str
    stacks: str


def stack_signal() -> int:
    """The signal on which such a process writes down its stacks, even while it hangs in C."""
    realtime = getattr(signal, "SIGRTMIN", None)
    return int(realtime) + 4 if realtime is not None else int(getattr(signal, "SIGUSR2", 0))


def main() -> None:
    """Run the test of the plan in the file that the command line names."""
    _end_with_parent()
    with open(sys.argv[1], "rb") as content:
        plan: Plan = pickle.load(content)  # noqa: S301  # our own process wrote it
    sys.path[:] = plan["search_path"]
    sys.argv[:] = plan["argv"]
    with _measured(plan["coverage"]), open(plan["events"], "wb", buffering=0) as events:
        _run(plan, events)


def _run(plan: Plan, events: BinaryIO) -> None:
    from _pytest.config import get_config

    config = get_config(plan["arguments"])
    config.option.__dict__.update(plan["options"])
    teller = _Teller(plan, events, config)
    try:
        config.parse(list(plan["arguments"]), addopts=False)
        from pytest_trainloop.checks._isolated import inside_key

        config.stash[inside_key] = True
        config.pluginmanager.register(teller, "trainloop-process")
        config.pluginmanager.register(_Quiet(config), "trainloop-quiet")
        config.hook.pytest_cmdline_main(config=config)
    except (Exception, SystemExit) as wrong:  # noqa: BLE001  # whatever it is, the other process has to know
        teller.tell("problem", f"{type(wrong).__name__}: {wrong}")
    finally:
        config._ensure_unconfigure()


class _Teller:
    """The hooks that run the test and tell how it went."""

    def __init__(self, plan: Plan, events: BinaryIO, config: pytest.Config) -> None:
        self._plan = plan
        self._events = events
        self._config = config
        self._stdout = sys.stdout
        # Kept open: the handlers of crashes write to it.
        self._stacks = open(plan["stacks"], "w")  # noqa: SIM115  # see above

    def tell(self, kind: str, said: object) -> None:
        """Write an event; at once, for the process may end in the next moment."""
        self._events.write(pickle.dumps((kind, said)))

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self) -> None:
        """Let the reporter of this process write to nowhere: the other one speaks."""
        self._stdout = sys.stdout
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the reporter keeps it

    def loud_again(self) -> None:
        """The reporter is made: what the test prints goes where it belongs."""
        sys.stdout = self._stdout
        faulthandler.enable(self._stacks)
        if hasattr(faulthandler, "register"):
            faulthandler.register(stack_signal(), self._stacks)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Tell why the test could not be collected."""
        if report.failed:
            self.tell("problem", report.longreprtext)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Leave the one test alone."""
        session.items[:] = [item for item in session.items if item.nodeid == self._plan["nodeid"]][
            :1
        ]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run the test once, whoever else would run it again: the session that waits does."""
        from _pytest.runner import runtestprotocol

        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        runtestprotocol(item, nextitem=nextitem)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tell how a phase of the test went."""
        hook = self._config.hook
        self.tell("report", hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str
    ) -> None:
        """Tell of a warning, in parts that any process can put together again."""
        if when != "runtest":
            # The session that waits has been configured and has collected as well.
            return
        category = warning_message.category
        kind = (category.__module__, category.__qualname__) if category else ("", "")
        text = str(warning_message.message)
        place = (warning_message.filename, warning_message.lineno)
        self.tell("warning", (kind, text, place, nodeid))

    def pytest_internalerror(self, excrepr: object) -> None:
        """Tell of a fault in pytest or a plugin."""
        self.tell("problem", str(excrepr).splitlines()[-1])

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Tell that the session is to end, by Ctrl-C or `pytest.exit`."""
        left = excinfo.value
        if isinstance(left, pytest.exit.Exception):
            self.tell("interrupted", (left.msg, left.returncode))
        else:
            self.tell("interrupted", None)


class _Quiet:
    """Comes after all plugins of pytest have been configured."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Take out what would write to files of the session that waits."""
        for name in _CACHING:
            if config.pluginmanager.hasplugin(name):
                config.pluginmanager.unregister(name=name)
        teller: Any = config.pluginmanager.getplugin("trainloop-process")
        teller.loud_again()


@contextmanager
def _measured(settings: dict[str, Any] | None) -> Iterator[None]:
    """Measure coverage beside the session that waits, which combines all data in the end."""
    if settings is None:
        yield
        return
    import coverage

    measuring = coverage.Coverage(**settings, data_suffix=True)
    measuring.start()
    try:
        yield
    finally:
        measuring.stop()
        measuring.save()


def _end_with_parent() -> None:
    """Ask Linux to end this process with the one that waits for it, however that ends."""
    import ctypes

    with suppress(OSError, AttributeError):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    main()
