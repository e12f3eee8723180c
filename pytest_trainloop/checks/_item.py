"""From a marked test to a verdict: read the markers, run the checks, word the outcome."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import pytest
from _pytest.outcomes import Failed

from pytest_trainloop.checks import check_class
from pytest_trainloop.checks._options import OptionError, read_options
from pytest_trainloop.checks._verdict import CannotJudgeError, PromiseBrokenError, SymptomError
from pytest_trainloop.checks._watched import PROPERTY, Watching, explained, judge
from pytest_trainloop.checks._watched import report as report_line

if TYPE_CHECKING:
    from pytest_trainloop.checks._body import Body
    from pytest_trainloop.checks._check import Check
    from pytest_trainloop.checks._verdict import Verdict
    from pytest_trainloop.rules import Observation
    from pytest_trainloop.runtime.tiny import Tiny

#: How a check ended that could be judged neither kept nor broken.
CANNOT_JUDGE = "cannot judge"


class Unjudged(Failed):
    """Fails a test whose checks could not be judged; reported in a category of its own."""


def run_checks(item: pytest.Function, names: list[str], seed: int) -> None:
    """Run the checks that `item` is marked with, in alphabetical order.

    The first that fails ends the test.
    """
    __tracebackhide__ = True
    from pytest_trainloop.checks._body import Body
    from pytest_trainloop.runtime.seed import seeded

    checks = [_check_of(item, name) for name in names]
    _refuse_what_cannot_run(item, checks)
    with seeded(seed):
        # A check that sets fixtures up anew goes last: the others use those that pytest made.
        for check in sorted(checks, key=lambda check: (check.runs_afresh, check.name)):
            _run_check(item, check, Body(item, seed))


def _run_check(item: pytest.Function, check: Check, body: Body) -> None:
    """Judge a promise, and what rules say of the run that it was judged by.

    A rule that was broken comes first, unless the check knows a cause itself.
    """
    __tracebackhide__ = True
    ended = _end_of(check, body)
    _report_end(item, check, ended)
    if isinstance(ended, PromiseBrokenError) and not isinstance(ended, SymptomError):
        _end(Failed(_text(item, check.name, ended.cause, ended.lines()), pytrace=False))
    found = _findings(item, body)
    for one in found:
        report_line(item, one.rule, "failed", one.message)
    title = f"{check.name}: {CANNOT_JUDGE}" if isinstance(ended, CannotJudgeError) else check.name
    if found:
        symptom = f"{title}: {ended.cause}" if isinstance(ended, Exception) else ""
        _end(Failed(_broken_rules(item, found, symptom), pytrace=False))
    if isinstance(ended, PromiseBrokenError):
        _end(Failed(_text(item, title, ended.cause, ended.lines()), pytrace=False))
    if isinstance(ended, CannotJudgeError):
        _end(Unjudged(_text(item, title, ended.cause, ended.lines()), pytrace=False))


def _end_of(check: Check, body: Body) -> Verdict | PromiseBrokenError | CannotJudgeError:
    __tracebackhide__ = True
    from pytest_trainloop.runtime.broken_off import BrokenOffError

    try:
        return check.judge(body)
    except (PromiseBrokenError, CannotJudgeError) as no_verdict:
        return no_verdict
    except BrokenOffError as broken:
        return PromiseBrokenError(str(broken), *broken.trace.splitlines(), advice=broken.advice)


def _report_end(
    item: pytest.Function, check: Check, ended: Verdict | PromiseBrokenError | CannotJudgeError
) -> None:
    if isinstance(ended, CannotJudgeError):
        report_line(item, check.name, CANNOT_JUDGE, ended.cause)
    elif isinstance(ended, PromiseBrokenError):
        report_line(item, check.name, "failed", ended.cause)
    else:
        report_line(item, check.name, "passed", ended.summary, **ended.facts)


def _findings(item: pytest.Function, body: Body) -> list[Observation]:
    __tracebackhide__ = True
    try:
        return Watching.of(item.config).findings(item, body.first, marked=True)
    except OptionError as wrong:
        problem = str(wrong)
    pytest.fail(f"usage error: {problem}", pytrace=False)


def _broken_rules(item: pytest.Function, found: list[Observation], symptom: str) -> str:
    parts = [*map(explained, found), *([f"  {symptom}"] if symptom else ())]
    return "\n".join([*parts, f"  To reproduce: {_command(item)}"])


def _end(outcome: Failed) -> NoReturn:
    # The one frame of ours that is not hidden: pytest remarks on a failure without any. It
    # is not shown, because these outcomes are printed without a traceback.
    raise outcome


def _check_of(item: pytest.Function, name: str) -> Check:
    __tracebackhide__ = True
    mark = next(item.iter_markers(name))
    try:
        return check_class(name).from_options(mark.args, mark.kwargs)
    except OptionError as wrong:
        problem = str(wrong)
    pytest.fail(f"usage error: {problem}", pytrace=False)


def _refuse_what_cannot_run(item: pytest.Function, checks: list[Check]) -> None:
    __tracebackhide__ = True
    for check in checks:
        if _is_async(item):
            pytest.fail(f"usage error: @{check.name} cannot run an async test", pytrace=False)
        for fixture, reason in check.needs.items():
            if fixture not in item.fixturenames:
                pytest.fail(
                    f"usage error: @{check.name} needs the fixture `{fixture}`: {reason}",
                    pytrace=False,
                )


def _text(item: pytest.Function, title: str, cause: str, lines: list[str]) -> str:
    below = [f"  {line}" for line in [*lines, f"To reproduce: {_command(item)}"]]
    return "\n".join([f"{title}: {cause}", *below])


def _command(item: pytest.Function) -> str:
    return f"pytest -p trainloop '{item.nodeid}'"


def run_seeded(item: pytest.Function, seed: int) -> bool | None:
    """Call a test that has fixtures of ours but no check, its global RNG seeded.

    None for an async test: calling it is the matter of another plugin.
    """
    __tracebackhide__ = True
    from pytest_trainloop.runtime.seed import seeded

    if _is_async(item):
        return None
    with seeded(seed):
        item.obj(**{name: item.funcargs[name] for name in item._fixtureinfo.argnames})
    return True


def run_marked(item: pytest.Function, seed: int) -> bool | None:
    """Call a test that is marked to be watched, without any check, its global RNG seeded."""
    __tracebackhide__ = True
    from pytest_trainloop.runtime.watch import watch

    with watch() as run:
        called = run_seeded(item, seed)
    judge(item, run, marked=True)
    return called


def tiny_options(item: pytest.Item) -> Tiny:
    """What the tiny fixtures of a test are made of."""
    __tracebackhide__ = True
    from pytest_trainloop.runtime.tiny import Tiny

    mark = item.get_closest_marker("tiny")
    if mark is None:
        return Tiny()
    try:
        return read_options(Tiny, "tiny", mark.args, mark.kwargs)
    except OptionError as wrong:
        problem = str(wrong)
    pytest.fail(f"usage error: {problem}", pytrace=False)


def verdicts(report: pytest.TestReport) -> Iterator[dict[str, object]]:
    """What the checks of a test said."""
    for name, value in report.user_properties:
        if name == PROPERTY and isinstance(value, dict):
            yield value


def was_unjudged(report: pytest.TestReport) -> bool:
    """Whether a failed test failed because a check could not be judged."""
    return [verdict["outcome"] for verdict in verdicts(report)][-1:] == [CANNOT_JUDGE]


def _is_async(item: pytest.Function) -> bool:
    return inspect.iscoroutinefunction(item.obj) or inspect.isasyncgenfunction(item.obj)
