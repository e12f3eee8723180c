"""What a check says of a run in which no optimizer stepped: nothing was trained, or unseen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_trainloop.checks._cause import nothing_ran
from pytest_trainloop.checks._verdict import CannotJudgeError, PromiseBrokenError
from pytest_trainloop.rules._naming import counted, listed

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run

#: pytest leaves our frames out of a traceback of the user's code.
__tracebackhide__ = True

_BY_OPTIMIZER = "let an optimizer of `torch.optim` make the updates, whose steps can be watched"


def refuse_nothing(run: Run, *evidence: str) -> None:
    """Raise where a run has no backward or no step.

    Args:
        run: the record.
        evidence: what else was seen, for the report.

    Raises:
        CannotJudgeError: there was training, but not where it can be watched: in another
            process, or with updates that are written by hand.
        PromiseBrokenError: the loop trains nothing.
    """
    cause = nothing_ran(run)
    if cause is None:
        return
    _refuse_other_processes(run)
    _refuse_updates_by_hand(run)
    raise PromiseBrokenError.by(cause, *evidence)


def _refuse_other_processes(run: Run) -> None:
    if run.backwards or not run.processes:
        return
    first = run.processes[0]
    raise CannotJudgeError(
        f"no backward was seen: the test body started {first.title} at {first.where}, and what"
        " other processes compute is not seen",
        advice="call in the test itself what the other process runs (a script: `run_script`), a"
        " loop for several devices as the only process of its group",
        said_at=first.where,
    )


def _refuse_updates_by_hand(run: Run) -> None:
    if not run.backwards:
        if run.gradient_calls:
            calls = counted(run.gradient_calls, "call")
            raise CannotJudgeError(
                f"no backward was seen, but {calls} of `torch.autograd.grad`: updates that are"
                " written by hand are not seen",
                advice=f"call `loss.backward()`, and {_BY_OPTIMIZER}",
            )
        return
    moved = [one.name for one in run.parameters if one.moved and one.trainable]
    if moved:
        raise CannotJudgeError(
            f"no optimizer stepped, but {listed(moved)} moved: updates that are written by hand"
            " are not seen",
            f"{counted(len(run.backwards), 'backward call')}, the last at"
            f" {run.backwards[-1].where}",
            advice=_BY_OPTIMIZER,
            said_at=run.backwards[-1].where,
        )
