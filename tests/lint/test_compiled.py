"""What Python has compiled as it stands is Python, and need not be parsed to know so."""

from __future__ import annotations

import os
import py_compile
from collections.abc import Callable
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from pytest_trainloop.lint.compiled import is_compiled
from tests.lint.project import BUGGY, MakeProject

#: Of one length.
WHOLE, BROKEN = "x = (1, 2)\n", "x = (1, 2]\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source file beside its compiled form."""
    path = tmp_path / "module.py"
    path.write_text(WHOLE)
    py_compile.compile(str(path), doraise=True)
    return path


def known(source: Path) -> bool:
    return is_compiled(str(source), source.stat())


def test_a_file_that_was_compiled_as_it_stands_is_known(source: Path) -> None:
    assert known(source)


def later(source: Path) -> None:
    os.utime(source, (0, source.stat().st_mtime + 1))


def longer(source: Path) -> None:
    state = source.stat()
    source.write_text(f"{WHOLE}\n")
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))


def of_another_python(source: Path) -> None:
    change(source, 0, b"\0\0\r\n")


def by_its_hash(source: Path) -> None:
    compiled = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(source), doraise=True, invalidation_mode=compiled)


def cut_short(source: Path) -> None:
    compiled = Path(cache_from_source(str(source)))
    compiled.write_bytes(compiled.read_bytes()[:15])


def gone(source: Path) -> None:
    Path(cache_from_source(str(source))).unlink()


def a_folder(source: Path) -> None:
    gone(source)
    Path(cache_from_source(str(source))).mkdir()


def change(source: Path, at: int, new: bytes) -> None:
    compiled = Path(cache_from_source(str(source)))
    data = compiled.read_bytes()
    compiled.write_bytes(data[:at] + new + data[at + len(new) :])


@pytest.mark.parametrize(
    "spoil", [later, longer, of_another_python, by_its_hash, cut_short, gone, a_folder]
)
def test_a_file_that_was_not_is_not(source: Path, spoil: Callable[[Path], None]) -> None:
    spoil(source)
    assert not known(source)


def test_a_notebook_is_no_module_of_its_name(source: Path) -> None:
    assert not is_compiled(str(source.with_suffix(".ipynb")), source.stat())


def test_a_file_that_is_broken_after_it_was_compiled_is_named(project: MakeProject) -> None:
    made = project({"module.py": WHOLE})
    path = made.root / "module.py"
    py_compile.compile(str(path), doraise=True)
    assert made.lint(".").exit_code == 0
    path.write_text(BROKEN)
    os.utime(path, (0, path.stat().st_mtime + 2))
    said = made.lint("module.py")
    assert said.exit_code == 2
    assert "module.py:1: cannot be read: it is not Python" in said.out


def test_what_rules_want_is_read_however_it_was_compiled(project: MakeProject) -> None:
    made = project({"train.py": BUGGY})
    py_compile.compile(str(made.root / "train.py"), doraise=True)
    assert made.json(".").places == [("train.py", 6, "missing-zero-grad")]


def test_what_is_no_file_on_disk_is_parsed(project: MakeProject) -> None:
    """Text from an editor stands in the place of the file that was compiled."""
    made = project({"module.py": WHOLE})
    py_compile.compile(str(made.root / "module.py"), doraise=True)
    said = made.lint("-", "--stdin-filename", "module.py", stdin=BROKEN)
    assert said.exit_code == 2
