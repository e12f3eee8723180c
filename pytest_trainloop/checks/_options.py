"""Read the options of a marker against the dataclass that declares them."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_Declared = TypeVar("_Declared")


class OptionError(ValueError):
    """A marker was given an option that it does not take, or a value that does not fit."""


def read_options(
    declared: type[_Declared], marker: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> _Declared:
    """An instance of `declared`, a dataclass, made from the arguments of a marker.

    Raises:
        OptionError: an argument does not fit; names the marker.
    """
    title = f"@pytest.mark.{marker}"
    if args:
        raise OptionError(
            f"{title} takes its options by keyword, not {', '.join(map(repr, args))}: "
            f"{signature_of(declared, marker)}"
        )
    # Of the constructor, which knows the options alone: no class variables to resolve.
    names: dict[str, Any] = {}
    for owner in reversed(declared.__mro__):
        names.update(vars(sys.modules[owner.__module__]))
    hints = get_type_hints(vars(declared)["__init__"], names)
    known = {option.name: hints[option.name] for option in _options(declared)}
    for option, value in kwargs.items():
        if option not in known:
            close = get_close_matches(option, known, 1)
            takes = signature_of(declared, marker)
            hint = f"did you mean `{close[0]}`?" if close else f"it takes {takes}"
            raise OptionError(f"{title} has no option `{option}`: {hint}")
        if not _fits(value, known[option]):
            raise OptionError(f"{title}: `{option}` is {_readable(known[option])}, not {value!r}")
    try:
        timeout = kwargs.get("timeout")
        if timeout is not None and not timeout > 0:
            raise OptionError(f"`timeout` is a number of seconds above 0, not {timeout}")
        return declared(**kwargs)
    except ValueError as wrong:
        raise OptionError(f"{title}: {wrong}") from None


def signature_of(declared: type, marker: str) -> str:
    """The marker as it is written with its defaults: `overfits(*, steps=100)`."""
    # Those of its own first: those that it has from its base are the same for all.
    base = declared.__bases__[0]
    common = {option.name for option in _options(base)} if is_dataclass(base) else set()
    listed = sorted(_options(declared), key=lambda option: option.name in common)
    options = ", ".join(f"{option.name}={option.default!r}" for option in listed)
    return f"{marker}(*, {options})" if options else marker


def _options(declared: Any) -> tuple[Any, ...]:
    return fields(declared)


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (list, tuple):
        return isinstance(value, (list, tuple)) and all(
            _fits(one, get_args(hint)[0]) for one in value
        )
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def _readable(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_readable, get_args(hint)))
    if get_origin(hint) is Literal:
        values = ", ".join(map(repr, get_args(hint)))
        return f"one of {values}" if len(get_args(hint)) > 1 else values
    names: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        bool: "True or False",
        str: "a string",
    }
    names[list[str]] = names[tuple[str, ...]] = "a list of strings"
    return names.get(hint, "None")
