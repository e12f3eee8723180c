"""The rule `dropout-always-on`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Branch,
    Call,
    Constant,
    Context,
    FileFacts,
    Inside,
    Parameter,
    Trace,
    Value,
    constant,
    options,
)

_DROPOUT = re.compile(
    r"^torch\.nn\.functional\.(?:dropout[123]?d?|alpha_dropout|feature_alpha_dropout)$"
)
_ATTENTION = "torch.nn.functional.scaled_dot_product_attention"
#: Where dropout at prediction is meant: Monte Carlo dropout, and the prenet of Tacotron.
_ON_PURPOSE = re.compile(
    r"pre_?net|monte_?carlo|mc_?drop|bayes|stochastic|uncertain", re.IGNORECASE
)
#: Methods that only training runs.
_TRAINING_ONLY = re.compile(r"^(?:training_step|train_\w+|\w*augment\w*)$")
_MODE = re.compile(r"train|eval|infer|test|mode|determinis", re.IGNORECASE)

_FUNCTION = re.compile(r"dropout\w*\(|dropout_p\s*=")
#: A longer name, or a method of the module.
_METHOD = re.compile(r"\w$|(?<!\bF)(?<!functional)\.$")
#: How far behind a call's name its arguments reach at most, in characters.
_REACH = 160


class DropoutAlwaysOn(Rule):
    """Dropout goes on in eval mode.

    Symptom: the same input gives another prediction each time, and validation is worse than it
    should be.

    Why: `F.dropout` is a function; it knows nothing of the module that calls it. Its `training`
    is True unless it is told otherwise. `scaled_dot_product_attention` applies its `dropout_p`
    always.

    What torch does: nothing. Dropout at prediction is a method of its own (Monte Carlo dropout).

    Limits: only methods of modules are looked at. Prenets, and what is named after Monte Carlo
    dropout or uncertainty, are not reported; nor is a `training` that is given.
    """

    since = "0.1"
    triggers = ("dropout(|dropout1d(|dropout2d(|dropout3d(|dropout_p", "Module")
    sources = (
        "https://pytorch.org/docs/stable/generated/torch.nn.functional.dropout.html",
        "https://pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html",
        "https://github.com/rixwew/pytorch-fm/issues/21",
        "https://github.com/delip/PyTorchNLPBook/issues/28",
        "https://github.com/pytorch/pytorch/issues/124464",
        "https://github.com/huggingface/transformers/pull/33844",
    )
    examples = (
        Bad(
            "a dropout function that is not told the mode",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(64, 10)

                def forward(self, x):
                    return self.fc(F.dropout(x, p=0.5))  # error
            """,
            fixed="""
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(64, 10)

                def forward(self, x):
                    return self.fc(F.dropout(x, p=0.5, training=self.training))  # error
            """,
        ),
        Good(
            "a dropout function that is told the mode",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(64, 10)

                def forward(self, x):
                    return self.fc(F.dropout(x, p=0.5, training=self.training))
            """,
        ),
        Bad(
            "attention weights, with the rate in an attribute",
            """
            class Attention(nn.Module):
                def __init__(self, dim, dropout):
                    super().__init__()
                    self.proj = nn.Linear(dim, 1)
                    self.p = dropout

                def forward(self, x):
                    a = F.softmax(self.proj(x), dim=1)
                    a = F.dropout(a, self.p)  # error
                    return (a * x).sum(1)
            """,
            fixed="""
            class Attention(nn.Module):
                def __init__(self, dim, dropout):
                    super().__init__()
                    self.proj = nn.Linear(dim, 1)
                    self.p = dropout

                def forward(self, x):
                    a = F.softmax(self.proj(x), dim=1)
                    a = F.dropout(a, self.p, training=self.training)  # error
                    return (a * x).sum(1)
            """,
        ),
        Bad(
            "scaled_dot_product_attention takes the rate as it is",
            """
            class Attention(nn.Module):
                def __init__(self, dim, dropout=0.1):
                    super().__init__()
                    self.qkv = nn.Linear(dim, 3 * dim)
                    self.dropout = dropout

                def forward(self, x):
                    q, k, v = self.qkv(x).chunk(3, dim=-1)
                    return F.scaled_dot_product_attention(
                        q, k, v, dropout_p=self.dropout  # error
                    )
            """,
            fixed="""
            class Attention(nn.Module):
                def __init__(self, dim, dropout=0.1):
                    super().__init__()
                    self.qkv = nn.Linear(dim, 3 * dim)
                    self.dropout = dropout

                def forward(self, x):
                    q, k, v = self.qkv(x).chunk(3, dim=-1)
                    return F.scaled_dot_product_attention(
                        q, k, v, dropout_p=self.dropout if self.training else 0.0  # error
                    )
            """,
        ),
        Good(
            "no attention dropout outside training",
            """
            class Attention(nn.Module):
                def __init__(self, dim, dropout=0.1):
                    super().__init__()
                    self.qkv = nn.Linear(dim, 3 * dim)
                    self.dropout = dropout

                def forward(self, x):
                    q, k, v = self.qkv(x).chunk(3, dim=-1)
                    p = self.dropout if self.training else 0.0
                    return F.scaled_dot_product_attention(q, k, v, dropout_p=p)
            """,
        ),
        Good(
            "attention without dropout",
            """
            class Attention(nn.Module):
                def forward(self, q, k, v):
                    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
            """,
        ),
        Good(
            "the mode decides around the call",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(64, 10)

                def forward(self, x):
                    if self.training:
                        x = F.dropout(x, 0.5)
                    return self.fc(x)
            """,
        ),
        Good(
            "the mode by position",
            """
            class Net(nn.Module):
                def forward(self, x):
                    return F.dropout(x, 0.5, self.training)
            """,
        ),
        Good(
            "Monte Carlo dropout says so",
            """
            class Net(nn.Module):
                def forward(self, x):
                    return F.dropout(x, 0.5, training=True)
            """,
        ),
        Good(
            "a prenet drops out on purpose, as in Tacotron 2",
            """
            class Prenet(nn.Module):
                def __init__(self, dims):
                    super().__init__()
                    self.layers = nn.ModuleList(nn.Linear(dim, dim) for dim in dims)

                def forward(self, x):
                    for layer in self.layers:
                        x = F.dropout(F.relu(layer(x)), p=0.5)
                    return x
            """,
        ),
        Good(
            "drop path has a class of its own",
            """
            class DropPath(nn.Module):
                def __init__(self, p):
                    super().__init__()
                    self.p = p

                def forward(self, x):
                    if self.p == 0.0 or not self.training:
                        return x
                    return x * F.dropout(torch.ones_like(x[:, :1]), self.p)
            """,
        ),
        Good(
            "a function that augments data",
            """
            def noisy(edges):
                return F.dropout(edges, p=0.2)
            """,
        ),
        Good(
            "a layer",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.dropout = nn.Dropout(0.5)

                def forward(self, x):
                    return self.dropout(x)
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Yield the dropouts that are not methods of the module and are not told the mode."""
        for at in super().seek(text):
            if _FUNCTION.match(text, at) and not _METHOD.search(text, max(at - 12, 0), at):
                if "training" not in text[at : at + _REACH]:
                    yield at

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look at each dropout function that a module calls."""
        told: set[int] = set()
        for trace in file.traces:
            for call in trace.calls:
                if call.file is not file.source or id(call.node) in told:
                    continue
                finding = self._look(trace, call)
                if finding is not None:
                    told.add(id(call.node))
                    yield finding

    def _look(self, trace: Trace, call: Call) -> Finding | None:
        if _DROPOUT.match(call.qualified) and _is_on(call) and _is_modal(call):
            edit = Edit("add-argument", call.place, "training=self.training")
            return self.finding(
                call.place,
                f"`{call.text}` is not told the mode, so it drops out in eval mode too",
                "pass `training=self.training`",
                _fix(call, edit),
            )
        if call.qualified == _ATTENTION and _is_rate(call) and _is_modal(call):
            rate = call.argument_text(4, "dropout_p")
            edit = Edit(
                "replace",
                call.argument_place(4, "dropout_p"),
                f"{rate} if self.training else 0.0",
            )
            return self.finding(
                call.argument_place(4, "dropout_p"),
                f"`{call.name}` applies `{rate}` in eval mode too",
                f"pass `dropout_p={rate} if self.training else 0.0`",
                _fix(call, edit),
            )
        return None


def _fix(call: Call, edit: Edit) -> Fix | None:
    """A fix, where `self` is the module: not in a function inside a method."""
    function = _function_of(call.context)
    named = function is not None and function.function.parameters[:1] == ["self"]
    return Fix((edit,), safe=False) if named else None


def _is_on(call: Call) -> bool:
    """Whether a dropout function is given a rate, and no mode."""
    if call.starred or call.argument(2, "training") is not None:
        return False
    return not _may_be_off(call.argument(1, "p"))


def _is_rate(call: Call) -> bool:
    """Whether attention is given a rate that is the same in both modes."""
    rate = call.argument(4, "dropout_p")
    if rate is None or call.starred or _may_be_off(rate):
        return False
    text = call.argument_text(4, "dropout_p")
    if _MODE.search(text):
        return False
    return isinstance(constant(rate), float) or text.startswith("self.")


def _may_be_off(rate: Value | None) -> bool:
    """Whether the rate is zero on some way, so that something else chooses."""
    if rate is None:
        return False
    return any(
        isinstance(option, Constant) and not option.value
        for option in options(rate)
        if not isinstance(option, Parameter)
    )


def _is_modal(call: Call) -> bool:
    """Whether the call stands in a method of a module, and nothing around it asks for the mode."""
    function = _function_of(call.context)
    if function is None:
        return False
    owner = function.function.owner
    if owner is None or not owner.is_module or "train" in owner.methods:
        return False
    if _ON_PURPOSE.search(owner.name) or _ON_PURPOSE.search(function.function.name):
        return False
    if _TRAINING_ONLY.match(function.function.name):
        return False
    return not any(
        isinstance(frame, Branch) and _MODE.search(frame.test_text) for frame in call.context
    )


def _function_of(context: Context) -> Inside | None:
    """The function that the code stands in."""
    for frame in reversed(context):
        if isinstance(frame, Inside):
            return frame
    return None
