"""Find the operation that first made nan or infinity of finite values; for runs that failed.

Every operation of the user's code is looked at, and so are its values: much slower than a watched
run, and never done in one that is judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_trainloop.runtime.observe import Listener
from pytest_trainloop.runtime.place import readable, user_place

if TYPE_CHECKING:
    from pytest_trainloop.runtime.observe import Observer


@dataclass(frozen=True, slots=True)
class Origin:
    """Where values that are not finite come from."""

    #: The operation, as in `torch` or `torch.nn.functional`.
    operation: str
    #: What there was: `nan`, `inf` or `-inf`.
    what: str
    #: `path:line` of the user's code.
    where: str
    #: Whether the operation was given it, by something that is no operation: the data.
    given: bool
    #: What it was made of, if it was not given: `finite values`, `inf` or `-inf`.
    of: str = "finite values"


class FindNonFinite(Listener):
    """Look for the first operations that give, or are given, what is not finite."""

    def __init__(self) -> None:
        self._nan: Origin | None = None
        self._made_infinity: Origin | None = None
        self._given_infinity: Origin | None = None
        self._mode: Any = None

    @property
    def origin(self) -> Origin | None:
        """Where it began: with a nan, or with the infinity that became one."""
        if self._nan is None:
            return self._made_infinity or self._given_infinity
        return self._nan if self._nan.of == "finite values" else self._made_infinity or self._nan

    def begin(self, observer: Observer) -> None:
        """Look at every operation from now on."""
        from torch.overrides import TorchFunctionMode

        finder = self

        class Mode(TorchFunctionMode):
            def __torch_function__(  # torch's own protocol
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                result = func(*args, **(kwargs or {}))
                finder.look(func, [args, kwargs or {}], result)
                return result

        self._mode = Mode()
        self._mode.__enter__()

    def end(self) -> None:
        """Look no more."""
        self._mode.__exit__(None, None, None)

    def look(self, operation: Callable[..., Any], given: list[Any], result: Any) -> None:
        """Remember the operation if it is the first of its kind."""
        name = getattr(operation, "__name__", "").strip("_")
        if self._nan is not None or name in ("", "get", "set") or "empty" in name:
            return
        found = set(_not_finite(result))
        # An infinity that is asked for by name, as in `masked_fill(mask, -inf)`, is no accident.
        if not found or _names_infinity(given):
            return
        before = set(_not_finite(given))
        where = readable(user_place())
        if "nan" in found:
            of = max(before, default="finite values")
            self._nan = Origin(name, "nan", where, given="nan" in before, of=of)
        elif before:
            self._given_infinity = self._given_infinity or Origin(
                name, before.pop(), where, given=True
            )
        else:
            self._made_infinity = self._made_infinity or Origin(
                name, found.pop(), where, given=False
            )


def _not_finite(thing: Any) -> Iterator[str]:
    """`nan`, `inf` or `-inf` for each tensor in `thing` that is not finite."""
    import torch

    for one in _flat(thing):
        if isinstance(one, torch.Tensor) and one.is_floating_point() and not one.is_meta:
            values = one.detach()
            if not bool(values.isfinite().all()):
                bad = values[~values.isfinite()]
                yield "nan" if bool(bad.isnan().any()) else str(float(bad.flatten()[0]))


def _names_infinity(given: list[Any]) -> bool:
    return any(isinstance(one, float) and not math.isfinite(one) for one in _flat(given))


def _flat(thing: Any) -> Iterator[Any]:
    if isinstance(thing, (list, tuple)):
        for one in thing:
            yield from _flat(one)
    elif isinstance(thing, dict):
        yield from _flat(list(thing.values()))
    else:
        yield thing
