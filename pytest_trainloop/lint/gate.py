"""The byte scan: which rules can have anything to say about a file, without parsing it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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
# Shorter pieces of words stand in nearly every file.
_SHORTEST_PIECE = 3


class Gate:
    """Finds the rules whose trigger words stand in a file's bytes."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        needs = {rule: [_words(either) for either in rule.triggers] for rule in rules.values()}
        shared = Counter(word for each in needs.values() for word in {w for e in each for w in e})

        def effort(either: list[bytes]) -> float:
            # What other rules need is asked once for all of them, and a short word takes longer.
            return sum((1 + 6 / len(word)) / shared[word] ** 2 for word in either)

        self._rules = [(rule, sorted(each, key=effort)) for rule, each in needs.items()]
        #: The words that stand in another one: where one of them is missing, so is that.
        self._pieces = {
            word: [w for w in shared if w in word and w != word and len(w) >= _SHORTEST_PIECE]
            for word in shared
        }

    def open_to(self, data: bytes) -> list[Rule]:
        """The rules that may speak of a file with this content; its words are sought once."""
        if not any(name in data for name in _FRAMEWORKS):
            return []
        present: dict[bytes, bool] = {}

        def holds(word: bytes) -> bool:
            found = present.get(word)
            if found is None:
                found = all(map(holds, self._pieces[word])) and word in data
                present[word] = found
            return found

        return [
            rule
            for rule, needs in self._rules
            if all(any(holds(word) for word in either) for either in needs)
        ]


def _words(either: str) -> list[bytes]:
    return [word.encode() for word in either.split("|")]
