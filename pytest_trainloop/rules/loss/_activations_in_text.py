"""What becomes of what an activation gives, as far as the text alone tells.

Attention is full of softmaxes and sigmoids whose numbers are weights of a sum. One whose
result is only ever used up in its function is not what a network returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import is_code
from pytest_trainloop.rules._words import places, uses

#: What stands before the first letter of a name of torch's, and that: prose quotes it.
_OWN = re.compile(r"(?:^|[^\w`])[a-zA-Z]$")
_OWN_OR_LOGARITHM = re.compile(r"(?:^|[^\w`])(?:log_|Log)?[a-zA-Z]$")
#: How such a name ends, and whether it is called there.
_REST = re.compile(r"(?:2d)?(?:(\()|(?!\w))")
#: A softmax over what is attended to, or over the experts of a mixture.
_WEIGHTING = re.compile(r"attn|attention|rout(?:er|ing)|weights\s*=|import ", re.IGNORECASE)

#: How a statement begins that keeps its value under a name, or adds it to one.
_KEPT = re.compile(r"([ \t]*)(\w+)(?: *:[^=\n]+)? ([-+*/@]?)= ")
#: An attribute of a module with the name of an activation: its calls are applications, too.
_LAYER = re.compile(r"\s*self\.(?:softmax|sigmoid)\s*=")
_OPEN = frozenset("([{,=\\")
_MOVING = (
    r"view|reshape|squeeze|unsqueeze|flatten|unflatten|contiguous|transpose|permute|t|swapaxes"
    r"|movedim|narrow|expand|to|cpu|cuda|float|double|half|bfloat16|type|clone|repeat|gather"
    r"|index_select|masked_select|detach|requires_grad_|data|\w+_as"
)
#: Where a name is used so that other numbers come out: what stands behind it, and before.
_USED_UP_BEHIND = re.compile(
    rf"\s*(?:\*\*|[-+/@%*]|[<>]=?|[=!]=)\s*[\w(.-]|\.(?!(?:{_MOVING})\b)[a-z]"
)
_USED_UP_BEFORE = re.compile(
    r"(?:[\w)\]]\s*[-+*/@%]|[=(,]\s*-"
    rf"|\b(?:torch|F|functional)\.(?!(?:{_MOVING}|\w*(?:loss|cross_entropy)\w*)\()\w+\([^()]*)\s*$"
)
_BOUND = re.compile(r"\s*=(?!=)")
#: A name that gets its own numbers back, moved or with some dropped.
_FROM_ITSELF = re.compile(r"\n[ \t]*(\w+) = (?:self\.\w*drop\w*\()?$")
#: How far before a name its use is looked for, in characters.
_REACH = 80


def applications(word: str, text: str, *, logarithms: bool) -> Iterator[int]:
    """Where an activation's name stands in code; `word` is without its first letter: `oftmax`."""
    own = _OWN_OR_LOGARITHM if logarithms else _OWN
    for at in places(text, word):
        rest = _REST.match(text, at + len(word))
        before = own.search(text, max(at - 6, 0), at)
        if rest and before and (rest[1] or text[before.start()] == "."):
            yield at


def may_be_output(text: str, at: int) -> bool:
    """Whether what an activation gives may leave its function: weights of a sum do not."""
    start, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
    end = end if end >= 0 else len(text)
    if not is_code(text, at) or _WEIGHTING.search(text, start, end) or _LAYER.match(text, start):
        return False
    kept = _KEPT.match(text, start, at)
    if kept is None or text[:start].rstrip()[-1:] in _OPEN:
        return True
    if kept[3]:
        return False  # it is added to something, or taken off
    return _leaves(text, kept[2], end, _end_of_function(text, start, len(kept[1])))


def _end_of_function(text: str, line: int, indent: int) -> int:
    """Where the function ends that holds a line with this indentation."""
    definition = line
    while (definition := text.rfind("def ", 0, definition)) >= 0:
        start = text.rfind("\n", 0, definition) + 1
        before = text[start:definition].removesuffix("async ")
        if not before.strip() and len(before) < indent:
            end = re.compile(rf"\n[ \t]{{0,{len(before)}}}(?:def |async |class |@)")
            found = end.search(text, line)
            return found.start() if found else len(text)
    return len(text)


def _leaves(text: str, name: str, start: int, end: int) -> bool:
    """Whether a name is used between two places for the numbers that it has."""
    for at in uses(text, name, start, end):
        before = text[max(at - _REACH, 0) : at]
        if _BOUND.match(text, at + len(name)) and not before.rpartition("\n")[2].strip():
            continue  # it is bound anew
        if _USED_UP_BEHIND.match(text, at + len(name)) or _USED_UP_BEFORE.search(before):
            continue
        itself = _FROM_ITSELF.search(before)
        if itself is None or itself[1] != name:
            return True
    return False
