"""The report as test results."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from pytest_trainloop.lint.outcome import FileError, Problem, Report
from pytest_trainloop.lint.report import write_report

PLAIN = Problem("a.py", 1, 1, 1, 2, None, "some-rule", "the cause", "what to write")


def parsed(report: Report) -> ET.Element:
    return ET.fromstring(write_report(report, "junit"))  # noqa: S314 -- the text is our own


def test_each_problem_is_a_failed_test_of_its_file(report: Report) -> None:
    """What could not be linted is an error; the counts are right at each level."""
    root = parsed(report)
    assert root.attrib == {"name": "trainloop-lint", "tests": "3", "failures": "2", "errors": "1"}
    assert [suite.attrib for suite in root] == [
        {"name": "explore.ipynb", "tests": "1", "failures": "1", "errors": "0"},
        {"name": "src/train.py", "tests": "1", "failures": "1", "errors": "0"},
        {"name": "src/broken.py", "tests": "1", "failures": "0", "errors": "1"},
    ]
    (case,) = root[1]
    assert case.attrib == {
        "name": "src/train.py:4:9: missing-zero-grad",
        "classname": "src/train.py",
        "file": "src/train.py",
        "line": "4",
    }
    (failure,) = case
    assert failure.attrib["type"] == "missing-zero-grad"
    assert failure.attrib["message"].startswith("the gradients of `net` are never cleared")
    assert failure.text is not None
    assert "  4 |         loss.backward()\n    |         ^^^^^^^^^^^^^^^\n" in failure.text
    assert root[2][0][0].attrib["message"] == "it holds a nul byte"


def test_a_clean_run_is_one_passed_test() -> None:
    """Many readers take a report without tests for a broken one."""
    root = parsed(Report(files=3))
    assert root.attrib["tests"] == "1"
    assert root[0].attrib["failures"] == "0"
    assert root[0][0].attrib["name"] == "no problems in 3 files"


def test_control_characters_do_not_break_the_xml() -> None:
    """XML cannot hold them, not even escaped: they are shown as pictures."""
    odd = replace(PLAIN, message="\x00 <b> & \"'\x1b", source_line="x = '\x0c]]>'")
    (failure,) = parsed(Report((odd,)))[0][0]
    assert failure.attrib["message"] == "␀ <b> & \"'␛"
    assert failure.text is not None
    assert "x = '␌]]>'" in failure.text


@given(st.text(), st.text(), st.text())
def test_the_xml_is_valid_whatever_it_tells(path: str, message: str, line: str) -> None:
    problem = replace(PLAIN, path=path, message=message, source_line=line)
    error = FileError(path, message)
    root = parsed(Report((problem,), (error,)))
    assert [len(suite) for suite in root] == [1, 1]
