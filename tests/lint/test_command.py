"""The command as its user meets it: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_trainloop import __version__
from pytest_trainloop.lint.report import formats
from pytest_trainloop.rules import all_rules
from tests.lint.project import BUGGY, RIGHT, MakeProject


def test_a_clean_file_ends_with_zero(project: MakeProject) -> None:
    said = project({"train.py": RIGHT}).lint("train.py")
    assert (said.exit_code, said.out, said.err) == (0, "no problems in 1 file\n", "")


def test_a_problem_ends_with_one_and_shows_place_cause_line_and_advice(
    project: MakeProject,
) -> None:
    said = project({"train.py": BUGGY}).lint("train.py")
    assert said.exit_code == 1
    assert said.out == (
        "train.py:6:9: missing-zero-grad: the gradients that `loss.backward()` adds to are not"
        " cleared between two `optimizer.step()`\n"
        "  6 |         loss.backward()\n"
        "    |         ^^^^^^^^^^^^^^^\n"
        "  help: clear them in the same loop: `optimizer.zero_grad()` after `optimizer.step()`"
        " (`--unsafe-fixes` does it)\n"
        "\n"
        "1 problem in 1 of 1 file (1 fixable with `--unsafe-fixes`)\n"
    )


def test_json_is_an_array_of_objects_with_these_keys(project: MakeProject) -> None:
    said = project({"src/train.py": BUGGY}).json("src")
    assert said.exit_code == 1
    (problem,) = said.problems
    message = problem.pop("message")
    assert message.startswith("the gradients that `loss.backward()` adds to are not cleared")
    assert "; clear them in the same loop" in message
    assert problem == {
        "rule": "missing-zero-grad",
        "path": str(Path("src/train.py")),
        "line": 6,
        "column": 9,
        "end_line": 6,
        "end_column": 24,
        "fixable": True,
        "cell": None,
    }


def test_json_of_a_clean_run_is_an_empty_array(project: MakeProject) -> None:
    said = project({"train.py": RIGHT}).json(".")
    assert (said.exit_code, json.loads(said.out)) == (0, [])


@pytest.mark.parametrize("name", formats())
def test_each_format_can_be_asked_for(project: MakeProject, name: str) -> None:
    said = project({"train.py": BUGGY}).lint("train.py", "--output-format", name)
    assert said.exit_code == 1
    assert "missing-zero-grad" in said.out


def test_a_path_that_is_not_there_is_named_and_the_rest_is_linted(project: MakeProject) -> None:
    said = project({"train.py": BUGGY}).lint("trian.py", "train.py")
    assert said.exit_code == 2
    assert "trian.py: there is no such file or folder; did you mean `train.py`?" in said.out
    assert "train.py:6:9: missing-zero-grad" in said.out


def test_formats_for_programs_name_errors_on_standard_error(project: MakeProject) -> None:
    said = project({"train.py": BUGGY}).json("nothing.py", "train.py")
    assert said.exit_code == 2
    assert said.err == "trainloop-lint: nothing.py: there is no such file or folder\n"
    assert said.places == [("train.py", 6, "missing-zero-grad")]


def test_without_a_path_it_says_what_to_write(project: MakeProject) -> None:
    said = project().lint()
    assert said.exit_code == 2
    assert said.err == (
        "trainloop-lint: name a file or folder to lint (`trainloop-lint .`), or `-`\n"
    )


def test_an_empty_folder_is_worth_a_word_but_no_error(project: MakeProject) -> None:
    made = project({"notes.txt": "torch"})
    said = made.lint(".")
    assert said.exit_code == 0
    assert said.err == "trainloop-lint: no .py or .ipynb file to lint in .\n"
    assert made.lint(".", "--quiet").err == ""


def test_select_and_ignore_take_rules_families_and_all(project: MakeProject) -> None:
    made = project({"train.py": BUGGY})

    def rules(*options: str) -> set[str]:
        return {rule for _, _, rule in made.json("train.py", *options).places}

    assert rules("--select", "missing-zero-grad") == {"missing-zero-grad"}
    assert rules("--select", "gradients") == {"missing-zero-grad"}
    assert "missing-zero-grad" in rules("--select", "ALL")
    assert rules("--select", "kept-loss-graph") == set()
    assert rules("--select", "kept-loss-graph,missing-zero-grad") == {"missing-zero-grad"}
    assert rules("--ignore", "missing-zero-grad") == set()
    assert rules("--ignore", "gradients") == set()
    assert rules("--select", "missing-zero-grad", "--ignore", "gradients") == {"missing-zero-grad"}
    assert rules("--select", "gradients", "--ignore", "missing-zero-grad") == set()
    assert rules("--ignore", "ALL", "--extend-select", "gradients") == {"missing-zero-grad"}


@pytest.mark.parametrize("option", ["--select", "--ignore", "--extend-select"])
def test_an_unknown_rule_is_an_error_with_a_suggestion(project: MakeProject, option: str) -> None:
    said = project({"train.py": BUGGY}).lint("train.py", option, "missing_zero_gard")
    assert (said.exit_code, said.out) == (2, "")
    assert said.err == (
        f"trainloop-lint: {option}: there is no rule or family `missing_zero_gard`;"
        " did you mean `missing-zero-grad`?\n"
    )


def test_a_rule_that_only_a_run_can_show_is_refused(project: MakeProject) -> None:
    unseen = [name for name, rule in all_rules().items() if not rule.sees_source()]
    made = project({"train.py": BUGGY})
    for name in unseen:
        said = made.lint("train.py", "--select", name)
        assert said.exit_code == 2
        assert f"`{name}` cannot be seen in source" in said.err


def test_list_rules_names_every_rule_with_its_first_line(project: MakeProject) -> None:
    said = project().lint("--list-rules")
    assert said.exit_code == 0
    for name, rule in all_rules().items():
        assert any(
            line.split()[0] == name and rule.summary() in line
            for line in said.out.splitlines()
            if line.startswith("  ")
        )


def test_explain_shows_the_page_of_a_rule(project: MakeProject) -> None:
    said = project().lint("--explain", "missing-zero-grad")
    assert said.exit_code == 0
    assert "missing-zero-grad" in said.out.splitlines()[0]
    for part in ("Symptom", "Why", "What torch does", "optimizer.step()", "https://"):
        assert part in said.out


def test_explaining_an_unknown_rule_suggests_one(project: MakeProject) -> None:
    said = project().lint("--explain", "missing-zero-gard")
    assert said.exit_code == 2
    assert said.err == (
        "trainloop-lint: there is no rule `missing-zero-gard`; did you mean `missing-zero-grad`?\n"
    )


def test_standard_input_is_linted_under_the_name_it_is_given(project: MakeProject) -> None:
    made = project()
    said = made.lint("-", "--stdin-filename", "src/new.py", "--output-format", "json", stdin=BUGGY)
    assert said.places == [("src/new.py", 6, "missing-zero-grad")]
    assert made.lint("-", stdin=RIGHT).exit_code == 0
    assert made.lint("-", stdin="def").exit_code == 2


def test_standard_input_stands_alone(project: MakeProject) -> None:
    said = project({"train.py": RIGHT}).lint("-", "train.py", stdin=BUGGY)
    assert said.exit_code == 2
    assert said.err == "trainloop-lint: `-` (standard input) stands alone\n"


def test_the_report_can_go_to_a_file(project: MakeProject) -> None:
    made = project({"train.py": BUGGY})
    said = made.json("train.py", "--output-file", "report.json")
    assert (said.exit_code, said.out) == (1, "")
    assert json.loads((made.root / "report.json").read_text())[0]["rule"] == "missing-zero-grad"


def test_a_report_file_that_cannot_be_written_is_named(project: MakeProject) -> None:
    said = project({"train.py": BUGGY}).lint("train.py", "--output-file", "no/report.txt")
    assert said.exit_code == 2
    assert said.err == (
        "trainloop-lint: no/report.txt: cannot be written: no such file or directory\n"
    )


def test_statistics_count_the_problems_of_each_rule(project: MakeProject) -> None:
    said = project({"a.py": BUGGY, "b.py": BUGGY}).lint(".", "--statistics")
    expected = "     2  missing-zero-grad (2 fixable with `--unsafe-fixes`)\n"
    assert (said.exit_code, said.out) == (1, expected)


def test_colour_is_for_those_who_ask(project: MakeProject) -> None:
    made = project({"train.py": BUGGY})
    assert "\x1b[" not in made.lint("train.py").out
    assert "\x1b[" in made.lint("train.py", "--color", "always").out


def test_the_version_is_shown(project: MakeProject) -> None:
    assert project().lint("--version").out == f"trainloop-lint {__version__}\n"


def test_diff_shows_what_a_fix_would_change_and_writes_nothing(project: MakeProject) -> None:
    made = project({"train.py": BUGGY})
    said = made.lint("train.py", "--diff", "--unsafe-fixes")
    assert said.exit_code == 1
    assert said.out.splitlines()[-1] == "+        optimizer.zero_grad()"
    assert (made.root / "train.py").read_text() == BUGGY
    assert made.lint("train.py", "--diff").exit_code == 0, "the fix is unsafe"


def test_a_fix_is_written_and_what_is_left_is_reported(project: MakeProject) -> None:
    made = project({"train.py": BUGGY, "clean.py": RIGHT})
    assert made.lint(".", "--fix").exit_code == 1, "the fix is unsafe"
    said = made.lint(".", "--unsafe-fixes")
    assert said.exit_code == 0
    assert said.out == "no problems in 2 files\n"
    assert said.err == "trainloop-lint: 1 problem fixed in 1 file\n"
    assert (made.root / "train.py").read_text() == RIGHT
    again = made.lint(".", "--unsafe-fixes")
    assert (again.exit_code, again.err) == (0, "")


def test_a_fix_of_standard_input_goes_to_standard_output(project: MakeProject) -> None:
    made = project()
    said = made.lint("-", "--unsafe-fixes", stdin=BUGGY)
    assert (said.exit_code, said.out) == (0, RIGHT)
    assert made.lint("-", "--fix", stdin=BUGGY).out == BUGGY
    assert (
        "+        optimizer.zero_grad()"
        in made.lint("-", "--diff", "--unsafe-fixes", stdin=BUGGY).out
    )


def test_the_installed_command_starts_and_prints_in_any_encoding(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(BUGGY.replace("loss", "λ"), encoding="utf-8")
    command = Path(sys.executable).with_name("trainloop-lint")
    done = subprocess.run(
        [command, "train.py"],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert rb"\u03bb.backward()" in done.stdout
