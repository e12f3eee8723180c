"""`--trainloop-json FILE` and junit's properties: what programs can read of checked loops."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET  # the file is pytest's own
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_trainloop.checks._facts import SCHEMA, as_json, thinned

LOOP = """
import pytest
import torch
from torch import nn


def train(loader, epochs=10, lr=1e-2, clear=True):
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(epochs):
        for x, y in loader:
            if clear:
                optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


@pytest.mark.overfits
def test_passes(tiny_loader): train(tiny_loader)

@pytest.mark.overfits
def test_fails(tiny_loader): train(tiny_loader, lr=0.0)

@pytest.mark.overfits
def test_cannot_be_judged(tiny_loader): train(tiny_loader, epochs=1)

@pytest.mark.trainloop
def test_breaks_a_rule(tiny_loader): train(tiny_loader, clear=False)

@pytest.mark.overfits
def test_raises(tiny_loader): train(None)

@pytest.mark.overfits
def test_is_not_finite(tiny_loader): train([(x / 0, y) for x, y in tiny_loader])

def test_plain(): pass
"""
OUTCOMES = {
    "test_it.py::test_passes": "passed",
    "test_it.py::test_fails": "failed",
    "test_it.py::test_cannot_be_judged": "cannot judge",
    "test_it.py::test_breaks_a_rule": "failed",
    "test_it.py::test_raises": "failed",
    "test_it.py::test_is_not_finite": "failed",
}


PLACES = """
import torch
from pytest_trainloop import accumulates, evaluates, run_script, trains

F = torch.nn.functional

@evaluates
def test_evaluates(tiny_loader):
    model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout())
    with torch.no_grad():
        [model(x) for x, _ in tiny_loader]

@accumulates(steps=2, batch_size=2)
def test_accumulates(tiny_model, tiny_dataset, accumulation):
    optimizer = torch.optim.SGD(tiny_model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(torch.utils.data.DataLoader(tiny_dataset, accumulation.batch_size)):
        F.cross_entropy(tiny_model(x), y).backward()
        if i % accumulation.steps:
            optimizer.step()
            optimizer.zero_grad()
        elif accumulation.steps == 1:
            optimizer.step()
            optimizer.zero_grad()

@trains
def test_raises(): run_script("broken.py")

@trains
def test_leaves(): raise SystemExit(3)
"""


def test_the_place_is_a_fact_of_its_own_also_where_a_line_says_it(
    pytester: pytest.Pytester,
) -> None:
    """And the text says it once."""
    pytester.makepyfile(test_it=PLACES, broken="x = 1\nx / 0\n")
    options = ("-p", "no:cacheprovider", "-p", "no:randomly", "-W", "ignore")
    result = pytester.runpytest_inprocess(*options, "--trainloop-json", "facts.json")
    facts = json.loads((pytester.path / "facts.json").read_text())
    places = {test["test"].rpartition("_")[2]: test["verdicts"][0] for test in facts["tests"]}
    assert {name: one["where"] for name, one in places.items()} == {
        "evaluates": "test_it.py:10",
        "accumulates": "test_it.py:18",
        "raises": "broken.py:2",
        "leaves": "test_it.py:28",
    }
    assert "Where:" not in result.stdout.str()


def facts(pytester: pytest.Pytester, *options: str, code: str = LOOP) -> dict[str, Any]:
    pytester.makepyfile(test_it=code)
    quiet = ("-p", "no:cacheprovider", "-p", "no:randomly")
    pytester.runpytest_inprocess(*quiet, "--trainloop-json=out/facts.json", *options)
    return read(pytester.path / "out/facts.json")


def read(path: Path) -> dict[str, Any]:
    """The file, once it is known to be as its schema says and alone in its folder."""
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(told)
    assert [file.name for file in path.parent.iterdir() if "trainloop" in file.name] == []
    return told


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))


def test_every_checked_test_is_in_the_file(pytester: pytest.Pytester) -> None:
    told = facts(pytester)
    assert {one["test"]: one["outcome"] for one in told["tests"]} == OUTCOMES
    assert (told["exit_status"], told["interrupted"]) == (1, False)


def test_a_verdict_holds_what_the_terminal_says(pytester: pytest.Pytester) -> None:
    tests = {one["test"].partition("::")[2]: one["verdicts"] for one in facts(pytester)["tests"]}
    (failed,) = tests["test_fails"]
    assert failed["check"] == "overfits"
    assert failed["cause"] == (
        "the learning rate is 0 in all 20 steps of `optimizer` (AdamW, built at test_it.py:8)"
    )
    assert failed["rule"] == "zero-learning-rate"
    assert failed["where"] == "test_it.py:14"
    assert failed["advice"].startswith("give the optimizer a learning rate above 0")
    assert "did backward run? yes, 20 times, the last at test_it.py:13" in failed["evidence"]
    assert failed["run"]["learning_rates"] == [0.0] * 20
    assert failed["run"]["optimizers"] == [
        {
            "name": "optimizer",
            "kind": "AdamW",
            "built": "test_it.py:8",
            "steps": 20,
            "parameters": 4,
        }
    ]
    (passed,) = tests["test_passes"]
    assert (passed["cause"], passed["rule"], passed["evidence"]) == (None, None, [])
    assert passed["facts"]["first_loss"] == passed["run"]["losses"][0]
    watched, broken = tests["test_breaks_a_rule"]
    assert (watched["check"], broken["check"]) == ("watch", "missing-zero-grad")
    assert watched["cause"] == broken["cause"]
    assert [one["outcome"] for one in tests["test_cannot_be_judged"]] == ["cannot judge"]
    (raised,) = tests["test_raises"]
    assert raised["outcome"] == "error"
    assert raised["cause"] == "TypeError: 'NoneType' object is not iterable"
    assert tests["test_is_not_finite"][0]["run"]["losses"][:2] == ["nan", "nan"]


def test_the_workers_facts_come_together(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=LOOP)
    options = ("-p", "trainloop", "-p", "no:cacheprovider", "-n", "2")
    pytester.runpytest_subprocess(*options, "--trainloop-json=out/facts.json")
    told = read(pytester.path / "out/facts.json")
    assert {one["test"]: one["outcome"] for one in told["tests"]} == OUTCOMES


def test_of_a_test_that_is_run_again_the_last_attempt_counts(pytester: pytest.Pytester) -> None:
    code = LOOP.replace("lr=0.0", "lr=RATES.pop()") + "\nRATES = [1e-2, 0.0, 0.0]\n"
    told = facts(pytester, "-k", "test_fails", "--reruns=2", code=code)
    assert [one["outcome"] for one in told["tests"]] == ["passed"]


def test_a_warning_is_told_of_in_a_test_that_passes(pytester: pytest.Pytester) -> None:
    code = LOOP.replace("@pytest.mark.trainloop\n", "")
    told = facts(pytester, "-k", "breaks", "--trainloop-watch", "-W", "default", code=code)
    (test,) = told["tests"]
    assert test["outcome"] == "passed"
    assert [(one["check"], one["outcome"]) for one in test["verdicts"]] == [
        ("missing-zero-grad", "warning"),
        ("watch", "passed"),
    ]


def test_a_session_without_loops_writes_an_empty_list(pytester: pytest.Pytester) -> None:
    assert facts(pytester, "-k", "plain")["tests"] == []


@pytest.mark.parametrize("options", [("-x",), ("--maxfail=1",)])
def test_a_session_that_stops_early_says_so(
    pytester: pytest.Pytester, options: tuple[str, ...]
) -> None:
    told = facts(pytester, *options)
    assert told["interrupted"]
    assert [one["outcome"] for one in told["tests"]] == ["passed", "failed"]


def test_ctrl_c_leaves_what_was_known_by_then(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it=LOOP
        + "\ndef test_waits():\n"
        + "    import signal, time\n"
        # It is ignored in whatever a shell has started in the background.
        + "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        + "    open('here', 'w').close()\n"
        + "    time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "trainloop", "-p", "no:randomly"]
    process = subprocess.Popen(
        [*command, "-k", "passes or waits", "--trainloop-json=out/facts.json"],
        cwd=pytester.path,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 60
    while not (pytester.path / "here").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == pytest.ExitCode.INTERRUPTED
    told = read(pytester.path / "out/facts.json")
    assert told["interrupted"]
    assert told["exit_status"] == 2
    assert [one["outcome"] for one in told["tests"]] == ["passed"]


def test_a_file_that_cannot_be_written_is_a_usage_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it="def test_plain(): pass")
    (pytester.path / "folder").mkdir()
    (pytester.path / "file").touch()
    for path, said in (("folder", "cannot write a file at folder"), ("file/f.json", "File exists")):
        result = pytester.runpytest_inprocess(f"--trainloop-json={path}")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: --trainloop-json: *{said}*"])


def test_a_folder_that_goes_away_fails_the_session(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it="import shutil\ndef test_it(): shutil.rmtree('out')")
    result = pytester.runpytest_inprocess("--trainloop-json=out/facts.json")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["--trainloop-json: *No such file or directory*"])


def test_a_test_that_changes_the_folder_does_not_move_the_file(pytester: pytest.Pytester) -> None:
    code = "import os\ndef test_it(tmp_path): os.chdir(tmp_path)\n"
    assert facts(pytester, code=code)["tests"] == []


def test_junit_holds_each_verdict_as_json(pytester: pytest.Pytester) -> None:
    told = facts(pytester, "--junitxml=junit.xml", "-k", "fails")
    tree = ET.parse(pytester.path / "junit.xml")  # noqa: S314  # as above
    values = [one.get("value") for one in tree.iter("property") if one.get("name") == "trainloop"]
    assert [json.loads(value or "") for value in values] == told["tests"][0]["verdicts"]


@given(st.lists(st.floats(), max_size=400))
def test_a_long_series_keeps_its_ends(values: list[float]) -> None:
    fewer = thinned(values)
    assert len(fewer) == min(len(values), 100)
    assert not values or (str(fewer[0]), str(fewer[-1])) == (str(values[0]), str(values[-1]))


@given(st.recursive(st.floats() | st.text() | st.none(), st.lists))
def test_what_is_written_is_json_as_the_standard_has_it(thing: object) -> None:
    def refuse(name: str) -> object:
        raise AssertionError(name)

    again = json.loads(as_json(thing), parse_constant=refuse)
    if isinstance(thing, float) and not math.isfinite(thing):
        assert again == str(thing)
    elif not isinstance(thing, list):
        assert again == thing
