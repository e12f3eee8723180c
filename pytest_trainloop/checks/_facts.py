"""What a checked test leaves for programs to read: junit's properties and `--trainloop-json`.

A verdict travels as one user property of the test's report, as JSON text: so junit holds what a
program can read, and pytest-xdist brings it from a worker to the controller. `facts.schema.json`
says what is in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from pytest_trainloop.runtime.record import Run

#: The version of the schema; raised when a reader would have to change.
VERSION = 1
SCHEMA = Path(__file__).with_name("facts.schema.json")
#: The name of the user property that tells a report how a check ended.
PROPERTY = "trainloop"
#: Values given of a long series, at even distances, the first and the last among them.
_MOST_VALUES = 100


def leave(item: pytest.Item, verdict: dict[str, object]) -> None:
    """Leave a verdict for the reports of a test, once."""
    told = (PROPERTY, as_json(verdict))
    if told not in item.user_properties:
        item.user_properties.append(told)


def verdicts(report: pytest.TestReport) -> Iterator[dict[str, Any]]:
    """What the checks of a test said."""
    for name, value in report.user_properties:
        if name == PROPERTY and isinstance(value, str):
            yield json.loads(value)


def facts_of(run: Run) -> dict[str, object]:
    """The numbers of a watched run."""
    return {
        "steps": run.training_steps,
        "backwards": len(run.backwards),
        "losses": thinned(run.losses),
        "gradient_norms": thinned(run.gradient_norms),
        "learning_rates": thinned(run.learning_rates),
        "optimizers": [
            {
                "name": optimizer.name,
                "kind": optimizer.kind,
                "built": optimizer.built or None,
                "steps": optimizer.steps,
                "parameters": sum(map(len, optimizer.groups)),
            }
            for optimizer in run.optimizers
        ],
    }


def thinned(values: Sequence[float]) -> list[float]:
    """At most a hundred of the values, at even distances, with the first and the last."""
    if len(values) <= _MOST_VALUES:
        return list(values)
    spacing = (len(values) - 1) / (_MOST_VALUES - 1)
    return [values[round(i * spacing)] for i in range(_MOST_VALUES)]


def as_json(thing: object) -> str:
    """JSON as the standard has it: what is not finite is the text `nan`, `inf` or `-inf`."""
    return json.dumps(_standard(thing), allow_nan=False, ensure_ascii=False)


def _standard(thing: object) -> object:
    if isinstance(thing, float) and not math.isfinite(thing):
        return str(thing)
    if isinstance(thing, dict):
        return {key: _standard(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [_standard(value) for value in thing]
    return thing
