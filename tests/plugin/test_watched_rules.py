"""How a rule that a watched run broke reaches the user."""

from __future__ import annotations

import pytest

LOOP = """
import pytest
import torch
from torch import nn


def train(loader, clear=True):
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(10):
        for x, y in loader:
            if clear:
                optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()

"""
UNMARKED = "def test_it(tiny_loader): train(tiny_loader, clear=False)\n"
MARKED = "@pytest.mark.trainloop\n" + UNMARKED
SOUND = "def test_it(tiny_loader): train(tiny_loader)\n"
MESSAGE = "missing-zero-grad: the gradients of `weight` and `bias` are not cleared"


def run(pytester: pytest.Pytester, code: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(test_it=LOOP + code)
    warn = ("-W", "default::pytest.PytestWarning")
    return pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "--strict-markers", *warn, *options
    )


def test_a_marked_test_fails_and_its_first_line_is_the_cause(pytester: pytest.Pytester) -> None:
    result = run(pytester, MARKED)
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            r"_+ test_it _+",
            MESSAGE + r".*",
            r"  Where: test_it.py:14",
            r"  What to do: call `optimizer.zero_grad\(\)`.*",
            r"  The rule: trainloop-lint --explain missing-zero-grad",
            r"=+ training loops =+",
            r"watch failed  test_it.py::test_it  loss .* → .* in 20 steps",
            r"missing-zero-grad failed  test_it.py::test_it  the gradients of .*",
        ]
    )


def test_a_check_that_passes_fails_for_a_broken_rule(pytester: pytest.Pytester) -> None:
    result = run(pytester, MARKED.replace("trainloop", "overfits(fall=0.01)"))
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            MESSAGE + r".*",
            r"  To reproduce: pytest -p trainloop 'test_it.py::test_it'",
            r"overfits passed  test_it.py::test_it .*",
            r"missing-zero-grad failed .*",
        ]
    )


def test_nothing_is_watched_unless_somebody_asks(pytester: pytest.Pytester) -> None:
    result = run(pytester, UNMARKED)
    result.assert_outcomes(passed=1)
    assert "missing-zero-grad" not in result.stdout.str()


def test_watching_all_tests_warns_and_passes(pytester: pytest.Pytester) -> None:
    result = run(pytester, UNMARKED, "--trainloop-watch")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.re_match_lines(
        [
            r"=+ warnings summary =+",
            r".*TrainloopWarning: " + MESSAGE + r".*",
            r"=+ training loops =+",
            r"missing-zero-grad warning  test_it.py::test_it .*",
            r"watch passed  test_it.py::test_it .*",
        ]
    )


def test_filters_that_make_errors_of_warnings_make_a_failure_of_a_finding(
    pytester: pytest.Pytester,
) -> None:
    result = run(pytester, UNMARKED, "--trainloop-watch", "-W", "error")
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [r"_+ test_it _+", MESSAGE + r".*", r"missing-zero-grad failed .*"]
    )


@pytest.mark.parametrize(
    ("code", "severity", "outcomes"),
    [
        (MARKED, "warn", {"passed": 1, "warnings": 1}),
        (MARKED, "off", {"passed": 1}),
        (UNMARKED, "error", {"failed": 1}),
        (UNMARKED, "off", {"passed": 1}),
    ],
)
def test_the_ini_option_says_what_a_finding_does(
    pytester: pytest.Pytester, code: str, severity: str, outcomes: dict[str, int]
) -> None:
    result = run(pytester, code, "--trainloop-watch", "-o", f"trainloop_watch={severity}")
    result.assert_outcomes(**outcomes)


@pytest.mark.parametrize(
    "options",
    [
        ("--trainloop-ignore=missing-zero-grad",),
        ("--trainloop-ignore=zero-learning-rate,gradients",),
        ("--trainloop-select", "optimizer"),
        ("-o", "trainloop_ignore=zero-learning-rate missing-zero-grad"),
    ],
)
def test_rules_and_families_are_selected_and_ignored(
    pytester: pytest.Pytester, options: tuple[str, ...]
) -> None:
    run(pytester, MARKED, *options).assert_outcomes(passed=1)


def test_a_selected_rule_speaks(pytester: pytest.Pytester) -> None:
    run(pytester, MARKED, "--trainloop-select=missing-zero-grad").assert_outcomes(failed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--trainloop-select=missing-zero-grads",),
            (
                "ERROR: trainloop_select: there is no rule or family `missing-zero-grads`;"
                " did you mean `missing-zero-grad`?"
            ),
        ),
        (
            ("-o", "trainloop_ignore=gradient"),
            (
                "ERROR: trainloop_ignore: there is no rule or family `gradient`;"
                " did you mean `gradients`?"
            ),
        ),
        (
            ("--trainloop-select=uncalled-method",),
            (
                "ERROR: trainloop_select: `uncalled-method` cannot be seen in a run;"
                " trainloop-lint sees it"
            ),
        ),
        (
            ("-o", "trainloop_watch=on"),
            "ERROR: trainloop_watch is error, warn or off, not 'on'",
        ),
    ],
)
def test_a_wrong_name_is_a_usage_error(
    pytester: pytest.Pytester, options: tuple[str, ...], message: str
) -> None:
    result = run(pytester, SOUND, *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_a_marker_ignores_rules_in_its_test(pytester: pytest.Pytester) -> None:
    marked = (
        "@pytest.mark.trainloop(ignore=['missing-zero-grad'])\n@pytest.mark.overfits(fall=0.01)\n"
    )
    run(pytester, marked + UNMARKED).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ignore=['zero-grad']", "@pytest.mark.trainloop: there is no rule or family `zero-grad`"),
        ("ignore=3", "@pytest.mark.trainloop: `ignore` is a list of strings or a string, not 3"),
        ("ignor=[]", "@pytest.mark.trainloop has no option `ignor`: did you mean `ignore`?"),
    ],
)
def test_a_wrong_option_of_the_marker_is_a_usage_error(
    pytester: pytest.Pytester, options: str, message: str
) -> None:
    result = run(pytester, f"@pytest.mark.trainloop({options})\n" + SOUND)
    result.assert_outcomes(failed=1)
    assert f"usage error: {message}" in result.stdout.str()


@pytest.mark.parametrize(
    "marker", ["", "@pytest.mark.trainloop\n", "@pytest.mark.overfits(fall=0.01)\n"]
)
def test_a_sound_loop_passes(pytester: pytest.Pytester, marker: str) -> None:
    result = run(pytester, marker + SOUND, "--trainloop-watch")
    result.assert_outcomes(passed=1)


def test_a_test_without_a_loop_leaves_no_word(pytester: pytest.Pytester) -> None:
    result = run(pytester, "@pytest.mark.trainloop\ndef test_it(): pass", "--trainloop-watch")
    result.assert_outcomes(passed=1)
    assert "training loops" not in result.stdout.str()


def test_a_watched_test_keeps_its_own_failure(pytester: pytest.Pytester) -> None:
    code = UNMARKED + "    assert 0, 'its own'\n"
    code = code.replace(": train", ":\n    train")
    result = run(pytester, "@pytest.mark.trainloop\n" + code, "--trainloop-watch")
    result.assert_outcomes(failed=1)
    assert "its own" in result.stdout.str()
    assert "missing-zero-grad" not in result.stdout.str()


def test_observations_can_be_asked_for_without_pytest(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_it(tiny_loader):
    from pytest_trainloop import watch
    with watch() as run:
        train(tiny_loader, clear=False)
        assert run.observations == []
    assert [one.rule for one in run.observations] == ["missing-zero-grad"]
""",
    )
    result.assert_outcomes(passed=1)
