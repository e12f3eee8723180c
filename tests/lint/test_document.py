"""Files as programs and back: encodings, line ends, and what is not text at all."""

from __future__ import annotations

import ast
import codecs
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_trainloop.lint.document import (
    UnreadableError,
    document_from_bytes,
    read_document,
    split_lines,
)
from tests.lint.project import BUGGY, MakeProject

CODE = "name = 'Zoë'\n"


@pytest.mark.parametrize(
    "data",
    [
        CODE.encode(),
        codecs.BOM_UTF8 + CODE.encode(),
        b"# -*- coding: latin-1 -*-\n" + CODE.encode("latin-1"),
        b"#!/usr/bin/env python\n# vim: set fileencoding=cp1252 :\n" + CODE.encode("cp1252"),
        codecs.BOM_UTF8 + b"# coding: utf-8\n" + CODE.encode(),
        CODE.replace("\n", "\r\n").encode(),
        CODE.replace("\n", "\r").encode(),
        b"# coding: shift_jis\r\nx = '" + "表".encode("shift_jis") + b"'\r\n",
        b"x = 1\n# coding: ascii\ny = 2\n# coding: latin-1 (too late)\n" + CODE.encode(),
        b"",
    ],
)
def test_a_document_gives_back_the_bytes_it_was_read_from(data: bytes) -> None:
    document = document_from_bytes("a.py", data)
    assert document.encode(document.text) == data
    assert ast.dump(ast.parse(document.text)) == ast.dump(ast.parse(data))


@pytest.mark.parametrize(
    ("data", "message", "line"),
    [
        (b"x = 1\ny = '\xff'\n", "it is not UTF-8 text (byte 0xff)", 2),
        (b"x = 1\n\0\n", "it holds a nul byte", 2),
        (b"# coding: klingon\n", "it declares an unknown encoding, `klingon`", 1),
        (b"# coding: rot13\nk = 1\n", "it declares `rot-13`, which is no encoding of text", None),
        (
            codecs.BOM_UTF8 + b"# coding: latin-1\n",
            "it begins with the mark of UTF-8 but declares `latin-1`",
            1,
        ),
        ("import torch".encode("utf-16"), "it is UTF-16 text, which Python does not read", None),
        (b"# coding: ascii\nx = '\xe9'\n", "it is not ASCII text (byte 0xe9)", 2),
    ],
)
def test_what_is_not_text_is_refused_with_the_reason(
    data: bytes, message: str, line: int | None
) -> None:
    with pytest.raises(UnreadableError) as refused:
        document_from_bytes("a.py", data)
    assert (refused.value.message, refused.value.line) == (message, line)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        document = document_from_bytes("a.py", data)
    except UnreadableError:
        return
    if document.encoding in {"utf-8", "ascii", "iso8859-1"}:
        assert document.encode(document.text) == data


@given(st.text(alphabet="ab\n\r\x0c\x0b\x1c\x85\u2028"))
def test_lines_end_where_python_ends_them(text: str) -> None:
    assert len(split_lines(text)) == text.replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1


def test_writing_keeps_permissions_and_links(tmp_path: Path) -> None:
    real = tmp_path / "real.py"
    real.write_bytes(b"x = 1\n")
    real.chmod(0o750)
    link = tmp_path / "link.py"
    link.symlink_to(real)
    read_document(str(link)).write("x = 2\n")
    assert link.is_symlink()
    assert real.read_bytes() == b"x = 2\n"
    assert stat.S_IMODE(real.stat().st_mode) == 0o750
    assert sorted(os.listdir(tmp_path)) == ["link.py", "real.py"]


def test_what_the_encoding_lacks_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(b"# coding: latin-1\nx = 1\n")
    with pytest.raises(UnicodeEncodeError):
        read_document(str(path)).write("# coding: latin-1\nx = '\u2713'\n")
    assert path.read_bytes() == b"# coding: latin-1\nx = 1\n"
    assert os.listdir(tmp_path) == ["a.py"]


@pytest.mark.parametrize(
    "data",
    [
        codecs.BOM_UTF8 + BUGGY.encode(),
        BUGGY.replace("\n", "\r\n").encode(),
        BUGGY.replace("\n", "\r").encode(),
        b"# coding: latin-1\n" + BUGGY.replace("loss", "l\xf6ss").encode("latin-1"),
        BUGGY.replace("    ", "\t").encode(),
        b"\x0c" + BUGGY.encode(),
    ],
)
def test_a_problem_is_found_in_any_encoding_and_layout(project: MakeProject, data: bytes) -> None:
    said = project({"train.py": data}).json("train.py")
    (problem,) = said.problems
    assert problem["rule"] == "missing-zero-grad"
    assert problem["line"] == (7 if data.startswith(b"# coding") else 6)
    assert problem["end_column"] - problem["column"] == len("loss.backward()")
