"""The examples on the checks' pages are run as a user would run them."""

from __future__ import annotations

import pytest

from pytest_trainloop.checks import check_class, check_names
from pytest_trainloop.checks._check import Example, Fails, Passes, Unjudged

EXAMPLES = [
    pytest.param(example, id=f"{name}: {example.title}")
    for name in check_names()
    for example in check_class(name).examples
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_ends_as_its_page_says(pytester: pytest.Pytester, example: Example) -> None:
    pytester.makepyfile(test_example=example.program)
    result = pytester.runpytest_inprocess("-p", "no:randomly", "-p", "no:cacheprovider")
    text = result.stdout.str()
    if isinstance(example, Passes):
        assert result.ret == 0, text
        assert "1 passed" in text
    if isinstance(example, Fails):
        assert result.parseoutcomes() == {"failed": 1}, text
        assert any(line.startswith(example.cause) for line in text.splitlines()), text
    if isinstance(example, Unjudged):
        assert "1 cannot judge" in text
        assert result.ret == 1
        assert any(line.startswith(example.cause) for line in text.splitlines()), text
