"""What an arm of a branch says of its condition, so that two branches can be told to agree.

`if amp:` above and `if amp:` below are two branches on one condition: whoever comes by the
body of the first never comes by the other arm of the second.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator

from pytest_trainloop.source.values import Attribute, Constant, Operation, Unknown, Value

#: An attribute of such a name changes while the program runs, and nothing in sight tells.
_CHANGING = re.compile(
    r"sync|training|state|mode|step|iter|epoch|count|done|first|last|enabled|num|^n_|ready|stop"
)
_DEEPEST = 4
#: The same condition, written the other way round.
_OPPOSITES = {"isnot": "is", "noteq": "eq", "notin": "in"}


def claims(test: Value, *, holds: bool) -> Iterator[tuple[Hashable, bool]]:
    """What is known where a condition holds, or does not: conditions with their outcomes."""
    while isinstance(test, Operation) and test.operator == "not":
        test, holds = test.operands[0], not holds
    if isinstance(test, Operation):
        if test.operator == ("and" if holds else "or"):
            for operand in test.operands:
                yield from claims(operand, holds=holds)
            return
        if test.operator in _OPPOSITES:
            test, holds = Operation(_OPPOSITES[test.operator], test.operands), not holds
    key = _key(test, 0)
    if key is not None:
        yield key, holds


def _key(value: Value, depth: int) -> Hashable:
    """What is equal for two conditions exactly if they are one; None where that is not known.

    Values are compared by identity: a name that was bound anew stands for another one.
    """
    if isinstance(value, Constant):
        return ("constant", repr(value.value))
    if isinstance(value, Operation):
        parts = tuple(_key(operand, depth + 1) for operand in value.operands)
        return None if depth > _DEEPEST or None in parts else (value.operator, *parts)
    if isinstance(value, Attribute):
        return None if _CHANGING.search(value.name) else id(value)
    return None if isinstance(value, Unknown) and not value.spelling else id(value)
