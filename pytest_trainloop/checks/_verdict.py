"""How a check ends: a verdict, a broken promise, or no judgement."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Verdict:
    """The promise was kept."""

    #: One line: what was seen.
    summary: str
    #: Numbers behind it, for the junit report; values that JSON can hold.
    facts: dict[str, object] = field(default_factory=dict)


class _JudgementError(Exception):
    """Ends a check: `cause` is the first line, `evidence` and `advice` follow it."""

    def __init__(self, cause: str, *evidence: str, advice: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.evidence = evidence
        self.advice = advice

    def lines(self) -> list[str]:
        """Everything below the cause."""
        advice = [f"What to do: {self.advice}"] if self.advice else []
        return [*self.evidence, *advice]


class PromiseBrokenError(_JudgementError):
    """The loop does not keep the promise."""


class SymptomError(PromiseBrokenError):
    """As its base, but why is not known: what a rule found in the run comes before it."""


class CannotJudgeError(_JudgementError):
    """The promise can be judged neither kept nor broken, for the reason given as cause."""
