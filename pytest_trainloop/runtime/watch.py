"""Watch a training loop without pytest: `with watch() as run: train(...)`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_trainloop.runtime.record import Run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_trainloop.rules import Observation, Rule
    from pytest_trainloop.runtime.observe import Listener


@contextmanager
def watch(*listeners: Listener, run: Run | None = None) -> Iterator[Run]:
    """Record what happens to losses, gradients, learning rates and weights in the block.

    The loop is not changed and computes, bit for bit, what it computes unwatched.

        with watch() as run:
            train(model, loader)
        print(run.losses, run.gradient_norms, run.learning_rates)
        assert not run.observations

    `run.observations` is what the rules found wrong, once the block has ended.

    Args:
        listeners: take part in the run, see `pytest_trainloop.runtime.observe.Listener`.
        run: the record to fill; by default a new one.

    Yields:
        The record, filled while the block runs.

    Raises:
        ImportError: torch is not installed.
    """
    from pytest_trainloop.runtime.observe import Observer

    run = Run() if run is None else run
    with Observer(run, listeners):
        yield run
    run.judge = observations


def observations(run: Run, rules: Mapping[str, Rule] | None = None) -> list[Observation]:
    """What `rules` find wrong in a run that is over.

    Args:
        run: its record.
        rules: by name; by default all that are on by default.
    """
    if rules is None:
        from pytest_trainloop.rules import all_rules

        rules = {name: rule for name, rule in all_rules().items() if rule.default_in_runs()}
    return [one for rule in rules.values() if rule.sees_runs() for one in rule.watch(run)]
