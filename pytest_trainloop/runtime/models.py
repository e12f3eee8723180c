"""Find the models that live in this process, and which of their modules depend on the mode."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_trainloop.runtime.live_modules import children, live_roots
from pytest_trainloop.runtime.place import name_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

#: Prefixes that wrappers (torch.compile, DistributedDataParallel) put before a name.
_WRAPPERS = {"OptimizedModule": "_orig_mod.", "DistributedDataParallel": "module."}
#: Attributes that hold a dropout rate, besides those that have `drop` in their name: at zero, the
#: mode makes no difference.
_RATES = ("p", "rate")


@dataclass(frozen=True, slots=True)
class Owned:
    """A parameter and where it lives in its model."""

    tensor: Tensor
    name: str
    #: Class of the module that holds it.
    module: str


class LiveModel:
    """A module that is part of no other: what people call the model. Held weakly."""

    def __init__(self, root: Module) -> None:
        self.ref = weakref.ref(root)
        self.kind = type(root).__name__
        self.name = name_of(root) or _unwrapped_name(root) or self.kind.lower()

    def parameters(self) -> list[Owned]:
        """Its parameters, with the names they have in it; empty once it is gone."""
        root = self.ref()
        return [] if root is None else list(owned(root))

    def mode_modules(self) -> list[tuple[str, Module]]:
        """Its modules that compute something else in eval mode, with their names."""
        return [(name, module) for name, module in self.modules() if depends_on_mode(module)]

    def modules(self) -> list[tuple[str, Module]]:
        """All its modules, with the names they have in it; empty once it is gone."""
        root = self.ref()
        if root is None:
            return []
        return [(_plain_name(root, name), module) for name, module in root.named_modules()]

    def pretrained(self) -> set[int]:
        """Modules of it, by identity, that `from_pretrained` gave, if most of that is trained."""
        found: set[int] = set()
        for _, module in self.modules():
            if id(module) not in found and _is_pretrained(module):
                found.update(map(id, module.modules()))
        return found

    def hidden(self) -> list[tuple[Tensor, str]]:
        """Parameters of modules that it keeps in lists and dicts where torch does not look.

        With the attribute that holds them: `Net.blocks`. A list of one module is left out: that
        is how a module is kept from being registered on purpose.
        """
        root = self.ref()
        if root is None:
            return []
        own = {id(module) for module in root.modules()}
        return [
            (tensor, f"{type(module).__name__}.{attribute}")
            for module in root.modules()
            for attribute, held in _unregistered(module)
            if len(held) > 1 and not any(id(one) in own for one in held)
            for one in held
            for tensor in one.parameters()
        ]


def _is_pretrained(module: Module) -> bool:
    """Whether a module is a whole model of transformers or diffusers that was loaded to be trained.

    `from_pretrained` leaves in its configuration where it came from.
    """
    homes = {kind.__module__.partition(".")[0] for kind in type(module).__mro__}
    if homes.isdisjoint(("transformers", "diffusers")):
        return False
    config = getattr(module, "config", None)
    source = getattr(config, "_name_or_path", None) or getattr(module, "_name_or_path", None)
    trained = [parameter.requires_grad for parameter in module.parameters()]
    return bool(source) and 2 * sum(trained) > len(trained)


def live_models() -> list[LiveModel]:
    """Every module alive that no other module holds."""
    return [LiveModel(root) for root in live_roots()]


def _unregistered(module: Module) -> Iterator[tuple[str, list[Module]]]:
    from torch.nn import Module

    for attribute, value in vars(module).items():
        values = value.values() if isinstance(value, dict) else value
        if not isinstance(value, (list, tuple, dict)):
            continue
        yield attribute, [one for one in values if isinstance(one, Module)]


def _unwrapped_name(root: Module) -> str | None:
    inner = children(root) if type(root).__name__ in _WRAPPERS else []
    return name_of(inner[0]) if inner else None


def _plain_name(root: Module, name: str) -> str:
    return name.removeprefix(_WRAPPERS.get(type(root).__name__, "")).replace("_orig_mod.", "")


def owned(root: Module) -> Iterator[Owned]:
    """The parameters of a model, each once."""
    seen: set[int] = set()
    for prefix, module in root.named_modules():
        for key, tensor in module.named_parameters(recurse=False):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            name = f"{prefix}.{key}" if prefix else key
            yield Owned(tensor, _plain_name(root, name), type(module).__name__)


def depends_on_mode(module: Module) -> bool:
    """Whether `module` itself (not its children) computes something else in eval mode.

    Its `forward` must read `training`; a rate of zero, or a norm without running statistics,
    makes no difference. A module with others below it may read it for another reason (to
    checkpoint activations, to take a faster way), so it needs a rate as well.
    """
    # The class of scripted modules has a `forward` that cannot be read.
    code = getattr(getattr(type(module), "forward", None), "__code__", None)
    if code is None or "training" not in code.co_names:
        return False
    rates = _rates(module)
    if not any(rates) and (rates or children(module)):
        return False
    return getattr(module, "track_running_stats", True) is not False


def _rates(module: Module) -> list[float]:
    """The dropout rates that a module keeps as numbers."""
    return [
        value
        for name, value in vars(module).items()
        if (name in _RATES or "drop" in name)
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
    ]


def reached_leaves(loss: Tensor, limit: int = 50_000) -> list[Tensor]:
    """The leaf tensors that the graph of `loss` leads to; stops after `limit` nodes."""
    start = loss.grad_fn
    seen = {start}
    waiting = [start] if start is not None else []
    leaves: list[Tensor] = []
    while waiting and len(seen) < limit:
        node = waiting.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.append(variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return leaves
