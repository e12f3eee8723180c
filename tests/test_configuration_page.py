"""The page on configuration leaves no option out, and makes none up."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from pytest_trainloop.lint.cli import main
from pytest_trainloop.lint.config import ConfigError, _Reader, read_settings

PAGE = (Path(__file__).parents[1] / "docs/guide/configuration.md").read_text(encoding="utf-8")
LINTER, PLUGIN = PAGE.split("## The plugin\n")
KEYS = _Reader.KEYS


def options_in(text: str) -> set[str]:
    return set(re.findall(r"`(--[\w-]+)`", text))


def test_every_option_of_the_linter_has_its_row() -> None:
    known = {
        option
        for parameter in main.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
        if option.startswith("--")
    }
    assert options_in(LINTER) == known - {"--help"}


def test_every_key_of_the_linter_has_its_row() -> None:
    rows = re.findall(r"^\| (`[a-z-]+`(?: or `[a-z-]+`)?) \|", LINTER, re.MULTILINE)
    assert {key for row in rows for key in re.findall(r"`([a-z-]+)`", row)} == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_the_wrong_kind_is_refused_by_its_key(tmp_path: Path, key: str) -> None:
    table = tmp_path / "pyproject.toml"
    table.write_text(f"[tool.trainloop-lint]\n{key} = 2026-01-01\n")
    with pytest.raises(ConfigError, match=f"`{key}` has to be "):
        read_settings(str(table))


def test_every_option_of_the_plugin_has_its_row(pytester: pytest.Pytester) -> None:
    shown = pytester.runpytest("-p", "trainloop", "--help").stdout.str()
    assert options_in(PLUGIN) - {"--markers"} == set(re.findall(r"--trainloop-[\w-]+", shown))
    assert set(re.findall(r"`(trainloop_\w+)`", PLUGIN)) == set(
        re.findall(r"^  (trainloop_\w+)", shown, re.MULTILINE)
    )
