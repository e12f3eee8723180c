"""Bodies that hang, leave, fork or start threads get a verdict, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_trainloop.runtime.fingerprint import rng_digests
from pytest_trainloop.runtime.patch import Patches

LOOP = """
import multiprocessing, os, signal, sys, threading, time

import pytest
import torch
from torch import nn
from pytest_trainloop import overfits, repeats, resumes, run_script, trains


def train(steps=30, before_step=lambda step: None):
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        before_step(step)
        optimizer.step()


crawls = threading.Event()


def crawl(step):
    while step == 3:
        crawls.set()
        time.sleep(0.01)


def in_thread(target, **options):
    thread = threading.Thread(target=target, name="trainer", **options)
    thread.start()
    return thread

"""
WITHOUT = ("randomly", "cacheprovider", "rerunfailures")


def run(pytester: pytest.Pytester, code: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(test_it=LOOP + code)
    # pytest-rerunfailures starts a thread of its own in each session.
    without = [part for name in WITHOUT for part in ("-p", f"no:{name}")]
    return pytester.runpytest_inprocess(*without, *options)


def line_of(text: str, body: str) -> int:
    """The line of the test module that holds `text`."""
    lines = (LOOP.strip() + "\n\n@trains\ndef test_it():\n" + body).split("\n")
    return next(number for number, line in enumerate(lines, 1) if text in line)


def verdict(pytester: pytest.Pytester, body: str, *options: str, timeout: float = 30) -> str:
    """The first line of what a test with this body fails with."""
    code = f"@trains(timeout={timeout})\ndef test_it(tmp_path):\n{body}\n"
    result = run(pytester, code, *options)
    result.assert_outcomes(failed=1)
    lines = [line for line in result.outlines if line.startswith("trains: ")]
    assert len(lines) == 1, result.stdout.str()
    result.stdout.fnmatch_lines(["  What to do: *", "  To reproduce: *"])
    result.stdout.fnmatch_lines([f"trains failed  test_it.py::test_it  {lines[0][8:]}"])
    result.stdout.no_fnmatch_line("*Traceback*")
    return lines[0]


HANGS = {
    "turns": "    while True: pass",
    "sleeps": "    time.sleep(60)",
    "waits for a lock": "    lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "waits for a queue": "    multiprocessing.Queue().get()",
    "catches everything": (
        "    while True:  # catches\n"
        "        try: time.sleep(60)\n"
        "        except BaseException: break"
    ),
}


@pytest.mark.parametrize("body", HANGS.values(), ids=HANGS)
def test_a_body_that_hangs_is_ended_and_told_where_it_was(
    pytester: pytest.Pytester, body: str
) -> None:
    line = line_of("catches", body) + 1 if "catches" in body else line_of(body, body)
    assert verdict(pytester, body, timeout=1.5) == (
        f"trains: the body had not ended after 1.5 s: it was at test_it.py:{line}"
    )


NEVER_ENDS = {
    "waits in C": "mutex = ctypes.create_string_buffer(64); lock(mutex); lock(mutex)",
    "catches everything": (
        "while True:\n        try: time.sleep(60)  # here\n        except BaseException: pass"
    ),
}


@pytest.mark.parametrize(
    ("body", "workers"), [(NEVER_ENDS["waits in C"], 0), (NEVER_ENDS["catches everything"], 2)]
)
def test_a_body_that_nothing_can_end_ends_the_session_with_all_reports(
    pytester: pytest.Pytester, body: str, workers: int
) -> None:
    pytester.makeconftest("from pytest_trainloop.runtime import deadline\ndeadline._GRACE = 2\n")
    code = (
        f"{LOOP}\n"
        "import ctypes\n"
        "lock = ctypes.CDLL(None).pthread_mutex_lock\n"
        "@trains\n"
        "def test_before(): train()\n"
        "@pytest.mark.trainloop(timeout=0.5)\n"
        f"def test_hangs(tmp_path):\n    print('said before')\n    {body}\n"
        "@trains\n"
        "def test_after(): train()\n"
    ).lstrip()
    pytester.makepyfile(test_it=code)
    result = pytester.runpytest_subprocess(
        *("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:rerunfailures"),
        *("-n", str(workers), "--junitxml=junit.xml", "--trainloop-json=facts.json"),
        timeout=60,
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    lines = code.split("\n")
    line = next(n for n, text in enumerate(lines, 1) if "# here" in text or "lock(mutex)" in text)
    cause = (
        "the body had not ended after 0.5 s, and could not be interrupted: it was at"
        f" test_it.py:{line}"
    )
    result.stdout.fnmatch_lines(
        [
            f"watch: {cause}",
            "  it had begun 0 training steps by then",
            (
                '  What to do: look for what it waits for there; `isolate="process"` ends such a'
                " body without the session"
            ),
            "  To reproduce: pytest -p trainloop 'test_it.py::test_hangs'",
            "*Captured stdout call*",
            "said before",
        ]
    )
    result.stdout.fnmatch_lines([f"watch failed  test_it.py::test_hangs  {cause}"])
    result.stdout.fnmatch_lines(["trains passed  test_it.py::test_before  *"])
    if workers == 0:
        result.stdout.fnmatch_lines(
            ["!*! test_it.py::test_hangs could not be interrupted; 1 test had not run yet !*!"]
        )
    else:
        result.stdout.fnmatch_lines(["trains passed  test_it.py::test_after  *"])
    told = json.loads(Path("facts.json").read_text(encoding="utf-8"))
    outcomes = {test["test"].partition("::")[2]: test["outcome"] for test in told["tests"]}
    assert (outcomes["test_before"], outcomes["test_hangs"]) == ("passed", "failed")
    assert cause in Path("junit.xml").read_text(encoding="utf-8")


def test_how_far_it_had_come_is_evidence(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        "@overfits(timeout=2)\n"
        "def test_it(): train(before_step=lambda step: step == 3 and time.sleep(60))\n",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "overfits: the body had not ended after 2 s: it was at test_it.py:35",
            "  it had begun 3 training steps by then",
            (
                "  What to do: look for what it waits for there; a body that is only slow takes a"
                " longer `timeout`, or less data"
            ),
        ]
    )


def test_all_runs_of_a_check_share_the_time(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
begins = []

def test_takes_the_time_of_the_first_step(): train(2)

@repeats(timeout=6)
def test_it():
    begins.append(time.monotonic())
    train(2)
    time.sleep(60 if begins[1:] else 3)

def test_its_second_run_had_what_the_first_left():
    _, second = begins
    assert time.monotonic() - second < 6
""",
    )
    result.assert_outcomes(failed=1, passed=2)
    result.stdout.fnmatch_lines(["repeats: the body had not ended after 6 s: it was at *:43"])


def test_the_marker_without_a_check_keeps_time_too(pytester: pytest.Pytester) -> None:
    result = run(
        pytester, "@pytest.mark.trainloop(timeout=2)\ndef test_it(): train(3), time.sleep(60)\n"
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["watch: the body had not ended after 2 s: it was at test_it.py:35"]
    )


def test_a_script_that_hangs_is_told_with_its_line(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(train="import time\n\ntime.sleep(60)\n")
    assert verdict(pytester, "    run_script('train.py')", timeout=3) == (
        "trains: the body had not ended after 3 s: it was at train.py:3"
    )


@pytest.mark.parametrize("timeout", ["0", "-1", "float('nan')"])
def test_a_timeout_that_is_no_time_is_refused(pytester: pytest.Pytester, timeout: str) -> None:
    result = run(pytester, f"@pytest.mark.trains(timeout={timeout})\ndef test_it(): train()\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["usage error: @pytest.mark.trains: `timeout` is a number of seconds above 0, not *"]
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (None, 2, "*Failed: Timeout (>2.0s) from pytest-timeout."),
        (30, 2, "*Failed: Timeout (>2.0s) from pytest-timeout."),
        (1, 30, "trains: the body had not ended after 1 s: it was at *"),
        (1, 4, "trains: the body had not ended after 1 s: it was at *"),
    ],
)
def test_pytest_timeout_comes_at_its_own_time(
    pytester: pytest.Pytester, ours: int | None, theirs: int, expected: str
) -> None:
    result = run(
        pytester,
        f"@pytest.mark.timeout({theirs})\n@trains(timeout={ours})\n"
        "def test_it(): time.sleep(60)\n"
        "def test_after(): train()\n",
    )
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines([expected])


def test_the_time_of_pytest_timeout_goes_on_after_ours(pytester: pytest.Pytester) -> None:
    """It covers the teardown of the test, which begins when its body has ended."""
    result = run(
        pytester,
        """
@pytest.fixture
def slow():
    yield
    time.sleep(60)

@pytest.mark.timeout(4)
@trains(timeout=30)
def test_it(slow): train()
""",
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*Failed: Timeout (>4.0s) from pytest-timeout."])


def test_a_body_in_another_thread_than_the_main_one_keeps_time_too() -> None:
    from pytest_trainloop.runtime.broken_off import BrokenOffError
    from pytest_trainloop.runtime.deadline import Deadline

    told: list[str] = []

    def body() -> None:
        try:
            with Deadline(0.2).kept(lambda: "far"):
                while True:
                    pass
        except BrokenOffError as broken:
            told.extend((str(broken), broken.trace))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert told[0].startswith("the body had not ended after 0.2 s: it was at ")
    assert f"{Path(__file__).name}:" in told[0]
    assert told[1] == "far"


def children() -> set[str]:
    """The child processes of this one: tests before may have left some."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {child for task in tasks for child in task.read_text().split()}


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("    sys.exit()", "the body called sys.exit() at test_it.py:{line}"),
        ("    train(3); sys.exit(0)", "the body called sys.exit(0) at test_it.py:{line}"),
        ("    exit('done')", "the body called sys.exit('done') at test_it.py:{line}"),
        ("    os._exit(0)", "the body called os._exit(0) at test_it.py:{line}"),
        (
            "    in_thread(lambda: (train(3), os._exit(4))).join()",
            "the body called os._exit(4) at test_it.py:{line}",
        ),
        (
            "    os.fork()\n    train(3)",
            (
                "the body forked at test_it.py:{line}, and the child process went on when the"
                " body had ended"
            ),
        ),
        (
            "    os.fork() or time.sleep(60)\n    train(3)",
            (
                "the body forked at test_it.py:{line}, and the child process went on when the"
                " body had ended"
            ),
        ),
        (
            (
                "    in_thread(lambda: train(before_step=crawl), daemon=True)\n"
                "    crawls.wait(); train(3)"
            ),
            ("the thread `trainer` still trained when the body had ended: it was at test_it.py:*"),
        ),
        (
            "    in_thread(lambda: train(before_step=lambda step: 1 / (3 - step))).join()",
            (
                "the thread `trainer`, which trained, raised ZeroDivisionError: division by zero"
                " at test_it.py:{line}"
            ),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:This process")  # Python's own word on forks beside threads
def test_a_body_that_leaves_forks_or_starts_threads_gets_a_verdict(
    pytester: pytest.Pytester, body: str, cause: str
) -> None:
    threads, processes = set(threading.enumerate()), children()
    options = ("-W", "ignore::pytest.PytestUnhandledThreadExceptionWarning")
    line = verdict(pytester, body, *options)
    first = next(one for one in body.split("\n") if "train(3)" not in one or one in body)
    pattern = f"trains: {cause.format(line=line_of(first, body))}"
    assert line == pattern or line.startswith(pattern.removesuffix("*"))
    assert set(threading.enumerate()) <= threads
    assert children() <= processes


def test_a_child_that_ends_by_itself_is_no_problem(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@trains
def test_forked():
    if (child := os.fork()) == 0:
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    train()

@trains
def test_worked_in_processes():
    process = multiprocessing.get_context("fork").Process(target=len, args=([],))
    process.start(), process.join()
    assert process.exitcode == 0
    train()
""",
        "-W",
        "ignore::DeprecationWarning",
    )
    result.assert_outcomes(passed=2)


def test_steps_of_another_thread_are_seen_and_stopped(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@trains(steps=20)
def test_it():
    in_thread(lambda: train(10**9)).join()
""",
        "-W",
        "error",
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["trains passed * 2 parameters (10 values) moved in 20 steps"])


OUTCOMES = {
    "passes": "train()",
    "never steps": "pass",
    "raises": "train(3); 1 / 0",
    "raises within a step": "train(before_step=lambda step: 1 / (2 - step))",
    "fails": "train(3); assert False",
    "skips": "train(3); pytest.skip()",
    "is expected to fail": "train(3); pytest.xfail()",
    "is stopped": "train(10**9)",
    "hangs": "train(3); time.sleep(60)",
    "leaves": "train(3); sys.exit(1)",
    "leaves at once": "train(3); os._exit(1)",
    "Ctrl-C": "train(3); raise KeyboardInterrupt",
    "Ctrl-C as a signal": "train(3); signal.raise_signal(signal.SIGINT)",
    "pytest.exit": "train(3); pytest.exit('enough')",
    "a thread": "in_thread(lambda: train(10**9)).join()",
    "runs pytest": "pytest.main(['-pno:cacheprovider', '-pno:rerunfailures', 'inner.py'])",
}


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[Any, str], Any]:
    """Everything that is replaced during the test, with what it was before."""
    originals: dict[tuple[Any, str], Any] = {}
    replace = Patches.replace

    def noting(patches: Patches, owner: Any, name: str, make: Any) -> None:
        originals.setdefault((owner, name), vars(owner).get(name))
        replace(patches, owner, name, make)

    monkeypatch.setattr(Patches, "replace", noting)
    return originals


def process_state() -> list[Any]:
    """What else a run changes for its own time."""
    from torch.optim import optimizer

    return [
        rng_digests(),
        dict(optimizer._global_optimizer_pre_hooks),
        dict(optimizer._global_optimizer_post_hooks),
        torch.is_grad_enabled(),
        signal.getsignal(signal.SIGALRM),
        signal.getitimer(signal.ITIMER_REAL),
        signal.getsignal(signal.SIGINT),
        list(sys.argv),
        list(sys.path),
        sys.modules["__main__"],
        threading.excepthook,
        Path.cwd(),
        dict(os.environ) | {"PYTEST_CURRENT_TEST": ""},
    ]


@pytest.mark.parametrize("marker", ["overfits", "resumes", "trainloop"])
@pytest.mark.parametrize("body", OUTCOMES.values(), ids=OUTCOMES)
def test_nothing_stays_replaced_and_no_random_number_is_missing(
    pytester: pytest.Pytester,
    replaced: dict[tuple[Any, str], Any],
    body: str,
    marker: str,
) -> None:
    pytester.makepyfile(inner=LOOP + "@trains\ndef test_inner(tiny_loader): train()")
    before, threads = process_state(), set(threading.enumerate())
    # A watched test has no step at which it is stopped.
    endless = "sleep" in body or ("10**9" in body and marker == "trainloop")
    seconds = 1 if endless else 30
    with suppress(KeyboardInterrupt):
        run(
            pytester,
            f"@pytest.mark.{marker}(timeout={seconds})\ndef test_it(checkpoint_dir): {body}\n",
            "-W",
            "ignore",
        )
    assert len(replaced) > 10
    # That pytest replaces too, for its own session.
    del replaced[threading, "excepthook"]
    for (owner, name), original in replaced.items():
        assert vars(owner).get(name) is original, f"{owner}.{name}"
    assert process_state() == before
    # Those of earlier tests may end meanwhile.
    assert set(threading.enumerate()) <= threads


LIGHTNING = """
import os, sys, time

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from pytest_trainloop import trains


class Model(lightning.LightningModule):
    def __init__(self, act):
        super().__init__()
        self.act, self.layers = act, nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        if batch_idx == 2:
            self.act()
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(act):
    data = TensorDataset(torch.randn(24, 4), torch.arange(24) % 2)
    quiet = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=2, **quiet)
    trainer.fit(Model(act), DataLoader(data, 4))


@trains(timeout=15)
def test_hangs(): fit(lambda: time.sleep(120))

@trains
def test_exits(): fit(lambda: sys.exit(3))

@trains
def test_exits_at_once(): fit(lambda: os._exit(3))

@trains(timeout=60)
def test_trains(): fit(lambda: None)
"""


def test_a_framework_that_catches_much_lets_a_verdict_through(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=LIGHTNING)
    options = ("-p", "no:randomly", "-p", "no:cacheprovider", "-W", "ignore")
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(failed=3, passed=1)
    result.stdout.fnmatch_lines(
        [
            "trains: the body had not ended after 15 s: it was at test_it.py:34",
            "  it had begun 3 training steps by then",
            "trains: the body called sys.exit(3) at test_it.py:37",
            "trains: the body called os._exit(3) at test_it.py:40",
        ]
    )
