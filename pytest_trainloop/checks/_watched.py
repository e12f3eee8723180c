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

from pytest_trainloop.checks._options import OptionError, read_options

if TYPE_CHECKING:
    from pytest_trainloop.rules import Observation, Rule
    from pytest_trainloop.runtime.record import Run

#: What a finding does to its test.
Severity = Literal["error", "warn", "off"]
SEVERITIES: tuple[Severity, ...] = ("error", "warn", "off")
#: Where the page of a rule can be read.
_PAGE = "trainloop-lint --explain {}"


class TrainloopWarning(pytest.PytestWarning):
    """A rule was broken in a watched test."""


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """The options of `@pytest.mark.trainloop(...)`."""

    #: Rules and families that have no say in this test.
    ignore: list[str] | str = field(default_factory=list)


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
#: The key of the user property that tells a report how its checks ended.
PROPERTY = "trainloop"


def report(item: pytest.Item, name: str, outcome: str, summary: str, **facts: object) -> None:
    """Leave word for the reports: the terminal's, junit's."""
    said = {"check": name, "outcome": outcome, "summary": summary, **facts}
    if (PROPERTY, said) not in item.user_properties:
        item.user_properties.append((PROPERTY, said))


def explained(one: Observation) -> str:
    """A finding as the user reads it: the cause, the evidence, where, what to write."""
    below = [
        *one.evidence,
        *([f"Where: {one.where}"] if one.where else ()),
        f"What to do: {one.advice}",
        f"The rule: {_PAGE.format(one.rule)}",
    ]
    return "\n".join([f"{one.rule}: {one.message}", *(f"  {line}" for line in below)])


def _warned(item: pytest.Item, one: Observation) -> bool:
    """Warn of a finding; False where the user's filters make an error of the warning."""
    try:
        item.warn(TrainloopWarning(explained(one)))
    except TrainloopWarning:
        return False
    report(item, one.rule, "warning", one.message)
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
    steps = f"{run.training_steps} step{'' if run.training_steps == 1 else 's'}"
    report(item, "watch", "failed" if found else "passed", told + steps, steps=run.training_steps)
    for one in found:
        report(item, one.rule, "failed", one.message)
    if found:
        _fail("\n".join(map(explained, found)))


def _fail(text: str) -> NoReturn:
    # Not hidden, nor shown: pytest remarks on a failure whose frames are all hidden.
    raise Failed(text, pytrace=False)


def _ignored(item: pytest.Item) -> Iterator[str]:
    for mark in item.iter_markers("trainloop"):
        names = read_options(_Mark, "trainloop", mark.args, mark.kwargs).ignore
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
