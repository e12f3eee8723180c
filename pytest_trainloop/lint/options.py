"""The options of the command, and what they and the configuration together ask for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pytest_trainloop.lint.cache import FOLDER
from pytest_trainloop.lint.config import Settings, find_settings, read_settings
from pytest_trainloop.lint.engine import Run, common_folder, project_root
from pytest_trainloop.lint.progress import progress
from pytest_trainloop.lint.selection import Selection

STDIN = "-"


@dataclass(frozen=True)
class Options:
    """The options, named as on the command line."""

    paths: tuple[str, ...]
    select: tuple[str, ...]
    extend_select: tuple[str, ...]
    ignore: tuple[str, ...]
    exclude: tuple[str, ...]
    force_exclude: bool
    output_format: str | None
    output_file: str | None
    statistics: bool
    fix: bool
    unsafe_fixes: bool
    diff: bool
    baseline: str | None
    write_baseline: str | None
    config: str | None
    isolated: bool
    no_cache: bool
    cache_dir: str | None
    jobs: int | None
    stdin_filename: str | None
    list_rules: bool
    explain: str | None
    color: str
    quiet: bool

    @property
    def fixes(self) -> bool:
        """Whether fixes are made, or shown."""
        return self.fix or self.unsafe_fixes or self.diff

    def settings(self) -> Settings:
        """What holds for the run as a whole: the format, the baseline.

        Raises:
            ConfigError: the configuration is wrong.
        """
        return self._settings_for(self._places())

    def runs(self) -> list[Run]:
        """The paths in groups of one configuration each: a repository may hold many projects.

        Raises:
            ConfigError: a configuration is wrong.
        """
        groups: dict[str, tuple[Settings, list[str]]] = {}
        for path in self._places():
            settings = self._settings_for([path])
            groups.setdefault(settings.file or "", (settings, []))[1].append(path)
        return [self._run(settings, paths) for settings, paths in groups.values()]

    def _run(self, settings: Settings, paths: list[str]) -> Run:
        root = project_root(paths)
        folder = self.cache_dir or settings.cache_dir or os.path.join(root, FOLDER)
        return Run(
            paths,
            settings,
            root,
            None if self.no_cache else folder,
            self.jobs,
            force_exclude=self.force_exclude,
            progress=None if self.quiet else progress(),
        )

    def _places(self) -> list[str]:
        """Where what is linted lies."""
        if STDIN in self.paths:
            return [self.stdin_filename or os.curdir]
        return list(self.paths)

    def _settings_for(self, paths: Iterable[str]) -> Settings:
        """The configuration of some paths, overruled by the command line."""
        if self.isolated:
            settings = Settings(os.getcwd())
        elif self.config is not None:
            settings = read_settings(self.config)
        else:
            settings = find_settings(common_folder(paths))
        chosen = settings.selection
        selection = Selection(
            self.select or chosen.select,
            (*chosen.extend_select, *self.extend_select),
            (*chosen.ignore, *self.ignore),
        )
        return replace(
            settings,
            selection=selection,
            exclude=(*settings.exclude, (os.getcwd(), self.exclude)),
            output_format=self.output_format or settings.output_format,
            baseline=self.baseline or settings.baseline,
        )
