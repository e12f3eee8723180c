"""Where the command's words go: the report to standard output, the rest to standard error."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import FileError


class CommandError(click.ClickException):
    """What the user asked for cannot be done; the message is one line."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        """Print the line, without click's `Error:`."""
        note(self.message)


@dataclass(frozen=True)
class Terminal:
    """What the user said about words and colours."""

    color: str = "auto"
    is_quiet: bool = False

    @property
    def wants_color(self) -> bool:
        """Whether text for people is coloured."""
        if self.color != "auto":
            return self.color == "always"
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def say(self, words: str) -> None:
        """Tell what is good to know, unless the user wants quiet."""
        if not self.is_quiet:
            note(words)


def note(words: str) -> None:
    """One line on standard error."""
    click.echo(_encodable(f"trainloop-lint: {words}", sys.stderr), err=True)


def note_error(error: FileError) -> None:
    """A file that could not be linted, on standard error."""
    from pytest_trainloop.lint.report._wording import error_place

    note(f"{error_place(error)}: {error.message}")


def print_text(text: str) -> None:
    """Text on standard output; what its encoding lacks is shown as escapes."""
    click.echo(_encodable(text, sys.stdout), nl=False, color=True)


def write_text(path: str, text: str) -> None:
    """Text into a file.

    Raises:
        CommandError: it cannot be written.
    """
    from pytest_trainloop.atomic import write_atomically

    try:
        write_atomically(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CommandError(f"{path}: cannot be written: {reason}") from None


def _encodable(text: str, stream: object) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
