"""Lists, dicts and tuples that modules may be kept in, as far as the text alone tells."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._words import places, uses

_OPENED = re.compile(r"= ?(?:[\[{(]|dict\(|list\()")
#: A list or dict that is bound to an attribute or a name, up to its end.
_KEPT = re.compile(
    r"\s*(?:self\.\w+(?:\s*:[^=\n]+)?\s*=\s*(?:\[|\{|\((?=\s*(?:nn\.)?[A-Z])|dict\(|list\()"
    r"|(?P<name>\w+)(?:\s*:[^=\n]+)?\s*=\s*(?:\[|\{|dict\(|list\())"
)
_BRACKET = re.compile(r"[()\[\]{},]")
_END = re.compile(r"[\]}]|\n\s*\n")
#: The rest of a call whose brackets are not deeper than two more.
_CALL_END = re.compile(r"(?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")
_MADE = re.compile(r"\bnn\.[A-Z]|\b[A-Z]\w*\(|\bdeepcopy\(")
#: What is put into one afterwards.
_ADDED = re.compile(
    r"\s*(?P<owner>(?:\w+\.)*)(?P<into>\w+)\.(?:append|extend|insert)\("
    r"\s*(?:\d+,\s*)?(?:\w+\.)*[A-Z]\w*\("
)
#: A layer that has a name of its own when it is put into one.
_NAMED = re.compile(
    r"\s*(?P<owner>self\.)(?P<into>\w+)(?:\.append\(| \+= \[)(?P<one>[a-z_]\w*)[\])]"
)
#: A list of layers that is added to an attribute.
_LISTED = re.compile(
    r"\s*(?P<owner>self\.)(?P<into>\w+)(?:\.extend\(\s*| \+= )[\[(](?=\s*(?:\w+\.)*[A-Z]\w*\()"
)
#: A call or a method by which a class accounts for its modules itself.
_OWN_WAYS = (
    *("add_module", "register_module", "setattr", "__setattr__", "_modules"),
    *("def parameters", "def named_parameters", "def _apply", "def to", "def cuda", "def train"),
    *("def state_dict", "def children"),
)
#: What stands before a name that is kept, returned, or given to a call.
_PASSED_ON = re.compile(r"(?:= |return |[(,]\s*)$")
_CLASS_NAME = re.compile(r"\nclass (\w+)")
#: What ends a class at the left margin.
_TOP = re.compile(r"\n(?=[^\s#)\]}@])")
_REGISTERING = ("List(", "Dict(", "Sequential(")


def containers(text: str) -> Iterator[int]:
    """Where something with a class's name is put into a list or a dict, as offsets."""
    for opened in _OPENED.finditer(text):
        start = text.rfind("\n", 0, opened.start()) + 1
        kept = _KEPT.match(text, start)
        if _may_hide(text, kept) if kept else _adds_modules(text, start):
            yield opened.start()
    for at in places(text, ".append(", ".extend(", ".insert("):
        start = text.rfind("\n", 0, at) + 1
        added = _ADDED.match(text, start)
        if added is None:
            if _adds_modules(text, start):
                yield at
        elif _is_passed_on(text, added) and not _is_registered(text, added):
            yield at


def _adds_modules(text: str, line: int) -> bool:
    """Whether a line adds layers, in a list or by name, to what does not register them."""
    listed = _LISTED.match(text, line)
    if listed is None:
        return _is_named_module(text, line)
    return not _answers_for_itself(text, line) and not _is_registered(text, listed)


def _is_named_module(text: str, line: int) -> bool:
    """Whether a line puts a layer that has a name into an attribute that does not register it."""
    named = _NAMED.match(text, line)
    if named is None or not _is_module(text, named["one"], line):
        return False
    return not _is_registered(text, named)


def _is_module(text: str, name: str, end: int) -> bool:
    """Whether the name was last bound, shortly before, to what a class of layers makes."""
    last = text.rfind(f" {name} = ", max(end - _NEAR, 0), end)
    return last >= 0 and _MADE_OF.match(text, last + len(name) + 4) is not None


#: How many characters before a layer is put into a list its name may be bound.
_NEAR = 2_000
_MADE_OF = re.compile(r"(?:\w+\.)*[A-Z]\w*\(")


def _may_hide(text: str, kept: re.Match[str]) -> bool:
    """Whether the list or dict that is kept holds modules, and its class does not care for them."""
    name = kept["name"]
    if not _holds_a_module(text, kept.end()) or not _is_container(text, kept.end()):
        return False
    if _answers_for_itself(text, kept.start()) or (name and _is_argument(text, kept.start())):
        return False
    return name is None or re.search(rf"= {name}\b(?![\[.(])", text) is not None


def _answers_for_itself(text: str, at: int) -> bool:
    """Whether the class around a place registers modules itself, or hands out their parameters.

    What it does for itself need not do for a class that is built on it.
    """
    start, end = _class_around(text, at)
    name = _CLASS_NAME.match(text, start)
    if name is None or re.search(rf"\nclass \w+\([^)]*\b{name[1]}\b", text):
        return False
    found = (use for word in _OWN_WAYS for use in uses(text, word, start, end))
    return next(found, None) is not None


def _class_around(text: str, at: int) -> tuple[int, int]:
    """Where the class around a place begins and ends; nothing if there is none."""
    start = text.rfind("\nclass ", 0, at)
    if start < 0 or _TOP.search(text, start + 1, at):
        return at, at
    end = _TOP.search(text, at)  # a function `train` below the class is none of its ways
    return start, end.start() if end else len(text)


def _is_argument(text: str, line: int) -> bool:
    """Whether a line that begins with a name goes on with the arguments of a call."""
    return text[:line].rstrip()[-1:] in ("(", ",")


def _is_passed_on(text: str, added: re.Match[str]) -> bool:
    """Whether what something was added to is an attribute, or leaves its function."""
    name = added["into"]
    if name == "self":
        return False  # a class that is a list itself
    if added["owner"]:
        return added["owner"] != "self." or not _answers_for_itself(text, added.start())
    return any(_PASSED_ON.search(text, max(at - 9, 0), at) for at in uses(text, name))


def _is_registered(text: str, added: re.Match[str]) -> bool:
    """Whether what something was added to registers what it holds, or is given to what does.

    An attribute of `self` is that of its class: another class may have one of the same name.
    """
    name = added["into"]
    if added["owner"] == "self.":
        start, end = _class_around(text, added.start())
        text, name = text[start:end], f"self.{name}"
    if not any(kind in text for kind in _REGISTERING):
        return False
    given = (f"{name})", f"*{name})", f"{name},", f"{name}[")
    handed = (f"{kind}{one}" for kind in _REGISTERING for one in given)
    if any(one in text for one in handed):
        return True
    made = rf"{re.escape(name)}\s*(?::[^=\n]*)?=[^\n]*(?:List|Dict|Sequential)\("
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
    end = _CALL_END.match(text, start) if text[start - 1] == "(" else _END.search(text, start)
    return bool(_MADE.search(text, start, end.end() if end else len(text)))
