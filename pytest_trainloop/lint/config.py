"""The table `[tool.trainloop-lint]` of a project's pyproject.toml."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_trainloop.lint.report import formats
from pytest_trainloop.lint.selection import (
    Selection,
    UnknownNameError,
    check_names,
    describe_unknown,
    suggest,
)

if TYPE_CHECKING:
    from pytest_trainloop.lint.ignored import Patterns

TABLE = "trainloop-lint"
_GLOB = frozenset("*?[!")


class ConfigError(ValueError):
    """The configuration cannot be followed; the message is one line that says where and why."""


@dataclass(frozen=True)
class Settings:
    """What the configuration says, or what holds without one."""

    #: The folder that patterns and paths are relative to: that of the pyproject.toml.
    folder: str
    #: The pyproject.toml; None if there is none with our table.
    file: str | None = None
    selection: Selection = field(default_factory=Selection)
    #: For each folder, the patterns of paths below it that are left out.
    exclude: tuple[tuple[str, tuple[str, ...]], ...] = ()
    #: For paths that match a pattern: rules and families that are ignored there.
    per_file_ignores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    output_format: str = "text"
    respect_gitignore: bool = True
    baseline: str | None = None
    cache_dir: str | None = None

    def excludes(self, path: str, *, is_folder: bool) -> bool:
        """Whether an absolute path is excluded."""
        return any(patterns.match(path, is_folder=is_folder) for patterns in self._exclude_patterns)

    def ignored_in(self, path: str) -> frozenset[str]:
        """Rules and families that are ignored in the file at an absolute path."""
        ignored: set[str] = set()
        for patterns, names in self._ignore_patterns:
            if patterns.match(path):
                ignored.update(names)
        return frozenset(ignored)

    @cached_property
    def _exclude_patterns(self) -> list[Patterns]:
        return [_patterns(folder, lines) for folder, lines in self.exclude if lines]

    @cached_property
    def _ignore_patterns(self) -> list[tuple[Patterns, tuple[str, ...]]]:
        return [
            (_patterns(self.folder, [key]), names) for key, names in self.per_file_ignores.items()
        ]


def _patterns(folder: str, lines: Iterable[str]) -> Patterns:
    from pytest_trainloop.lint.ignored import Patterns

    try:
        return Patterns.of(folder, lines)
    except ValueError as error:
        raise ConfigError(f"no pattern for paths: {error}") from None


def find_settings(start: str) -> Settings:
    """The settings for a file or folder: of the nearest pyproject.toml above that has the table.

    Raises:
        ConfigError: the table, or the file that holds it, is wrong.
    """
    folder = os.path.abspath(start)
    while True:
        path = os.path.join(folder, "pyproject.toml")
        if os.path.isfile(path):
            table = _table(path)
            if table is not None:
                return _settings(path, table)
        parent = os.path.dirname(folder)
        if parent == folder:
            return Settings(os.getcwd())
        folder = parent


def read_settings(path: str) -> Settings:
    """The settings of a pyproject.toml named by the user.

    Raises:
        ConfigError: it cannot be read, has no table, or the table is wrong.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"{path}: there is no such file")
    table = _table(path)
    if table is None:
        raise ConfigError(f"{path}: it has no table [tool.{TABLE}]")
    return _settings(path, table)


def _table(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    # Reading TOML costs 15 ms: most pyproject.toml do not speak of us.
    if TABLE.encode() not in data:
        return None
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        content = tomllib.loads(data.decode())
    except ValueError as error:
        raise ConfigError(f"{path}: it is not TOML: {error}") from None
    table = content.get("tool", {}).get(TABLE)
    if table is not None and not isinstance(table, dict):
        raise ConfigError(f"{path}: [tool.{TABLE}] has to be a table")
    return table


def _settings(path: str, table: dict[str, Any]) -> Settings:
    try:
        return _Reader(path, table).settings()
    except (_WrongValueError, UnknownNameError) as error:
        raise ConfigError(f"{path}: [tool.{TABLE}] {error}") from None


class _WrongValueError(ValueError):
    pass


class _Reader:
    """Takes the values of one table, each checked."""

    KEYS = (
        "baseline",
        "cache-dir",
        "exclude",
        "extend-select",
        "format",
        "ignore",
        "output-format",
        "per-file-ignores",
        "respect-gitignore",
        "select",
    )

    def __init__(self, file: str, table: dict[str, Any]) -> None:
        self.file = file
        self.folder = os.path.dirname(os.path.abspath(file))
        self.table = table

    def settings(self) -> Settings:
        for key in self.table:
            if key not in self.KEYS:
                raise _WrongValueError(describe_unknown(key, self.KEYS, "key"))
        select = self.names("select") if "select" in self.table else None
        return Settings(
            folder=self.folder,
            file=self.file,
            selection=Selection(select, self.names("extend-select"), self.names("ignore")),
            exclude=((self.folder, self.paths("exclude")),),
            per_file_ignores=self.per_file_ignores(),
            output_format=self.output_format(),
            respect_gitignore=self.value("respect-gitignore", bool, default=True),
            baseline=self.place("baseline"),
            cache_dir=self.place("cache-dir"),
        )

    def value(self, key: str, kind: type, default: Any) -> Any:
        value = self.table.get(key, default)
        if value is not default and type(value) is not kind:
            wanted = {bool: "true or false", dict: "a table", str: "a string"}[kind]
            raise _WrongValueError(f"`{key}` has to be {wanted}")
        return value

    def strings(self, key: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise _WrongValueError(f"`{key}` has to be a list of strings")
        return tuple(value)

    def names(self, key: str) -> tuple[str, ...]:
        names = self.strings(key, self.table.get(key, []))
        check_names(names, f"`{key}`")
        return names

    def paths(self, key: str) -> tuple[str, ...]:
        patterns = self.strings(key, self.table.get(key, []))
        for pattern in patterns:
            self.check_path(key, pattern)
        return patterns

    def per_file_ignores(self) -> dict[str, tuple[str, ...]]:
        key = "per-file-ignores"
        table = self.value(key, dict, default={}) if key in self.table else {}
        ignores: dict[str, tuple[str, ...]] = {}
        for pattern, value in table.items():
            names = self.strings(f"{key}.{pattern}", value)
            check_names(names, f"`{key}`, `{pattern}`")
            self.check_path(key, pattern)
            ignores[pattern] = names
        return ignores

    def output_format(self) -> str:
        key = "output-format" if "output-format" in self.table else "format"
        chosen: str = self.value(key, str, default="text")
        if chosen not in formats():
            raise _WrongValueError(f"`{key}`: {describe_unknown(chosen, formats(), 'format')}")
        return chosen

    def place(self, key: str) -> str | None:
        value: str | None = self.value(key, str, default=None)
        return None if value is None else os.path.join(self.folder, value)

    def check_path(self, key: str, pattern: str) -> None:
        """Refuse a path that is not there: it can only be a slip.

        A bare name such as `build` is a pattern for any depth and may well match nothing
        yet, so only what names one place is looked up.
        """
        is_place = "/" in pattern.rstrip("/") or pattern.endswith((".py", ".ipynb"))
        if not is_place or _GLOB & set(pattern):
            return
        if os.path.exists(os.path.join(self.folder, pattern.lstrip("/"))):
            return
        parent, name = os.path.split(pattern.strip("/"))
        try:
            beside = os.listdir(os.path.join(self.folder, parent))
        except OSError:
            beside = []
        close = suggest(name, [os.path.join(parent, other) for other in beside] or beside)
        raise _WrongValueError(f"`{key}`: there is no such path, `{pattern}`{close}")
