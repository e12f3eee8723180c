"""A baseline: known problems are not reported, new ones are."""

from __future__ import annotations

import json

import pytest

from tests.lint.project import BUGGY, RIGHT, MakeProject


def test_known_problems_are_not_reported_and_new_ones_are(project: MakeProject) -> None:
    made = project({"a.py": BUGGY, "b.py": RIGHT})
    said = made.lint(".", "--write-baseline", "known.json")
    assert (said.exit_code, said.err) == (
        0,
        "trainloop-lint: 1 known problem written to known.json\n",
    )
    assert made.lint(".", "--baseline", "known.json").exit_code == 0
    made.write({"b.py": BUGGY})
    said = made.json(".", "--baseline", "known.json")
    assert said.places == [("b.py", 6, "missing-zero-grad")]


def test_moved_lines_and_another_folder_make_no_difference(
    project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project({"pyproject.toml": "", "src/a.py": BUGGY})
    made.lint("src", "--write-baseline", "known.json")
    made.write({"src/a.py": "'''Moved.'''\n\n" + BUGGY.replace("    ", "\t")})
    assert made.lint("src/a.py", "--baseline", "known.json").exit_code == 0
    monkeypatch.chdir(made.root / "src")
    assert made.lint(".", "--baseline", "../known.json").exit_code == 0


def test_one_more_of_the_same_kind_is_new(project: MakeProject) -> None:
    made = project({"a.py": BUGGY})
    made.lint("a.py", "--write-baseline", "known.json")
    made.write({"a.py": BUGGY + BUGGY.partition("\n")[2].replace("train", "train_again")})
    said = made.json("a.py", "--baseline", "known.json")
    assert said.places == [("a.py", 12, "missing-zero-grad")]


def test_problems_that_are_gone_are_told(project: MakeProject) -> None:
    made = project({"a.py": BUGGY})
    made.lint("a.py", "--write-baseline", "known.json")
    made.write({"a.py": RIGHT})
    said = made.lint("a.py", "--baseline", "known.json")
    assert (said.exit_code, said.err) == (
        0,
        "trainloop-lint: 1 problem of known.json did not occur; --write-baseline writes it anew\n",
    )


def test_what_was_not_linted_is_not_gone(project: MakeProject) -> None:
    """A hook lints what has changed, with the baseline of the whole project."""
    made = project({"a.py": BUGGY, "b.py": BUGGY})
    made.lint(".", "--write-baseline", "known.json")
    said = made.lint("b.py", "--baseline", "known.json")
    assert (said.exit_code, said.err) == (0, "")


def test_known_problems_are_not_fixed(project: MakeProject) -> None:
    other = BUGGY.replace("loss.backward()", "other_loss.backward()").replace(
        "loss =", "other_loss ="
    )
    made = project({"a.py": BUGGY, "b.py": BUGGY})
    made.lint(".", "--write-baseline", "known.json")
    made.write({"b.py": BUGGY + other.partition("\n")[2].replace("train", "train_again")})
    said = made.lint(".", "--baseline", "known.json", "--unsafe-fixes")
    assert (said.exit_code, said.err) == (0, "trainloop-lint: 1 problem fixed in 1 file\n")
    assert (made.root / "a.py").read_text() == BUGGY
    fixed = (made.root / "b.py").read_text()
    assert fixed.startswith(BUGGY)
    assert "optimizer.zero_grad()" in fixed.removeprefix(BUGGY)
    assert made.lint(".", "--baseline", "known.json", "--diff", "--unsafe-fixes").out == ""


def test_the_configuration_can_name_it(project: MakeProject) -> None:
    table = '[tool.trainloop-lint]\nbaseline = "ci/known.json"\n'
    made = project({"pyproject.toml": table, "src/a.py": BUGGY, "ci/known.json": ""})
    made.lint("src", "--isolated", "--write-baseline", "ci/known.json")
    assert made.lint("src").exit_code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "known.json: cannot be read: no such file or directory"),
        (b"{}", "known.json: it is not a baseline"),
        (b"[", "known.json: it is not a baseline"),
        (b"\xff", "known.json: it is not a baseline"),
        (b'{"version": 1, "problems": [3]}', "known.json: it is not a baseline"),
        (b'{"version": 0}', "known.json: written by another version; write it anew"),
    ],
)
def test_a_baseline_that_cannot_be_read_is_named(
    project: MakeProject, content: bytes | None, message: str
) -> None:
    made = project({"a.py": BUGGY, **({"known.json": content} if content is not None else {})})
    said = made.lint("a.py", "--baseline", "known.json")
    assert (said.exit_code, said.out, said.err) == (2, "", f"trainloop-lint: {message}\n")


def test_a_baseline_can_be_read_by_people(project: MakeProject) -> None:
    made = project({"src/a.py": BUGGY})
    made.lint("src", "--write-baseline", "known.json")
    (entry,) = json.loads((made.root / "known.json").read_text())["problems"]
    assert len(entry.pop("fingerprint")) == 16
    assert entry == {"rule": "missing-zero-grad", "path": "src/a.py", "code": "loss.backward()"}
