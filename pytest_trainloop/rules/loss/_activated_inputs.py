"""Losses whose input went through an activation that the loss does not expect."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_trainloop.source.facts import (
    Activation,
    Call,
    FileFacts,
    Result,
    activations,
    criterion_of,
    options,
    predicted,
)


def activated_inputs(
    file: FileFacts, criterion: str, *kinds: str
) -> Iterator[tuple[Call, Activation]]:
    """Each call of a loss whose input surely went through one of `kinds`, with what did it.

    The input may come about in several ways; each of them has to end in one of `kinds`.
    An activation is told once, at the first loss that it reaches.
    """
    told: set[int] = set()
    for trace in file.traces:
        for call in trace.calls:
            if criterion_of(call) != criterion:
                continue
            given = predicted(call)
            found = activations(given) if given is not None else ()
            if any(activation.kind not in kinds for activation in found):
                continue
            for activation in found:
                if id(activation.call.node) not in told:
                    told.add(id(activation.call.node))
                    yield call, activation


def loss_text(call: Call) -> str:
    """The loss by its best known name: `nn.CrossEntropyLoss`, or the function as written."""
    for option in options(call.callee):
        if isinstance(option, Result):
            return f"nn.{option.call.method}"
    return call.name


def where(call: Call, activation: Activation) -> str:
    """Where the loss stands, seen from the activation: `line 12`, or `train.py:12`."""
    if call.file is activation.call.file:
        return f"line {call.line}"
    return f"{call.file.path.replace(chr(92), '/').rpartition('/')[2]}:{call.line}"
