"""Memory is given back without Python looking through all objects for cycles."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_trainloop.lint.cycles import free_new_cycles, no_search_for_cycles
from pytest_trainloop.lint.lint_file import FileLinter
from pytest_trainloop.rules import all_rules
from pytest_trainloop.source import modules
from pytest_trainloop.source.modules import Loaded
from pytest_trainloop.source.read import read_source
from pytest_trainloop.source.tree import SourceTree


class Held:
    """Holds itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _no_other_search() -> Iterator[None]:
    with no_search_for_cycles():
        yield


def test_new_cycles_are_freed() -> None:
    free_new_cycles()
    held = weakref.ref(Held())
    assert held() is not None
    free_new_cycles()
    assert held() is None


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_search_is_left_as_it_was(is_enabled: bool) -> None:
    (gc.enable if is_enabled else gc.disable)()
    with no_search_for_cycles():
        assert not gc.isenabled()
    assert gc.isenabled() == is_enabled
    rules = {name: rule for name, rule in all_rules().items() if rule.sees_source()}
    program = b"import torch\nloss.backward()\noptimizer.step()\n"
    assert not FileLinter(rules, ["a.py"]).lint_bytes("a.py", program).errors
    assert gc.isenabled() == is_enabled


def test_dropped_modules_are_freed_without_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What several files import holds its definitions, and they hold it."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    def forward(self, x):\n"
        "        return self.fc(x).detach()\n\nbig = [0]\n"
    )
    path = str(tmp_path / "train.py")
    tree = SourceTree([path, str(tmp_path / "net.py")])
    text = "from net import Net\nmodel = Net()\nloss = model(x)\nloss.backward()\n"
    read_source(text, path, tree).take_apart()
    kept: list[Loaded] = list(tree.modules._kept.values())  # nothing outside shows them
    files = [weakref.ref(loaded.scope.file) for loaded in kept]
    definitions = [weakref.ref(each) for loaded in kept for each in loaded.scope.file.classes]
    del kept
    assert files
    assert definitions
    assert not tree.forget()
    assert all(each() is not None for each in files)
    monkeypatch.setattr(modules, "MOST_CHARACTERS", 0)
    assert tree.forget()
    assert all(each() is None for each in files)
    assert all(each() is None for each in definitions)
