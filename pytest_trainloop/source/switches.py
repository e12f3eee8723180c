"""Train and eval mode: what is switched, which forwards are trained, which models care."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.source.attachment import is_forward
from pytest_trainloop.source.definitions import ClassFacts, FunctionFacts
from pytest_trainloop.source.frames import Inside
from pytest_trainloop.source.modes import gradients
from pytest_trainloop.source.values import (
    Class,
    Collection,
    Constant,
    Function,
    Imported,
    Instance,
    Result,
    Returned,
    Value,
    options,
    origins,
)
from pytest_trainloop.source.verbs import may_do_anything

if TYPE_CHECKING:
    from pytest_trainloop.source.events import Call
    from pytest_trainloop.source.loops import TrainingLoop

#: Layers, by class name, that compute something else in eval mode.
_MODAL = re.compile(
    r"\b(?:nn\.)?(?:\w*Dropout\w*|\w*BatchNorm\w*|DropPath|RReLU"
    r"|InstanceNorm\w*\(.*track_running_stats=True|TransformerEncoderLayer|TransformerDecoderLayer"
    r"|Transformer\b)|\bself\.training\b|\bdropout\s*="
)
#: Makers of models that are known to have such layers.
_MODAL_MAKERS = re.compile(
    r"^torchvision\.models\.(?:resnet|resnext|wide_resnet|densenet|mobilenet|efficientnet|inception"
    r"|googlenet|mnasnet|shufflenet|regnet|convnext|vgg|alexnet|vit_|swin|segmentation|detection)"
)
_PLAIN_LAYER = re.compile(r"^torch\.nn\.(?:modules\.\w+\.)?[A-Z]\w*$")


def switch_of(call: Call) -> bool | None:
    """True: the call puts a model into train mode; False: into eval mode; None: not known."""
    if (
        call.method not in ("eval", "train")
        or call.receiver is None
        or call.qualified
        or call.followed
    ):
        return None
    if call.method == "eval":
        return None if call.args or call.keywords else False
    mode = call.argument(0, "mode")
    if mode is None:
        return None if call.starred else True
    return bool(mode.value) if isinstance(mode, Constant) and isinstance(mode.value, bool) else None


def may_switch(call: Call) -> bool:
    """Whether the call may put a model into another mode."""
    if call.method in ("eval", "train") and call.receiver is not None and not call.qualified:
        return not call.followed
    # `torch.inference_mode` is one of gradients.
    is_torch = call.qualified.startswith("torch.")
    return bool(_SWITCHING.search(call.method)) and not call.followed and not is_torch


_SWITCHING = re.compile(
    r"^(?:set|to|switch|toggle|enter|put|make|as|use)?_?"
    r"(?:eval|train(?:ing)?|test|inference)(?:_?mode|ing)?$"
    r"|set_mode|mode_to|_mode$|for_training|for_inference|evaluating|freeze",
    re.IGNORECASE,
)


def may_switch_out_of_sight(call: Call, model: Value) -> bool:
    """Whether the call hands the model to code out of sight, which may switch its mode."""
    if is_forward(call) or call.qualified or call.method in _LOOKING:
        return False
    return not _is_in_a_forward(call) and may_do_anything(call, model)


def _is_in_a_forward(call: Call) -> bool:
    """Whether a module calls it as it computes: what it is made of switches nothing."""
    return any(
        isinstance(frame, Inside)
        and frame.function.name == "forward"
        and frame.function.owner is not None
        and frame.function.owner.is_module
        for frame in call.context
    )


#: Methods of a model that leave its mode alone.
_LOOKING = frozenset(
    {"state_dict", "load_state_dict", "parameters", "named_parameters", "modules", "children"}
    | {"buffers", "zero_grad", "requires_grad_", "to", "cuda", "cpu", "half", "float", "double"}
    | {"apply", "named_modules", "named_children", "named_buffers", "get_submodule"}
    | {"no_sync", "backward", "step", "register_comm_hook", "save_pretrained"}
    | {"accumulate", "unwrap_model", "get_state_dict", "get_last_lr"}
)


def trained_forwards(training: TrainingLoop) -> list[Call]:
    """The forwards whose results the loop's backward calls go through."""
    found: dict[int, Call] = {}
    for backward in training.backwards:
        for value in origins(backward.loss, limit=800) if backward.loss is not None else ():
            if (
                isinstance(value, Result | Returned)
                and is_forward(value.call)
                and gradients(value.call.context) is not False
            ):
                found.setdefault(id(value.call), value.call)
    return list(found.values())


def depends_on_mode(model: Value) -> bool | None:
    """Whether train and eval mode differ for a model: None where its layers are out of sight."""
    states = [_depends(option) for option in options(model)]
    if any(states):
        return True
    return False if states and all(state is False for state in states) else None


def _depends(model: Value) -> bool | None:
    if isinstance(model, Instance):
        return _class_depends(model.definition)
    if not isinstance(model, Result):
        return None
    call = model.call
    if _MODAL_MAKERS.match(call.qualified):
        return True
    if not _PLAIN_LAYER.match(call.qualified):
        return None
    if _MODAL.search(call.method):
        return True
    return _any_depends(value for given in call.inputs for value in _layers(given))


def _layers(given: Value) -> Iterator[Value]:
    for option in options(given):
        if isinstance(option, Collection):
            for item in option.items:
                yield from _layers(item)
        elif isinstance(option, Result | Instance):
            yield option


def _any_depends(layers: Iterator[Value]) -> bool | None:
    states = [_depends(layer) for layer in layers]
    if any(states):
        return True
    return False if all(state is False for state in states) else None


def _class_depends(definition: ClassFacts) -> bool | None:
    """Whether a class, or one that it is built from, has a layer that cares for the mode."""
    seen: set[int] = set()
    queue: list[ClassFacts | FunctionFacts] = [definition]
    known = True
    for current in queue:
        if id(current) in seen:
            continue
        seen.add(id(current))
        text = _text(current)
        if _MODAL.search(text):
            return True
        known = known and not _MADE_ELSEWHERE.search(text)
        if isinstance(current, ClassFacts):
            queue.extend(base for base in current.ancestors() if isinstance(base, ClassFacts))
        for mentioned in _mentioned(definition, text):
            if isinstance(mentioned, Imported):
                known = known and mentioned.qualified.partition(".")[0] in _WITHOUT_LAYERS
            else:
                queue.append(mentioned)
    return False if known else None


_MADE_ELSEWHERE = re.compile(r"from_pretrained|create_model|models\.|hub\.load|get_model")
#: Libraries that make no layers, or only those that their names and arguments tell of.
_WITHOUT_LAYERS = sys.stdlib_module_names | {"torch", "numpy", "einops", "opacus"}


def _text(definition: ClassFacts | FunctionFacts) -> str:
    node = definition.node
    rows = definition.file.lines[node.lineno - 1 : node.end_lineno or node.lineno]
    return "\n".join(row.partition("#")[0] for row in rows)


def _mentioned(
    definition: ClassFacts, text: str
) -> Iterator[ClassFacts | FunctionFacts | Imported]:
    """What the text of a class or a function mentions: definitions in sight, and imports."""
    scope = definition.scope
    for name in set(_NAME.findall(text)) if scope is not None else ():
        binding = scope.find(name) if scope is not None else None
        for option in options(binding.value) if binding is not None else ():
            if isinstance(option, Class | Function):
                yield option.definition
            elif isinstance(option, Imported):
                yield option


_NAME = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
