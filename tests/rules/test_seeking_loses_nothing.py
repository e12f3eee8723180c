"""Seeking leaves out only what a rule would have been silent about."""

from __future__ import annotations

import pytest

from pytest_trainloop.lint.lint_file import FileLinter
from pytest_trainloop.rules import all_rules
from pytest_trainloop.rules.gradients.discarded_result import DiscardedResult
from pytest_trainloop.rules.loss._activations_in_text import applications, may_be_output
from pytest_trainloop.rules.loss._loss_calls_in_text import calls_after
from pytest_trainloop.rules.loss._sides_in_text import comparisons
from pytest_trainloop.rules.memory.kept_loss_graph import KeptLossGraph
from pytest_trainloop.rules.model._containers_in_text import containers
from pytest_trainloop.rules.model.module_created_in_forward import ModuleCreatedInForward
from pytest_trainloop.rules.scheduler.scheduler_never_stepped import SchedulerNeverStepped
from pytest_trainloop.source.read import read_source

RULES = {name: rule for name, rule in all_rules().items() if rule.sees_source()}
PROGRAMS = sorted({example.program for rule in RULES.values() for example in rule.examples})
#: Below a program: a network that computes its own loss, and says so.
NETWORK = '''

class Other(nn.Module):
    """A network; its `softmax(x)` is for the loss."""

    def forward(self, x, labels):
        return self.fc(x)
'''


def test_what_rules_find_anywhere_is_found_where_they_seek() -> None:
    """All functions are read on the one hand, those that hold what is sought on the other."""
    linters = {name: FileLinter({name: rule}, ["a.py"]) for name, rule in RULES.items()}
    compared = 0
    for program in PROGRAMS:
        text = program + NETWORK
        everything = read_source(text, "a.py", focus=range(len(text)))
        for name, rule in RULES.items():
            findings = list(rule.lint(everything))
            if findings:
                assert list(linters[name].lint_bytes("a.py", text.encode()).findings) == findings
                compared += 1
    assert compared > len(RULES)


@pytest.mark.parametrize(
    ("body", "leaves"),
    [
        ("    return F.softmax(x, dim=1)", True),
        ("    p = F.softmax(x, dim=1)\n    return p", True),
        ("    p = x.softmax(1)\n    p = self.dropout(p)\n    return torch.matmul(p, v)", False),
        ("    p = x.softmax(1)\n    p = self.dropout(p)\n    return p", True),
        ("    p = F.softmax(x)\n    return p * v", False),
        ("    p = F.softmax(x)\n    return p.max(1)", False),
        ("    p = F.softmax(x)\n    return p.view(-1, 10)", True),
        ("    p = F.softmax(x)\n    return F.cross_entropy(p, y)", True),
        ("    p = F.softmax(x)\n    return F.cross_entropy(model(v), y, p)", True),
        ("    p = F.softmax(x)\n    def inner():\n        return 1\n    return loss(p, y)", True),
        ("    return loss(\n        input=F.softmax(x),\n        target=y)", True),
        ("    x += F.softmax(v)\n    return x", False),
        ("    # p = F.softmax(x)\n    return x", False),
    ],
)
def test_an_activation_leaves_its_function_unless_it_is_used_up_there(
    body: str, leaves: bool
) -> None:
    text = f"def f(self, x, v, y):\n{body}\n\ndef g(p):\n    return p\n"
    found = [may_be_output(text, at) for at in applications("oftmax", text, logarithms=False)]
    assert found == [leaves]


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("F.softmax(x)", 1),
        ("F.log_softmax(x)", 0),
        ("the `softmax(x)` of", 0),
        ("nn.Softmax2d()", 1),
        ("upcast_softmax(x)", 0),
        ("act=torch.softmax)", 1),
        ("a softmax)", 0),
    ],
)
def test_applications_are_known_by_the_whole_name(code: str, number: int) -> None:
    assert len(list(applications("oftmax", f"y = {code}", logarithms=False))) == number


LOSS = "def clip_loss(x):\n    return F.cross_entropy(x, y)\n"
FORWARD = "class Net(nn.Module):\n    def forward(self, x):\n        return {}\n"


@pytest.mark.parametrize(
    ("text", "is_sought"),
    [
        (LOSS + FORWARD.format("clip_loss(self.fc(x))"), False),
        (LOSS + FORWARD.format("self.fc(x)") + "clip_loss(net(x))\n", True),
        (LOSS + FORWARD.format("clip_loss(x)") + "def train():\n    clip_loss(net(x))\n", True),
        (LOSS + FORWARD.format("clip_loss(F.softmax(x))"), True),
        (LOSS, True),
        (FORWARD.format("F.cross_entropy(self.fc(x), y)"), False),
        ("loss = F.mse_loss(F.softmax(x), y)\n", False),
        ("criterion = nn.CrossEntropyLoss()\nF.softmax(x)\n", False),
        ("nn.CrossEntropyLoss(w(1))(F.softmax(x), y)\n", True),
    ],
)
def test_a_network_computes_its_loss_on_what_its_own_file_makes(text: str, is_sought: bool) -> None:
    assert bool(list(calls_after("oftmax", ("cross_entropy",), text))) == is_sought


@pytest.mark.parametrize(
    ("call", "is_sought"),
    [
        ("x.detach()", True),
        ("self.x.to(device)", True),
        ("x.detach()  # off", True),
        ("x.clamp(0, f(1))", True),
        ("x.detach().mean()", False),
        ("self.to(device)", False),
        ("model.to(device)", False),
        ("model.detach()", True),
        ("self.net.to(device)", False),
        ("self.state.to(device)", True),
        ("x.detach_()", False),
    ],
)
def test_calls_that_may_be_discarded_stand_alone(call: str, is_sought: bool) -> None:
    text = "self.net = Net(x)\nself.state = Tensor(x)\n"
    assert bool(list(DiscardedResult.seek(f"{text}def f(x):\n    {call}\n"))) == is_sought


def test_an_argument_on_a_line_of_its_own_is_not_discarded() -> None:
    assert not list(DiscardedResult.seek("y = f(\n    a,  # first\n    x.detach(),\n)\n"))


@pytest.mark.parametrize(
    ("body", "is_sought"),
    [
        ("self.a = [nn.ReLU(), B()]", True),
        ("self.a = list(x)\n\nB()", False),
        ("self.a = [B(), C()]\n        self.add_module(x)", False),
        ("return g(\n            a=[B(), C()])\ny = a", False),
        ("a = []\n        a.append(B())", False),
        ("c = []\n        c.append(B())\n        self.c = c", True),
        ("self.a = []\n        self.a.append(B())", True),
        ("self.a = []\n        self.a.append(B())\n        self.b = nn.ModuleList(self.a)", False),
    ],
)
def test_containers_are_those_that_no_class_accounts_for(body: str, is_sought: bool) -> None:
    text = f"import torch\n\nclass A(M):\n    def f(self):\n        {body}\n\n"
    text += "class C(M):\n    def f(self):\n        self.a = nn.ModuleList(a)\n"
    assert bool(list(containers(text))) == is_sought


@pytest.mark.parametrize(
    ("imports", "layer", "is_sought"),
    [
        ("from torch import nn", "nn.Linear(2, 2)(x)", True),
        ("from torch.nn import (\n    Linear,\n)", "Linear(2, 2)(x)", True),
        ("from torch.nn import *", "Linear(2, 2)(x)", True),
        ("from torch import nn as layers", "layers.Linear(2, 2)(x)", True),
        ("from torch import nn", "self.Linear(x)", False),
    ],
)
def test_layers_are_sought_by_the_names_that_imports_give(
    imports: str, layer: str, is_sought: bool
) -> None:
    text = f"{imports}\n{FORWARD.format(layer)}"
    assert bool(list(ModuleCreatedInForward.seek(text))) == is_sought


@pytest.mark.parametrize(
    ("before", "indent", "is_sought"),
    [
        ("for x in xs:", 8, True),
        ("for x in xs:\n        if x:", 12, True),
        ("for x in xs: pass", 4, False),
        ("if x:", 8, False),
        ("if x:\n        nonlocal m", 8, True),
    ],
)
def test_running_extremes_stand_in_loops(before: str, indent: int, is_sought: bool) -> None:
    text = f"def f(m, xs):\n    {before}\n{' ' * indent}m = torch.max(m, x)\n"
    assert bool(list(KeptLossGraph.seek(text))) == is_sought


@pytest.mark.parametrize(
    ("code", "is_sought"),
    [
        ("sched = lr_scheduler.StepLR(opt, 1)", True),
        ("sched: LR = (\n    StepLR(opt, 1)\n)", True),
        ("self.sched = StepLR(opt, 1)", False),
        ("def get_schedule(opt):", False),
        ("def configure_optimizers(self):\n    return StepLR(opt, 1)", True),
    ],
)
def test_schedulers_are_sought_where_they_get_a_name(code: str, is_sought: bool) -> None:
    assert bool(list(SchedulerNeverStepped.seek(f"\n{code}\n"))) == is_sought


@pytest.mark.parametrize(
    ("call", "is_sought"),
    [
        ("F.mse_loss(x, y)", True),
        ("F.mse_loss(x, y, reduction='sum')", True),
        ("self.loss(x, y, vocab_size=3)", False),
        ("self.loss(x, y, z)", False),
        ("F.mse_loss(x, out.target)", False),
        ("F.mse_loss(x, self.target)", True),
        ("own_loss(x, y)", False),
        ("((x - y) ** 2).mean()", True),
        ("torch.mean((x - y) ** 2)", True),
        ("(x - y).pow(2).mean()", True),
        ("torch.sum(0.5 * (x - y) ** 2)", False),
        ("(w[0] * (x - f(y)).pow(2)).sum()", False),
        ("F.mse_loss(x, labels)", False),
    ],
)
def test_comparisons_have_two_sides_of_unknown_shape(call: str, is_sought: bool) -> None:
    text = (
        "def own_loss(a, b):\n    return a\n\n"
        "class Net(nn.Module):\n    def forward(self, x, labels=None) -> Tensor:\n"
        "        '''\n        >>> labels = torch.ones(1)\n        >>> mse_loss\n        '''\n"
        f"        x = g(x)\n        y = g(x)\n        return {call}\n"
    )
    assert bool(list(comparisons(text))) == is_sought
