"""What can go wrong with a file costs that file, named, and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from pytest_trainloop import rules as rules_package
from pytest_trainloop.lint import options, time_limit, workers
from pytest_trainloop.lint.engine import Run
from pytest_trainloop.rules import Finding
from pytest_trainloop.rules.gradients.missing_zero_grad import MissingZeroGrad
from pytest_trainloop.source.facts import FileFacts
from tests.lint.project import BUGGY, RIGHT, MakeProject, Project

PROBLEM = ("good.py", 6, "missing-zero-grad")


def deep(text: str) -> bytes:
    return ("import torch\n# backward step\n" + text).encode()


BROKEN = {
    "not UTF-8": (b"import torch\nx = '\xe9'\n", "it is not UTF-8 text (byte 0xe9)"),
    "not UTF-8, no PyTorch": (b"x = '\xe9'\n", "it is not UTF-8 text (byte 0xe9)"),
    "a nul byte": (b"import torch\0\n", "it holds a nul byte"),
    "UTF-16": ("import torch\n".encode("utf-16"), "it is UTF-16 text"),
    "an unknown encoding": (b"# coding: nonsense\n", "it declares an unknown encoding"),
    "not Python": (b"import torch\nloss.backward(\n", "it is not Python: '(' was never closed"),
    "not Python, no PyTorch": (b"def f(:\n    pass\n", "it is not Python: invalid syntax"),
    "Python 2": (b"print 'torch'\n", "it is not Python: Missing parentheses"),
    "deep brackets": (deep("x = " + "(" * 1000 + ")" * 1000), "it is not Python: too many nested"),
    "deep lists": (deep("x = " + "[" * 150 + "]" * 150 + "[" * 100), "it is not Python"),
    "deep blocks": (
        deep("".join(f"{' ' * n}if x:\n" for n in range(1000)) + " " * 1000 + "pass\n"),
        "it is not Python: too many levels of indentation",
    ),
    "a bad indent": (deep("if x:\n    a\n  b\n"), "it is not Python: unindent does not match"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_and_the_rest_is_linted(project: MakeProject, name: str) -> None:
    content, message = BROKEN[name]
    made = project({"bad.py": content, "good.py": BUGGY})
    for _ in range(2):
        said = made.json(".")
        assert (said.exit_code, said.places) == (2, [PROBLEM])
        assert said.err.startswith("trainloop-lint: bad.py")
        assert message in said.err
        assert said.err.count("\n") == 1


DEEP = {
    "sums": "x = " + "+".join(["y"] * 20_000),
    "attributes": "x = y" + ".z" * 20_000,
    "calls": "x = y" + ".z()" * 20_000,
    "signs": "x = " + "-" * 20_000 + "1",
    "elifs": "if x: pass\n" + "elif x: pass\n" * 5_000,
    "lambdas": "x = " + "lambda: " * 5_000 + "1",
    "conditions": "x = " + "1 if y else " * 5_000 + "2",
    "subscripts": "x = y" + "[0]" * 20_000,
    "nested calls": "x = " + "f(" * 150 + ")" * 150,
    "functions": "".join(f"{' ' * n}def f():\n" for n in range(90)) + " " * 90 + "pass\n",
    "strings": "x = (" + "'a'\n" * 20_000 + ")",
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_nesting_is_linted_or_named_but_ends_nothing(project: MakeProject, name: str) -> None:
    made = project({"deep.py": deep(DEEP[name] + "\n"), "good.py": BUGGY})
    said = made.json(".")
    assert said.places == [PROBLEM]
    if said.exit_code != 1:
        assert said.exit_code == 2
        assert said.err.startswith("trainloop-lint: deep.py")
        assert "cannot be read: it is nested too deeply" in said.err or "not Python" in said.err


def test_a_file_of_100_000_lines_is_linted(project: MakeProject) -> None:
    long = BUGGY + "x = torch.ones(3).sum()\n" * 100_000
    said = project({"long.py": long}).json("long.py")
    assert (said.exit_code, said.places) == (1, [("long.py", 6, "missing-zero-grad")])


def test_an_empty_file_is_clean(project: MakeProject) -> None:
    said = project({"empty.py": "", "blank.py": "\n\n", "mark.py": b"\xef\xbb\xbf"}).lint(".")
    assert (said.exit_code, said.out) == (0, "no problems in 3 files\n")


class OddError(Exception):
    pass


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the rule `missing-zero-grad` do something odd to files called `bad.py`."""
    original = MissingZeroGrad.lint

    def install(oddity: Any) -> None:
        def lint(self: MissingZeroGrad, file: FileFacts) -> Iterator[Finding]:
            if os.path.basename(file.path) == "bad.py":
                oddity()
            return original(self, file)

        monkeypatch.setattr(MissingZeroGrad, "lint", lint)

    return install


def test_a_rule_that_crashes_is_our_bug_and_ends_nothing(project: MakeProject, behave: Any) -> None:
    def crash() -> None:
        raise OddError("no such\nthing")

    behave(crash)
    kept = BUGGY.replace("loss.backward()", "loss.backward()\n        total += loss").replace(
        "    for", "    total = 0\n    for"
    )
    made = project({"bad.py": kept, "good.py": BUGGY})
    said = made.json(".")
    assert said.exit_code == 2
    assert PROBLEM in said.places
    assert ("bad.py", 8, "kept-loss-graph") in said.places, "the other rules still speak"
    assert said.err.startswith(
        "trainloop-lint: bad.py: rule `missing-zero-grad` crashed, which is a bug of"
        " trainloop-lint: OddError: no such thing (test_faults.py:"
    )
    assert said.err.count("\n") == 1


def test_a_rule_that_hangs_is_given_up(
    project: MakeProject, behave: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(wait_for_ever)
    said = _with_limit(project({"bad.py": BUGGY, "good.py": BUGGY}), 1, monkeypatch)
    assert (said.exit_code, said.places) == (2, [PROBLEM])
    assert said.err == "trainloop-lint: bad.py: took longer than 1 s; given up\n"


def test_too_deep_a_recursion_in_a_rule_is_named(project: MakeProject, behave: Any) -> None:
    def recurse() -> None:
        recurse()

    behave(recurse)
    said = project({"bad.py": BUGGY, "good.py": BUGGY}).json(".")
    assert (said.exit_code, said.places) == (2, [PROBLEM])
    assert said.err == "trainloop-lint: bad.py: cannot be read: it is nested too deeply\n"


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets workers begin as this process is: with the odd rule."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    monkeypatch.setattr(workers, "_context", lambda: multiprocessing.get_context("fork"))


@pytest.mark.usefixtures("forked")
def test_a_worker_that_dies_costs_one_file(project: MakeProject, behave: Any) -> None:
    behave(lambda: os._exit(139))
    made = project({"bad.py": BUGGY, "good.py": BUGGY, **{f"m{n}.py": RIGHT for n in range(30)}})
    said = made.json(".", "--jobs", "2")
    assert (said.exit_code, said.places) == (2, [PROBLEM])
    assert said.err == ("trainloop-lint: bad.py: ended the process that read it (exit code 139)\n")


@pytest.mark.usefixtures("forked")
def test_a_worker_that_hangs_in_one_call_is_ended(
    project: MakeProject, behave: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_GRACE_S", 2)
    behave(lambda: time.sleep(600))
    made = project({"bad.py": BUGGY, "good.py": BUGGY, **{f"m{n}.py": RIGHT for n in range(30)}})
    said = _with_limit(made, 0.5, monkeypatch, "--jobs", "2")
    assert (said.exit_code, said.places) == (2, [PROBLEM])
    assert said.err == "trainloop-lint: bad.py: took too long and had to be stopped\n"


def _with_limit(
    made: Project, seconds: float, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> Any:
    monkeypatch.setattr(options, "Run", partial(Run, time_limit_s=seconds))
    return made.json(".", *arguments)


def test_the_limit_raises_only_while_it_holds() -> None:
    with time_limit.TimeLimit(0.05):
        pass
    time.sleep(0.1)
    with pytest.raises(time_limit.TimeLimitError), time_limit.TimeLimit(0.05):
        wait_for_ever()


def test_waiting_for_other_programs_is_not_computing() -> None:
    with time_limit.TimeLimit(0.1):
        time.sleep(0.4)


def wait_for_ever() -> None:
    while True:
        pass


def test_all_rules_are_those_of_the_package() -> None:
    """The odd rule above is the one that runs use."""
    assert rules_package.all_rules()["missing-zero-grad"].__class__ is MissingZeroGrad
