"""Where a loss may be given what went through an activation, as far as the text alone tells.

Words like `loss` are in every line of a training loop, and activations in every network: a
file in which no loss can meet the activation that it does not expect need not be parsed.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

from pytest_trainloop.rules._rule import is_code
from pytest_trainloop.rules._words import uses
from pytest_trainloop.rules.loss._activations_in_text import applications, may_be_output

#: A call of a loss function, or of what may be a loss object by its name: where that ends.
_CALLED = re.compile(
    r"(?:loss|Loss|criteri|crit|cross_entropy|_with_logits|nll|NLL|CE|BCE|xent)\w*\("
)
#: A keyword that no loss of torch has.
FOREIGN_KEYWORD = re.compile(r"\s*(?!input\b|target\b)\w+\s*=(?!=)")
_CLASS = re.compile(r"(?:CrossEntropy|NLL|BCE|BCEWithLogits)Loss\(")
_TARGET = re.compile(r"(\w+)\s*(?::[^:=]+)?=\s*[\w.]*$")
#: Loss functions of torch, and what their classes are called before `Loss`.
_FUNCTIONS = frozenset(
    (
        *("cross_entropy", "binary_cross_entropy", "binary_cross_entropy_with_logits", "nll_loss"),
        *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"),
    )
)
_MAKER = re.compile(r"(?:CrossEntropy|NLL|BCE|BCEWithLogits|MSE|L1|SmoothL1|Huber)Loss\(")
#: The end of a call's arguments, none of them deeper than one more call, that is called again.
_CALLED_AGAIN = re.compile(r"(?:[^()]|\([^()]*\))*\)\s*\(")
#: Lines at the left margin, those of comments and closing brackets left out.
_TOP = re.compile(r"\n(?=[^\s#)\]}])")
_DEFINITION = re.compile(r"[ ]*(?:async )?def (\w+)\(")
_NAME_END = re.compile(r"\w*$")
#: How long a name is at most, in characters.
_LONGEST_NAME = 60


def loss_calls(text: str) -> Iterator[int]:
    """Where a file may call a loss: words like `loss` are in every line of a training loop."""
    for match in _CALLED.finditer(text):
        if not FOREIGN_KEYWORD.match(text, match.end()):
            yield match.start()
    for name in _objects(text):
        if not _CALLED.search(f"{name}("):
            yield from (at for at in uses(text, name) if text.startswith("(", at + len(name)))


def _objects(text: str) -> set[str]:
    """The names that loss objects are given."""
    names = set()
    for made in _CLASS.finditer(text):
        name = _TARGET.search(text, text.rfind("\n", 0, made.start()) + 1, made.start())
        if name is not None:
            names.add(name[1])
    return names


def calls_of(criteria: tuple[str, ...], text: str) -> Iterator[int]:
    """Where a file may call one of these losses, known by the names of torch's functions.

    Where a loss object is made it is not called yet, and torch's other functions are no
    such loss.
    """
    for at in loss_calls(text):
        start = _NAME_END.search(text, max(at - _LONGEST_NAME, 0), at)
        begin = start.start() if start else at
        end = text.find("(", at)
        name = text[begin:end]
        if name in _FUNCTIONS and name not in criteria:
            continue
        if _MAKER.match(text, begin) and not _CALLED_AGAIN.match(text, end + 1):
            continue
        if not _is_definition(text, at):
            yield at


def calls_after(
    word: str, criteria: tuple[str, ...], text: str, *, logarithms: bool = False
) -> Iterator[int]:
    """Where a file may call one of these losses on what went through an activation.

    A network that computes its own loss, in its `forward` or in a function that only `forward`
    calls, does it on what its own layers make: the activation has to stand in the file too.
    A script may import the network.

    Args:
        word: what the activation's names have in common: `oftmax`.
        criteria: the losses, by the names of torch's functions.
        text: the file.
        logarithms: whether the activation's logarithm will do, too.
    """
    calls = list(calls_of(criteria, text))
    if not calls:
        return
    if any(may_be_output(text, at) for at in applications(word, text, logarithms=logarithms)):
        yield from calls
        return
    tops = [match.start() + 1 for match in _TOP.finditer(text)]
    for at in calls:
        if not _serves_forward(text, tops, at):
            yield at


def _is_definition(text: str, at: int) -> bool:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line.lstrip().startswith(("def ", "class "))


def _serves_forward(text: str, tops: list[int], at: int) -> bool:
    """Whether a place is reached from methods called `forward` alone."""
    queue, asked = [at], {"forward"}
    for place in queue:
        name = _function_around(text, tops, place)
        if name in asked:
            continue
        asked.add(name)
        found = [use for use in uses(text, name) if _is_use(text, use)] if name else []
        if not found:
            return False
        queue += found
    return True


def _is_use(text: str, at: int) -> bool:
    return not text.endswith("def ", 0, at) and is_code(text, at)


def _function_around(text: str, tops: list[int], at: int) -> str:
    """The function of a module, or the method of one of its classes, that holds a place."""
    number = bisect_right(tops, at) - 1
    top = tops[number] if number >= 0 else 0
    if text.startswith("class ", top):
        top = text.rfind("\n    def ", top, at) + 1
    definition = _DEFINITION.match(text, top)
    return definition[1] if definition else ""
