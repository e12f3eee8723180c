"""Tests of training loops are seeded in the call phase, and leave the generators as they were."""

from __future__ import annotations

import pytest

DRAWS = """
import random
import numpy as np
import pytest
import torch

def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))

def test_first(tiny_model, record_property):
    assert draw() == EXPECTED
def test_second(tiny_model):
    assert draw() == EXPECTED
"""


def draws_under(seed: int) -> tuple[float, float, float]:
    import random

    import numpy as np
    import torch

    from pytest_trainloop.runtime.seed import seeded

    with seeded(seed):
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: S311


@pytest.mark.parametrize(
    ("options", "ini", "seed"),
    [
        ([], "", 0),
        (["--trainloop-seed", "7"], "", 7),
        ([], "[pytest]\ntrainloop_seed = 5\n", 5),
        (["--trainloop-seed", "7"], "[pytest]\ntrainloop_seed = 5\n", 7),
    ],
)
def test_every_generator_is_seeded_for_each_test(
    pytester: pytest.Pytester, options: list[str], ini: str, seed: int
) -> None:
    pytester.makeini(ini or "[pytest]\n")
    pytester.makepyfile(DRAWS.replace("EXPECTED", repr(draws_under(seed))))
    result = pytester.runpytest_inprocess("-p", "no:randomly", *options)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([f"trainloop: seed {seed}"])


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_plugins_that_seed_or_split_change_nothing(
    pytester: pytest.Pytester, options: tuple[str, ...]
) -> None:
    pytester.makeini("[pytest]\n")
    pytester.makepyfile(DRAWS.replace("EXPECTED", repr(draws_under(0))))
    result = pytester.runpytest_subprocess("-p", "randomly", "-p", "xdist", *options)
    result.assert_outcomes(passed=2)


def test_the_generators_are_put_back(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import random
        import pytest
        import torch

        @pytest.fixture(autouse=True)
        def watched():
            before = random.getstate(), torch.get_rng_state()
            yield
            assert random.getstate() == before[0]
            assert torch.equal(torch.get_rng_state(), before[1])

        def test_fixture(tiny_model): random.random(), torch.rand(3)

        @pytest.mark.overfits
        def test_marked(tiny_loader): random.random(), torch.rand(3)
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:randomly")
    result.assert_outcomes(passed=1, failed=1)
    assert "assert torch.equal" not in result.stdout.str()


def test_unmarked_tests_keep_their_random_numbers(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import random

        def test_one(): random.seed(3)
        def test_two(): assert random.random() == random.Random(3).random()
        """
    )
    pytester.runpytest_inprocess("-p", "no:randomly").assert_outcomes(passed=2)


def test_a_seed_out_of_range_is_a_usage_error(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--trainloop-seed=-1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "trainloop_seed is between 0 and 2**32 - 1, not -1" in result.stderr.str()
