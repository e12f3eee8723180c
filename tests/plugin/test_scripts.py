"""Training scripts as they stand, run inside of marked tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NET = """
from torch import nn

built = []


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        built.append(self)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x):
        return self.layers(x)
"""
TRAIN = """
import argparse
import os
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import net

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--workers", type=int, default=0)
parser.add_argument("--context")
parser.add_argument("--out", type=Path, default=Path("out"))


class Rows(TensorDataset):
    pass


def main():
    arguments = parser.parse_args()
    assert not net.built, "not the first in its process"
    os.environ["SCRIPT_RAN"] = "yes"
    torch.manual_seed(1)
    x = torch.randn(24, 4)
    data = Rows(x, (x.sum(1) > 0).long())
    torch.manual_seed(0)
    model = net.Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr)
    newest = arguments.out / "newest.pt"
    done = 0
    if newest.exists():
        state = torch.load(newest, weights_only=False)
        model.load_state_dict(state["model"].state_dict())
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        done = state["epochs"]
    for epoch in range(done, arguments.epochs):
        context = arguments.context
        loader = DataLoader(
            data, 4, shuffle=True, num_workers=arguments.workers, multiprocessing_context=context
        )
        for x, y in loader:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        arguments.out.mkdir(exist_ok=True)
        state = {"model": model, "optimizer": optimizer.state_dict(), "epochs": epoch + 1}
        torch.save({**state, "rng": torch.get_rng_state()}, newest)


if __name__ == "__main__":
    main()
"""
IMPORTS = """
import pytest
from pytest_trainloop import overfits, repeats, resumes, run_module, run_script, trains
"""


def project(pytester: pytest.Pytester, test: str, **files: str) -> None:
    pytester.makepyfile(net=NET, train=TRAIN, test_it=IMPORTS + test, **files)


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)


def test_all_checks_run_a_script_as_often_as_they_need(pytester: pytest.Pytester) -> None:
    project(
        pytester,
        """
        import os

        @overfits
        def test_learns(checkpoint_dir):
            run_script("train.py", "--epochs", 50, "--out", checkpoint_dir)

        @trains
        @repeats
        def test_trains_and_repeats(checkpoint_dir):
            run_script("train.py", "--epochs", "2", "--out", str(checkpoint_dir))

        @resumes
        def test_goes_on(checkpoint_dir):
            run_script("train.py", "--epochs", "3", "--out", str(checkpoint_dir))

        def test_nothing_is_left():
            assert "SCRIPT_RAN" not in os.environ and not os.path.exists("out")
        """.replace("\n        ", "\n"),
    )
    result = run(pytester)
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines_random(
        [
            "overfits passed  test_it.py::test_learns  loss *",
            "repeats passed * 2 runs of 12 steps, equal bit for bit",
            "trains passed * 4 parameters (114 values) moved in 12 steps",
            (
                "resumes passed * resumed from step 6 of 18 (interrupted after step 7),"
                " then equal bit for bit"
            ),
        ]
    )


def test_the_fixture_runs_a_script_and_records_it(pytester: pytest.Pytester) -> None:
    project(
        pytester,
        """
def test_it(trainloop, checkpoint_dir):
    trainloop.run_script("train.py", "--epochs", "1", "--out", checkpoint_dir)
    assert len(trainloop.losses) == 6 and trainloop.losses[-1] < trainloop.losses[0]
    trainloop.run_module("train", "--epochs", "1", "--out", checkpoint_dir / "again")
    assert len(trainloop.losses) == 12
""",
    )
    run(pytester).assert_outcomes(passed=1)


def test_what_a_script_loses_when_it_resumes_is_named(pytester: pytest.Pytester) -> None:
    project(pytester, "")
    script = TRAIN.replace('        optimizer.load_state_dict(state["optimizer"])\n', "")
    pytester.makepyfile(
        train=script,
        test_it=IMPORTS
        + "@resumes\ndef test_it(checkpoint_dir):\n"
        + "    run_script('train.py', '--epochs', '3', cwd=checkpoint_dir)\n",
    )
    result = run(pytester)
    result.assert_outcomes(failed=1)
    assert "\nresumes: optimizer state not the same at step 7: the state of AdamW lacks" in (
        result.stdout.str()
    )
    assert not (pytester.path / "out").exists()


def test_the_traceback_of_a_script_leaves_out_who_watches(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        data="def bad(sample): raise ValueError('a bad sample')\n",
        train="from torch.utils.data import DataLoader\nfrom data import bad\n"
        "list(DataLoader([1, 2], collate_fn=bad))\n",
        test_it=IMPORTS + "@trains\ndef test_it(): run_script('train.py')\n",
    )
    text = run(pytester).stdout.str()
    assert 'data.py", line 1, in bad' in text
    assert f"pytest_trainloop{os.sep}" not in text


def test_a_finding_names_the_line_of_the_script(pytester: pytest.Pytester) -> None:
    project(pytester, "@trains\ndef test_it(): run_script('train.py', '--lr', '0')")
    result = run(pytester)
    result.assert_outcomes(failed=1)
    line = TRAIN.splitlines().index(
        "    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr)"
    )
    text = result.stdout.str()
    assert (
        f"the learning rate is 0 in all 12 steps of `optimizer` (AdamW, built at train.py:{line})"
        in text
    )


LOOK = """
import json, os, pickle, sys


class Mine:
    pass


main = sys.modules["__main__"]
print(json.dumps({
    "name": __name__, "file": __file__, "argv": sys.argv, "path": sys.path[0], "cwd": os.getcwd(),
    "main": main.__dict__ is globals(), "package": __package__,
    "spec": __spec__ and [__spec__.name, __spec__.origin],
    "doc": __doc__, "builtins": type(__builtins__).__name__, "loader": type(__loader__).__name__,
    "pickled": type(pickle.loads(pickle.dumps(Mine()))) is Mine,
}))
"""


def seen_alone(folder: Path, *command: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, check=True
    )
    seen: dict[str, object] = json.loads(done.stdout)
    return seen


def seen_by(result: pytest.RunResult) -> dict[str, object]:
    line = next(line for line in result.outlines if '{"name"' in line)
    seen: dict[str, object] = json.loads(line[line.index("{") :])
    return seen


@pytest.mark.parametrize("path", ["look.py", "scripts/look.py", "ABSOLUTE/look.py"])
def test_a_script_sees_what_it_sees_when_run_alone(pytester: pytest.Pytester, path: str) -> None:
    path = path.replace("ABSOLUTE", str(pytester.path))
    (pytester.path / "scripts").mkdir()
    (pytester.path / path).write_text(LOOK)
    pytester.makepyfile(f"{IMPORTS}def test_it(): run_script({path!r}, '--epochs', '1')")
    alone = seen_alone(pytester.path, path, "--epochs", "1")
    assert seen_by(run(pytester, "-s")) == alone


@pytest.mark.parametrize("name", ["pkg", "pkg.look"])
def test_a_module_sees_what_it_sees_when_run_alone(pytester: pytest.Pytester, name: str) -> None:
    package = pytester.mkpydir("pkg")
    (package / "look.py").write_text(LOOK)
    (package / "__main__.py").write_text(LOOK)
    pytester.makepyfile(f"{IMPORTS}def test_it(): run_module({name!r}, 1)")
    alone = seen_alone(pytester.path, "-m", name, "1")
    assert seen_by(run(pytester, "-s")) == alone


def test_a_script_of_the_project_is_found_from_the_tests_folder(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pytester.path / "pyproject.toml").touch()
    (pytester.path / "scripts").mkdir()
    (pytester.path / "scripts/look.py").write_text(LOOK)
    tests = pytester.path / "tests"
    tests.mkdir()
    (tests / "test_it.py").write_text(f"{IMPORTS}def test_it(): run_script('scripts/look.py')")
    alone = seen_alone(pytester.path, "scripts/look.py")
    monkeypatch.chdir(tests)
    assert seen_by(run(pytester, "-s")) == alone
    assert Path.cwd() == tests


def test_a_script_stays_in_a_folder_that_the_test_went_to(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        look=LOOK,
        test_it=IMPORTS
        + "def test_it(tmp_path, monkeypatch):\n"
        + "    monkeypatch.chdir(tmp_path)\n"
        + "    run_script('look.py')\n",
    )
    seen = seen_by(run(pytester, "-s"))
    assert Path(str(seen["cwd"])).name.startswith("test_it")
    assert seen["argv"] == [str(pytester.path / "look.py")]


CHANGES_MUCH = """
import logging, multiprocessing, os, signal, sys, warnings
import torch
import net

sys.argv.append("more")
sys.path.append("/nowhere")
os.environ["PATH"] = "/nowhere"
os.environ["NEW"] = "1"
os.environ.pop("OLD")
os.mkdir("below")
os.chdir("below")
sys.stdout = open("log.txt", "w")
logging.getLogger().addHandler(logging.StreamHandler())
logging.getLogger("train").addHandler(logging.StreamHandler())
logging.getLogger("train").setLevel(10)
logging.disable(10)
warnings.simplefilter("ignore")
signal.signal(signal.SIGTERM, lambda *_: None)
multiprocessing.set_start_method("spawn")
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
torch.use_deterministic_algorithms(True)
torch.set_num_threads(3)
torch.set_default_device("meta")
torch.backends.cudnn.benchmark = True
{end}
"""
ENDS = {
    "the end": "",
    "exit with 0": "sys.exit()",
    "exit with 3": "sys.exit(3)",
    "an exception": "raise ValueError",
    "Ctrl-C": "raise KeyboardInterrupt",
    "a stop": "from pytest_trainloop.runtime.drive import Stopped\nraise Stopped",
}
COMPARES = """
import logging, multiprocessing, os, shutil, signal, sys, warnings
import torch
from torch.overrides import _get_current_function_mode_stack
import net


def state():
    return [
        list(sys.argv), id(sys.argv), list(sys.path), id(sys.path), dict(os.environ), os.getcwd(),
        id(sys.stdout), id(sys.excepthook), logging.root.handlers[:], logging.root.manager.disable,
        logging.getLogger("train").handlers, warnings.filters[:], signal.getsignal(signal.SIGTERM),
        multiprocessing.get_start_method(allow_none=True), torch.get_default_dtype(),
        torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(), torch.get_default_device(), torch.backends.cudnn.benchmark,
        _get_current_function_mode_stack(),
        {name: id(module) for name, module in sys.modules.items()},
    ]


def test_it(monkeypatch):
    monkeypatch.setenv("OLD", "1")
    before = state()
    for _ in range(2):
        try:
            run_script("changes.py")
        except BaseException as end:
            print(type(end).__name__)
        shutil.rmtree("below")
        for ours, theirs in zip(state(), before):
            assert ours == theirs
    assert sys.modules["net"] is net
"""


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_all_that_a_script_changed_is_put_back(pytester: pytest.Pytester, end: str) -> None:
    pytester.makepyfile(net=NET, changes=CHANGES_MUCH.format(end=end), test_it=IMPORTS + COMPARES)
    run(pytester).assert_outcomes(passed=1)


def test_neighbours_are_imported_anew_and_libraries_are_not(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        one="import counter, sys, torch\nsys.counted = counter.count, torch\n",
        counter="import itertools\nnumbers = itertools.count()\ncount = [next(numbers)]\n",
        test_it=IMPORTS
        + """
import sys
import counter
import torch

def test_it():
    counter.count.append("of the test")
    first = run_script("one.py")
    first["counter"].count.append("of the first run")
    second = run_script("one.py")
    assert first["counter"] is not second["counter"]
    assert second["counter"].count == [0]
    assert sys.modules["counter"] is counter and first["torch"] is torch
""",
    )
    run(pytester).assert_outcomes(passed=1)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_loader_of_the_script_has_workers(pytester: pytest.Pytester, context: str) -> None:
    """In a process of its own: a new worker begins with what this one was started as."""
    arguments = f"'--epochs', '1', '--workers', '1', '--context', {context!r}"
    project(pytester, f"@trains\ndef test_it(): run_script('train.py', {arguments})")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("script", "arguments", "cause"),
    [
        (TRAIN, "'--epoch', 'many'", "`train.py` exited with code 2 at train.py:25"),
        ("import sys\n\nsys.exit(7)", "", "`train.py` exited with code 7 at train.py:3"),
        ("exit('no data\\nat all')", "", "`train.py` exited saying: no data at train.py:1"),
        (
            "def main():\n    return int('x')\n\nmain()",
            "",
            (
                "`train.py` raised ValueError: invalid literal for int() with base 10: 'x'"
                " at train.py:2"
            ),
        ),
        (
            "import net\n\nnet.Net()(3)",
            "",
            "`train.py` raised TypeError: linear(): argument 'input'*(position 1)*at net.py:13",
        ),
        ("x = = 1", "", "`train.py` is not Python: invalid syntax at train.py:1"),
        ("x = '\\0'", "", "`train.py` is not Python: source code*null bytes*"),
        ("# é".encode("latin-1"), "", "`train.py` is not Python: *"),
        (
            "import broken",
            "",
            "`train.py` raised SyntaxError: *at train.py:1",
        ),
    ],
)
def test_a_script_that_breaks_off_gives_one_line_with_its_place(
    pytester: pytest.Pytester, script: str | bytes, arguments: str, cause: str
) -> None:
    project(pytester, f"@overfits\ndef test_it(): run_script('train.py', {arguments})")
    pytester.makepyfile(broken="def f(:")
    content = script if isinstance(script, bytes) else script.replace("\\0", "\0").encode()
    (pytester.path / "train.py").write_bytes(content)
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"overfits: {cause}", "  What to do: *", "  To reproduce: *"])
    result.stdout.fnmatch_lines([f"overfits failed  test_it.py::test_it  {cause}"])
    result.stdout.no_fnmatch_line("*runtime/script.py*")


def test_an_exit_with_code_0_is_a_normal_end(pytester: pytest.Pytester) -> None:
    script = TRAIN.replace("    main()\n", "    raise SystemExit(main())\n")
    project(pytester, "@trains\ndef test_it(): run_script('train.py')")
    pytester.makepyfile(train=script)
    run(pytester).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("call", "cause"),
    [
        ("run_script('trian.py')", "there is no script `trian.py` in {folder}"),
        ("run_script('.')", "`.` is a folder, not a script"),
        ("run_script('train.py', cwd='no')", "there is no folder `no` to run the script in"),
        ("run_module('trian')", "there is no module `trian`"),
        ("run_module('no.train')", "there is no module `no.train`: No module named 'no'"),
        ("run_module('pkg')", "`pkg` is a package without `__main__`"),
        ("run_module('broken')", "`broken` is not Python: invalid syntax at broken.py:1"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(
    pytester: pytest.Pytester, call: str, cause: str
) -> None:
    project(pytester, f"@overfits\ndef test_it(): {call}")
    pytester.mkpydir("pkg")
    pytester.makepyfile(broken="x = = 1")
    result = run(pytester)
    result.assert_outcomes(failed=1)
    assert f"\noverfits: {cause.format(folder=os.fspath(pytester.path))}\n" in result.stdout.str()


def test_an_unmarked_test_sees_the_error_and_where_it_comes_from(pytester: pytest.Pytester) -> None:
    project(pytester, "def test_it(): run_script('train.py')")
    pytester.makepyfile(train="def main():\n    raise ValueError('no data')\n\nmain()")
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "train.py:2: ValueError",
            "E *ScriptError: `train.py` raised ValueError: no data at train.py:2",
        ]
    )
    result.stdout.no_fnmatch_line("*runtime/script.py*")
