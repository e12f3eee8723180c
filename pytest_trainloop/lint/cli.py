"""The command `trainloop-lint`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from pytest_trainloop import __version__
from pytest_trainloop.lint.command import run_command
from pytest_trainloop.lint.options import Options
from pytest_trainloop.lint.report import formats
from pytest_trainloop.lint.selection import UnknownNameError, check_names
from pytest_trainloop.lint.terminal import CommandError


def _split(_ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """The names in comma-separated lists; one that neither a rule nor a family has is refused."""
    names = tuple(name.strip() for value in values for name in value.split(",") if name.strip())
    try:
        check_names(names, param.opts[0])
    except UnknownNameError as error:
        raise CommandError(str(error)) from None
    return names


def _names_option(flag: str, text: str) -> Callable[[Any], Any]:
    return click.option(flag, multiple=True, callback=_split, metavar="NAMES", help=text)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("paths", nargs=-1, type=click.Path(), metavar="PATH...")
@_names_option(
    "--select", "Rules and families to apply, in place of the default ones; ALL for all."
)
@_names_option("--extend-select", "Rules and families to apply besides.")
@_names_option("--ignore", "Rules and families not to apply.")
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="Paths to leave out, as in .gitignore."
)
@click.option("--force-exclude", is_flag=True, help="Leave them out even if named as PATH.")
@click.option(
    "--output-format", type=click.Choice(formats()), help="How to report; text by default."
)
@click.option("--output-file", type=click.Path(dir_okay=False), help="Write the report there.")
@click.option("--statistics", is_flag=True, help="Report how many problems each rule has.")
@click.option("--fix", is_flag=True, help="Make the safe fixes.")
@click.option(
    "--unsafe-fixes", is_flag=True, help="Make fixes that may change what is computed, too."
)
@click.option("--diff", is_flag=True, help="Show what the fixes would change; write nothing.")
@click.option("--baseline", type=click.Path(), help="Report only what this baseline does not know.")
@click.option("--write-baseline", type=click.Path(), help="Write what is found as a baseline.")
@click.option("--config", type=click.Path(), help="The pyproject.toml to follow.")
@click.option("--isolated", is_flag=True, help="Follow no configuration.")
@click.option("--no-cache", is_flag=True, help="Neither use nor write results of earlier runs.")
@click.option("--cache-dir", type=click.Path(file_okay=False), help="Where to keep results.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Processes; as many as pay.")
@click.option("--stdin-filename", metavar="PATH", help="What to call standard input (`-`).")
@click.option("--list-rules", is_flag=True, help="List the rules and exit.")
@click.option("--explain", metavar="RULE", help="Show the page of a rule and exit.")
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto")
@click.option("--quiet", "-q", is_flag=True, help="Print problems and errors, nothing else.")
@click.version_option(__version__, message="trainloop-lint %(version)s")
def main(**options: Any) -> None:
    r"""Find the bugs in PyTorch training loops that never raise an error.

    PATHs are files and folders; `-` is standard input. Folders are searched for .py and
    .ipynb files. Exit code: 0 if nothing was found, 1 if problems were, 2 if something
    could not be linted or the command line is wrong.
    """
    sys.exit(run_command(Options(**options)))
