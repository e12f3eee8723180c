"""See what a `DataLoader` delivers (also `StatefulDataLoader`, also with workers)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from pytest_trainloop.runtime.record import Batch, EpochEnd, Loader

if TYPE_CHECKING:
    from pytest_trainloop.runtime.observe import Observer


def install(observer: Observer) -> None:
    """Replace `_BaseDataLoaderIter.__next__`, which every loader's iterator inherits."""
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    watch = _Batches(observer)
    observer.patches.replace(_BaseDataLoaderIter, "__next__", watch.replace_next)


@dataclass(slots=True)
class _Known:
    index: int
    #: Weak where it can be: what the loop lets go of is told from what it iterates in turns.
    dataset: Callable[[], Any]
    kind: type
    #: Where the user's code iterates it.
    place: str
    #: The iterator of the pass that goes on, by identity, and what it has delivered.
    iterator: int = 0
    epoch: int = -1
    delivered: int = 0


class _Batches:
    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.known: list[_Known] = []

    def replace_next(self, original: Callable[..., Any]) -> FunctionType:
        import torch

        observer = self.observer
        events = observer.run.events

        def __next__(iterator: Any) -> Any:  # noqa: N807
            __tracebackhide__ = True
            if not observer.patches.active:
                return original(iterator)
            known = self.loader_of(iterator)
            enabled = torch.is_grad_enabled()
            try:
                batch = original(iterator)
            except StopIteration:
                events.append(EpochEnd(known.index, known.epoch, known.delivered))
                for listener in observer.listeners:
                    listener.epoch_ended(known.index)
                raise
            events.append(Batch(known.index, known.epoch, known.delivered, enabled))
            known.delivered += 1
            for deliver in observer.deliver:
                batch = deliver(known.index, batch)
            return batch

        return cast("FunctionType", __next__)

    def loader_of(self, iterator: Any) -> _Known:
        dataset = iterator._dataset
        for known in self.known:
            if known.dataset() is dataset:
                break
        else:
            known = self.built_anew(iterator) or self.first_seen(iterator)
        # `_num_yielded` starts again from 0 where an iterator is used for another pass.
        if known.iterator != id(iterator) or iterator._num_yielded == 0:
            known.iterator = id(iterator)
            known.epoch += 1
            known.delivered = 0
            self.pass_begins(known.index, _sampler(iterator))
        return known

    def pass_begins(self, loader: int, sampler: Any) -> None:
        from torch.utils.data import RandomSampler

        self.observer.run.loaders[loader].orders.append(_order(sampler))
        seeded = self.observer.seeded
        if seeded is not None and isinstance(sampler, RandomSampler) and sampler.generator is None:
            seeded.shuffled = True

    def built_anew(self, iterator: Any) -> _Known | None:
        """The loader that `iterator` goes on with, where each epoch makes its own.

        It is iterated at the same place, over a dataset of the same kind, and the dataset
        before is gone.
        """
        place = self.observer.place()
        for known in self.known:
            if (known.place, known.kind) == (place, type(iterator._dataset)):
                if known.dataset() is not None:
                    continue
                known.dataset = _weakly(iterator._dataset)
                return known
        return None

    def first_seen(self, iterator: Any) -> _Known:
        dataset, loaders = iterator._dataset, self.observer.run.loaders
        place = self.observer.place()
        loaders.append(_describe(iterator, place))
        self.known.append(_Known(len(loaders) - 1, _weakly(dataset), type(dataset), place))
        return self.known[-1]


def _weakly(dataset: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(dataset)
    except TypeError:
        # Lists and tuples cannot be held weakly.
        return lambda: dataset


def _sampler(iterator: Any) -> Any:
    return getattr(iterator._index_sampler, "sampler", iterator._index_sampler)


def _order(sampler: Any) -> tuple[int, int] | None:
    """What a `DistributedSampler` makes its order from, unless somebody wrote another one."""
    from torch.utils.data import DistributedSampler

    if not isinstance(sampler, DistributedSampler) or not sampler.shuffle:
        return None
    if type(sampler).__iter__ is not DistributedSampler.__iter__:
        return None
    return int(sampler.seed), int(sampler.epoch)


def _describe(iterator: Any, place: str) -> Loader:
    sampler = _sampler(iterator)
    try:
        batches: int | None = len(iterator)
    except (TypeError, NotImplementedError):
        # The dataset is a stream.
        batches = None
    return Loader(
        dataset=type(iterator._dataset).__name__,
        sampler=type(sampler).__name__,
        batch_size=getattr(iterator._index_sampler, "batch_size", None),
        workers=iterator._num_workers,
        batches=batches,
        has_set_epoch=callable(getattr(sampler, "set_epoch", None)),
        where=place,
    )
