"""`pytest --trainloop-lint`: what the linter finds, as items beside the tests."""

from __future__ import annotations

import pytest

BUGGY = """
import torch

def train(model, loader, optimizer):
    for x, y in loader:
        loss = model(x, y)
        loss.backward()
        optimizer.step()
"""
CALLER = BUGGY.replace("        optimizer.step()\n", "        update(optimizer)\n").replace(
    "import torch\n", "import torch\nfrom steps import update\n"
)


def lint(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    options = ("--trainloop-lint", "-p", "no:randomly", "-p", "no:cacheprovider")
    return pytester.runpytest_inprocess(*options, *arguments)


def test_each_file_is_an_item_that_fails_with_what_the_linter_says(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(train=BUGGY, clean="import torch\n", test_it="def test_it(): pass\n")
    result = lint(pytester, "-v")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "clean.py::trainloop-lint PASSED*",
            "test_it.py::trainloop-lint PASSED*",
            "test_it.py::test_it PASSED*",
            "train.py::trainloop-lint FAILED*",
            "*_ trainloop-lint: train.py _*",
            "train.py:6:9: missing-zero-grad: *",
            "  6 |         loss.backward()",
            "  help: clear them in the same loop: *",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_without_the_option_nothing_is_linted(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(train=BUGGY, test_it="def test_it(): pass\n")
    result = pytester.runpytest_inprocess("-p", "no:randomly")
    result.assert_outcomes(passed=1)


def test_calls_are_followed_among_the_collected_files(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        train=CALLER, steps="import torch\n\ndef update(optimizer):\n    optimizer.step()\n"
    )
    lint(pytester).assert_outcomes(passed=1, failed=1)
    lint(pytester, "train.py").assert_outcomes(passed=1)


def test_the_configuration_is_followed(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml(
        '[tool.trainloop-lint]\nexclude = ["legacy.py"]\n'
        '[tool.trainloop-lint.per-file-ignores]\n"train.py" = ["gradients"]\n'
    )
    pytester.makepyfile(train=BUGGY, legacy=BUGGY, other=BUGGY)
    result = lint(pytester)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["FAILED other.py::trainloop-lint*"])


def test_a_wrong_configuration_is_a_usage_error(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml('[tool.trainloop-lint]\nslect = ["ALL"]\n')
    pytester.makepyfile(train=BUGGY)
    result = lint(pytester)
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*there is no key `slect`; did you mean `select`?*"])


def test_a_file_that_cannot_be_linted_fails(pytester: pytest.Pytester) -> None:
    pytester.path.joinpath("train.py").write_bytes(b"import torch\0\n")
    result = lint(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["train.py:1: cannot be read: it holds a nul byte"])


def test_items_are_split_among_the_workers_of_xdist(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(train=BUGGY, clean="import torch\n")
    result = pytester.runpytest_subprocess(
        "--trainloop-lint", "-n", "2", "-p", "no:randomly", "-p", "no:cacheprovider"
    )
    result.assert_outcomes(passed=1, failed=1)
