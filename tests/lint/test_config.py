"""The table of pyproject.toml: found, followed, and wrong in many ways."""

from __future__ import annotations

import pytest

from tests.lint.project import BUGGY, MakeProject

TABLE = "[tool.trainloop-lint]\n"


def test_the_configuration_is_found_by_walking_up(project: MakeProject) -> None:
    made = project(
        {
            "pyproject.toml": f'{TABLE}ignore = ["missing-zero-grad"]\n',
            "pkg/pyproject.toml": "[tool.other]\nx = 1\n",
            "pkg/src/train.py": BUGGY,
        }
    )
    assert made.lint("pkg/src/train.py").exit_code == 0
    assert made.lint("pkg").exit_code == 0
    assert made.lint("pkg", "--isolated").exit_code == 1


def test_projects_in_one_call_follow_each_its_own(project: MakeProject) -> None:
    made = project(
        {
            "a/pyproject.toml": f'{TABLE}ignore = ["missing-zero-grad"]\n',
            "a/train.py": BUGGY,
            "b/train.py": BUGGY,
        }
    )
    assert made.json("a", "b").places == [("b/train.py", 6, "missing-zero-grad")]


def test_a_file_can_be_named_as_the_configuration(project: MakeProject) -> None:
    made = project({"ci/lint.toml": f'{TABLE}select = ["kept-loss-graph"]\n', "train.py": BUGGY})
    assert made.lint("train.py", "--config", "ci/lint.toml").exit_code == 0
    said = made.lint("train.py", "--config", "ci/none.toml")
    assert (said.exit_code, said.err) == (
        2,
        "trainloop-lint: ci/none.toml: there is no such file\n",
    )


def test_the_command_line_goes_before_the_table(project: MakeProject) -> None:
    table = f'{TABLE}select = ["kept-loss-graph"]\nformat = "json"\n'
    made = project({"pyproject.toml": table, "train.py": BUGGY})
    assert made.lint("train.py").out == "[]\n"
    said = made.lint("train.py", "--select", "gradients", "--output-format", "concise")
    assert said.out.startswith("train.py:6:9: missing-zero-grad: ")


def test_exclude_and_per_file_ignores_are_relative_to_the_table(project: MakeProject) -> None:
    made = project(
        {
            "pyproject.toml": f'{TABLE}exclude = ["/legacy"]\n'
            '[tool.trainloop-lint.per-file-ignores]\n"notebooks/**" = ["gradients"]\n'
            '"scripts/one.py" = ["ALL"]\n',
            "legacy/a.py": BUGGY,
            "src/legacy/a.py": BUGGY,
            "notebooks/deep/a.py": BUGGY,
            "scripts/one.py": BUGGY,
            "scripts/two.py": BUGGY,
        }
    )
    assert [path for path, _, _ in made.json(".").places] == ["scripts/two.py", "src/legacy/a.py"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('slect = ["ALL"]', "there is no key `slect`; did you mean `select`?"),
        (
            'select = ["memori"]',
            "`select`: there is no rule or family `memori`; did you mean `memory`?",
        ),
        (
            'ignore = ["gradient"]',
            "`ignore`: there is no rule or family `gradient`; did you mean `gradients`?",
        ),
        ('select = "ALL"', "`select` has to be a list of strings"),
        ("respect-gitignore = 1", "`respect-gitignore` has to be true or false"),
        ("per-file-ignores = 1", "`per-file-ignores` has to be a table"),
        ('format = "jsno"', "`format`: there is no format `jsno`; did you mean `json`?"),
        (
            'exclude = ["a/trian.py"]',
            "`exclude`: there is no such path, `a/trian.py`; did you mean `a/train.py`?",
        ),
        (
            'per-file-ignores = {"a/trian.py" = ["ALL"]}',
            "`per-file-ignores`: there is no such path, `a/trian.py`; did you mean `a/train.py`?",
        ),
        (
            'per-file-ignores = {"src/*.py" = ["xyz"]}',
            "`per-file-ignores`, `src/*.py`: there is no rule or family `xyz`",
        ),
    ],
)
def test_a_mistake_in_the_table_is_an_error_with_a_suggestion(
    project: MakeProject, table: str, message: str
) -> None:
    made = project({"pyproject.toml": f"{TABLE}{table}\n", "a/train.py": BUGGY})
    said = made.lint("a")
    assert (said.exit_code, said.out) == (2, "")
    place = made.root / "pyproject.toml"
    assert said.err == f"trainloop-lint: {place}: [tool.trainloop-lint] {message}\n"


def test_a_folder_that_may_come_into_being_is_no_mistake(project: MakeProject) -> None:
    table = f'{TABLE}exclude = ["build", "*_pb2.py", "src/**/generated"]\n'
    assert project({"pyproject.toml": table, "src/train.py": BUGGY}).lint("src").exit_code == 1


def test_a_file_that_is_not_toml_is_named(project: MakeProject) -> None:
    said = project({"pyproject.toml": f"{TABLE}select = [\n", "train.py": BUGGY}).lint("train.py")
    assert said.exit_code == 2
    assert "pyproject.toml: it is not TOML: " in said.err
    assert said.err.count("\n") == 1


def test_a_pyproject_that_does_not_speak_of_us_may_be_anything(project: MakeProject) -> None:
    made = project({"pyproject.toml": "{{ cookiecutter }}", "train.py": BUGGY})
    assert made.lint("train.py").exit_code == 1
