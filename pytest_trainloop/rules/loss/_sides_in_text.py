"""Where two tensors of different shapes may be compared, as far as the text alone tells.

Reshaping, and losses of other kinds, are everywhere: a file in which no loss has two sides
that may differ need not be parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._words import places, uses
from pytest_trainloop.rules.loss._loss_calls_in_text import FOREIGN_KEYWORD

#: A loss of torch that broadcasts, by its function or its class.
_TORCH_LOSSES = ("mse_loss", "l1_loss", "huber_loss", "MSELoss", "L1Loss", "HuberLoss")
#: A mean of squares or of absolute values, written by hand.
_BY_HAND = re.compile(r"\.(?:mean|sum)\(")
_POWER = re.compile(r"\*\*\s*2|\bpow\(|\bsquare\(|\babs\(")
_TAKEN_OFF = re.compile(r"-\s*[A-Za-z_(]")
#: The module whose function averages; the name of a call.
_TORCH = re.compile(r"\btorch$")
_CALL_NAME = re.compile(r"[\w)\]]$")
#: Brackets with none inside; a power's exponent; arithmetic of two operands.
_BRACKETS = re.compile(r"\([^()\[\]]*\)|\[[^()\[\]]*\]")
_POWER_OF = re.compile(r"\*\*\s*[\w.]+")
_ARITHMETIC = re.compile(r"[\w.\s]\s*[-+*/@]\s*\w")
_NAME = re.compile(r"\b[A-Za-z_]\w*\b(?!\()")
#: A call of what may be a loss object.
_CALLED = re.compile(r"(?:loss|Loss|criterion|crit)\w*\((?:[^()\n]*\)\()?")
#: Where a loss object is made that does not broadcast, and its name.
_OTHER_LOSS = re.compile(r"(\w+)\s*=\s*(?:\w+\.)*(?:CrossEntropy|NLL|BCE|BCEWithLogits)Loss\(")
_ANY_LOSS = re.compile(r"(\w+)\s*=\s*(?:\w+\.)*\w*Loss\(")
_COMMA = re.compile(r"[()\[\]{},]")
_RESHAPED = re.compile(r"\.(?:view|reshape|squeeze|unsqueeze|flatten)\([^()]*\)\s*$")
#: A last size that is neither 1 nor for the tensor to say.
_WIDE = re.compile(r",\s*(?!-?1\s*\))[^,()]*\)\s*$")
#: What comes with the two sides of a loss of torch that broadcasts.
_OPTION = re.compile(r"(?:reduction|size_average|reduce|weight|beta|delta)\s*=|\*")
_HEADER_END = re.compile(r"\)\s*(?:->[^:\n]*)?:\s*\n")
_DOCSTRING = re.compile(r"\s*[rR]?(\"{3}|'{3}).*?\1", re.DOTALL)
#: An attribute of what is not the module itself: only that of a maximum is followed.
_FOREIGN_ATTRIBUTE = re.compile(r"(?!self\.)[A-Za-z_]\w*\.(?!values\b)\w+$")
#: How far before a `.mean(` on a line of its own the expression begins, in characters.
_REACH = 200
_ASSIGNED = re.compile(r"\s*[:=]")
_NAME_END = re.compile(r"\w*$")
_LONGEST_NAME = 60


def comparisons(text: str) -> Iterator[int]:
    """Where a file may compare two tensors of different shapes, as offsets."""
    for match in _BY_HAND.finditer(text):
        if _is_of_a_difference(text, match):
            yield match.start()
    if any(name in text for name in _TORCH_LOSSES):
        for match in _calls(text):
            if (
                _may_differ(text, match.end())
                and not _is_of_another_kind(text, match)
                and not _is_own_function(text, match)
            ):
                yield match.start()


def _calls(text: str) -> Iterator[re.Match[str]]:
    """The calls of what may be a loss object by its name."""
    for start in (*(at - 1 for at in places(text, "oss")), *places(text, "crit")):
        match = _CALLED.match(text, max(start, 0))
        if match is not None:
            yield match


def _is_of_a_difference(text: str, match: re.Match[str]) -> bool:
    """Whether a power of what something is taken off from is averaged, here or by its name."""
    start = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    if text[start : match.start()].strip() in ("", ")"):
        start = max(start - _REACH, 0)  # the expression began on a line before
    line = text[start : end if end >= 0 else len(text)]
    if "keepdim" in line or not _POWER.search(line):
        return False  # a statistic of each sample, which a norm divides by, or no loss
    if _is_of_other_arithmetic(text, match):
        return False
    if _TAKEN_OFF.search(line):
        return True
    names = "|".join(set(_NAME.findall(line)))
    return bool(re.search(rf"\b(?:{names})\s*=[^\n]*-\s*[A-Za-z_(]", text))


def _is_of_other_arithmetic(text: str, match: re.Match[str]) -> bool:
    """Whether what is averaged stands there, and is a product or a sum rather than a power."""
    before = text[max(match.start() - _REACH, 0) : match.start()]
    given = next(_arguments(text, match.end()), "") if _TORCH.search(before) else _group(before)
    while given != (given := _BRACKETS.sub("x", given)):
        pass
    return _ARITHMETIC.search(_POWER_OF.sub("", given)) is not None


def _group(before: str) -> str:
    """What stands in the brackets that a text ends with, if they are not those of a call."""
    depth = 0
    for at in range(len(before) - 1, -1, -1):
        depth += (before[at] == ")") - (before[at] == "(")
        if depth <= 0:
            is_group = at < len(before) - 1 and not _CALL_NAME.search(before, 0, at)
            return before[at + 1 : -1] if is_group else ""
    return ""


def _may_differ(text: str, start: int) -> bool:
    """Whether the two sides of a loss, whose arguments begin at `start`, may have two shapes."""
    given = [argument.strip() for argument in _arguments(text, start)]
    sides, others = given[:2], given[2:]
    if len(sides) < 2:  # noqa: PLR2004 -- a loss compares two: this one is made, or starred
        return False
    if any(FOREIGN_KEYWORD.match(side) for side in sides):
        return False
    if any(not _OPTION.match(other) for other in others):
        return False  # no loss of torch has a third side
    shapes = [_RESHAPED.search(side) for side in sides]
    if any(shape and _WIDE.search(shape[0]) for shape in shapes):
        return False
    if shapes[0] and shapes[1]:
        return shapes[0][0] != shapes[1][0]
    return not any(_FOREIGN_ATTRIBUTE.match(side) or _is_given(text, start, side) for side in sides)


def _is_own_function(text: str, match: re.Match[str]) -> bool:
    """Whether a call's name is that of a function of the file: what it compares, its body says."""
    name = _NAME_END.search(text, max(match.start() - _LONGEST_NAME, 0), match.start())
    called = (name[0] if name else "") + match[0].partition("(")[0]
    if f"def {called}(" not in text:
        return False
    return not any(_ASSIGNED.match(text, at + len(called)) for at in uses(text, called))


def _is_of_another_kind(text: str, match: re.Match[str]) -> bool:
    """Whether the loss object was last made, in the same function, of a class that is strict."""
    start = max(text.rfind("def ", 0, match.start()), 0)
    made = [one for one in _ANY_LOSS.finditer(text, start, match.start()) if one[1] in match[0]]
    return bool(made) and _OTHER_LOSS.match(made[-1][0]) is not None


def _arguments(text: str, start: int) -> Iterator[str]:
    """The arguments of a call, as they are written."""
    depth, begin = 0, start
    for match in _COMMA.finditer(text, start):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
        if depth < 0 or (match[0] == "," and not depth):
            if text[begin : match.start()].strip():
                yield text[begin : match.start()]
            begin = match.end()
        if depth < 0:
            return


def _is_given(text: str, at: int, name: str) -> bool:
    """Whether a name is a parameter of the `forward` around, and what it was given."""
    definition = text.rfind("def forward(", 0, at)
    if definition < 0 or not name.isidentifier() or text.rfind("def ", 0, at) > definition:
        return False
    header = _HEADER_END.search(text, definition, at)
    if header is None:
        return False
    docstring = _DOCSTRING.match(text, header.end(), at)
    body = text[docstring.end() if docstring else header.end() : at]
    is_parameter = re.search(rf"\b{name}\b", text[definition : header.start()]) is not None
    changed = rf"\b{name}\b[^=\n]*=(?!=)(?!\s*{name}\.(?:to|float|long)\()"
    return is_parameter and re.search(changed, body) is None
