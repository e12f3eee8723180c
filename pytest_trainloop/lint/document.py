"""A file as the linter reads it: a script or a notebook, to text and back to bytes."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_trainloop.atomic import write_atomically

if TYPE_CHECKING:
    from pytest_trainloop.lint.notebooks import Notebook

# What Python itself takes for a line end; `str.splitlines` also splits at form feeds
# and Unicode separators, which would shift every line number after them.
_LINE_END = re.compile(r"\r\n|\n|\r")
# The declaration of PEP 263, in one of the first two lines.
_CODING = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_BLANK = re.compile(rb"^[ \t\f]*(?:#|$)")


class UnreadableError(Exception):
    """A file cannot be read as a program; `line`, `cell` and `json_line` say where, if known."""

    def __init__(
        self,
        message: str,
        line: int | None = None,
        cell: int | None = None,
        json_line: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.cell = cell
        self.json_line = json_line


@dataclass(frozen=True)
class Document:
    """A program, and how to write a changed text back as the same kind of file.

    `text` holds the line ends as they stand in the file, and no byte order mark. For a
    notebook it is the code of all cells, one below the other.
    """

    path: str
    text: str
    encoding: str = "utf-8"
    has_bom: bool = False
    notebook: Notebook | None = None

    def locate(self, line: int) -> tuple[int | None, int]:
        """The cell and the line that a reader knows a line of `text` by (both as in `Problem`)."""
        return self.notebook.locate(line) if self.notebook else (None, line)

    def json_line(self, line: int) -> int | None:
        """The line of a notebook's JSON that a line of `text` is written on; None in a script."""
        return self.notebook.json_line(line) if self.notebook else None

    def encode(self, text: str) -> bytes:
        """The bytes of the file once its program is `text`.

        A notebook keeps every byte outside the changed lines of its code cells.

        Raises:
            UnicodeEncodeError: the file's encoding lacks a character of `text`.
            ValueError: the changed text can no longer be told apart into cells.
        """
        if self.notebook:
            return self.notebook.encode(text)
        mark = codecs.BOM_UTF8 if self.has_bom else b""
        return mark + text.encode(self.encoding)

    def write(self, text: str) -> None:
        """Replace the file by `encode(text)`, at once.

        Raises:
            OSError: the file cannot be written; it is then as it was.
            UnicodeEncodeError, ValueError: as in `encode`.
        """
        write_atomically(self.path, self.encode(text))


def read_document(path: str) -> Document:
    """Read a script or a notebook (`.ipynb`).

    Raises:
        OSError: there is no such file, or it may not be read.
        UnreadableError: its bytes are not text, or not a notebook.
    """
    with open(path, "rb") as file:
        return document_from_bytes(path, file.read())


def document_from_bytes(path: str, data: bytes) -> Document:
    """The document that `data` is the content of; `path` tells a notebook from a script.

    Raises:
        UnreadableError: the bytes are not text, or not a notebook.
    """
    if path.endswith(".ipynb"):
        from pytest_trainloop.lint.notebooks import read_notebook

        notebook = read_notebook(data)
        return Document(path, notebook.text, notebook=notebook)
    encoding, has_bom = _declared_encoding(data)
    body = data[len(codecs.BOM_UTF8) :] if has_bom else data
    return Document(path, _decode(body, encoding), encoding, has_bom)


def split_lines(text: str) -> list[str]:
    """The lines of a program without their ends, split where Python splits them.

    After a last line end comes one more, empty, line.
    """
    return _LINE_END.split(text) if "\r" in text else text.split("\n")


def _declared_encoding(data: bytes) -> tuple[str, bool]:
    has_bom = data.startswith(codecs.BOM_UTF8)
    head = data[3:] if has_bom else data
    for line in head.split(b"\n", 2)[:2]:
        if found := _CODING.match(line):
            return _known_encoding(found.group(1).decode("ascii", "replace"), has_bom), has_bom
        if not _BLANK.match(line.rstrip(b"\r")):
            break
    return "utf-8", has_bom


def _known_encoding(name: str, has_bom: bool) -> str:
    try:
        encoding = codecs.lookup(name)
    except (LookupError, ValueError):
        raise UnreadableError(f"it declares an unknown encoding, `{name}`", line=1) from None
    if has_bom and encoding.name != "utf-8":
        raise UnreadableError(f"it begins with the mark of UTF-8 but declares `{name}`", line=1)
    return encoding.name


def _decode(body: bytes, encoding: str) -> str:
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UnreadableError("it is UTF-16 text, which Python does not read")
    nul = body.find(b"\0")
    if nul >= 0:
        raise UnreadableError("it holds a nul byte", line=body.count(b"\n", 0, nul) + 1)
    try:
        return body.decode(encoding)
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        shown = f"byte 0x{body[error.start]:02x}"
        raise UnreadableError(f"it is not {encoding.upper()} text ({shown})", line) from None
    except (LookupError, UnicodeError):
        raise UnreadableError(f"it declares `{encoding}`, which is no encoding of text") from None
