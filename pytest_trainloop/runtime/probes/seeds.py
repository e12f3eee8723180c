"""See `torch.manual_seed` called, and whether what is trained next draws from that seed.

A seed that is put back before the next backward (an evaluation in `torch.random.fork_rng`), or
after which nothing of the loop draws a number, changes nothing and is not recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from pytest_trainloop.runtime.place import user_frames
from pytest_trainloop.runtime.sightings import Seeding

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_trainloop.runtime.observe import Observer

#: Each loader draws one number when a pass over it begins, and its sampler one more.
_DRAWN_BY_LOADERS = 4


def install(observer: Observer) -> None:
    """Replace `torch.manual_seed`, which is also `torch.random.manual_seed`."""
    import torch

    def note() -> None:
        seeded, observer.seeded = observer.seeded, None
        seeding = None if seeded is None else seeded.before_backward()
        if seeding is not None:
            observer.run.events.append(seeding)

    def replace(original: Callable[..., Any]) -> FunctionType:
        def manual_seed(seed: Any) -> Any:
            __tracebackhide__ = True
            result = original(seed)
            if observer.patches.active:
                calls = tuple((f.f_code.co_filename, f.f_lineno) for f in user_frames())
                if observer.seeded is None:
                    observer.at_next_backward.append(note)
                observer.seeded = Seeded(calls, observer.place(), torch.initial_seed())
            return result

        return cast("FunctionType", manual_seed)

    observer.patches.replace(torch, "manual_seed", replace)
    observer.patches.replace(torch.random, "manual_seed", replace)


class Seeded:
    """A seed that was set, and has not been followed by a backward so far."""

    def __init__(self, calls: tuple[tuple[str, int], ...], where: str, seed: int) -> None:
        self.calls = calls
        self.where = where
        self.seed = seed
        self.shuffled = False

    def before_backward(self) -> Seeding | None:
        """The record of it, if what comes now has drawn from it."""
        import torch

        state = torch.get_rng_state()
        if torch.initial_seed() != self.seed or not (self.shuffled or _has_drawn(self.seed, state)):
            return None
        return Seeding(self.seed, self.calls, self.where)


def _has_drawn(seed: int, state: Tensor) -> bool:
    """Whether more was drawn than what loaders draw when passes over them begin."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for _ in range(_DRAWN_BY_LOADERS + 1):
        if torch.equal(generator.get_state(), state):
            return False
        torch.empty((), dtype=torch.int64).random_(generator=generator)
    return True
