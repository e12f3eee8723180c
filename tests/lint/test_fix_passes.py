"""Fixing a whole file: several findings, pass after pass, and what is never done."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from pytest_trainloop.lint.document import Document, document_from_bytes, split_lines
from pytest_trainloop.lint.fix import fix_document, unified_diff
from pytest_trainloop.rules import Edit, Finding, Fix
from pytest_trainloop.source.facts import Place

Lint = Callable[[Document], Sequence[Finding]]


def found(
    document: Document, pattern: str, edit: Callable[[Place], Edit], *, safe: bool = True
) -> list[Finding]:
    """A finding for each match of a pattern, with the edit of its place as its fix."""
    return [
        Finding(
            "toy",
            place := Place(document.path, number, match.start() + 1, number, match.end() + 1),
            f"`{match.group()}` is wrong",
            "write it otherwise",
            Fix((edit(place),), safe),
        )
        for number, line in enumerate(split_lines(document.text), 1)
        for match in re.finditer(pattern, line)
    ]


def without_item(document: Document) -> list[Finding]:
    """`loss` alone is wrong, `loss.item()` is right."""
    return found(document, r"\bloss\b(?!\.item)", lambda place: Edit("append", place, ".item()"))


def script(text: str, path: str = "train.py") -> Document:
    return document_from_bytes(path, text.encode())


def notebook(*sources: object) -> bytes:
    """A notebook with these sources of code cells, written as Jupyter writes it."""
    cells = [
        {"cell_type": "code", "id": str(n), "metadata": {}, "outputs": [], "source": source}
        for n, source in enumerate(sources)
    ]
    content = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def test_all_findings_are_fixed_in_one_pass_if_they_do_not_meet() -> None:
    """The file is linted once before and once after."""
    linted: list[str] = []

    def lint(document: Document) -> list[Finding]:
        linted.append(document.text)
        return without_item(document)

    result = fix_document(script("a += loss\nb.append(loss)\n"), lint, unsafe=False)
    assert result.text == "a += loss.item()\nb.append(loss.item())\n"
    assert len(result.fixed) == 2
    assert result.given_up == ()
    assert len(linted) == 2


def test_fixes_that_meet_wait_for_the_next_pass() -> None:
    """Both are made in the end, each on what the other left."""

    def lint(document: Document) -> list[Finding]:
        outer = found(document, r"f\(.*\)$", lambda place: Edit("add-argument", place, "k=1"))
        inner = found(document, r"\bx\b", lambda place: Edit("replace", place, "y"))
        return [*([] if "k=1" in document.text else outer), *inner]

    result = fix_document(script("f(x)\n"), lint, unsafe=False)
    assert result.text == "f(y, k=1)\n"
    assert [finding.message for finding in result.fixed] == ["`f(x)` is wrong", "`x` is wrong"]


def test_two_findings_that_want_the_same_statement_get_it_once() -> None:
    """The second is gone when it is asked again."""

    def lint(document: Document) -> list[Finding]:
        if "zero()" in document.text:
            return []
        return [
            *found(document, r"back\(\)", lambda p: Edit("insert-before", p, "zero()")),
            *found(document, r"back\(\)", lambda p: Edit("insert-before", p, "zero()")),
        ]

    result = fix_document(script("back()\n"), lint, unsafe=False)
    assert result.text == "zero()\nback()\n"


@pytest.mark.parametrize(("unsafe", "text"), [(False, "loss\n"), (True, "loss.item()\n")])
def test_an_unsafe_fix_is_made_only_when_asked_for(unsafe: bool, text: str) -> None:
    """`--fix` alone leaves what a correct program might not want."""

    def lint(document: Document) -> list[Finding]:
        return [
            replace(finding, fix=replace(finding.fix, safe=False))
            for finding in without_item(document)
            if finding.fix
        ]

    result = fix_document(script("loss\n"), lint, unsafe=unsafe)
    assert result.text == text
    assert result.given_up == ()


def test_a_fix_that_leaves_its_finding_is_not_made() -> None:
    """The text stays, and the finding is named as given up."""

    def lint(document: Document) -> list[Finding]:
        return found(document, r"\bloss\b", lambda place: Edit("append", place, ".item()"))

    result = fix_document(script("x = loss\n"), lint, unsafe=False)
    assert result.text == "x = loss\n"
    assert result.fixed == ()
    assert [finding.message for finding in result.given_up] == ["`loss` is wrong"]


def test_a_fix_that_brings_up_another_finding_is_not_made() -> None:
    """Nobody wants to be told of code that the linter wrote."""

    def lint(document: Document) -> list[Finding]:
        others = found(document, r"\.item", lambda place: Edit("delete", place), safe=False)
        return [*without_item(document), *(replace(one, rule="other") for one in others)]

    result = fix_document(script("x = loss\n"), lint, unsafe=False)
    assert result.text == "x = loss\n"
    assert len(result.given_up) == 1


def test_one_fix_that_cannot_be_made_does_not_stop_the_others() -> None:
    """They are then tried one by one."""

    def lint(document: Document) -> list[Finding]:
        stuck = found(document, r"\bstuck\b", lambda place: Edit("append", place, ".x"))
        return [*stuck, *without_item(document)]

    result = fix_document(script("stuck\nloss\nelse_ = loss\n"), lint, unsafe=False)
    assert result.text == "stuck\nloss.item()\nelse_ = loss.item()\n"
    assert [finding.message for finding in result.given_up] == ["`stuck` is wrong"]


def test_fixes_that_are_right_alone_and_wrong_together_are_made_one_after_the_other() -> None:
    """The second one to empty a block has to leave a `pass`."""

    def lint(document: Document) -> list[Finding]:
        return found(document, r"\bdrop\(\)", lambda place: Edit("delete", place))

    before = "if a:\n    drop()\n    # and\n\n    drop()\nb()\n"
    result = fix_document(script(before), lint, unsafe=False)
    assert result.text == "if a:\n    # and\n\n    pass\nb()\n"
    assert len(result.fixed) == 2


def test_a_fix_whose_edits_do_not_fit_the_code_is_given_up() -> None:
    """A place that a rule names in another file, too."""

    def lint(document: Document) -> list[Finding]:
        return [
            *found(document, r"x", lambda place: Edit("decorate", place, "d")),
            *found(document, r"y", lambda place: Edit("delete", replace(place, path="b.py"))),
        ]

    result = fix_document(script("x\ny\n"), lint, unsafe=False)
    assert result.text == "x\ny\n"
    assert len(result.given_up) == 2


def test_a_fix_that_the_encoding_of_the_file_cannot_hold_is_given_up() -> None:
    """The file stays readable."""

    def lint(document: Document) -> list[Finding]:
        return found(document, r"\bloss\b", lambda place: Edit("replace", place, "'λ'"))

    document = document_from_bytes("a.py", "# coding: latin-1\né = loss\n".encode("latin-1"))
    result = fix_document(document, lint, unsafe=False)
    assert result.text == document.text
    assert len(result.given_up) == 1


def test_rules_that_undo_each_other_come_to_an_end() -> None:
    """A finding that turns into another of the same rule for ever is not fixed for ever."""

    def lint(document: Document) -> list[Finding]:
        return [
            *found(document, r"\ba\b", lambda place: Edit("replace", place, "b")),
            *found(document, r"\bb\b", lambda place: Edit("replace", place, "a")),
        ]

    result = fix_document(script("a\n"), lint, unsafe=False)
    assert result.text == "a\n"
    assert len(result.given_up) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfx = loss\r\ny = loss",
        b"\x0c\nif a:\n\tb.append(loss) ; c()\t# note\r\n\n\n",
        "# -*- coding: latin-1 -*-\né = loss\n".encode("latin-1"),
        b"x = '\\N{DIGIT ONE}' ; y = [\n  loss, # one\n\n ]\n\x0c",
    ],
)
def test_every_other_byte_of_the_file_stays(data: bytes) -> None:
    """Marks, line ends, form feeds, tabs, blanks, encodings."""
    document = document_from_bytes("train.py", data)
    result = fix_document(document, without_item, unsafe=False)
    assert result.document.encode(result.text) == data.replace(b"loss", b"loss.item()")
    assert fix_document(result.document, without_item, unsafe=False).fixed == ()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["x = 1\n", "y = loss"], ["x = 1\n", "y = loss.item()"]),
        ("x = 1\ny = loss", "x = 1\ny = loss.item()"),
        (["%time x\n", "!ls\n", "loss\n"], ["%time x\n", "!ls\n", "loss.item()\n"]),
        (["é = '\u2028'\n", "y = loss"], ["é = '\u2028'\n", "y = loss.item()"]),
    ],
)
def test_a_notebook_changes_in_the_fixed_lines_only(before: object, after: object) -> None:
    """Its JSON is not written anew, whatever form its sources have."""
    document = document_from_bytes("a.ipynb", notebook("z = 0\n", before, ["w = 1"]))
    result = fix_document(document, without_item, unsafe=False)
    assert result.document.encode(result.text) == notebook("z = 0\n", after, ["w = 1"])


def test_a_statement_stays_in_its_cell() -> None:
    """One inserted after the last or before the first line of a cell does not change cells."""

    def lint(document: Document) -> list[Finding]:
        if "zero()" in document.text:
            return []
        return [
            *found(document, r"step\(\)", lambda place: Edit("insert-after", place, "zero()")),
            *found(document, r"back\(\)", lambda place: Edit("insert-before", place, "zero()")),
        ]

    document = document_from_bytes("a.ipynb", notebook("step()", "back()\n"))
    result = fix_document(document, lint, unsafe=False)
    assert result.document.encode(result.text) == notebook("step()\nzero()", "zero()\nback()\n")


def test_statements_of_several_cells_are_not_wrapped() -> None:
    """A block cannot go on in the next cell."""

    def lint(document: Document) -> list[Finding]:
        ends = found(document, r"b\(\)", lambda place: Edit("delete", place))
        return found(
            document, r"a\(\)", lambda place: Edit("wrap", place, "with n:", ends[0].place)
        )

    document = document_from_bytes("a.ipynb", notebook("a()", "b()"))
    result = fix_document(document, lint, unsafe=False)
    assert result.document is document
    assert len(result.given_up) == 1


def test_the_diff_is_what_patch_takes() -> None:
    """With the missing line end at the end of a file said as `diff` says it."""
    before = script("a = 1\r\nx = loss")
    after = fix_document(before, without_item, unsafe=False).document
    assert unified_diff(before, after) == (
        "--- train.py\n+++ train.py\n@@ -1,2 +1,2 @@\n a = 1\r\n"
        "-x = loss\n\\ No newline at end of file\n"
        "+x = loss.item()\n\\ No newline at end of file\n"
    )
    assert unified_diff(before, before) == ""


def test_libcst_is_imported_only_when_an_expression_is_fixed() -> None:
    """It takes 100 ms, which a run that only lints does not pay."""
    code = (
        "import sys, pytest_trainloop.lint.fix as fix\n"
        "from pytest_trainloop.lint.document import document_from_bytes\n"
        "fix.fix_document(document_from_bytes('a.py', b'x'), lambda _: [], unsafe=True)\n"
        "assert not {'libcst', 'torch', 'pytest'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
