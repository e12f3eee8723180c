"""From a marked test to a verdict: read the markers, run the checks, word the outcome."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import pytest
from _pytest.outcomes import Failed

from pytest_trainloop.checks import check_class
from pytest_trainloop.checks._facts import facts_of, leave, verdicts
from pytest_trainloop.checks._options import OptionError, read_options
from pytest_trainloop.checks._verdict import (
    CannotJudgeError,
    PromiseBrokenError,
    SymptomError,
    Verdict,
)
from pytest_trainloop.checks._watched import Watching, WatchMark, command, failure, judge, report

if TYPE_CHECKING:
    from pytest_trainloop.checks._body import Body
    from pytest_trainloop.checks._check import Check
    from pytest_trainloop.rules import Observation
    from pytest_trainloop.runtime.broken_off import BrokenOffError
    from pytest_trainloop.runtime.tiny import Tiny

    _End = Verdict | PromiseBrokenError | CannotJudgeError

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
    from pytest_trainloop.checks._fixtures import SharedFixtures
    from pytest_trainloop.runtime.deadline import Deadline
    from pytest_trainloop.runtime.seed import seeded

    checks = [_check_of(item, name) for name in names]
    mark = _watch_mark(item)
    _refuse_what_cannot_run(item, checks)
    # A check that sets fixtures up anew goes last: the first uses those that pytest made.
    checks.sort(key=lambda check: (check.runs_afresh, check.name))
    with seeded(seed):
        shared = SharedFixtures(item)
        for number, check in enumerate(checks):
            timeout = check.timeout or mark.timeout
            deadline = Deadline(timeout, partial(_give_up, item, check.name))
            _run_check(item, check, Body(item, seed, shared, used=number > 0, deadline=deadline))


def _run_check(item: pytest.Function, check: Check, body: Body) -> None:
    """Judge a promise, and what rules say of the run that it was judged by.

    A rule that was broken comes first, unless the check knows a cause itself.
    """
    __tracebackhide__ = True
    try:
        found, ended = _explained(item, body, _end_of(check, body))
    except Exception as raised:
        # The loop's own error: pytest shows it, and the reports name it.
        told = f"{type(raised).__name__}: {raised}".partition("\n")[0]
        leave(item, _verdict(check.name, "error", told, cause=told))
        raise
    leave(item, _verdict_of(check, ended, body))
    for one in found:
        report(item, one, "failed")
    title = f"{check.name}: {CANNOT_JUDGE}" if isinstance(ended, CannotJudgeError) else check.name
    if found:
        symptom = [f"{title}: {ended.cause}"] if isinstance(ended, Exception) else []
        _end(Failed(failure(item, found, body.first, *symptom), pytrace=False))
    if isinstance(ended, PromiseBrokenError):
        _end(Failed(_text(item, title, ended.cause, ended.lines()), pytrace=False))
    if isinstance(ended, CannotJudgeError):
        _end(Unjudged(_text(item, title, ended.cause, ended.lines()), pytrace=False))


def _end_of(check: Check, body: Body) -> _End:
    __tracebackhide__ = True
    from pytest_trainloop.runtime.broken_off import BrokenOffError

    try:
        return check.judge(body)
    except (PromiseBrokenError, CannotJudgeError) as no_verdict:
        return no_verdict
    except BrokenOffError as broken:
        return _told_by(broken)


def _told_by(broken: BrokenOffError) -> PromiseBrokenError:
    evidence = broken.trace.splitlines()
    return PromiseBrokenError(str(broken), *evidence, advice=broken.advice, said_at=broken.where)


def _give_up(item: pytest.Function, name: str, broken: BrokenOffError) -> None:
    """End the session with the verdict on a body that nothing can end."""
    from pytest_trainloop.checks._giving_up import end_session

    ended = _told_by(broken)
    leave(item, _broken(name, ended))
    end_session(item, _text(item, name, ended.cause, ended.lines()))


def _explained(item: pytest.Function, body: Body, ended: _End) -> tuple[list[Observation], _End]:
    """What rules found, where the check does not know better, and the end with its cause."""
    __tracebackhide__ = True
    if isinstance(ended, PromiseBrokenError) and not isinstance(ended, SymptomError):
        return [], ended
    found = _findings(item, body)
    if isinstance(ended, SymptomError):
        found = [one for one in found if one.rule != ended.same_as]
        if not found and ended.explain is not None:
            return [], ended.explain() or ended
    return found, ended


def _verdict_of(check: Check, ended: _End, body: Body) -> dict[str, object]:
    run = {} if body.first is None else {"run": facts_of(body.first)}
    if isinstance(ended, Verdict):
        return _verdict(check.name, "passed", ended.summary, facts=ended.facts, **run)
    return _broken(check.name, ended, **run)


def _broken(
    check: str, ended: PromiseBrokenError | CannotJudgeError, **more: object
) -> dict[str, object]:
    return _verdict(
        check,
        CANNOT_JUDGE if isinstance(ended, CannotJudgeError) else "failed",
        ended.cause,
        cause=ended.cause,
        rule=ended.rule or None,
        where=ended.where or None,
        advice=ended.advice or None,
        evidence=ended.evidence,
        **more,
    )


def _verdict(check: str, outcome: str, summary: str, **more: object) -> dict[str, object]:
    """What `facts.schema.json` calls a verdict."""
    nothing = {"cause": None, "rule": None, "where": None, "advice": None, "evidence": ()}
    return {"check": check, "outcome": outcome, "summary": summary, **nothing, **more}


def _findings(item: pytest.Function, body: Body) -> list[Observation]:
    __tracebackhide__ = True
    try:
        return Watching.of(item.config).findings(item, body.first, marked=True)
    except OptionError as wrong:
        problem = str(wrong)
    pytest.fail(f"usage error: {problem}", pytrace=False)


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
    below = [f"  {line}" for line in [*lines, f"To reproduce: {command(item)}"]]
    return "\n".join([f"{title}: {cause}", *below])


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
    from pytest_trainloop.runtime.broken_off import BrokenOffError
    from pytest_trainloop.runtime.deadline import Deadline
    from pytest_trainloop.runtime.guard import Guard
    from pytest_trainloop.runtime.watch import watch

    guard = Guard(Deadline(_watch_mark(item).timeout, partial(_give_up, item, "watch")))
    try:
        with watch(guard) as run, guard.kept():
            called = run_seeded(item, seed)
    except BrokenOffError as broken:
        ended = _told_by(broken)
    else:
        judge(item, run, marked=True)
        return called
    leave(item, _broken("watch", ended))
    _end(Failed(_text(item, "watch", ended.cause, ended.lines()), pytrace=False))


def _watch_mark(item: pytest.Function) -> WatchMark:
    """The options of the test's own `@pytest.mark.trainloop`, or their defaults."""
    __tracebackhide__ = True
    mark = item.get_closest_marker("trainloop")
    try:
        return read_options(WatchMark, "trainloop", mark.args, mark.kwargs) if mark else WatchMark()
    except OptionError as wrong:
        problem = str(wrong)
    pytest.fail(f"usage error: {problem}", pytrace=False)


def run_elsewhere(item: pytest.Function, names: list[str]) -> bool:
    """Run a test in a process of its own; False in that process, where it is to be run."""
    __tracebackhide__ = True
    from pytest_trainloop.checks._isolated import is_set_aside, run_in_own_process
    from pytest_trainloop.checks._waiting import EndedError

    if not is_set_aside(item):
        return False
    try:
        run_in_own_process(item)
        return True
    except EndedError as ended:
        cause = str(ended)
    for name in names:
        leave(item, _verdict(name, "failed", cause, cause=cause))
    _end(Failed(_text(item, ", ".join(names) or "trainloop", cause, []), pytrace=False))


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


def was_unjudged(report: pytest.TestReport) -> bool:
    """Whether a failed test failed because a check could not be judged."""
    return [verdict["outcome"] for verdict in verdicts(report)][-1:] == [CANNOT_JUDGE]


def _is_async(item: pytest.Function) -> bool:
    return inspect.iscoroutinefunction(item.obj) or inspect.isasyncgenfunction(item.obj)
