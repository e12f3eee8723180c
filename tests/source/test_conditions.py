"""Which places exclude each other, told by the conditions that they stand under."""

from __future__ import annotations

from textwrap import indent

import pytest

from pytest_trainloop.source.facts import exclusive
from pytest_trainloop.source.read import read_source


def are_exclusive(body: str) -> bool:
    """Whether the calls of `first` and of `second` exclude each other."""
    code = "def train(a, b, args, scaler, first, second):\n    step = 0\n" + indent(body, "    ")
    calls = read_source(code, "train.py").traces[-1].calls
    one, other = (next(c for c in calls if c.name == name) for name in ("first", "second"))
    return exclusive(one.context, other.context)


@pytest.mark.parametrize(
    ("above", "below"),
    [
        ("if a: first()", "if not a: second()"),
        ("if a: first()\nelse: pass", "if a: pass\nelse: second()"),
        ("if args.amp: first()", "if not args.amp: second()"),
        ("if scaler is not None: first()", "if scaler is None: second()"),
        ("if args.kind == 'adam': first()", "if args.kind != 'adam': second()"),
        ("if a and b: first()", "if not b: second()"),
        ("if a or b: pass\nelse: first()", "if a: second()"),
    ],
)
def test_two_branches_on_one_condition_agree(above: str, below: str) -> None:
    assert are_exclusive(f"{above}\n{below}\n")


@pytest.mark.parametrize(
    ("above", "below"),
    [
        ("if a: first()", "if a: second()"),
        ("if a: first()", "if not b: second()"),
        ("if a: first()\na = b", "if not a: second()"),
        ("if args.training: first()", "if not args.training: second()"),
        ("if a(): first()", "if not a(): second()"),
        ("if a and b: pass\nelse: first()", "if a: second()"),
        ("if step == 0: first()\nstep += 1", "if step != 0: second()"),
    ],
)
def test_what_may_have_changed_excludes_nothing(above: str, below: str) -> None:
    assert not are_exclusive(f"{above}\n{below}\n")


def test_dead_code_is_treated_alike_from_both_sides() -> None:
    """It stands under a condition and under its opposite."""
    code = "if a:\n    if not a:\n        first()\n"
    assert not are_exclusive(f"{code}if a: second()\n")
    assert not are_exclusive(f"{code}if not a: second()\n")


def test_a_context_manager_runs_its_body_whichever_way_it_takes() -> None:
    header = (
        "from contextlib import contextmanager, nullcontext\n"
        "@contextmanager\n"
        "def no_sync(model, use):\n"
        "    if use:\n"
        "        with model.no_sync():\n"
        "            yield\n"
        "    else:\n"
        "        yield\n"
        "def train(model, is_last, first, second):\n"
    )
    body = (
        "    with no_sync(model, not is_last):\n"
        "        first().backward()\n"
        "    if is_last: second()\n"
    )
    calls = read_source(header + body, "train.py").traces[-1].calls
    one, other = (next(c for c in calls if c.name == name) for name in ("first", "second"))
    assert not exclusive(one.context, other.context)
