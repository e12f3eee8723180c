"""The guide and the README do what they say: their blocks are run, top to bottom.

A block that begins with `# some/name.py` (or `.toml`, ...) is written to that file, in a folder
that the page has for itself. In a `console` block each `$ command` is run there, and prints what
stands under it; a line `...` stands for any lines. Other blocks are there to be read.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "index.md",
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
]
_NAMED = re.compile(r"# (\S+\.\w+)\n")
_COMMAND = re.compile(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


def test_there_are_pages_to_run() -> None:
    assert len(PAGES) > 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_block_of_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    def write(example: Example) -> None:
        if named := _NAMED.match(example.parsed):
            file = tmp_path / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(example.parsed[named.end() :], encoding="utf-8")

    def run(example: Example) -> None:
        for command, expected in _COMMAND.findall(example.parsed):
            printed = output_of(command, tmp_path)
            where = f"{page.name}, line {example.line}: $ {command}\n"
            assert prints(expected, printed), f"{where}printed:\n{printed}\nnot:\n{expected}"

    languages = {"python": write, "toml": write, "console": run}
    parsers = [CodeBlockParser(language, evaluator) for language, evaluator in languages.items()]
    for example in Sybil(parsers=parsers).parse(page).examples():
        example.evaluate()


def output_of(command: str, folder: Path) -> str:
    """What a user sees who has this environment, and no plugin of pytest but those named."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
    }
    for name in ("FORCE_COLOR", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER", "PYTEST_PLUGINS"):
        environment.pop(name, None)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout


def prints(expected: str, printed: str) -> bool:
    """Whether the output is the expected one, where white space at the ends of lines is free."""
    tidy = ["\n".join(map(str.rstrip, text.strip().splitlines())) for text in (expected, printed)]
    return OutputChecker().check_output(f"{tidy[0]}\n", f"{tidy[1]}\n", ELLIPSIS)


def test_a_page_that_lies_is_found_out() -> None:
    assert prints("a\n...\nc\n", "a\nb\nc\n")
    assert not prints("a\n...\nd\n", "a\nb\nc\n")
    assert output_of("echo said; exit 3", ROOT) == "said\n"
