"""Tests that run in a process of their own, reported as if they ran in this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_trainloop.checks._waiting import place_in

LOOP = """
import os, pathlib, signal, sys, warnings

import pytest
import torch
from torch import nn
from pytest_trainloop import overfits, repeats, trains

here = os.getpid()
with open("pids", "a") as pids:
    pids.write(f"{here}\\n")


def train(loader, lr=1e-2):
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(10):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


@pytest.fixture
def place(request):
    print("set up")
    yield request.config.rootpath / "made"
    print("torn down")
"""


def run(pytester: pytest.Pytester, code: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(test_it=LOOP + code)
    result = pytester.runpytest_inprocess("-p", "no:randomly", *options)
    assert not left_running(pytester.path), "a process was left behind"
    return result


def left_running(folder: Path) -> list[int]:
    """The processes that imported the test module and still are, as zombies or not."""
    written = folder / "pids"
    pids = map(int, written.read_text().split()) if written.exists() else ()
    return [pid for pid in pids if pid != os.getpid() and Path(f"/proc/{pid}").exists()]


def test_every_outcome_is_reported_as_if_the_test_had_run_here(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@trains(isolate="process")
def test_passes(place, tiny_loader):
    warnings.warn("heard", stacklevel=1)
    train(tiny_loader)

@trains(isolate="process")
def test_fails(place, tiny_loader):
    print("said in the test")
    train(tiny_loader, lr=0)

@overfits(isolate="process", steps=4)
def test_unjudged(tiny_loader):
    weight = torch.ones(1, requires_grad=True)
    (weight * 2).backward()
    torch.optim.SGD([weight], lr=0.1).step()

@pytest.mark.parametrize("rate", [0.1], ids=["a::b[c]"])
@trains(isolate="process")
def test_parametrized(tiny_loader, rate):
    train(tiny_loader, rate)

@pytest.mark.trainloop(isolate="process")
class TestWatched:
    def setup_method(self):
        self.numbers = [1]
    def test_asserts(self):
        assert self.numbers == [2]
    def test_skips(self):
        pytest.skip("not today")
    @pytest.mark.xfail(strict=True, reason="known")
    def test_expected(self):
        raise ValueError
    def test_breaks_in_its_fixture(self, request, tmp_path):
        request.addfinalizer(lambda: 1 / 0)

@pytest.mark.skipif(True, reason="never")
@trains(isolate="process")
def test_skipped():
    pass

@pytest.mark.trainloop(isolate="process")
def test_without_its_fixture(missing):
    pass

def test_after_them_in_the_first_process(place):
    assert pathlib.Path("pids").read_text().split()[0] == str(os.getpid())
""",
        "--junitxml=junit.xml",
    )
    result.assert_outcomes(passed=4, failed=2, skipped=2, xfailed=1, errors=2, warnings=1)
    result.stdout.fnmatch_lines_random(
        [
            "*ERROR at setup of test_without_its_fixture*",
            "E *fixture 'missing' not found",
            "*ZeroDivisionError",
            "*_ test_fails _*",
            "trains: the learning rate is 0 in all 20 steps of `optimizer` (AdamW, built at *",
            "*Captured stdout setup*",
            "set up",
            "said in the test",
            "torn down",
            "E *assert [[]1[]] == [[]2[]]",
            "*UserWarning: heard",
            "trains passed  test_it.py::test_passes  4 parameters (114 values) moved in 20 steps",
            "trains failed  test_it.py::test_fails  the learning rate is 0 *",
            "overfits cannot judge  *",
        ]
    )
    report = (pytester.path / "junit.xml").read_text()
    assert (
        "'values': 114" in report or "&quot;values&quot;: 114" in report or "114 values" in report
    )


ENDS = {
    "os.abort()": "was ended by SIGABRT (an abort) at test_it.py:31",
    "import ctypes; ctypes.string_at(0)": (
        "was ended by SIGSEGV (a segmentation fault) at test_it.py:31"
    ),
    "os.kill(os.getpid(), signal.SIGKILL)": (
        "was ended by SIGKILL (killed from outside: by hand, or by the system for want of memory)"
    ),
    "signal.raise_signal(signal.SIGTERM)": "was ended by SIGTERM",
    "from ctypes import CDLL; CDLL(None)._exit(3)": (
        "ended with exit code 3, in the middle of the test"
    ),
}


@pytest.mark.parametrize(("code", "how"), ENDS.items(), ids=ENDS)
def test_a_process_that_ends_before_its_test_gets_a_verdict(
    pytester: pytest.Pytester, code: str, how: str
) -> None:
    result = run(
        pytester,
        f"""
@trains(isolate="process")
def test_ends():
    {code}

def test_after_it(tiny_loader):
    train(tiny_loader)
""",
    )
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines([f"trains: the process of the test {how}", "  To reproduce: *"])
    result.stdout.fnmatch_lines([f"trains failed  test_it.py::test_ends  *{how}"])


def test_a_body_that_nothing_can_interrupt_is_ended_from_outside(
    pytester: pytest.Pytester,
) -> None:
    begin = time.monotonic()
    result = run(
        pytester,
        "@trains(isolate='process', timeout=1)\ndef test_it():\n    sum(range(10**13))\n",
    )
    assert time.monotonic() - begin < 60
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            (
                "trains: the body had not ended after 1 s, and could not be interrupted:"
                " it was at test_it.py:30"
            )
        ]
    )


def test_a_body_that_hangs_is_ended_from_within(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        "@trains(isolate='process', timeout=1)\ndef test_it():\n    __import__('time').sleep(60)\n",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["trains: the body had not ended after 1 s: it was at test_it.py:30"]
    )


@pytest.mark.parametrize(
    ("code", "ends_with"),
    [("raise KeyboardInterrupt", "KeyboardInterrupt"), ("pytest.exit('enough', 7)", "enough")],
)
def test_what_ends_the_session_there_ends_it_here(
    pytester: pytest.Pytester, code: str, ends_with: str
) -> None:
    pytester.makepyfile(
        test_it=LOOP
        + f'@trains(isolate="process")\ndef test_it(): {code}\ndef test_after(): pass\n'
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly")
    result.stdout.fnmatch_lines([f"!*{ends_with}*!"])
    result.stdout.no_fnmatch_line("*1 passed*")
    assert result.ret == (7 if "exit" in code else pytest.ExitCode.INTERRUPTED)


def test_global_state_is_that_of_a_new_process(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
import random
torch.set_num_interop_threads(3) if torch.get_num_interop_threads() != 3 else None
state = []

@pytest.mark.parametrize("number", range(2))
@pytest.mark.trainloop(isolate="process")
def test_it(number):
    assert state == []
    state.append(number)
    os.environ["CHANGED"] = "1"
    torch.set_default_dtype(torch.float64)

def test_nothing_came_back():
    assert state == [] and "CHANGED" not in os.environ
    assert torch.get_default_dtype() == torch.float32
""",
    )
    result.assert_outcomes(passed=3)


def test_options_of_the_project_reach_the_process(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naddopts = -ra --strict-markers --strict-config\nmarkers = mine\n")
    pytester.makeconftest(
        """
import pytest
def pytest_addoption(parser):
    parser.addoption("--size", type=int, default=1)
@pytest.fixture
def size(request):
    return request.config.getoption("--size")
"""
    )
    result = run(
        pytester,
        """
@pytest.mark.mine
@trains(isolate="process", steps=3)
def test_it(size, tiny_loader, pytestconfig, tmp_path):
    assert size == 5 and pytestconfig.getoption("trainloop_seed") == 4
    train(tiny_loader)
""",
        "--size=5",
        "--trainloop-seed=4",
        "-k",
        "it",
        "-W",
        "error",
        "--lf",
        "test_it.py",
    )
    result.assert_outcomes(passed=1)


def test_a_test_that_cannot_be_found_again_says_so(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.parametrize("process", [os.getpid()])
@trains(isolate="process")
def test_it(process): pass
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["trains: the test was not found again in a process of its own: its name changes"]
    )


def test_a_wrong_value_is_a_usage_error(pytester: pytest.Pytester) -> None:
    result = run(pytester, "@pytest.mark.trains(isolate='thread')\ndef test_it(): pass")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["usage error: @pytest.mark.trains: `isolate` is 'process' or None, not 'thread'"]
    )


def test_what_cannot_be_sent_away_says_so(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
import unittest

class TestIt(unittest.TestCase):
    @pytest.mark.trainloop(isolate="process")
    def test_it(self): pass
""",
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [("usage error: @pytest.mark.trainloop(isolate=...) works on test functions only")]
    )


def test_the_process_ends_with_the_session_that_waits_for_it(pytester: pytest.Pytester) -> None:
    code = '@trains(isolate="process")\ndef test_it(): __import__("time").sleep(600)\n'
    pytester.makepyfile(test_it=LOOP + code)
    command = [sys.executable, "-m", "pytest", "-q", "test_it.py"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as session:
        wait_until(lambda: pids_of(pytester.path) == 2)
        assert left_running(pytester.path)
        session.send_signal(signal.SIGKILL)
        session.wait()
    wait_until(lambda: not left_running(pytester.path))


def pids_of(folder: Path) -> int:
    written = folder / "pids"
    return len(written.read_text().split()) if written.exists() else 0


def wait_until(true: object, seconds: float = 60) -> None:
    assert callable(true)
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_the_place_is_that_of_the_thread_that_crashed(tmp_path: Path) -> None:
    stacks = tmp_path / "stacks"
    stacks.write_text(
        "Fatal Python error: Segmentation fault\n\n"
        'Thread 0x01 (most recent call first):\n  File "/home/me/other.py", line 3 in wait\n\n'
        "Current thread 0x02 (most recent call first):\n"
        f'  File "{os.__file__}", line 9 in listdir\n'
        '  File "/home/me/net.py", line 12 in forward\n'
        '  File "/home/me/train.py", line 40 in main\n'
    )
    assert place_in(stacks) == "/home/me/net.py:12"
    assert place_in(tmp_path / "none") == ""
