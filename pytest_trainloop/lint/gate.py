"""The byte scan: which rules can have anything to say about a file, without parsing it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_trainloop.rules import Rule

# A file that names none of these trains nothing with PyTorch.
_FRAMEWORKS = (
    b"torch",
    b"lightning",
    b"accelerate",
    b"transformers",
    b"deepspeed",
    b"ignite",
    b"fabric",
)


class Gate:
    """Finds the rules whose trigger words stand in a file's bytes."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        shared = Counter(either for rule in rules.values() for either in rule.triggers)
        self._rules = [(rule, _needs(rule.triggers, shared)) for rule in rules.values()]

    def open_to(self, data: bytes) -> list[Rule]:
        """The rules that may speak of a file with this content; its words are sought once."""
        if not any(name in data for name in _FRAMEWORKS):
            return []
        present: dict[bytes, bool] = {}

        def holds(word: bytes) -> bool:
            found = present.get(word)
            if found is None:
                found = present[word] = word in data
            return found

        return [
            rule
            for rule, needs in self._rules
            if all(any(holds(word) for word in either) for either in needs)
        ]


def _needs(triggers: Iterable[str], shared: Counter[str]) -> list[list[bytes]]:
    # What many rules need is asked once for all of them; then what takes the fewest searches.
    order = sorted(triggers, key=lambda either: (-shared[either], either.count("|")))
    return [[word.encode() for word in either.split("|")] for either in order]
