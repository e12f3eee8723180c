"""`@frees` on loops that keep what they should not, and on loops of many styles that do not."""

from __future__ import annotations

import re

import pytest
import torch

from tests.runtime.training_loops import STYLES

HEAD = """
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_trainloop import frees


def loader(examples=8, batch_size=4):
    data = TensorDataset(torch.randn(examples, 4), torch.arange(examples) % 2)
    return DataLoader(data, batch_size=batch_size)


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

"""


def outcome(pytester: pytest.Pytester, body: str, options: str = "") -> tuple[int, list[str]]:
    """How a test with the marker ended, and the lines that it printed."""
    code = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    pytester.makepyfile(test_it=f"{HEAD}\n@frees({options})\ndef test_it():\n{code}\n")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:randomly")
    return int(result.ret), result.stdout.str().splitlines()


def cause(pytester: pytest.Pytester, body: str, options: str = "") -> str:
    """The first line of the failure."""
    code, lines = outcome(pytester, body, options)
    assert code == 1, "\n".join(lines)
    return next(line for line in lines if line.startswith("frees: "))


LOOP = """
model = net()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
{before}
for _ in range(20):
    for x, y in loader():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward({arguments})
        optimizer.step()
        {after}
"""


def loop(before: str = "", after: str = "", arguments: str = "") -> str:
    return LOOP.format(before=before, after=after, arguments=arguments)


GRAPHS = [
    ("losses = []", "losses.append(loss)", "`losses` keeps the graphs of past steps: this list"),
    (
        "history = {'loss': []}",
        "history['loss'].append(loss)",
        "`history['loss']` keeps the graphs of past steps: this list",
    ),
    (
        "log = {}",
        "log[len(log)] = loss",
        "`log` keeps the graphs of past steps: this dict",
    ),
    (
        "model.losses = []",
        "model.losses.append(loss)",
        "`model.losses` keeps the graphs of past steps: this list",
    ),
    (
        "outputs = []",
        "outputs.append(model(x))",
        "`outputs` keeps the graphs of past steps: this list",
    ),
    (
        "total = 0.0",
        "total = total + loss",
        "`total` keeps the graphs of past steps: what computed it grows by",
    ),
    (
        "class Meter: total = 0.0\nmeter = Meter()",
        "meter.total += loss",
        "`meter.total` keeps the graphs of past steps: what computed it grows by",
    ),
]


@pytest.mark.parametrize(("before", "after", "said"), GRAPHS)
def test_graphs_that_are_kept(
    pytester: pytest.Pytester, before: str, after: str, said: str
) -> None:
    assert cause(pytester, loop(before, after)).startswith(f"frees: {said}")


def test_the_whole_message(pytester: pytest.Pytester) -> None:
    _, lines = outcome(pytester, loop("losses = []", "losses.append(loss)"))
    start = next(i for i, line in enumerate(lines) if line.startswith("frees: "))
    # Graphs that tests before this one have left alive are counted, too.
    counted = r"  nodes of graphs that live: (\d+) after step 4, (\d+) after step 24"
    found = re.fullmatch(counted, lines[start + 1])
    assert found is not None
    assert int(found[2]) - int(found[1]) == 20 * 7
    assert [lines[start], *lines[start + 2 : start + 4]] == [
        (
            "frees: `losses` keeps the graphs of past steps: this list holds 22 tensors with what"
            " computed them"
        ),
        "  backward was called at test_it.py:30",
        (
            "  What to do: keep the number alone, `loss.item()`, or a tensor without its graph,"
            " `.detach()`; a hidden state that is carried on is detached at each step"
        ),
    ]


RECURRENT = """
cell, head = nn.GRU(4, 8), nn.Linear(8, 2)
optimizer = torch.optim.SGD([*cell.parameters(), *head.parameters()], lr={rate})
hidden = torch.zeros(1, 4, 8)
for _ in range(20):
    for x, y in loader():
        optimizer.zero_grad()
        out, hidden = cell(x[None], hidden{detached})
        loss = F.cross_entropy(head(out[0]), y)
        loss.backward(retain_graph={retain})
        optimizer.step()
"""


def test_a_hidden_state_that_is_carried_on_with_its_graph(pytester: pytest.Pytester) -> None:
    # The weights have to stay: torch refuses to go back through steps that changed them.
    body = RECURRENT.format(detached="", retain=True, rate=0.0).replace("optimizer.step()", "STEP")
    body = body.replace("STEP", "if not any(p.grad is None for p in cell.parameters()): step()")
    body = (
        "def step():\n    for p in cell.parameters(): p.grad = None\n    optimizer.step()\n" + body
    )
    assert cause(pytester, body).startswith(
        "frees: `out`, `hidden` and `loss` keep the graphs of past steps: what computed them grows"
    )


def test_optimizers_that_are_kept(pytester: pytest.Pytester) -> None:
    body = """
model, optimizers = net(), []
for _ in range(20):
    for x, y in loader():
        optimizers.append(torch.optim.AdamW(model.parameters(), lr=1e-2))
        optimizers[-1].zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizers[-1].step()
"""
    # Each optimizer makes a step of its own, and so the first one of all.
    code, lines = outcome(pytester, body)
    assert code == 1
    assert "optimizer-in-loop" in "\n".join(lines)


def test_a_state_that_grows_with_parameters_that_are_added(pytester: pytest.Pytester) -> None:
    after = "optimizer.add_param_group({'params': [nn.Parameter(torch.zeros(2))]})"
    after += "\n        optimizer.param_groups[-1]['params'][0].grad = torch.ones(2)"
    body = loop("", after).replace("optimizer.zero_grad()", "model.zero_grad()")
    assert cause(pytester, body) == "frees: the state of `optimizer` grows by 1 parameters a step"


def test_tensors_that_are_kept_over_epochs(pytester: pytest.Pytester) -> None:
    kept = loop("seen = []", "seen.append(model(x).detach())")
    assert cause(pytester, kept).startswith("frees: `seen` keeps tensors of past steps: ")
    code, lines = outcome(pytester, kept, 'keeps=("seen",)')
    assert code == 0, "\n".join(lines)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("losses = []", "losses.append(loss.item())", id="numbers"),
        pytest.param("losses = []", "losses.append(loss.detach())", id="detached numbers"),
        pytest.param("total = 0.0", "total += loss.detach()", id="a detached total"),
        pytest.param("recent = deque(maxlen=3)", "recent.append(loss)", id="a short window"),
        pytest.param(
            "import copy\nema = copy.deepcopy(model)",
            "for e, p in zip(ema.parameters(), model.parameters()): e.data.lerp_(p.data, 0.1)",
            id="averaged weights",
        ),
        pytest.param(
            "class Cycle: pass",
            "c = Cycle(); c.me, c.loss = c, loss",
            id="rubbish that the collector finds",
        ),
        pytest.param(
            "queue = torch.zeros(64, 2)",
            "queue = torch.cat([queue[4:], model(x).detach()])",
            id="a queue",
        ),
    ],
)
def test_loops_that_let_go(pytester: pytest.Pytester, before: str, after: str) -> None:
    code, lines = outcome(pytester, loop(before, after))
    assert code == 0, "\n".join(lines)


def test_predictions_that_are_kept_for_an_epoch(pytester: pytest.Pytester) -> None:
    body = """
model = net()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for _ in range(20):
    predictions = []
    for x, y in loader(examples=16):
        optimizer.zero_grad()
        out = model(x)
        F.cross_entropy(out, y).backward()
        optimizer.step()
        predictions.append(out.detach())
"""
    code, lines = outcome(pytester, body)
    assert code == 0, "\n".join(lines)


def test_a_hidden_state_that_is_detached(pytester: pytest.Pytester) -> None:
    code, lines = outcome(pytester, RECURRENT.format(detached=".detach()", retain=False, rate=0.1))
    assert code == 0, "\n".join(lines)


def test_a_replay_buffer_that_is_being_filled(pytester: pytest.Pytester) -> None:
    body = """
policy, buffer = net(), []
optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
for _ in range(30):
    buffer.append(torch.randn(4))
    x = torch.stack(buffer[-4:])
    optimizer.zero_grad()
    policy(x).square().mean().backward()
    optimizer.step()
"""
    code, lines = outcome(pytester, body)
    assert code == 0, "\n".join(lines)


def test_lbfgs_with_its_history(pytester: pytest.Pytester) -> None:
    body = """
model = net()
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=2)
for _ in range(30):
    for x, y in loader():
        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss
        optimizer.step(closure)
"""
    code, lines = outcome(pytester, body)
    assert code == 0, "\n".join(lines)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("steps=8", "`steps` is at least `warm_up` + 5, which is 9, not 8"),
        ("warm_up=0", "`warm_up` is at least 1, not 0"),
        ("keeps=3", "`keeps`"),
    ],
)
def test_options_that_cannot_be(pytester: pytest.Pytester, options: str, said: str) -> None:
    code, lines = outcome(pytester, loop(), options)
    assert code != 0
    assert said in "\n".join(lines)


STYLED = """
import pytest
from tests.runtime.training_loops import STYLES
from pytest_trainloop import frees


@frees(steps=9, warm_up=2)
@pytest.mark.parametrize("style", {styles!r})
def test_style(style):
    STYLES[style]()
"""


def test_sound_loops_of_many_styles_let_go(
    pytester: pytest.Pytester, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of their own, as for `overfits`; those that are too short say so."""
    pytester.makepyfile(test_it=STYLED.format(styles=list(STYLES)))
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "ignore")
    causes = {line.partition(" ")[2] for line in result.outlines if line.startswith("frees: ")}
    short = {cause for cause in causes if "whether memory grows shows after" in cause}
    assert causes == short
    assert len([line for line in result.outlines if line.startswith("frees passed")]) > 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_losses_that_are_kept_on_a_device(pytester: pytest.Pytester) -> None:
    body = loop("losses = []\nmodel.cuda()", "losses.append(loss)").replace(
        "model(x), y", "model(x.cuda()), y.cuda()"
    )
    _, lines = outcome(pytester, body)
    said = "\n".join(lines)
    assert "frees: `losses` keeps the graphs of past steps" in said
    assert "CUDA memory in use: " in said
