"""Data loaders: which ones a training loop goes through, and how often."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_trainloop.source.frames import Context, Loop
from pytest_trainloop.source.values import (
    Collection,
    Either,
    Element,
    Function,
    Result,
    Returned,
    Value,
)
from pytest_trainloop.source.verbs import is_backward
from pytest_trainloop.source.vocabulary import words

if TYPE_CHECKING:
    from pytest_trainloop.source.definitions import FunctionFacts
    from pytest_trainloop.source.events import Call, Trace

#: Calls that give back, one by one, the items of their first argument.
_PASSING = words(
    "enumerate tqdm tqdm_notebook track islice iter reversed log_every progress_bar prefetch "
    "progressbar Progbar ProgressBar"
)


@dataclass(slots=True, eq=False, repr=False)
class LoaderPass:
    """A data loader whose batches are trained on, again and again.

    `again` is what begins another pass over it: the loop around the loop over the batches,
    or a generator that never ends. `batches` is the loop that is given the batches.
    """

    loader: Call
    batches: Loop
    again: Loop | FunctionFacts

    @property
    def header(self) -> str:
        """The first line of what begins another pass, as written."""
        if isinstance(self.again, Loop):
            return self.again.header
        return self.again.file.lines[self.again.node.lineno - 1].strip()


def loader_passes(trace: Trace) -> Iterator[LoaderPass]:
    """The data loaders that the training loops of a trace go through more than once.

    Where several loops begin another pass, the innermost comes first.
    """
    seen: set[tuple[int, int]] = set()
    contexts = [call.context for call in trace.calls if is_backward(call)]
    for found in (*_looped(contexts), *_drawn(trace, contexts)):
        key = (id(found.loader), id(found.again))
        if key not in seen:
            seen.add(key)
            yield found


def _looped(contexts: list[Context]) -> Iterator[LoaderPass]:
    """Loaders that a `for` around a backward goes through."""
    for context in contexts:
        for depth, frame in enumerate(context):
            if not isinstance(frame, Loop) or frame.kind != "for":
                continue
            for loader, endless in loaders_behind(frame.source):
                if endless is not None:
                    yield LoaderPass(loader, frame, endless)
                yield from (
                    LoaderPass(loader, frame, outer)
                    for outer in reversed(context[:depth])
                    if isinstance(outer, Loop) and outer not in loader.context
                )


def _drawn(trace: Trace, contexts: list[Context]) -> Iterator[LoaderPass]:
    """Loaders whose batches `next` draws from an endless generator, in a loop with a backward."""
    for call in trace.calls:
        if call.qualified != "builtins.next" or not call.args:
            continue
        loops = [frame for frame in call.context if isinstance(frame, Loop)]
        if not loops or not any(loops[-1] in context for context in contexts):
            continue
        for loader, endless in loaders_behind(call.args[0]):
            if endless is not None and loops[-1] not in loader.context:
                yield LoaderPass(loader, loops[-1], endless)


def loaders_behind(
    source: Value, endless: FunctionFacts | None = None
) -> Iterator[tuple[Call, FunctionFacts | None]]:
    """The `DataLoader(...)` calls whose batches one gets by iterating over a value.

    With each, the generator that goes through it for ever, if there is one in between. What
    a framework or other code out of sight made of a loader is no longer known to be one.
    """
    if isinstance(source, Returned):
        if source.call.followed:
            yield from loaders_behind(source.value, endless)
    elif isinstance(source, Either):
        for option in source.options:
            yield from loaders_behind(option, endless)
    elif isinstance(source, Element) and isinstance(source.base, Collection):
        for item in source.base.items:
            yield from loaders_behind(item, endless)
    elif isinstance(source, Result):
        yield from _behind_call(source.call, endless)


def _behind_call(
    call: Call, endless: FunctionFacts | None
) -> Iterator[tuple[Call, FunctionFacts | None]]:
    if is_loader_call(call):
        yield call, endless
    elif call.method == "zip":
        for given in call.args:
            yield from loaders_behind(given, endless)
    elif call.method in _PASSING and call.args:
        yield from loaders_behind(call.args[0], endless)
    elif isinstance(call.callee, Function) and call.callee.definition.is_generator:
        definition = call.callee.definition
        for given in (*call.args, *call.keywords.values()):
            yield from loaders_behind(given, definition if _is_endless(definition) else endless)


def is_loader_call(call: Call) -> bool:
    """Whether the call makes a `torch.utils.data.DataLoader`."""
    return call.qualified == "torch.utils.data.DataLoader"


def samplers_of(loader: Call) -> tuple[Value, ...]:
    """The sampler and the batch sampler that a loader is given."""
    given = (
        loader.argument(position, name) for position, name in ((3, "sampler"), (4, "batch_sampler"))
    )
    return tuple(value for value in given if value is not None)


def _is_endless(definition: FunctionFacts) -> bool:
    """Whether a generator goes through its argument in a `while`: a `for` inside that yields."""
    return any(
        isinstance(inner, ast.For)
        and isinstance(inner.body[0], ast.Expr)
        and isinstance(inner.body[0].value, ast.Yield | ast.YieldFrom)
        for outer in ast.walk(definition.node)
        if isinstance(outer, ast.While)
        for inner in ast.walk(outer)
    )
