"""What a user meets who writes our markers on a test."""

from __future__ import annotations

import pytest

LOOP = """
import pytest
import torch
from torch import nn


def train(loader, epochs=10, lr=1e-2):
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

"""


def run(pytester: pytest.Pytester, code: str, *options: str, loop: str = LOOP) -> pytest.RunResult:
    pytester.makepyfile(test_it=loop + code)
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "--strict-markers", *options)


def test_both_spellings_are_the_same_thing(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
from pytest_trainloop import overfits

@overfits
def test_bare(tiny_loader): train(tiny_loader)

@overfits(steps=50, fall=0.3)
def test_with_options(tiny_loader): train(tiny_loader)

@pytest.mark.overfits
def test_mark(tiny_loader): train(tiny_loader)

@pytest.mark.overfits(steps=50, fall=0.3)
def test_mark_with_options(tiny_loader): train(tiny_loader)

def test_they_leave_the_same_mark(request):
    module = request.module
    assert module.test_with_options.pytestmark == module.test_mark_with_options.pytestmark
    assert module.test_bare.pytestmark == module.test_mark.pytestmark
""",
    )
    result.assert_outcomes(passed=5)


LATE_MARKS = {
    "a plugin that goes through what was collected, after all others": """
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.overfits(steps=3))
""",
    "a hook that runs before each test": """
def pytest_runtest_setup(item):
    item.add_marker(pytest.mark.overfits(steps=3))
""",
    "a fixture": """
@pytest.fixture(autouse=True)
def every_test_is_about_training(request):
    request.applymarker(pytest.mark.overfits(steps=3))
""",
    "a mark around all tests of a folder": """
def pytest_collection_finish(session):
    session.items[0].parent.add_marker(pytest.mark.overfits(steps=3))
""",
}


@pytest.mark.parametrize("by", LATE_MARKS)
def test_a_marker_that_comes_late_counts_like_any(by: str, pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import pytest\n" + LATE_MARKS[by])
    result = run(pytester, "def test_it(): pass", loop="import pytest\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["usage error: @pytest.mark.overfits: `steps` is at least 4, not 3"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("step=3", "@pytest.mark.overfits has no option `step`: did you mean `steps`?"),
        ("steps='3'", "@pytest.mark.overfits: `steps` is a whole number, not '3'"),
        ("steps=True", "@pytest.mark.overfits: `steps` is a whole number, not True"),
        ("steps=1", "@pytest.mark.overfits: `steps` is at least 4, not 1"),
        ("fall=2", "@pytest.mark.overfits: `fall` is a part between 0 and 1, not 2"),
        ("100", "@pytest.mark.overfits takes its options by keyword, not 100: overfits(*, steps="),
        (
            "colour=1",
            (
                "@pytest.mark.overfits has no option `colour`:"
                " it takes overfits(*, steps=100, fall=0.5, optimizer=None, timeout=None,"
                " isolate=None)"
            ),
        ),
    ],
)
def test_a_wrong_option_is_a_usage_error_that_names_the_marker(
    pytester: pytest.Pytester, options: str, message: str
) -> None:
    result = run(
        pytester, f"@pytest.mark.overfits({options})\ndef test_it(tiny_loader): train(tiny_loader)"
    )
    result.assert_outcomes(failed=1)
    assert f"\nusage error: {message}" in result.stdout.str()


def test_the_decorator_refuses_a_wrong_option_where_it_is_written(
    pytester: pytest.Pytester,
) -> None:
    result = run(
        pytester,
        "from pytest_trainloop import overfits\n@overfits(step=3)\ndef test_it(): pass",
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E *has no option `step`: did you mean `steps`?"])


def test_a_check_that_lacks_its_fixture_says_which_and_why(pytester: pytest.Pytester) -> None:
    result = run(pytester, "@pytest.mark.resumes\ndef test_it(tiny_loader): train(tiny_loader)")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["usage error: @resumes needs the fixture `checkpoint_dir`: the folder in which the loop*"]
    )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "@pytest.mark.overfits\nasync def test_it(): pass",
            "usage error: @overfits cannot run an async test",
        ),
        (
            (
                "import unittest\nclass TestIt(unittest.TestCase):\n"
                "    @pytest.mark.overfits\n    def test_it(self): pass"
            ),
            "usage error: @overfits works on test functions only",
        ),
    ],
)
def test_a_marker_that_could_do_nothing_does_not_pass(
    pytester: pytest.Pytester, code: str, message: str
) -> None:
    result = run(pytester, code)
    assert result.ret == 1
    assert message in result.stdout.str()


def test_markers_work_with_classes_parameters_fixtures_and_each_other(
    pytester: pytest.Pytester,
) -> None:
    result = run(
        pytester,
        """
@pytest.fixture(params=[1e-2, 1e-1])
def rate(request): return request.param

@pytest.fixture(scope="module")
def epochs(): return 6

@pytest.mark.overfits
class TestLoop:
    def setup_method(self): self.extra = 1
    def test_in_a_class(self, tiny_loader, rate, epochs):
        train(tiny_loader, epochs + self.extra, rate)

@pytest.mark.parametrize("epochs", [5, 6])
@pytest.mark.overfits
def test_parametrized(tiny_loader, epochs): train(tiny_loader, epochs)

@pytest.mark.xfail(strict=True)
@pytest.mark.overfits
def test_expected_to_fail(tiny_loader): train(tiny_loader, lr=0.0)

@pytest.mark.xfail(strict=True)
@pytest.mark.overfits
def test_expected_to_be_unjudged(tiny_loader): train(tiny_loader, epochs=1)

@pytest.mark.skip
@pytest.mark.overfits
def test_skipped(tiny_loader): raise AssertionError
""",
    )
    result.assert_outcomes(passed=4, xfailed=2, skipped=1)


def test_the_markers_are_listed_with_their_options(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--markers")
    result.stdout.fnmatch_lines(
        [
            "@pytest.mark.tiny(*",
            (
                "@pytest.mark.overfits(*, steps=100, fall=0.5, optimizer=None, timeout=None,"
                " isolate=None):"
                " The loss falls on one frozen batch of the loop's own data."
            ),
            (
                "@pytest.mark.resumes(*, after=None, chance=True, steps=200, timeout=None,"
                " isolate=None):"
                " Preempted and started again, the run is the same run."
            ),
        ]
    )


def test_the_verdict_stands_in_the_summary_and_in_the_junit_report(
    pytester: pytest.Pytester,
) -> None:
    result = run(
        pytester,
        "@pytest.mark.overfits\ndef test_it(tiny_loader): train(tiny_loader)",
        "--junitxml=junit.xml",
    )
    result.stdout.re_match_lines(
        [
            r"=+ training loops =+",
            r"overfits passed  test_it.py::test_it  loss \d.\d+ → \d.\d+ in \d+ steps",
        ]
    )
    report = (pytester.path / "junit.xml").read_text()
    assert "first_loss" in report
    assert "one frozen batch" not in report


def test_what_cannot_be_judged_is_counted_apart_and_does_not_pass(
    pytester: pytest.Pytester,
) -> None:
    result = run(
        pytester, "@pytest.mark.overfits\ndef test_it(tiny_loader): train(tiny_loader, epochs=1)"
    )
    assert result.ret == 1
    result.stdout.re_match_lines(
        [
            r"=+ CANNOT JUDGE =+",
            r"_+ test_it.py::test_it _+",
            r"overfits: cannot judge: 2 training steps show no trend",
            r"  loss .* in 2 steps  █▁",
            r"  What to do: let the loop make at least 10 steps: more epochs, or more batches",
            r"  To reproduce: pytest -p trainloop 'test_it.py::test_it'",
            r"=+ 1 cannot judge in .*s =+",
        ]
    )


def test_an_error_of_the_loop_is_shown_without_frames_of_ours(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        "@pytest.mark.overfits\n"
        "def test_it(tiny_loader):\n"
        "    train([(torch.zeros(2, 5), torch.tensor([0, 1]))])",
    )
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert "shapes cannot be multiplied" in text
    assert "pytest_trainloop" not in text


def test_an_error_in_backward_is_shown_without_frames_of_ours(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        "@pytest.mark.overfits\ndef test_it(tiny_loader):\n    torch.ones(3).sum().backward()",
    )
    result.assert_outcomes(failed=1)
    assert "does not require grad" in result.stdout.str()
    assert "probes" not in result.stdout.str()
