"""Telling functions that have nothing to do with training, once they have been read.

A framework's plumbing (configuration, registries, logging) is called everywhere, and its
words are those of training often enough. Reading it once shows that nothing in it trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_trainloop.source.events import Call, Store
from pytest_trainloop.source.vocabulary import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_trainloop.source.events import Event

#: Shorter functions are read each time: what they return may matter.
LONG = 20

_TELLING = words(
    "backward manual_backward step zero_grad zero_ unscale_ scale detach detach_ item "
    "numpy tolist eval train state_dict load_state_dict requires_grad_ parameters "
    "named_parameters set_epoch softmax sigmoid log_softmax"
)
_PLAIN = ("torch.device", "torch.cuda.is_available", "torch.cuda.device", "torch.distributed.is_")


def is_dull(events: Sequence[Event]) -> bool:
    """Whether what a function did, its calls included, cannot matter to any rule."""
    return len(events) >= LONG and not any(_tells(event) for event in events)


def _tells(event: Event) -> bool:
    if isinstance(event, Call):
        if event.method in _TELLING or "grad" in event.method:
            return True
        return event.qualified.startswith("torch") and not event.qualified.startswith(_PLAIN)
    return isinstance(event, Store) and event.kind == "attribute" and "grad" in event.target
