"""Which backward a batch is for, where a loop fetches its batches ahead of their use.

Accelerate and what is built on it ask for the next batch before they hand out the one at hand,
to know the last one of a pass; the Trainer of transformers asks for all micro-batches of an
update before it uses the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pytest_trainloop.runtime.record import Backward, Batch, EpochEnd

if TYPE_CHECKING:
    from pytest_trainloop.runtime.fingerprint import Digest


@dataclass(slots=True)
class Delivery:
    """A batch that a data loader delivered for training."""

    batch: Batch
    #: Its place among the events of its run.
    position: int
    samples: tuple[Digest, ...]


def places_of_use(events: Sequence[object], deliveries: Sequence[Delivery]) -> list[int]:
    """From where on in `events` each delivery is used: its own place, or that of a backward.

    A pass over a loader was fetched ahead if several of its batches came before its first
    backward and each has one backward in the end, in the same order.
    """
    places = {id(one): one.position for one in deliveries}
    backwards = [place for place, event in enumerate(events) if isinstance(event, Backward)]
    for one_pass, end in _passes(events, deliveries):
        own = [place for place in backwards if one_pass[0].position < place < end]
        early = sum(one.position < own[0] for one in one_pass) if own else 0
        unused = len(one_pass) - len(own)
        if early > 1 and 0 <= unused <= (0 if _ended(events, one_pass) else early - 1):
            places.update((id(one), place) for one, place in zip(one_pass, own, strict=False))
            # What was fetched and never used is of no update.
            places.update((id(one), len(events)) for one in one_pass[len(own) :])
    return [places[id(one)] for one in deliveries]


def _passes(
    events: Sequence[object], deliveries: Sequence[Delivery]
) -> list[tuple[list[Delivery], int]]:
    """The deliveries of each pass over each loader, and where the loader's next pass begins."""
    passes: dict[tuple[int, int], list[Delivery]] = {}
    for one in deliveries:
        passes.setdefault((one.batch.loader, one.batch.epoch), []).append(one)
    loaders: dict[int, list[list[Delivery]]] = {}
    for (loader, _), one_pass in passes.items():
        loaders.setdefault(loader, []).append(one_pass)
    found = []
    for own in loaders.values():
        found += [(one, following[0].position) for one, following in pairwise(own)]
        found.append((own[-1], len(events)))
    return found


def _ended(events: Sequence[object], one_pass: list[Delivery]) -> bool:
    batch = one_pass[0].batch
    return any(
        isinstance(event, EpochEnd) and (event.loader, event.epoch) == (batch.loader, batch.epoch)
        for event in events
    )
