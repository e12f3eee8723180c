"""Seed the random number generators of a run, and put them back as they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: NumPy takes seeds of 32 bits.
LARGEST_SEED = 2**32 - 1


def take_states() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's global generators, on the CPU and in CUDA.

    CUDA is left asleep: what was never used has no state to keep.
    """
    import torch

    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if (numpy := sys.modules.get("numpy")) is not None:
        states["numpy"] = numpy.random.get_state()
    # Not is_available(): that may start the driver, after which a fork can no longer use it.
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def put_states(states: dict[str, Any]) -> None:
    """Put generators back to `states`, as taken by `take_states`."""
    import torch

    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if "numpy" in states:
        sys.modules["numpy"].random.set_state(states["numpy"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    elif not torch.cuda._is_in_bad_fork():
        # It was asleep: as `torch.manual_seed` would have it, were it used for the first time.
        torch.cuda.manual_seed_all(torch.initial_seed())


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's (if it is loaded) and torch's generators, CUDA's included."""
    import torch

    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all generators inside the block; afterwards they are as they were before."""
    import torch  # noqa: F401  # loads NumPy where it is installed, so that it is seeded too

    states = take_states()
    seed_all(seed)
    try:
        yield
    finally:
        put_states(states)
