"""From paths to a report: find the files, look in the cache, lint the rest, settle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from pytest_trainloop.lint.cache import Cache, cache_key
from pytest_trainloop.lint.cycles import no_search_for_cycles
from pytest_trainloop.lint.document import Document, UnreadableError, document_from_bytes
from pytest_trainloop.lint.files import find_files
from pytest_trainloop.lint.outcome import FileError, Problem, Report
from pytest_trainloop.lint.result import Consulted
from pytest_trainloop.lint.settle import Settling
from pytest_trainloop.lint.time_limit import TIME_LIMIT_S

if TYPE_CHECKING:
    from pytest_trainloop.lint.config import Settings
    from pytest_trainloop.lint.lint_file import FileLinter
    from pytest_trainloop.lint.result import FileResult
    from pytest_trainloop.rules import Rule

#: Below this a process costs more than it saves: two are started in about 20 ms.
WORTH_A_WORKER_BYTES = 300_000
#: More workers than this hardly help, and each holds 50 MB.
MOST_WORKERS = 8


@dataclass(frozen=True)
class Run:
    """One run of the linter: what to lint, and how."""

    paths: Sequence[str]
    settings: Settings
    #: The project's folder: paths in fingerprints are relative to it.
    root: str
    #: Where results are kept; None for no cache.
    cache_folder: str | None = None
    #: How many processes lint at a time; None for as many as pay.
    jobs: int | None = None
    force_exclude: bool = False
    time_limit_s: float = TIME_LIMIT_S
    #: Called after each file with how many are done, and how many there are.
    progress: Callable[[int, int], None] | None = None


@dataclass
class Linted:
    """What a run gave, and what its user may want to hear besides."""

    report: Report
    #: The files that were found, as paths that the user can follow.
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def lint(run: Run) -> Linted:
    """Lint files and folders.

    Raises:
        UnknownNameError: a rule was selected that source cannot show.
    """
    settings = run.settings
    found = find_files(
        run.paths,
        is_excluded=settings.excludes,
        respect_gitignore=settings.respect_gitignore,
        force_exclude=run.force_exclude,
    )
    around = surroundings(run, found.paths)
    results, selected = _results(run, found.paths, around)
    errors = [*found.errors, *(error for result in results for error in result.errors)]
    asked = set(found.paths)
    is_whole = len(around) == len(found.paths)
    settling = Settling(settings, selected, root=run.root, is_whole=is_whole)
    problems = tuple(problem for problem in settling.problems(results) if problem.path in asked)
    report = Report(problems, tuple(sorted(errors, key=_order)), len(found.paths))
    return Linted(report, found.paths, found.notes)


def lint_text(run: Run, path: str, data: bytes) -> Linted:
    """Lint the content of one file that need not be on disk, by itself.

    Raises:
        UnknownNameError: a rule was selected that source cannot show.
    """
    rules = _rules(run.settings)
    around = surroundings(run, [path])
    result = _linter(rules, around, run.time_limit_s).lint_bytes(path, data)
    try:
        documents = {path: document_from_bytes(path, data)}
    except UnreadableError:
        documents = {}
    settling = Settling(
        run.settings, rules, root=run.root, is_whole=len(around) == 1, documents=documents
    )
    problems = tuple(p for p in settling.problems([result]) if p.path == path)
    return Linted(Report(problems, result.errors, 1), [path])


def document_linter(run: Run, files: list[str]) -> Callable[[Document], tuple[Problem, ...]]:
    """A function that lints a document as it stands in memory, among the files of a run."""
    rules = _rules(run.settings)
    linter = _linter(rules, surroundings(run, files), run.time_limit_s)

    def lint_document(document: Document) -> tuple[Problem, ...]:
        path = document.path
        result = linter.lint_bytes(path, document.encode(document.text))
        settling = Settling(run.settings, rules, root=run.root, documents={path: document})
        return tuple(p for p in settling.problems([result]) if p.path == path)

    return lint_document


def surroundings(run: Run, files: list[str]) -> list[str]:
    """The files that calls are followed into: those of the whole project.

    What is said of a file does not depend on which others are linted with it: a hook gives
    the linter what has changed, an editor what is open. Without a project around them (a
    folder with a pyproject.toml or a `.git`) it is the files themselves.
    """
    if all(os.path.isdir(path) for path in run.paths) or not _is_project(run.root):
        return files
    root = os.path.relpath(run.root)
    found = find_files(
        [run.root if root.startswith(os.pardir) else root],
        is_excluded=run.settings.excludes,
        respect_gitignore=run.settings.respect_gitignore,
    )
    named = {os.path.abspath(path): path for path in (*found.paths, *files)}
    return list(named.values())


def merged(linted: Iterable[Linted]) -> Linted:
    """Several runs as one, problems and errors in the order of their places."""
    every = list(linted)
    reports = [one.report for one in every]
    # Sorting is stable, so problems of one file stay in the order of their places.
    problems = sorted(
        (problem for report in reports for problem in report.problems), key=lambda p: p.path
    )
    errors = sorted((error for report in reports for error in report.errors), key=_order)
    return Linted(
        Report(tuple(problems), tuple(errors), sum(report.files for report in reports)),
        [path for one in every for path in one.files],
        [note for one in every for note in one.notes],
    )


def project_root(paths: Iterable[str]) -> str:
    """The folder of the project that holds all the paths: where a pyproject.toml or `.git` is.

    Without either, the current folder.
    """
    folder = common_folder(paths)
    while True:
        if _is_project(folder):
            return folder
        parent = os.path.dirname(folder)
        if parent == folder:
            return os.getcwd()
        folder = parent


def _is_project(folder: str) -> bool:
    return any(os.path.exists(os.path.join(folder, mark)) for mark in ("pyproject.toml", ".git"))


def common_folder(paths: Iterable[str]) -> str:
    """The innermost folder that holds all the paths."""
    absolute = [os.path.abspath(path) for path in paths]
    try:
        common = os.path.commonpath(absolute)
    except ValueError:  # no paths, or on different drives
        return os.getcwd()
    return common if os.path.isdir(common) else os.path.dirname(common)


def _results(run: Run, files: list[str], around: list[str]) -> tuple[list[FileResult], list[str]]:
    """The result of each file, in the files' order, and the rules that were applied."""
    cache = None
    if run.cache_folder is not None:
        chosen = run.settings.selection
        cache = Cache(run.cache_folder, cache_key([repr(chosen)]), around)
    results: dict[str, FileResult] = {}
    for path in files if cache else ():
        kept = cache.get(path) if cache else None
        if kept is not None:
            results[path] = kept
    missing = [path for path in files if path not in results]
    if not missing and cache is not None and cache.rules is not None:
        selected = cache.rules
    else:
        rules = _rules(run.settings)
        selected = list(rules)
        for result in _lint_all(run, rules, around, missing):
            if cache:
                cache.put(result)
            # What it rests on matters to the cache only, and is long.
            results[result.path] = replace(result, consulted=Consulted())
            if run.progress:
                run.progress(len(results), len(files))
    if cache:
        cache.save(selected)
    return [results[path] for path in files], selected


def _rules(settings: Settings) -> dict[str, Rule]:
    from pytest_trainloop.rules import all_rules

    return settings.selection.rules(all_rules())


def _lint_all(
    run: Run, rules: dict[str, Rule], files: list[str], missing: list[str]
) -> Iterator[FileResult]:
    total = sum(map(_size, missing))
    workers = min(run.jobs or workers_worth(total), len(missing))
    make_linter = partial(_linter, rules, files, run.time_limit_s)
    if workers <= 1:
        linter = make_linter()
        with no_search_for_cycles():
            yield from map(linter.lint, missing)
    else:
        # Late: one process needs no means to start others.
        from pytest_trainloop.lint.workers import lint_in_workers

        yield from lint_in_workers(make_linter, missing, workers, run.time_limit_s)


def workers_worth(total_bytes: int) -> int:
    """How many workers pay for files of a total size."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, MOST_WORKERS, total_bytes // WORTH_A_WORKER_BYTES))


def _linter(rules: dict[str, Rule], files: list[str], time_limit_s: float) -> FileLinter:
    # Late: a run that finds all it needs in the cache reads no source.
    from pytest_trainloop.lint.lint_file import FileLinter

    return FileLinter(rules, files, time_limit_s=time_limit_s)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _order(error: FileError) -> tuple[str, int, int, str]:
    return (error.path, error.cell or 0, error.line or 0, error.message)
