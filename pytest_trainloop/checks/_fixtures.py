"""The fixtures of a test that is run several times: its own set up anew, shared ones put back."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from torch import Tensor


def set_up_again(item: pytest.Function) -> None:
    """Tear down what belongs to this test alone, and set it up anew.

    Fixtures of a wider scope stay. pytest has no public way; this is what its plugins that
    repeat tests do.
    """
    state = item.session._setupstate
    # Typed for tests, but it only asks for the chain of collectors that are to stay.
    # Fixtures such as `tmp_path` take what they noted in the stash away with them, and would
    # miss it when they are torn down the next time.
    kept = dict(item.stash._storage)
    state.teardown_exact(cast("pytest.Item", item.parent))
    for key, value in kept.items():
        item.stash._storage.setdefault(key, value)
    for attribute in ("_instance", "_obj"):
        # Each run gets a fresh instance of its test class.
        if isinstance(item.parent, pytest.Class):
            item.__dict__.pop(attribute, None)
    item._initrequest()
    state.setup(item)


class SharedFixtures:
    """Models, optimizers and the like that a test shares with others, as it found them."""

    def __init__(self, item: pytest.Function) -> None:
        self._found = [_State(value) for value in _shared(item)]

    def put_back(self) -> None:
        """Give them the state they had."""
        for state in self._found:
            state.put_back()


def _shared(item: pytest.Function) -> list[Any]:
    """The values of fixtures of a wider scope that have a state to put back."""
    found: list[Any] = []
    for name, value in item.funcargs.items():
        definitions = item._fixtureinfo.name2fixturedefs.get(name, ())
        if not definitions or definitions[-1].scope == "function":
            continue
        if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            found.append(value)
    return found


class _State:
    """What `state_dict` tells of an object, and of a model what it does not tell."""

    def __init__(self, holder: Any) -> None:
        from torch.nn import Module

        self._holder = holder
        self._state = copy.deepcopy(holder.state_dict())
        modules = list(holder.modules()) if isinstance(holder, Module) else []
        self._modes = [(module, module.training) for module in modules]
        parameters: list[Tensor] = list(holder.parameters()) if modules else []
        self._parameters = [(one, one.requires_grad, _copied(one.grad)) for one in parameters]

    def put_back(self) -> None:
        # Copied, because an optimizer goes on with the very tensors that it is given.
        self._holder.load_state_dict(copy.deepcopy(self._state))
        for module, training in self._modes:
            module.training = training
        for parameter, trainable, gradient in self._parameters:
            parameter.requires_grad_(trainable)
            parameter.grad = _copied(gradient)


def _copied(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.clone()
