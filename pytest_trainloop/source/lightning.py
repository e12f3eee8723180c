"""What Lightning does itself around the methods of a `LightningModule`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_trainloop.source.definitions import ClassFacts
from pytest_trainloop.source.imports import canonical

if TYPE_CHECKING:
    from pytest_trainloop.source.events import Trace

_MODULE = "lightning.pytorch.LightningModule"
_KNOWN_BASES = re.compile(r"^(?:builtins|abc|typing|torch\.nn)\.|^lightning\.")
_BY_HAND = re.compile(r"automatic_optimization|manual_backward|optimizer_idx")


def is_lightning_module(definition: ClassFacts) -> bool:
    """Whether a class is a `LightningModule`."""
    return any(
        isinstance(base, str)
        and canonical(base) in (_MODULE, "lightning.pytorch.core.LightningModule")
        for base in definition.ancestors()
    )


def trains_automatically(trace: Trace) -> bool:
    """Whether a trace is the reading of a `training_step` whose backward the trainer calls.

    No class in sight speaks of manual optimization, and no base class is out of sight.
    """
    entry = trace.entry
    if entry is None or entry.name != "training_step" or entry.owner is None:
        return False
    if not is_lightning_module(entry.owner):
        return False
    bases = list(entry.owner.ancestors())
    if any(isinstance(base, str) and not _KNOWN_BASES.match(canonical(base)) for base in bases):
        return False
    classes = [entry.owner, *(base for base in bases if isinstance(base, ClassFacts))]
    return not any(_BY_HAND.search(_text(definition)) for definition in classes)


def _text(definition: ClassFacts) -> str:
    last = definition.node.end_lineno or definition.node.lineno
    return "\n".join(definition.file.lines[definition.node.lineno - 1 : last])
