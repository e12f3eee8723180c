"""Which rules a test is watched for, and how what they find reaches the user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import pytest
from _pytest.outcomes import Failed

from pytest_trainloop.checks._evidence import numbers
from pytest_trainloop.checks._facts import facts_of, leave
from pytest_trainloop.checks._options import OptionError, read_options
from pytest_trainloop.checks._verdict import below
from pytest_trainloop.rules._naming import counted

if TYPE_CHECKING:
    from pytest_trainloop.rules import Observation, Rule
    from pytest_trainloop.runtime.record import Run

#: What a finding does to its test.
Severity = Literal["error", "warn", "off"]
SEVERITIES: tuple[Severity, ...] = ("error", "warn", "off")


class TrainloopWarning(pytest.PytestWarning):
    """A rule was broken in a watched test."""


@dataclass(frozen=True, kw_only=True)
class WatchMark:
    """The options of `@pytest.mark.trainloop(...)`."""

    #: Rules and families that have no say in this test.
    ignore: list[str] | str = field(default_factory=list)
    #: As in `Check`.
    timeout: float | None = None
    isolate: Literal["process"] | None = None


class Watching:
    """How one pytest session watches: kept in its configuration's stash."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @classmethod
    def of(cls, config: pytest.Config) -> Watching:
        """The one of a session."""
        return config.stash.setdefault(_key, cls(config))

    @cached_property
    def rules(self) -> dict[str, Rule]:
        """The rules that were chosen, by name, among those that a run can show broken.

        Raises:
            UsageError: a name is unknown, or only the linter can see the rule broken.
        """
        from pytest_trainloop.rules import all_rules

        chosen = {name: rule for name, rule in all_rules().items() if rule.sees_runs()}
        select, ignore = self._names("select"), self._names("ignore")
        for option, names in (("select", select), ("ignore", ignore)):
            problem = _unknown(names)
            if problem:
                raise pytest.UsageError(f"trainloop_{option}: {problem}")
        for name in select:
            if name in all_rules() and name not in chosen:
                raise pytest.UsageError(
                    f"trainloop_select: `{name}` cannot be seen in a run; trainloop-lint sees it"
                )
        return {
            name: rule
            for name, rule in chosen.items()
            if (_has(select, rule) if select else rule.default_in_runs()) and not _has(ignore, rule)
        }

    def refuse_wrong_names(self) -> None:
        """Refuse before any test runs what the first watched test would be refused for.

        Raises:
            UsageError: an option names no rule, family or severity.
        """
        self.severity(marked=True)
        self.rules  # noqa: B018  # reads the names

    def severity(self, *, marked: bool) -> Severity:
        """What a finding does in a test that is marked, or not.

        Raises:
            UsageError: the ini option is none of the three.
        """
        given = str(self._config.getini("trainloop_watch"))
        for severity in SEVERITIES:
            if given == severity:
                return severity
        if given:
            raise pytest.UsageError(f"trainloop_watch is error, warn or off, not {given!r}")
        return "error" if marked else "warn"

    def rules_for(self, item: pytest.Item) -> dict[str, Rule]:
        """The rules that may speak in one test.

        Raises:
            OptionError: its marker names a rule that there is not.
        """
        ignored = list(_ignored(item))
        if problem := _unknown(ignored):
            raise OptionError(f"@pytest.mark.trainloop: {problem}")
        return {name: rule for name, rule in self.rules.items() if not _has(ignored, rule)}

    def findings(self, item: pytest.Item, run: Run | None, *, marked: bool) -> list[Observation]:
        """What is wrong in the run of a test; warnings are given here and left out."""
        severity = self.severity(marked=marked)
        if run is None or severity == "off":
            return []
        from pytest_trainloop.runtime.watch import observations

        found = observations(run, self.rules_for(item))
        if severity == "error":
            return found
        return [one for one in found if not _warned(item, one)]

    def _names(self, option: str) -> list[str]:
        given: Any = self._config.getoption(f"trainloop_{option}")
        if given is None:
            given = self._config.getini(f"trainloop_{option}")
        parts = given if isinstance(given, list) else [given]
        return [name for part in parts for name in part.replace(",", " ").split()]


_key = pytest.StashKey[Watching]()


def report(item: pytest.Item, one: Observation, outcome: str) -> None:
    """Leave word of a finding for the reports: the terminal's, junit's."""
    leave(
        item,
        {
            "check": one.rule,
            "outcome": outcome,
            "summary": one.message,
            "cause": one.message,
            "rule": one.rule,
            "where": one.where or None,
            "advice": one.advice,
            "evidence": one.evidence,
        },
    )


def explained(one: Observation) -> str:
    """A finding as the user reads it: the cause, the evidence, where, what to write."""
    lines = below(one.evidence, one.where, one.advice, one.rule)
    return "\n".join([f"{one.rule}: {one.message}", *(f"  {line}" for line in lines)])


def failure(item: pytest.Item, found: list[Observation], run: Run | None, *further: str) -> str:
    """The failure of a test in whose run rules were broken: each of them, then the numbers."""
    lines = [*([] if run is None else numbers(run)), *further, f"To reproduce: {command(item)}"]
    return "\n".join([*map(explained, found), *(f"  {line}" for line in lines)])


def command(item: pytest.Item) -> str:
    """The command that runs a test again."""
    return f"pytest -p trainloop '{item.nodeid}'"


def _warned(item: pytest.Item, one: Observation) -> bool:
    """Warn of a finding; False where the user's filters make an error of the warning."""
    try:
        item.warn(TrainloopWarning(explained(one)))
    except TrainloopWarning:
        return False
    report(item, one, "warning")
    return True


@contextmanager
def watched(item: pytest.Item) -> Iterator[None]:
    """Watch an unmarked test, and warn (or fail it) where a rule is broken."""
    __tracebackhide__ = True
    from pytest_trainloop.runtime.watch import watch

    with watch() as run:
        yield
    judge(item, run, marked=False)


def judge(item: pytest.Item, run: Run, *, marked: bool) -> None:
    """Say what one run did, and fail its test if a rule is broken."""
    __tracebackhide__ = True
    if not run.backwards:
        return
    problem = ""
    try:
        found = Watching.of(item.config).findings(item, run, marked=marked)
    except OptionError as wrong:
        # Raised below, so that this exception is not shown as its context.
        found, problem = [], f"usage error: {wrong}"
    if problem:
        _fail(problem)
    losses = run.losses
    told = f"loss {losses[0]:.4g} → {losses[-1]:.4g} in " if losses else ""
    steps = counted(run.training_steps, "step")
    leave(
        item,
        {
            "check": "watch",
            "outcome": "failed" if found else "passed",
            "summary": told + steps,
            "cause": found[0].message if found else None,
            "rule": found[0].rule if found else None,
            "where": (found[0].where or None) if found else None,
            "advice": found[0].advice if found else None,
            "evidence": numbers(run),
            "run": facts_of(run),
        },
    )
    for one in found:
        report(item, one, "failed")
    if found:
        _fail(failure(item, found, run))


def _fail(text: str) -> NoReturn:
    # Not hidden, nor shown: pytest remarks on a failure whose frames are all hidden.
    raise Failed(text, pytrace=False)


def _ignored(item: pytest.Item) -> Iterator[str]:
    for mark in item.iter_markers("trainloop"):
        names = read_options(WatchMark, "trainloop", mark.args, mark.kwargs).ignore
        yield from [names] if isinstance(names, str) else names


def _has(names: Iterable[str], rule: Rule) -> bool:
    return any(name in (rule.name, rule.family) for name in names)


def _unknown(names: Iterable[str]) -> str:
    from pytest_trainloop.rules import all_rules

    rules: Mapping[str, Rule] = all_rules()
    known = {*rules, *(rule.family for rule in rules.values())}
    for name in names:
        if name not in known:
            close = get_close_matches(name.lower().replace("_", "-"), sorted(known), 1)
            hint = f"; did you mean `{close[0]}`?" if close else ""
            return f"there is no rule or family `{name}`{hint}"
    return ""
