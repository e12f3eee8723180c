"""Random numbers: what seeds the global streams, and what makes a stream of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_trainloop.source.values import Result, Value, options
from pytest_trainloop.source.vocabulary import words

if TYPE_CHECKING:
    from pytest_trainloop.source.events import Call

#: Functions that set a random stream that the whole program shares, by a seed given first.
_GLOBAL = words(
    "torch.manual_seed torch.random.manual_seed torch.cuda.manual_seed "
    "torch.cuda.manual_seed_all torch.cuda.random.manual_seed_all numpy.random.seed random.seed "
    "lightning.pytorch.seed_everything lightning.pytorch.utilities.seed.seed_everything "
    "lightning.fabric.utilities.seed.seed_everything lightning.seed_everything "
    "lightning.fabric.seed_everything transformers.set_seed transformers.trainer_utils.set_seed "
    "accelerate.utils.set_seed accelerate.utils.random.set_seed ignite.utils.manual_seed "
    "torch_geometric.seed_everything torch_geometric.seed.seed_everything"
)
_STREAMS = words(
    "numpy.random.default_rng numpy.random.RandomState numpy.random.Generator "
    "numpy.random.mtrand.RandomState random.Random torch.Generator"
)


def global_seed(call: Call) -> Value | None:
    """What the call seeds a shared random stream with; None if it does no such thing.

    A seeding without a seed takes one from the operating system, and is none either.
    """
    return call.argument(0, "seed") if call.qualified in _GLOBAL else None


def random_stream(value: Value) -> Call | None:
    """The call that made a value, if that surely is a random stream of its own."""
    found = [option for option in options(value) if isinstance(option, Result)]
    if len(found) != 1 or len(options(value)) != 1:
        return None
    return found[0].call if found[0].call.qualified in _STREAMS else None
