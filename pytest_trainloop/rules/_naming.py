"""How observations speak of optimizers and parameters: by the user's own names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Optimizer

#: Names given of a longer list.
_SHOWN = 3


def title(optimizer: Optimizer) -> str:
    """An optimizer and where it comes from: `optimizer` (AdamW, built at train.py:12)."""
    built = f"built at {optimizer.built}" if optimizer.built else ""
    if optimizer.name == optimizer.kind:
        return f"{optimizer.kind} ({built})" if built else optimizer.kind
    return f"`{optimizer.name}` ({', '.join(filter(None, (optimizer.kind, built)))})"


def call_of(optimizer: Optimizer, method: str) -> str:
    """A call as the user would write it: `optimizer.step()`."""
    name = "optimizer" if optimizer.name == optimizer.kind else optimizer.name
    return f"`{name}.{method}()`"


def listed(names: Iterable[str]) -> str:
    """A few names in backquotes, and how many more there are."""
    return joined([f"`{name}`" for name in names])


def joined(texts: Sequence[str]) -> str:
    """A few texts as one, and how many more there are."""
    if len(texts) > _SHOWN:
        return f"{', '.join(texts[:_SHOWN])} and {len(texts) - _SHOWN} more"
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def counted(number: int, thing: str) -> str:
    """A number and its noun: 1 step, 2 steps."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
