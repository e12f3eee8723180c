"""The pytest plugin: hooks and fixtures, and no more than the way to what they need.

Loaded in every session that has the package installed, so it imports nothing but pytest;
what a marked test or a fixture needs is imported when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_trainloop.checks import check_names

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader, TensorDataset

    from pytest_trainloop.runtime.accumulation import Accumulation
    from pytest_trainloop.runtime.drive import Interruption
    from pytest_trainloop.runtime.scripted import ScriptedRun
    from pytest_trainloop.runtime.tiny import Tiny

#: Fixtures that make a test one about training, so that its RNG is seeded.
_SEEDED = frozenset(
    ("trainloop", "checkpoint_dir", "tiny_dataset", "make_tiny", "tiny_model", "make_optimizer")
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options; each has its ini twin."""
    group = parser.getgroup("trainloop", "training loops")
    group.addoption(
        "--trainloop-seed",
        type=int,
        metavar="N",
        help="seed of Python's, NumPy's and torch's RNG in tests of training loops (default: 0)",
    )
    group.addoption(
        "--trainloop-lint",
        action="store_true",
        help="lint the collected Python files and notebooks, an item for each",
    )
    group.addoption(
        "--trainloop-watch",
        action="store_true",
        help="watch the training loops in all tests, not only in marked ones, and warn of what"
        " is wrong with them",
    )
    group.addoption(
        "--trainloop-json",
        metavar="FILE",
        help="write what was checked and watched to a JSON file, for programs to read",
    )
    for verb, what in (("select", "only these"), ("ignore", "all but these")):
        text = f"watch for {what} rules or families, separated by commas"
        group.addoption(f"--trainloop-{verb}", metavar="NAMES", help=text)
        parser.addini(f"trainloop_{verb}", text, type="args", default=[])
    parser.addini(
        "trainloop_watch",
        "what a broken rule does in a watched test: error, warn, or off (default: error in a"
        " marked test, else warn)",
        default="",
    )
    parser.addini("trainloop_seed", "seed for tests of training loops (default: 0)", default="0")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, with their pages' first lines where somebody asks for them."""
    config.addinivalue_line(
        "markers", "tiny(task='classification', ...): what the tiny_* fixtures are made of"
    )
    config.addinivalue_line(
        "markers", "trainloop(ignore=[...]): watch this test; name rules that have no say in it"
    )
    full = config.getoption("markers", default=False)
    for name in check_names():
        config.addinivalue_line("markers", _marker_help(name) if full else name)
    if config.getoption("trainloop_lint"):
        from pytest_trainloop.lint_items import LintItems

        config.pluginmanager.register(LintItems(config), "trainloop-lint")
    if not _shows_signs():
        from pytest_trainloop.checks._plain_text import PlainText

        config.pluginmanager.register(PlainText(), "trainloop-plain-text")
    path = config.getoption("trainloop_json")
    if path is not None and not hasattr(config, "workerinput"):
        from pytest_trainloop.checks._json_file import JsonFile

        config.pluginmanager.register(JsonFile(path), "trainloop-json")
    if config.getoption("trainloop_watch"):
        config.pluginmanager.register(_WatchAll(), "trainloop-watch")
    names = ("trainloop_watch", "trainloop_select", "trainloop_ignore")
    if any(map(config.getini, names)) or any(map(config.getoption, names)):
        from pytest_trainloop.checks._watched import Watching

        Watching.of(config).refuse_wrong_names()


class _WatchAll:
    """The hook of `--trainloop-watch`."""

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Watch a test that no marker has watched already."""
        if _checks_of(item) or _is_marked(item):
            return (yield)
        from pytest_trainloop.checks._watched import watched

        with watched(item):
            return (yield)


def _shows_signs() -> bool:
    """Whether the terminal can show the arrows and plots of our reports."""
    # pytest has taken `sys.stdout` away by now, and shows its reports on the one it found.
    try:
        "→▁".encode(getattr(sys.__stdout__, "encoding", None) or "utf-8")
    except (UnicodeError, LookupError):
        return False
    return True


def _marker_help(name: str) -> str:
    from pytest_trainloop.checks import check_class

    check = check_class(name)
    return f"{check.signature()}: {check.summary()}"


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say which seed is used."""
    return f"trainloop: seed {_seed(config)}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse markers on what pytest does not call as a function: they would do nothing.

    Also set aside a test that is to run in a process of its own, before its fixtures are made.
    """
    if not _has_mark_of_ours(item):
        return
    names = _checks_of(item)
    wants_process = _wants_process(item, [*names, "trainloop"])
    called = isinstance(item, pytest.Function) and not getattr(item, "nofuncargs", False)
    if (names or wants_process) and not called:
        marks = ", ".join(f"@{name}" for name in names or ["pytest.mark.trainloop(isolate=...)"])
        pytest.fail(f"usage error: {marks} works on test functions only", pytrace=False)
    if wants_process and isinstance(item, pytest.Function):
        from pytest_trainloop.checks._isolated import set_aside

        set_aside(item)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a marked test as often as its checks ask, and any test of ours under a fixed seed.

    Inside of the call phase, because pytest-randomly seeds when that begins.
    """
    __tracebackhide__ = True
    # Asked of every test there is, and again here: a fixture may have added a marker.
    if not _has_mark_of_ours(pyfuncitem) and _SEEDED.isdisjoint(pyfuncitem.fixturenames):
        return None
    names = _checks_of(pyfuncitem)
    marked = _is_marked(pyfuncitem)
    from pytest_trainloop.checks._item import run_checks, run_elsewhere, run_marked, run_seeded

    if _wants_process(pyfuncitem, [*names, "trainloop"]) and run_elsewhere(pyfuncitem, names):
        return True
    if names:
        run_checks(pyfuncitem, names, _seed(pyfuncitem.config))
        return True
    if marked:
        return run_marked(pyfuncitem, _seed(pyfuncitem.config))
    return run_seeded(pyfuncitem, _seed(pyfuncitem.config))


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Count tests that could not be judged apart from those that failed."""
    if report.when == "call" and report.failed and report.user_properties:
        from pytest_trainloop.checks._item import was_unjudged

        if was_unjudged(report):
            return "cannot judge", "?", "CANNOT JUDGE"
    return None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show one line for each check, and why some could not be judged."""
    if any(report.user_properties for report in _reports(terminalreporter)):
        from pytest_trainloop.checks._summary import write_summary

        write_summary(terminalreporter, _reports(terminalreporter))


def _reports(terminalreporter: Any) -> list[pytest.TestReport]:
    return [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
    ]


def _has_mark_of_ours(item: pytest.Item) -> bool:
    """Whether a test, or what it is in, has a marker of a check, or the one to be watched."""
    ours = _our_marks()
    for node in item.iter_parents():
        for mark in node.own_markers:
            if mark.name in ours:
                return True
    return False


@cache
def _our_marks() -> frozenset[str]:
    return frozenset((*check_names(), "trainloop"))


def _checks_of(item: pytest.Item) -> list[str]:
    names = check_names()
    return sorted({mark.name for mark in item.iter_markers() if mark.name in names})


def _is_marked(item: pytest.Item) -> bool:
    return item.get_closest_marker("trainloop") is not None


def _wants_process(item: pytest.Item, markers: list[str]) -> bool:
    closest = (item.get_closest_marker(name) for name in markers)
    return any(mark.kwargs.get("isolate") == "process" for mark in closest if mark is not None)


def _seed(config: pytest.Config) -> int:
    given = config.getoption("trainloop_seed", default=None)
    seed = int(config.getini("trainloop_seed")) if given is None else given
    if not 0 <= seed < 2**32:
        raise pytest.UsageError(f"trainloop_seed is between 0 and 2**32 - 1, not {seed}")
    return seed


def _tiny(request: pytest.FixtureRequest) -> Tiny:
    from pytest_trainloop.checks._item import tiny_options

    return tiny_options(request.node)


@pytest.fixture
def make_tiny() -> Callable[..., Tiny]:
    """A factory of tiny data and models: `make_tiny(task="images").loader()`."""
    from pytest_trainloop.runtime.tiny import Tiny

    return Tiny


@pytest.fixture
def tiny_dataset(request: pytest.FixtureRequest) -> TensorDataset:
    """8 examples of 4 features in 2 classes that can be separated; see `@pytest.mark.tiny`."""
    return _tiny(request).dataset()


@pytest.fixture
def tiny_loader(
    request: pytest.FixtureRequest, tiny_dataset: TensorDataset
) -> DataLoader[tuple[Tensor, ...]]:
    """A `DataLoader` over `tiny_dataset`: batches of 4, in order."""
    return _tiny(request).loader(tiny_dataset)


@pytest.fixture
def tiny_model(request: pytest.FixtureRequest) -> Module:
    """A small model for `tiny_dataset`, always with the same weights."""
    return _tiny(request).model()


@pytest.fixture
def make_optimizer() -> Callable[..., Optimizer]:
    """A factory of optimizers over any parameters: `make_optimizer(model.parameters())`."""
    from pytest_trainloop.runtime.tiny import optimizer_over

    return optimizer_over


@pytest.fixture
def seeded_optimizer(tiny_model: Module) -> Optimizer:
    """AdamW over the parameters of `tiny_model`."""
    from pytest_trainloop.runtime.tiny import optimizer_over

    return optimizer_over(tiny_model.parameters())


@pytest.fixture
def checkpoint_dir(request: pytest.FixtureRequest) -> Path:
    """An empty folder for checkpoints; `resumes` hands the same one to the run that goes on."""
    from pytest_trainloop.checks._body import stage_of

    return stage_of(request.node).folder


@pytest.fixture
def interruption(request: pytest.FixtureRequest) -> Interruption:
    """Which run of the `resumes` check this is: `stopping`, `resuming`, or neither."""
    from pytest_trainloop.checks._body import stage_of

    return stage_of(request.node).interruption


@pytest.fixture
def accumulation(request: pytest.FixtureRequest) -> Accumulation:
    """How an update is to be made: of `steps` micro-batches of `batch_size` samples.

    The `accumulates` check hands out what it compares; elsewhere 4 micro-batches of 2.
    """
    from pytest_trainloop.checks._body import stage_of

    return stage_of(request.node).accumulation


@pytest.fixture
def trainloop() -> Iterator[ScriptedRun]:
    """The record of what the test's training loop does: losses, gradient norms, rates.

    `trainloop.run_script("train.py", "--epochs", "1")` runs a script that is to be recorded.
    """
    from pytest_trainloop.runtime.scripted import ScriptedRun
    from pytest_trainloop.runtime.watch import watch

    run = ScriptedRun()
    with watch(run=run):
        yield run
