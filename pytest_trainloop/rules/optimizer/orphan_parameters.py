"""The rule `orphan-parameters`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import counted, title
from pytest_trainloop.rules._rule import Observation, Rule

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Parameter, Run


class OrphanParameters(Rule):
    """The optimizer holds parameters that belong to no model any more.

    Symptom: a layer that was replaced, or a model that was copied, keeps its initial weights;
    the loss stays high although everything seems to be in the optimizer.

    Why: an optimizer holds tensors, not a model. After `model.head = nn.Linear(...)` or
    `copy.deepcopy(model)` it goes on updating those that it was built with.

    What torch does: nothing. A parameter without a gradient is passed over.

    Limits: a parameter that no module owns is legitimate as long as the loss depends on it.
    """

    since = "0.1"
    examples = ()
    sources = (
        "https://pytorch.org/docs/stable/optim.html#constructing-it",
        "https://github.com/microsoft/nni/issues/4521",
        "https://github.com/openvinotoolkit/nncf/issues/327",
        "https://github.com/pytorch/pytorch/issues/54765",
    )

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for parameters of optimizers that no module owns and no gradient ever reached."""
        parameters = run.parameters
        if not any(one.reached for one in parameters):
            return
        for optimizer in run.optimizers:
            own = [parameters[number] for group in optimizer.groups for number in group]
            orphans = [one for one in own if _is_orphan(one)]
            # One step shows little: a parameter may wait for its turn.
            if not orphans or optimizer.steps < 2:  # noqa: PLR2004  # as said
                continue
            shapes = ", ".join(str(one.shape) for one in orphans[:3])
            verbs = ("belongs", "gets") if len(orphans) == 1 else ("belong", "get")
            yield self.observation(
                f"{counted(len(orphans), 'parameter')} of {title(optimizer)} {verbs[0]} to no model"
                f" and never {verbs[1]} a gradient",
                "build the optimizer from the model that is trained, when it is complete",
                optimizer.built,
                (f"their shapes: {shapes}{', ...' if len(orphans) > 3 else ''}",),  # noqa: PLR2004  # as shown
            )


def _is_orphan(parameter: Parameter) -> bool:
    return (
        parameter.model is None
        and parameter.trainable
        and parameter.moved is False
        and not parameter.reached
        and not parameter.had_gradient
    )
