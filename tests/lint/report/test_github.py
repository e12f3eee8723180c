"""The report that GitHub Actions turns into marks in a pull request."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pytest_trainloop.lint.outcome import FileError, Problem, Report
from pytest_trainloop.lint.report import write_report

PLAIN = Problem("a.py", 1, 1, 1, 2, None, "some-rule", "the cause", "what to write")


def test_each_problem_and_each_unread_file_is_a_workflow_command(report: Report) -> None:
    """A notebook's place is the line of its JSON; its cell is told in the message."""
    assert write_report(report, "github") == (
        "::error title=kept-loss-graph,file=explore.ipynb,line=31::cell 3, line 2: `history` keeps"
        " the graph of every `loss`; append `loss.item()`\n"
        "::error title=missing-zero-grad,file=src/train.py,line=4,col=9,endColumn=24::the"
        " gradients of `net` are never cleared between two calls of `opt.step()`; call"
        " `opt.zero_grad()` after `opt.step()`\n"
        "::error title=trainloop-lint,file=src/broken.py,line=7::it holds a nul byte\n"
    )


def test_a_message_keeps_its_colons_and_commas_and_a_property_does_not() -> None:
    """GitHub decodes `%3A` in a property only; in a message a reader would see it."""
    odd = replace(PLAIN, path="a:b,c%.py", message="100%: `a, b`\nand more", advice="")
    assert write_report(Report((odd,)), "github") == (
        "::error title=some-rule,file=a%3Ab%2Cc%25.py,line=1,col=1,endColumn=2"
        "::100%25: `a, b`%0Aand more\n"
    )


def test_a_problem_over_several_lines_has_no_columns() -> None:
    """GitHub refuses columns there."""
    assert ",line=1,endLine=3::" in write_report(Report((replace(PLAIN, end_line=3),)), "github")


def test_an_error_in_a_cell_has_the_line_of_the_json() -> None:
    error = FileError("a.ipynb", "it is not Python", line=2, cell=1, json_line=14)
    assert write_report(Report(errors=(error,)), "github") == (
        "::error title=trainloop-lint,file=a.ipynb,line=14::it is not Python\n"
    )


def test_a_clean_run_marks_nothing() -> None:
    assert write_report(Report(files=3), "github") == ""


def decoded(text: str, codes: dict[str, str]) -> str:
    for code, character in codes.items():
        text = text.replace(code, character)
    return text.replace("%25", "%")


@given(st.text(st.sampled_from("a:,%\r\n25ADC3:")), st.text(st.sampled_from("a/:,%\r\n25ADC3:")))
def test_github_reads_back_what_was_written(message: str, name: str) -> None:
    """Decoded as GitHub's runner does it; one problem is always one line."""
    problem = replace(PLAIN, message=message, advice="", rule=f"r{name}")
    (line,) = write_report(Report((problem,)), "github")[:-1].split("\n")
    properties, data = line.removeprefix("::error ").split("::", 1)
    in_data = {"%0D": "\r", "%0A": "\n"}
    assert decoded(data, in_data) == message
    title, _, rest = properties.removeprefix("title=").partition(",")
    assert decoded(title, {**in_data, "%3A": ":", "%2C": ","}) == f"r{name}"
    assert rest == "file=a.py,line=1,col=1,endColumn=2"
