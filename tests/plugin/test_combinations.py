"""Each marker on tests of all kinds, and together with each other marker.

In classes, parametrized, with fixtures of every scope, expected to fail. The markers are those
that there are.
"""

from __future__ import annotations

from itertools import combinations

import pytest

from pytest_trainloop.checks import check_names

PROJECT = """
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

EPOCHS = 14


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


@torch.no_grad()
def evaluate(model, loader):
    was_training = model.training
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
    model.train(was_training)
    return right


def train(model, dataset, folder, accumulation, lr=0.2):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loader = DataLoader(dataset, accumulation.batch_size)
    begin = 0
    if (folder / "last.pt").exists():
        state = torch.load(folder / "last.pt")
        model.load_state_dict(state["model"])
        begin = state["epoch"]
    for epoch in range(begin, EPOCHS):
        for i, (x, y) in enumerate(loader, 1):
            loss = nn.functional.cross_entropy(model(x), y) / accumulation.steps
            loss.backward()
            if i % accumulation.steps == 0 or i == len(loader):
                optimizer.step()
                optimizer.zero_grad()
        evaluate(model, loader)
        torch.save({"model": model.state_dict(), "epoch": epoch + 1}, folder / "last.pt")

"""
USES = "tiny_dataset, checkpoint_dir, accumulation"
CALL = "train(network(), tiny_dataset, checkpoint_dir, accumulation)"
EVERY = pytest.mark.parametrize("marker", check_names())


def run(pytester: pytest.Pytester, code: str) -> pytest.RunResult:
    pytester.makepyfile(test_it=PROJECT + code)
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "--strict-markers", "-rA")


@EVERY
def test_in_a_class(pytester: pytest.Pytester, marker: str) -> None:
    result = run(
        pytester,
        f"""
@pytest.mark.{marker}
class TestLoop:
    @pytest.fixture(autouse=True)
    def made(self): self.model = network()

    def setup_method(self): self.runs = 0

    def test_it(self, {USES}):
        self.runs += 1
        assert self.runs == 1, "each run has an instance of its own"
        {CALL.replace("network()", "self.model")}
""",
    )
    result.assert_outcomes(passed=1)


@EVERY
def test_parametrized_by_mark_and_by_fixture(pytester: pytest.Pytester, marker: str) -> None:
    result = run(
        pytester,
        f"""
@pytest.fixture(params=[0.1, 0.2])
def rate(request): return request.param

@pytest.mark.parametrize("folder", ["a"])
@pytest.mark.{marker}
def test_it(rate, folder, {USES}):
    (checkpoint_dir / folder).mkdir(exist_ok=True)
    {CALL.replace("checkpoint_dir", "checkpoint_dir / folder")[:-1]}, lr=rate)
""",
    )
    result.assert_outcomes(passed=2)


@EVERY
def test_with_a_model_of_any_scope(pytester: pytest.Pytester, marker: str) -> None:
    """A model that tests share is put back before each run."""
    scopes = ("function", "class", "module", "package", "session")
    code = "".join(
        f"""
@pytest.fixture(scope="{scope}")
def {scope}_model(): return network()

@pytest.mark.{marker}
def test_{scope}({scope}_model, {USES}):
    {CALL.replace("network()", f"{scope}_model")}
"""
        for scope in scopes
    )
    run(pytester, code).assert_outcomes(passed=len(scopes))


@EVERY
def test_expected_to_fail(pytester: pytest.Pytester, marker: str) -> None:
    result = run(
        pytester,
        f"""
@pytest.mark.xfail(strict=True)
@pytest.mark.{marker}
def test_does_nothing({USES}): pass

@pytest.mark.xfail(strict=False)
@pytest.mark.{marker}
def test_works({USES}): {CALL}

@pytest.mark.xfail(strict=True)
@pytest.mark.{marker}
def test_works_strictly({USES}): {CALL}
""",
    )
    result.assert_outcomes(xfailed=1, xpassed=1, failed=1)


@pytest.mark.parametrize("markers", [*combinations(check_names(), 2), check_names()], ids="+".join)
def test_together(pytester: pytest.Pytester, markers: tuple[str, ...]) -> None:
    marks = "\n".join(f"@pytest.mark.{marker}" for marker in markers)
    result = run(pytester, f"{marks}\ndef test_it({USES}): {CALL}\n")
    result.assert_outcomes(passed=1)
    for marker in markers:
        result.stdout.re_match_lines([rf"{marker} passed  test_it.py::test_it .*"])


@EVERY
def test_beside_a_watch_of_all_tests(pytester: pytest.Pytester, marker: str) -> None:
    """A marked test is watched by its marker, and once."""
    pytester.makepyfile(
        test_it=f"{PROJECT}\n@pytest.mark.{marker}\n@pytest.mark.trainloop\n"
        f"def test_it({USES}): {CALL}\n"
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--trainloop-watch")
    result.assert_outcomes(passed=1)
    assert sum(" test_it.py::test_it " in line for line in result.stdout.lines) == 1
