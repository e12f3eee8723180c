"""How a check ends: a verdict, a broken promise, or no judgement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

#: How the page of a rule is read.
PAGE = "trainloop-lint --explain {}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The promise was kept."""

    #: One line: what was seen.
    summary: str
    #: Numbers behind it, for the junit report; values that JSON can hold.
    facts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cause:
    """What went wrong, in one line without a full stop, and what to write."""

    message: str
    advice: str
    #: `path:line` in the user's code, or empty.
    where: str = ""
    #: The rule that is about it, or empty.
    rule: str = ""
    evidence: tuple[str, ...] = ()


class _JudgementError(Exception):
    """Ends a check: `cause` is the first line, `evidence` and `advice` follow it.

    The place in the user's code has a line of its own, or is what one of the others says.
    """

    def __init__(
        self,
        cause: str,
        *evidence: str,
        advice: str = "",
        where: str = "",
        said_at: str = "",
        rule: str = "",
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.evidence = evidence
        self.advice = advice
        self.where = where or said_at
        self.rule = rule
        self._own_line = where

    def lines(self) -> list[str]:
        """Everything below the cause."""
        return below(self.evidence, self._own_line, self.advice, self.rule)


class PromiseBrokenError(_JudgementError):
    """The loop does not keep the promise."""

    @classmethod
    def by(cls, cause: Cause, *evidence: str) -> PromiseBrokenError:
        """The end for a known cause, with what else was seen."""
        return cls(
            cause.message,
            *evidence,
            *cause.evidence,
            advice=cause.advice,
            where=cause.where,
            rule=cause.rule,
        )


class SymptomError(PromiseBrokenError):
    """As its base, but why is not known: what a rule found in the run comes before it."""

    #: The rule that says no more than this, and so does not come before it.
    same_as = ""
    #: Finds the cause by experiments, once no rule has anything to say; None if it cannot.
    explain: Callable[[], PromiseBrokenError | None] | None = None


class CannotJudgeError(_JudgementError):
    """The promise can be judged neither kept nor broken, for the reason given as cause."""


def below(evidence: tuple[str, ...], where: str, advice: str, rule: str) -> list[str]:
    """What stands under a cause, in the order in which a reader asks for it."""
    return [
        *evidence,
        *([f"Where: {where}"] if where else ()),
        *([f"What to do: {advice}"] if advice else ()),
        *([f"The rule: {PAGE.format(rule)}"] if rule else ()),
    ]
