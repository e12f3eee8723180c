"""Which loaders a training loop goes through, and what begins another pass over them."""

from __future__ import annotations

from pytest_trainloop.source.facts import LoaderPass, loader_passes
from pytest_trainloop.source.read import read_source

_IMPORTS = "from torch.utils.data import DataLoader\nimport torch.nn.functional as F\n\n"
_BODY = "F.cross_entropy(model(x), y).backward()\n"


def _passes(code: str) -> list[LoaderPass]:
    facts = read_source(_IMPORTS + code, "train.py")
    return [found for trace in facts.traces for found in loader_passes(trace)]


def test_the_innermost_loop_around_the_batches_comes_first() -> None:
    """Of two loops around the batches, the one that begins a pass is the nearer one."""
    found = _passes(
        "def train(model, data):\n"
        "    loader = DataLoader(data)\n"
        "    for run in range(3):\n"
        "        for epoch in range(9):\n"
        "            for x, y in loader:\n"
        f"                {_BODY}"
    )
    assert [one.header for one in found] == ["for epoch in range(9):", "for run in range(3):"]


def test_a_loader_made_in_each_turn_is_not_gone_through_again() -> None:
    """A new loader for each turn of the outer loop is one pass over each."""
    found = _passes(
        "def train(model, data):\n"
        "    for epoch in range(9):\n"
        "        for x, y in DataLoader(data):\n"
        f"            {_BODY}"
    )
    assert found == []


def test_batches_drawn_from_an_endless_generator_begin_again_in_it() -> None:
    """`next` on a generator that never ends goes through the loader again and again."""
    found = _passes(
        "def forever(loader):\n"
        "    while True:\n"
        "        for batch in loader:\n"
        "            yield batch\n\n"
        "def train(model, data):\n"
        "    batches = forever(DataLoader(data))\n"
        "    for step in range(9):\n"
        "        x, y = next(batches)\n"
        f"        {_BODY}"
    )
    assert [one.header for one in found] == ["def forever(loader):"]


def test_a_generator_is_read_however_it_is_spaced() -> None:
    """Blank lines and comments inside of it neither hide what it does nor cost time."""
    spaced = "\n   \n\n            # on\n" * 40
    found = _passes(
        "def once(loader):\n"
        f"    while loader:{spaced}        for batch in loader:{spaced}            print(batch)\n"
        "        yield 1\n\n"
        "def forever(loader):\n"
        f"    while True:{spaced}        for batch in loader:{spaced}            yield batch\n\n"
        "def train(model, data):\n"
        "    once_more, batches = once(DataLoader(data)), forever(DataLoader(data))\n"
        "    for step in range(9):\n"
        "        print(next(once_more))\n"
        "        x, y = next(batches)\n"
        f"        {_BODY}"
    )
    assert [one.header for one in found] == ["def forever(loader):"]


def test_a_loader_that_a_framework_prepared_is_out_of_sight() -> None:
    """What `prepare` gives back may be another loader."""
    found = _passes(
        "def train(model, data, accelerator):\n"
        "    loader = accelerator.prepare(DataLoader(data))\n"
        "    for epoch in range(9):\n"
        "        for x, y in loader:\n"
        f"            {_BODY}"
    )
    assert found == []
