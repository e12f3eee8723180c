"""The report that people read in a terminal."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_trainloop.lint.outcome import Problem, Report
from pytest_trainloop.lint.report import write_report
from pytest_trainloop.lint.report._terminal import laid_out, width
from pytest_trainloop.lint.report.text import write

PLAIN = Problem("a.py", 1, 1, 1, 2, None, "some-rule", "the cause", "what to write")


def excerpt(source_line: str, column: int, end_column: int) -> tuple[str, str]:
    """The source line and the caret line as shown, without the gutter."""
    problem = replace(PLAIN, source_line=source_line, column=column, end_column=end_column)
    _, shown, carets, *_ = write(Report((problem,), files=1)).splitlines()
    return shown.removeprefix("  1 | "), carets.removeprefix("    | ")


def test_each_problem_shows_place_rule_cause_line_caret_and_advice(report: Report) -> None:
    """What a reader needs stands in the order in which it is needed."""
    assert write(report) == (
        "explore.ipynb:cell 3:2:5: kept-loss-graph: `history` keeps the graph of every `loss`\n"
        "  2 |     history.append(loss,\n"
        "    |        ^^^^^^^^^^^^^^^^^\n"
        "  help: append `loss.item()` (`--unsafe-fixes` does it)\n"
        "\n"
        "src/train.py:4:9: missing-zero-grad: the gradients of `net` are never cleared"
        " between two calls of `opt.step()`\n"
        "  4 |         loss.backward()\n"
        "    |         ^^^^^^^^^^^^^^^\n"
        "  help: call `opt.zero_grad()` after `opt.step()` (`--fix` does it)\n"
        "\n"
        "src/broken.py:7: it holds a nul byte\n"
        "\n"
        "2 problems in 2 of 3 files (1 fixable with `--fix`, 1 fixable with `--unsafe-fixes`);"
        " 1 error\n"
    )


def test_a_clean_run_says_how_much_was_read() -> None:
    """Silence would look the same as nothing having been linted."""
    assert write(Report(files=12)) == "no problems in 12 files\n"


def test_one_file_and_one_problem_are_counted_in_the_singular() -> None:
    """`1 problem in 1 of 1 file`."""
    assert write(Report((PLAIN,), files=1)).endswith("\n1 problem in 1 of 1 file\n")


def test_colours_mark_place_rule_and_caret_and_change_no_letter(report: Report) -> None:
    """With the escape sequences taken out, the coloured report is the plain one."""
    coloured = write(replace(report, color=True))
    assert "\x1b[31;1mmissing-zero-grad\x1b[0m" in coloured
    assert "\x1b[1msrc/train.py:4:9\x1b[0m" in coloured
    assert "\x1b[31;1m^^^^^^^^^^^^^^^\x1b[0m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == write(report)


def test_carets_stand_under_the_code_after_tabs() -> None:
    """A tab is shown as blanks up to the next stop, so that the carets line up anywhere."""
    assert excerpt("\tx\t= f(y)", 6, 10) == ("    x   = f(y)", " " * 10 + "^^^^")


def test_carets_are_as_wide_as_the_characters_above_them() -> None:
    """Chinese characters fill two columns each, a combining accent none."""
    assert excerpt("损失.append(e\u0301)", 1, 3) == ("损失.append(e\u0301)", "^^^^")
    assert excerpt("损失.append(e\u0301)", 11, 13) == ("损失.append(e\u0301)", " " * 12 + "^")


def test_a_problem_over_several_lines_is_underlined_to_the_end_of_the_first() -> None:
    """Blanks at the end of the line are not underlined."""
    problem = replace(PLAIN, source_line="f(a,  ", end_line=3, end_column=1)
    assert write(Report((problem,), files=1)).splitlines()[2] == "    | ^^^^"


def test_an_empty_span_still_gets_one_caret() -> None:
    """A problem that stands at the end of a line points there."""
    assert excerpt("x = 1", 6, 6) == ("x = 1", "     ^")


def test_a_very_long_line_is_cut_around_the_caret() -> None:
    """A table of data or minified code does not flood the terminal."""
    line = "a" * 1000 + "LOSS" + "b" * 1000
    shown, carets = excerpt(line, 1001, 1005)
    assert len(shown) <= 170
    assert shown[carets.index("^") : carets.rindex("^") + 1] == "LOSS"
    assert shown.startswith("… a")
    assert shown.endswith("b …")


def test_nothing_in_a_file_or_its_name_reaches_the_terminal_as_a_command() -> None:
    """Escape sequences and right-to-left marks in linted code are shown, not obeyed."""
    problem = replace(
        PLAIN, path="a\x1b[2J\n.py", source_line="x = '\x1b[31m\u202e'", message="`\x07` \udcff"
    )
    text = write(Report((problem,), files=1))
    assert text.splitlines()[:2] == [
        "a␛[2J␊.py:1:1: some-rule: `␇` \ufffd",
        "  1 | x = '␛[31m\ufffd'",
    ]
    assert text.encode()


@given(st.text(alphabet=st.characters(exclude_characters="\r\n"), max_size=300), st.data())
def test_carets_always_stand_under_the_marked_characters(line: str, data: st.DataObject) -> None:
    """Whatever the line holds, and wherever it is marked."""
    begin = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(begin, len(line)))
    problem = replace(PLAIN, source_line=line, column=begin + 1, end_column=end + 1)
    lines = write(Report((problem,), files=1)).split("\n")
    if line.strip():
        shown, carets = lines[1].removeprefix("  1 | "), lines[2].removeprefix("    | ")
        assert set(carets.strip()) == {"^"}
        if width("".join(laid_out(line))) <= 80:
            assert shown.rstrip() == "".join(laid_out(line)).rstrip()
            assert carets.index("^") == width("".join(laid_out(line)[:begin]))
            assert carets.count("^") == max(1, width("".join(laid_out(line)[begin:end])))
    else:
        assert lines[1] == "  help: what to write"


def test_an_unknown_format_is_refused_with_the_names_there_are() -> None:
    """A programmer who mistypes a format learns which exist."""
    with pytest.raises(ValueError, match="no format is called 'yaml'; there are concise, "):
        write_report(Report(), "yaml")
