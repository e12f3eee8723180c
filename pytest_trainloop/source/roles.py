"""What part a value plays in training: optimizer, scheduler, model, loss scaler, ...

Decided by where the value came from; a conventional name is a hint only where nothing
better is known.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_trainloop.source.imports import canonical
from pytest_trainloop.source.values import (
    Attribute,
    Element,
    Imported,
    Instance,
    Parameter,
    Result,
    Returned,
    Unknown,
    Value,
    options,
    spelling,
)
from pytest_trainloop.source.vocabulary import (
    MODEL_NAME,
    OPTIMIZER_CLASS,
    OPTIMIZER_NAME,
    SCALER_NAME,
    SCHEDULER_NAME,
)

if TYPE_CHECKING:
    from pytest_trainloop.source.events import Call

_SCHEDULER_MODULES = (
    "torch.optim.lr_scheduler.",
    "transformers.optimization.get_",
    "timm.scheduler.",
)
_SCHEDULER_FUNCTION = re.compile(
    r"^(?:get_\w*schedule\w*|\w*(?:create|build|make|get)_\w*sched\w*)$"
)
_SCHEDULER_CLASS = re.compile(r"^\w*(?:LR|Scheduler|Schedule|WarmRestarts|ReduceLROnPlateau)$")
_OPTIMIZER_FUNCTION = re.compile(
    r"^(?:create|build|make|get|configure|setup|init)_?\w*optim\w*$", re.IGNORECASE
)
_SCALERS = ("GradScaler", "ShardedGradScaler", "NativeScaler", "NativeScalerWithGradNormCount")
_ENGINES = ("deepspeed.initialize",)


def identity(value: Value) -> Value:
    """The object itself: followed calls and wrappers (`DDP`, `compile`, `.to`) looked through."""
    while isinstance(value, Returned):
        value = value.value
    return value


def same(first: Value, second: Value) -> bool:
    """Whether two values are, or may be, one object."""
    left = options(first)
    return any(one is other for one in left for other in options(second))


def maker(value: Value) -> str:
    """The full name of what was called to make the value, or ""."""
    for option in options(value):
        if isinstance(option, Result):
            return option.call.qualified
    return ""


def is_optimizer(value: Value) -> bool:
    """Whether the value is an optimizer."""
    return any(_is_optimizer(option) for option in options(value))


def _is_optimizer(value: Value) -> bool:
    if isinstance(value, Instance):
        bases = [base for base in value.definition.ancestors() if isinstance(base, str)]
        return any(canonical(base) == "torch.optim.Optimizer" for base in bases) or (
            any(base.startswith("torch.optim.") and "lr_scheduler" not in base for base in bases)
        )
    if isinstance(value, Result):
        return _makes_optimizer(value.call) or (
            bool(_OPTIMIZER.match(value.bound_to)) and _is_out_of_sight(value)
        )
    if isinstance(value, Parameter) and value.annotation:
        named = value.annotation.rpartition(".")[2]
        return bool(OPTIMIZER_CLASS.match(named)) or (
            "." not in value.annotation and _named_optimizer(value)
        )
    if isinstance(value, Element):
        if _OPTIMIZER.match(value.bound_to) and _is_part_out_of_sight(value):
            return True
        return is_optimizer(value.base) or _named_optimizer(value.base)
    if isinstance(value, Unknown | Parameter | Attribute):
        return _named_optimizer(value)
    return False


#: Names that are given to one optimizer, and to nothing else.
_OPTIMIZER = re.compile(r"(?:\w+_)?optim(?:izer)?(?:_?\w)?$", re.IGNORECASE)
#: Libraries whose calls say what they give, or give an object that steps by itself.
_KNOWN = frozenset({"torch", "builtins", "deepspeed", "colossalai", "numpy", "functools"})


#: Names that are given to one model, and to nothing that it computes.
_MODEL = re.compile(
    r"(?:\w+_)?(?:model|net|network|classifier|encoder|decoder|generator|discriminator|critic|actor"
    r"|backbone|student|teacher|net_?[DG]|gpt|vae|unet)(?:_?\d)?$",
    re.IGNORECASE,
)


_MAKING = re.compile(
    r"build|make|create|get|load|init|from_|new|model|net|instantiate|setup|prepare|optim",
    re.IGNORECASE,
)


def _is_out_of_sight(value: Value) -> bool:
    """Whether a call made the value of which no more is known than what it is called."""
    if not isinstance(value, Result):
        return False
    call = value.call
    if call.receiver is not None and not isinstance(call.receiver, Imported):
        # Most methods compute: only what makes things may have made one.
        if not _MAKING.search(call.method):
            return False
    return call.qualified.partition(".")[0] not in _KNOWN and not is_model(call.callee)


def _is_part_out_of_sight(value: Element) -> bool:
    """Whether it is one of several things that a call out of sight gave back."""
    return value.key is not None and all(map(_is_out_of_sight, options(value.base)))


def _makes_optimizer(call: Call) -> bool:
    if call.qualified.startswith("torch.optim.lr_scheduler"):
        return False
    if call.qualified.startswith("torch.optim."):
        name = call.qualified.rpartition(".")[2]
        return bool(OPTIMIZER_CLASS.match(name)) and name[0].isupper()
    if is_scheduler_call(call):
        return False
    if call.method == "optimizers" and not call.args:
        return True
    if OPTIMIZER_CLASS.match(call.method) or _OPTIMIZER_FUNCTION.match(call.method):
        return True
    # `cls = bnb.optim.AdamW8bit if args.eight_bit else torch.optim.AdamW`, then `cls(...)`
    return any(
        isinstance(option, Imported)
        and bool(OPTIMIZER_CLASS.match(option.qualified.rpartition(".")[2]))
        for option in options(call.callee)
    )


def _named_optimizer(value: Value) -> bool:
    name = spelling(value)
    return bool(OPTIMIZER_NAME.search(name)) and not SCHEDULER_NAME.search(name)


def is_scheduler_call(call: Call) -> bool:
    """Whether the call makes a learning-rate scheduler."""
    if call.qualified.startswith(_SCHEDULER_MODULES):
        return True
    if _SCHEDULER_FUNCTION.match(call.method):
        return True
    return bool(
        _SCHEDULER_CLASS.match(call.method)
        and any(is_optimizer(value) for value in (*call.args[:1], *call.keywords.values()))
    )


def is_scheduler(value: Value) -> bool:
    """Whether the value is a learning-rate scheduler."""
    return any(_is_scheduler(option) for option in options(value))


def _is_scheduler(value: Value) -> bool:
    if isinstance(value, Instance):
        return any(
            isinstance(base, str) and re.search(r"LRScheduler$|lr_scheduler\.\w+$", base)
            for base in value.definition.ancestors()
        )
    if isinstance(value, Result):
        return is_scheduler_call(value.call) or value.call.method == "lr_schedulers"
    if isinstance(value, Element):
        return is_scheduler(value.base)
    if isinstance(value, Unknown | Parameter | Attribute):
        return bool(SCHEDULER_NAME.search(spelling(value)))
    return False


def is_scaler(value: Value) -> bool:
    """Whether the value is a gradient scaler (`torch.amp.GradScaler` and its kin)."""
    for option in options(value):
        if isinstance(option, Result):
            if option.call.method in _SCALERS or _is_called_a_scaler(option):
                return True
        elif isinstance(option, Instance):
            if option.definition.name in _SCALERS:
                return True
        elif SCALER_NAME.search(spelling(option)):
            return True
    return False


def _is_called_a_scaler(made: Result) -> bool:
    """Whether something out of sight, no class of another scaler, is given a scaler's name."""
    name = made.bound_to
    is_named = name.lower().endswith("scaler") and bool(SCALER_NAME.search(name))
    return is_named and not made.call.method[:1].isupper() and _is_out_of_sight(made)


def is_model(value: Value) -> bool:
    """Whether the value is a model: a module, or something that is called like one."""
    return any(_is_model(option) for option in options(value))


def _is_model(value: Value) -> bool:
    if isinstance(value, Instance):
        return value.definition.is_module
    if isinstance(value, Result):
        call = value.call
        if call.qualified.startswith("torch.nn.") and call.method[:1].isupper():
            return not call.method.endswith("Loss")
        if call.method == "from_pretrained" or call.qualified.startswith(
            ("torchvision.models.", "timm.create_model", "segmentation_models_pytorch.")
        ):
            return not re.search(
                r"Tokenizer|Processor|Config|Scheduler|FeatureExtractor", call.name
            )
        if MODEL_NAME.search(call.name.rpartition(".")[2]) and not call.discarded:
            return True
        return bool(_MODEL.match(value.bound_to)) and _is_out_of_sight(value)
    if isinstance(value, Parameter) and value.annotation.startswith("torch.nn."):
        return value.annotation == "torch.nn.Module"
    if isinstance(value, Element) and _MODEL.match(value.bound_to):
        return _is_part_out_of_sight(value)
    if isinstance(value, Unknown | Parameter | Attribute | Element):
        return bool(MODEL_NAME.search(spelling(value)))
    return False


def is_engine(value: Value) -> bool:
    """Whether the value is an engine that clears gradients itself (DeepSpeed and its kin)."""
    for option in options(value):
        made = option.base if isinstance(option, Element) else option
        if isinstance(made, Result) and (
            made.call.qualified in _ENGINES or made.call.qualified.startswith("deepspeed.")
        ):
            return True
        if re.search(
            r"(?:^|[._])(?:\w*engine|deepspeed\w*|ds_model|distr_model\w*)$", spelling(option)
        ):
            return True
    return False


def is_accelerator(value: Value) -> bool:
    """Whether the value is a Hugging Face `Accelerator`."""
    return any(
        (isinstance(option, Result) and option.call.method == "Accelerator")
        or (
            isinstance(option, Unknown | Parameter | Attribute)
            and spelling(option).endswith("accelerator")
        )
        or (isinstance(option, Imported) and option.qualified.endswith("accelerator"))
        for option in options(value)
    )


def is_fabric(value: Value) -> bool:
    """Whether the value is a Lightning `Fabric`."""
    return any(
        (isinstance(option, Result) and option.call.qualified.endswith("Fabric"))
        or (
            isinstance(option, Unknown | Parameter | Attribute)
            and spelling(option).endswith("fabric")
        )
        for option in options(value)
    )
