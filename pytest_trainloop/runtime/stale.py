"""Find gradients that an optimizer used and nobody cleared before new ones were added.

Just after a step each gradient is marked by its identity and version. Whatever clears it
(`zero_grad` in either form, `p.grad = None`, a fill) changes one of the two. A gradient still
as marked when the next backward begins is about to be added to; it stays under suspicion
until it is cleared, or its optimizer steps again and uses the sum. The second half matters for
models trained in turns: a generator's backward adds to the discriminator's old gradients,
and the discriminator's own `zero_grad` clears both.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_trainloop.runtime.participants import KnownOptimizer


@dataclass(slots=True)
class _Mark:
    tensor: Tensor
    #: Weak, so that no gradient lives longer because it is watched.
    gradient: weakref.ref[Tensor]
    version: int
    added_to: bool = False

    def unchanged(self) -> bool:
        gradient = self.tensor.grad
        return (
            gradient is not None
            and self.gradient() is gradient
            and gradient._version == self.version
        )


class StaleGradients:
    """Marks on the gradients that optimizers have used."""

    def __init__(self) -> None:
        #: By the number of the parameter.
        self.marks: dict[int, _Mark] = {}

    def mark(self, optimizer: KnownOptimizer) -> None:
        """Remember the gradients that `optimizer` has just used."""
        for known in optimizer.parameters:
            gradient = known.tensor.grad
            if gradient is not None:
                self.marks[known.index] = _Mark(
                    known.tensor, weakref.ref(gradient), gradient._version
                )

    def unmark(self, optimizer: KnownOptimizer) -> None:
        """Forget the marks of an optimizer."""
        if self.marks:
            for known in optimizer.parameters:
                self.marks.pop(known.index, None)

    def before_backward(self) -> None:
        """Drop the marks of gradients that were cleared."""
        if not self.marks:
            return
        cleared = [index for index, mark in self.marks.items() if not mark.unchanged()]
        for index in cleared:
            del self.marks[index]

    def after_backward(self) -> None:
        """Renew the marks: what is still marked has now been added to."""
        if not self.marks:
            return
        for mark in self.marks.values():
            gradient = mark.tensor.grad
            if gradient is not None:
                mark.gradient, mark.version = weakref.ref(gradient), gradient._version
                mark.added_to = True

    def used_by(self, optimizer: KnownOptimizer) -> tuple[int, ...]:
        """Parameters of `optimizer` whose old gradient is part of the one it is about to use."""
        if not self.marks:
            return ()
        return tuple(
            known.index
            for known in optimizer.parameters
            if (mark := self.marks.get(known.index)) is not None and mark.added_to
        )
