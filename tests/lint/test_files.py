"""Which files are linted: folders searched, what is left out, what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pytest_trainloop.lint import engine
from pytest_trainloop.lint.files import FoundFiles, find_files
from tests.lint.project import BUGGY, RIGHT, MakeProject, Project


def linted(made: Project, *arguments: str) -> list[str]:
    """The files with a problem, each of them linted."""
    return [path for path, _, _ in made.json(*arguments).places]


def test_folders_are_searched_for_python_files_and_notebooks_in_order(project: MakeProject) -> None:
    made = project({"b.py": BUGGY, "a/z.py": BUGGY, "a/b/c.py": BUGGY, "a/notes.md": BUGGY})
    assert linted(made, ".") == ["a/b/c.py", "a/z.py", "b.py"]
    assert linted(made, "a", "b.py", "a/z.py", "./a") == ["a/b/c.py", "a/z.py", "b.py"]


@pytest.mark.parametrize(
    "folder", [".git", ".venv", "venv", "node_modules", "__pycache__", "build", "dist"]
)
def test_folders_of_other_peoples_code_are_searched_only_by_name(
    project: MakeProject, folder: str
) -> None:
    made = project({f"{folder}/train.py": BUGGY})
    assert linted(made, ".") == []
    assert linted(made, folder) == [f"{folder}/train.py"]
    assert linted(made, f"{folder}/train.py") == [f"{folder}/train.py"]


def test_an_environment_is_known_by_its_configuration(project: MakeProject) -> None:
    made = project({"env/pyvenv.cfg": "", "env/lib/train.py": BUGGY})
    assert linted(made, ".") == []


def test_what_git_leaves_out_is_left_out(project: MakeProject) -> None:
    made = project(
        {
            ".git/info/exclude": "private.py\n",
            ".gitignore": "# made\n/made/\n*.gen.py\n!keep.gen.py\n",
            "made/a.py": BUGGY,
            "a.gen.py": BUGGY,
            "keep.gen.py": BUGGY,
            "private.py": BUGGY,
            "sub/.gitignore": "scratch/\n!b.gen.py\n",
            "sub/scratch/a.py": BUGGY,
            "sub/b.gen.py": BUGGY,
            "other/made/a.py": BUGGY,
        }
    )
    assert linted(made, ".") == ["keep.gen.py", "other/made/a.py", "sub/b.gen.py"]
    assert linted(made, "sub") == ["sub/b.gen.py"]
    assert linted(made, "made") == ["made/a.py"], "a folder given by name is searched"
    assert linted(made, "a.gen.py") == ["a.gen.py"], "a file given by name is linted"


def test_a_gitignore_above_the_repository_does_not_count(project: MakeProject) -> None:
    made = project({".gitignore": "*.py\n", "repo/.git/HEAD": "", "repo/train.py": BUGGY})
    assert linted(made, "repo") == ["repo/train.py"]


def test_respect_gitignore_can_be_turned_off(project: MakeProject) -> None:
    settings = "[tool.trainloop-lint]\nrespect-gitignore = false\n"
    made = project({".gitignore": "*.py\n", "train.py": BUGGY, "pyproject.toml": settings})
    assert linted(made, ".") == ["train.py"]


def test_a_link_to_a_folder_around_it_is_named_and_not_followed(project: MakeProject) -> None:
    made = project({"src/train.py": BUGGY})
    (made.root / "src/self").symlink_to(made.root / "src", target_is_directory=True)
    said = made.json(".")
    assert said.exit_code == 1
    assert said.places == [("src/train.py", 6, "missing-zero-grad")]
    assert "src/self is a link to a folder around it; not followed" in said.err


def test_a_link_that_leads_to_itself_is_named(project: MakeProject) -> None:
    made = project({"train.py": BUGGY})
    (made.root / "loop.py").symlink_to(made.root / "loop.py")
    said = made.json(".")
    assert said.exit_code == 2
    assert said.places == [("train.py", 6, "missing-zero-grad")]
    assert "loop.py: " in said.err


def test_folders_may_be_nested_deeper_than_calls(project: MakeProject) -> None:
    made = project({"train.py": BUGGY})
    folder = os.open(".", os.O_RDONLY)
    for _ in range(600):
        os.mkdir("d", dir_fd=folder)
        deeper = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = deeper
    os.close(folder)
    assert linted(made, ".") == ["train.py"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_pipe_is_named_and_not_waited_for(project: MakeProject) -> None:
    made = project({"train.py": BUGGY})
    os.mkfifo("pipe.py")
    said = made.json(".")
    assert (said.exit_code, len(said.problems)) == (2, 1)
    assert said.err == "trainloop-lint: pipe.py: is a pipe or a device, not a file\n"


def test_a_link_that_leads_nowhere_is_named(project: MakeProject) -> None:
    made = project({"train.py": BUGGY})
    (made.root / "gone.py").symlink_to(made.root / "nothing.py")
    said = made.json(".")
    assert said.exit_code == 2
    assert said.err == "trainloop-lint: gone.py: cannot be read: no such file or directory\n"


def test_a_linked_file_is_linted(project: MakeProject) -> None:
    made = project({"elsewhere/train.py": BUGGY})
    (made.root / "src").mkdir()
    (made.root / "src/train.py").symlink_to(made.root / "elsewhere/train.py")
    assert linted(made, "src") == ["src/train.py"]


@pytest.mark.parametrize("denied", ["folder", "file"])
def test_what_may_not_be_read_is_named_and_the_rest_is_linted(
    project: MakeProject, denied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project({"secret/train.py": BUGGY, "train.py": BUGGY})
    refuse(monkeypatch, "secret" if denied == "folder" else os.path.join("secret", "train.py"))
    said = made.json(".")
    assert said.exit_code == 2
    assert said.places == [("train.py", 6, "missing-zero-grad")]
    assert (
        said.err
        == {
            "folder": "trainloop-lint: secret: cannot be searched: permission denied\n",
            "file": "trainloop-lint: secret/train.py: cannot be read: permission denied\n",
        }[denied]
    )


def refuse(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Let the system refuse a path. Permissions would not: tests may run as root."""
    scandir, original = os.scandir, open

    def refusing_scandir(folder: str) -> object:
        if folder == path:
            raise PermissionError(13, "Permission denied", path)
        return scandir(folder)

    def refusing_open(file: object, *args: object, **options: object) -> object:
        if file == path:
            raise PermissionError(13, "Permission denied", path)
        return original(file, *args, **options)  # type: ignore[call-overload]  # passed through

    monkeypatch.setattr(os, "scandir", refusing_scandir)
    monkeypatch.setattr("builtins.open", refusing_open)


def test_a_file_that_vanishes_while_others_are_linted_is_named(
    project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project({"a.py": BUGGY, "b.py": BUGGY})
    find = find_files

    def find_and_lose(*args: Any, **options: Any) -> FoundFiles:
        found = find(*args, **options)
        Path("a.py").unlink()
        return found

    monkeypatch.setattr(engine, "find_files", find_and_lose)
    said = made.json(".")
    assert said.exit_code == 2
    assert said.places == [("b.py", 6, "missing-zero-grad")]
    assert said.err == "trainloop-lint: a.py: cannot be read: no such file or directory\n"


def test_exclude_takes_patterns_of_the_current_folder(project: MakeProject) -> None:
    made = project({"a/legacy/x.py": BUGGY, "a/b.py": BUGGY, "c.py": BUGGY})
    assert linted(made, "a", "--exclude", "legacy") == ["a/b.py"]
    assert linted(made, ".", "--exclude", "/a", "--exclude", "*_test.py") == ["c.py"]
    assert linted(made, "c.py", "--exclude", "c.py") == ["c.py"]
    assert linted(made, "c.py", "--exclude", "c.py", "--force-exclude") == []


def test_a_clean_tree_of_many_files_is_counted(project: MakeProject) -> None:
    made = project({f"pkg/m{n}.py": RIGHT for n in range(30)})
    assert made.lint(".").out == "no problems in 30 files\n"
