"""The project's own papers agree: extras with constraints, the README with its promises."""

from __future__ import annotations

import re
from importlib.metadata import entry_points, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pytest_trainloop

ROOT = Path(__file__).parents[1]
PINNED = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
]
REQUIRED = [Requirement(text) for text in requires("pytest-trainloop") or []]


def test_constraints_name_one_exact_version_each() -> None:
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in PINNED)


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_every_requirement_is_pinned_once_and_within_its_range(python: str) -> None:
    environment = {"python_version": python}
    pins = [pin for pin in PINNED if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}
    assert len(versions) == len(pins)
    for requirement in REQUIRED:
        marker = requirement.marker
        wanted = not marker or any(
            marker.evaluate({**environment, "extra": extra}) for extra in ("torch", "test", "dev")
        )
        if wanted and requirement.name != "pytest-trainloop":
            assert versions[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_base_install_is_light() -> None:
    base = {requirement.name for requirement in REQUIRED if requirement.marker is None}
    assert base == {"click", "libcst", "pathspec", "pytest"}


def test_pytest_and_the_shell_know_us_by_name() -> None:
    (plugin,) = entry_points(group="pytest11", name="trainloop")
    (command,) = entry_points(group="console_scripts", name="trainloop-lint")
    assert plugin.value == "pytest_trainloop.plugin"
    assert callable(command.load())


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version("pytest-trainloop") == pytest_trainloop.__version__
    assert pytest_trainloop.__version__ in headings[:2]


def test_the_readme_is_short_and_shows_code_at_once() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert any(line.startswith("```") for line in lines[:9])


@pytest.mark.parametrize("extra", ["torch", "test"])
def test_the_readme_has_one_line_that_sets_up(extra: str) -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    commands = [line for line in lines if line.startswith("python3 -m venv ")]
    assert sum(f"'.[{extra}]'" in command for command in commands) == 1
