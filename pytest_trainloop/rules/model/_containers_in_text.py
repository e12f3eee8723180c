"""Lists, dicts and tuples that modules may be kept in, as far as the text alone tells."""

from __future__ import annotations

import re
from collections.abc import Iterator

_OPENED = re.compile(r"= ?[\[{(]|= (?:dict|list)\(|\.(?:append|extend|insert)\(")
#: A list or dict that is bound to an attribute or a name, up to its end.
_KEPT = re.compile(
    r"\s*(?:self\.\w+(?:\s*:[^=\n]+)?\s*=\s*(?:\[|\{|\((?=\s*(?:nn\.)?[A-Z])|dict\(|list\()"
    r"|(?P<name>\w+)(?:\s*:[^=\n]+)?\s*=\s*(?:\[|\{|dict\(|list\())"
)
_BRACKET = re.compile(r"[()\[\]{},]")
_END = re.compile(r"[\]}]|\n\s*\n")
_MADE = re.compile(r"\bnn\.[A-Z]|\b[A-Z]\w*\(|\bdeepcopy\(")
#: What is put into one afterwards.
_ADDED = re.compile(
    r"\s*(?:\w+\.)*(?P<into>\w+)(?:\.(?:append|extend|insert)\(|\[[^\]\n]*\]\s*=)"
    r"\s*(?:\d+,\s*)?(?:\w+\.)*[A-Z]\w*\("
)
#: A layer that has a name of its own when it is put into one.
_NAMED = re.compile(r"\s*self\.(?P<into>\w+)(?:\.append\(| \+= \[)(?P<one>[a-z_]\w*)[\])]")
_REGISTERING = ("List(", "Dict(", "Sequential(")


def containers(text: str) -> Iterator[int]:
    """Where something with a class's name is put into a list or a dict, as offsets."""
    for opened in _OPENED.finditer(text):
        at = opened.start()
        start = text.rfind("\n", 0, at) + 1
        kept, added = _KEPT.match(text, start), _ADDED.match(text, start)
        if kept and _holds_a_module(text, kept.end()) and _is_container(text, kept.end()):
            name = kept["name"]
            if name is None or re.search(rf"= {name}\b(?![\[.(])", text):
                yield at
        elif added and not _is_registered(text, added["into"]):
            yield at
        elif text.startswith((".a", "= ["), at) and (named := _NAMED.match(text, start)):
            if _is_module(text, named["one"], start) and not _is_registered(text, named["into"]):
                yield at


def _is_module(text: str, name: str, end: int) -> bool:
    """Whether the name was last bound, shortly before, to what a class of layers makes."""
    last = text.rfind(f" {name} = ", max(end - _NEAR, 0), end)
    return last >= 0 and _MADE_OF.match(text, last + len(name) + 4) is not None


#: How many characters before a layer is put into a list its name may be bound.
_NEAR = 2_000
_MADE_OF = re.compile(r"(?:\w+\.)*[A-Z]\w*\(")


def _is_registered(text: str, name: str) -> bool:
    """Whether a container of this name registers what it holds, or is given to one that does."""
    if not any(kind in text for kind in _REGISTERING):
        return False
    given = (f"{name})", f"*{name})", f"{name},")
    handed = (f"{kind}{one}" for kind in _REGISTERING for one in given)
    if any(one in text for one in handed):
        return True
    made = rf"{name}\s*(?::[^=\n]*)?=[^\n]*(?:List|Dict|Sequential)\("
    return re.search(made, text) is not None


def _is_container(text: str, start: int) -> bool:
    """Whether the bracket before `start` makes a list, a dict or a tuple: `(x)` is only x."""
    if text[start - 1] != "(" or text[start - 2].isalpha():
        return True
    depth = 0
    for match in _BRACKET.finditer(text, start):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
        if depth < 0 or (match[0] == "," and not depth):
            return depth == 0
    return False


def _holds_a_module(text: str, start: int) -> bool:
    """Whether something with a class's name stands before the bracket that begins there ends."""
    end = _END.search(text, start)
    return bool(_MADE.search(text, start, end.start() if end else len(text)))
