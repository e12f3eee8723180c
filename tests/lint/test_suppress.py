"""Comments that keep a problem out of the report, and those that do nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_trainloop.lint.suppress import find_suppressions
from tests.lint.project import BUGGY, MakeProject

IGNORE = "# trainloop: ignore[missing-zero-grad]"


def with_comment(line: str, comment: str) -> str:
    """`BUGGY` with a comment at the end of a line."""
    assert f"{line}\n" in BUGGY
    return BUGGY.replace(f"{line}\n", f"{line}  {comment}\n")


def above(line: str, comment: str) -> str:
    """`BUGGY` with a comment on a line of its own above a line, as deep as that."""
    indent = line[: len(line) - len(line.lstrip())]
    return BUGGY.replace(f"{line}\n", f"{indent}{comment}\n{line}\n")


@pytest.mark.parametrize(
    "code",
    [
        with_comment("        loss.backward()", IGNORE),
        with_comment("        loss.backward()", "# trainloop: ignore"),
        with_comment("        loss.backward()", "# trainloop: ignore -- summed on purpose"),
        with_comment("        loss.backward()", "#trainloop:ignore[ missing-zero-grad ]"),
        with_comment("        loss.backward()", "# trainloop: ignore[gradients] sums are meant"),
        with_comment("        loss.backward()", "# noqa: X1  # trainloop: ignore[gradients]"),
        above("        loss.backward()", IGNORE),
        with_comment("    for x, y in loader:", IGNORE),
        above("    for x, y in loader:", IGNORE),
        above("        loss = model(x, y)", IGNORE),
        with_comment("def train(model, loader, optimizer):", IGNORE),
        above("def train(model, loader, optimizer):", IGNORE),
        BUGGY.replace("def train", f"@compiled  {IGNORE}\n@logged\ndef train"),
        f"# trainloop: ignore-file[missing-zero-grad]\n{BUGGY}",
        f"{BUGGY}\n# trainloop: ignore-file\n",
        BUGGY.replace("loss.backward()", f"loss.backward(\n            None,  {IGNORE}\n        )"),
        BUGGY.replace("loss.backward()", f"loss.backward(\n            None\n        )  {IGNORE}"),
    ],
)
def test_a_comment_suppresses(project: MakeProject, code: str) -> None:
    said = project({"train.py": code}).lint("train.py")
    assert (said.exit_code, said.out) == (0, "no problems in 1 file\n"), code


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (with_comment("        optimizer.step()", IGNORE), "remove the comment"),
        (with_comment("import torch", IGNORE), "remove the comment"),
        (with_comment("import torch", "# trainloop: ignore"), "remove the comment"),
        (with_comment("import torch", "# trainloop: ignore[gradients]"), "remove the comment"),
        (
            with_comment("        loss.backward()", "# trainloop: ignore[missing-zero-gard]"),
            "correct the name",
        ),
        (with_comment("        loss.backward()", "# trainloop: ignore["), "correct the comment"),
        (with_comment("        loss.backward()", "# trainloop: ignore[]"), "correct the comment"),
        (
            with_comment("        loss.backward()", "# trainloop: ignore missing-zero-grad"),
            "correct the comment",
        ),
        (with_comment("import torch", "# trainloop: ignore-file"), "correct the comment"),
    ],
)
def test_a_comment_that_suppresses_nothing_is_reported(
    project: MakeProject, code: str, advice: str
) -> None:
    said = project({"train.py": code}).json("train.py")
    rules = [problem["rule"] for problem in said.problems]
    assert sorted(rules) == ["missing-zero-grad", "unused-suppression"]
    (unused,) = (p for p in said.problems if p["rule"] == "unused-suppression")
    assert unused["message"].startswith("this comment suppresses nothing: ")
    assert advice in unused["message"]


def test_an_unknown_name_is_told_with_a_suggestion(project: MakeProject) -> None:
    code = with_comment("        loss.backward()", "# trainloop: ignore[missing-zero-gard]")
    said = project({"train.py": code}).lint("train.py", "--select", "unused-suppression")
    assert (
        "train.py:6:26: unused-suppression: this comment suppresses nothing: there is no rule or"
        " family `missing-zero-gard`; did you mean `missing-zero-grad`?\n" in said.out
    )


def test_text_in_a_string_suppresses_nothing(project: MakeProject) -> None:
    for code in (
        BUGGY.replace("model(x, y)", f'model(x, "{IGNORE}")'),
        f'"""\n# trainloop: ignore-file\n"""\n{BUGGY}',
        BUGGY.replace("loss.backward()", f"loss.backward('{IGNORE}')"),
    ):
        said = project({"train.py": code}).json("train.py")
        assert [rule for _, _, rule in said.places] == ["missing-zero-grad"]


def test_a_comment_for_another_rule_does_not_suppress(project: MakeProject) -> None:
    code = with_comment("        loss.backward()", "# trainloop: ignore[kept-loss-graph]")
    said = project({"train.py": code}).json("train.py", "--select", "missing-zero-grad")
    assert [rule for _, _, rule in said.places] == ["missing-zero-grad"]


@pytest.mark.parametrize(
    "options",
    [
        ("--select", "kept-loss-graph,unused-suppression"),
        ("--ignore", "missing-zero-grad"),
        ("--select", "kept-loss-graph"),
        ("--ignore", "unused-suppression"),
    ],
)
def test_no_comment_is_called_unused_when_its_rule_was_not_applied(
    project: MakeProject, options: tuple[str, ...]
) -> None:
    code = with_comment("import torch", IGNORE) + "x = 1  # trainloop: ignore\n"
    said = project({"train.py": code}).json("train.py", *options)
    assert "unused-suppression" not in [rule for _, _, rule in said.places]


def test_a_file_without_pytorch_can_have_an_unused_comment(project: MakeProject) -> None:
    said = project({"a.py": f"x = 1  {IGNORE}\n"}).json("a.py")
    assert said.places == [("a.py", 1, "unused-suppression")]


def lines(text: str) -> list[tuple[int, int]]:
    return [(found.first_line, found.last_line) for found in find_suppressions(text)]


def test_a_comment_speaks_for_its_statement_or_block() -> None:
    text = (
        "a = 1  # trainloop: ignore\n"  # 1
        "if a:  # trainloop: ignore\n"
        "    b = (\n"
        "        2  # trainloop: ignore\n"
        "    )\n"
        "    # trainloop: ignore\n"  # 6
        "    while b:\n"
        "        # trainloop: ignore\n"
        "        c = 3\n"
        "\n"
        "        d = 4\n"
        "else:\n"  # 12
        "    e = 5\n"
        "# trainloop: ignore\n"
        "@f\n"
        "# trainloop: ignore\n"
        "def g():\n"
        "    pass\n"
        "    # trainloop: ignore\n"
    )
    assert lines(text) == [
        (1, 1),
        (2, 11),
        (3, 5),
        (7, 11),
        (7, 11),
        (15, 18),
        (17, 18),
        (19, 19),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_are_counted_as_python_counts_them(end: str) -> None:
    text = f"\x0cx = 1{end}s = '\u2028'{end}y = 2  # trainloop: ignore{end}"
    assert lines(text) == [(3, 3)]


@given(st.text(max_size=60))
def test_no_text_of_a_comment_is_too_odd(text: str) -> None:
    comment = "".join(text.split("\n")).replace("\r", "").replace("\0", "")
    found = find_suppressions(f"x = 1  # trainloop: ignore{comment}\n")
    assert len(found) <= 1 or "trainloop:" in comment
