"""The global random number generators are seeded for a run, and put back; CUDA's are not woken."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NoReturn

import numpy as np
import pytest
import torch

from pytest_trainloop.runtime.fingerprint import rng_digests
from pytest_trainloop.runtime.seed import put_states, seed_all, seeded, take_states

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(autouse=True)
def _own_numbers() -> Iterator[None]:
    with seeded(11):
        yield


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: S311


def test_a_block_draws_what_its_seed_says_and_leaves_no_trace() -> None:
    before = rng_digests()
    with seeded(3):
        first = draw()
    with seeded(3):
        second = draw()
    with seeded(4):
        third = draw()
    assert first == second
    assert not set(first) & set(third)
    assert rng_digests() == before


def test_generators_are_put_back_when_the_block_raises() -> None:
    def draw_and_stop() -> None:
        draw()
        raise KeyboardInterrupt

    before = rng_digests()
    with pytest.raises(KeyboardInterrupt), seeded(3):
        draw_and_stop()
    assert rng_digests() == before


@pytest.mark.parametrize("source", ["python", "numpy", "torch"])
def test_one_number_drawn_changes_one_fingerprint(source: str) -> None:
    draws: dict[str, Callable[[], object]] = {
        "python": random.random,
        "numpy": np.random.rand,
        "torch": lambda: torch.rand(()),
    }
    before = rng_digests()
    draws[source]()
    after = rng_digests()
    assert [name for name in after if after[name] != before[name]] == [source]


def test_cuda_is_left_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    def wake(*_: object) -> NoReturn:
        raise AssertionError("CUDA was woken up")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    for name in ("_lazy_init", "is_available", "device_count", "get_rng_state_all"):
        monkeypatch.setattr(torch.cuda, name, wake)
    states = take_states()
    seed_all(3)
    put_states(states)
    assert not any(name.startswith("cuda") for name in (*states, *rng_digests()))


def test_cuda_that_first_wakes_in_a_block_is_seeded_as_the_user_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds: list[int] = []
    torch.manual_seed(42)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with seeded(3):
        draw()
    assert seeds == [3, 42]


def test_each_device_that_is_awake_has_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """On devices made of CPU generators, so that it is tested where there are none."""
    devices = [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    def put(states: list[torch.Tensor]) -> None:
        for device, state in zip(devices, states, strict=True):
            device.set_state(state)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [d.get_state() for d in devices])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put)
    monkeypatch.setattr(
        torch.cuda, "manual_seed_all", lambda seed: [d.manual_seed(seed) for d in devices]
    )
    before = rng_digests()
    torch.rand((), generator=devices[1])
    after = rng_digests()
    assert [name for name in after if after[name] != before[name]] == ["cuda:1"]
    with seeded(3):
        drawn = [float(torch.rand((), generator=device)) for device in devices]
    assert drawn[0] == drawn[1]
    assert rng_digests() == after


@needs_cuda
def test_numbers_drawn_on_a_device_are_seeded_and_put_back() -> None:
    torch.rand((), device="cuda")
    before = rng_digests()
    assert "cuda:0" in before
    with seeded(3):
        first = float(torch.rand((), device="cuda"))
    with seeded(3):
        second = float(torch.rand((), device="cuda"))
    assert first == second
    assert rng_digests() == before
    torch.rand((), device="cuda")
    after = rng_digests()
    assert [name for name in after if after[name] != before[name]] == ["cuda:0"]
