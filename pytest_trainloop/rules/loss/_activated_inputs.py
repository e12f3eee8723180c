"""Losses whose input went through an activation that the loss does not expect."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import is_code
from pytest_trainloop.source.facts import (
    Activation,
    Call,
    FileFacts,
    Result,
    activations,
    criterion_of,
    options,
    predicted,
)

#: A call of a loss function, or of what may be a loss object by its name: where that ends.
_CALLED = re.compile(
    r"(?:loss|Loss|criteri|crit|cross_entropy|_with_logits|nll|NLL|CE|BCE|xent)\w*\("
)


#: A keyword that no loss of torch has.
FOREIGN_KEYWORD = re.compile(r"\s*(?!input\b|target\b)\w+\s*=(?!=)")
_CLASS = re.compile(r"(?:CrossEntropy|NLL|BCE|BCEWithLogits)Loss\(")
_TARGET = re.compile(r"(\w+)\s*(?::[^:=]+)?=\s*[\w.]*$")
#: A softmax over what is attended to, or over the experts of a mixture.
_WEIGHTING = re.compile(r"attn|attention|rout(?:er|ing)|weights\s*=|import ", re.IGNORECASE)
#: The rest of an activation's name in code, after its first letter: prose goes on otherwise.
_APPLIED = re.compile(r"\w+(?:[(\"')\]]|\s*$)", re.MULTILINE)


def loss_calls(text: str) -> Iterator[int]:
    """Where a file may call a loss: words like `loss` are in every line of a training loop."""
    for match in _CALLED.finditer(text):
        if not FOREIGN_KEYWORD.match(text, match.end()):
            yield match.start()
    for name in _objects(text):
        if not _CALLED.search(f"{name}("):
            yield from (match.start() for match in re.finditer(rf"\b{name}\(", text))


def _objects(text: str) -> set[str]:
    """The names that loss objects are given."""
    names = set()
    for made in _CLASS.finditer(text):
        name = _TARGET.search(text, text.rfind("\n", 0, made.start()) + 1, made.start())
        if name is not None:
            names.add(name[1])
    return names


def loss_calls_after(activation: str, text: str) -> Iterator[int]:
    """Where a file may call a loss on what went through an activation.

    A network that computes its own loss, in its `forward`, does it on what its own layers
    make: the activation has to stand in the file too. A script may import the network.

    Args:
        activation: what calls and classes of the activation have in their names: `oftmax`.
        text: the file.
    """
    is_in_sight = any(_may_be_output(text, at) for at in _places(activation, text))
    for at in loss_calls(text):
        if (is_in_sight or not _is_in_forward(text, at)) and not _is_definition(text, at):
            yield at


def _places(word: str, text: str) -> Iterator[int]:
    at = text.find(word)
    while at >= 0:
        yield at
        at = text.find(word, at + 1)


def _may_be_output(text: str, at: int) -> bool:
    """Whether an activation may be of what a network returns: weights of a sum are not."""
    start, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
    line = text[start : end if end >= 0 else len(text)]
    return (
        _APPLIED.match(text, at) is not None and is_code(text, at) and not _WEIGHTING.search(line)
    )


def _is_definition(text: str, at: int) -> bool:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line.lstrip().startswith(("def ", "class "))


def _is_in_forward(text: str, at: int) -> bool:
    definition = max(text.rfind("\n    def ", 0, at), text.rfind("\ndef ", 0, at))
    return text.startswith("\n    def forward(", definition)


def activated_inputs(
    file: FileFacts, criterion: str, *kinds: str
) -> Iterator[tuple[Call, Activation]]:
    """Each call of a loss whose input surely went through one of `kinds`, with what did it.

    The input may come about in several ways; each of them has to end in one of `kinds`.
    An activation is told once, at the first loss that it reaches.
    """
    told: set[int] = set()
    for trace in file.traces:
        for call in trace.calls:
            if criterion_of(call) != criterion:
                continue
            given = predicted(call)
            found = activations(given) if given is not None else ()
            if any(activation.kind not in kinds for activation in found):
                continue
            for activation in found:
                if id(activation.call.node) not in told:
                    told.add(id(activation.call.node))
                    yield call, activation


def loss_text(call: Call) -> str:
    """The loss by its best known name: `nn.CrossEntropyLoss`, or the function as written."""
    for option in options(call.callee):
        if isinstance(option, Result):
            return f"nn.{option.call.method}"
    return call.name


def where(call: Call, activation: Activation) -> str:
    """Where the loss stands, seen from the activation: `line 12`, or `train.py:12`."""
    if call.file is activation.call.file:
        return f"line {call.line}"
    return f"{call.file.path.replace(chr(92), '/').rpartition('/')[2]}:{call.line}"
