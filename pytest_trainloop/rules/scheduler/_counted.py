"""What a scheduler was made to count: epochs, or batches."""

from __future__ import annotations

from pytest_trainloop.source.facts import (
    Call,
    Collection,
    Constant,
    Loop,
    Operation,
    Result,
    Value,
    constant,
    options,
    origins,
    same,
)


def maker_of(scheduler: Value | None) -> Call | None:
    """The call that made the scheduler: one of torch's or of transformers'."""
    ways = options(scheduler) if scheduler is not None else ()
    found = [way for way in ways if not _is_none(way)]
    if len(found) != 1 or not isinstance(found[0], Result):
        return None
    call = found[0].call
    known = call.qualified.startswith(("torch.optim.lr_scheduler.", "transformers."))
    return call if known and not call.starred else None


def _is_none(value: Value) -> bool:
    return isinstance(value, Constant) and value.value is None


#: What a scheduler counts, by position after the optimizer and by keyword.
_COUNTS = {
    "StepLR": (1, "step_size"),
    "MultiStepLR": (1, "milestones"),
    "CosineAnnealingLR": (1, "T_max"),
    "PolynomialLR": (1, "total_iters"),
    "OneCycleLR": (2, "total_steps"),
    "get_linear_schedule_with_warmup": (2, "num_training_steps"),
    "get_cosine_schedule_with_warmup": (2, "num_training_steps"),
    "get_polynomial_decay_schedule_with_warmup": (2, "num_training_steps"),
}


def _count(made: Call) -> tuple[str, Value] | None:
    position, keyword = _COUNTS.get(made.method, (None, ""))
    given = made.argument(position, keyword) if keyword else None
    return (keyword, given) if given is not None else None


def epochs_counted(made: Call, epochs: Loop) -> str:
    """How a scheduler's count shows that it means epochs; empty if it does not show it."""
    count = _count(made)
    bound = _bound(epochs)
    if count is None or bound is None:
        return ""
    keyword, given = count
    text = made.argument_text(*_COUNTS[made.method])
    leaves = _leaves(given)
    names = [leaf for leaf in leaves if not isinstance(leaf, Constant)]
    bounds = [leaf for leaf in _leaves(bound) if not isinstance(leaf, Constant)]
    if names:
        is_bound = len(bounds) == 1 and all(same(leaf, bounds[0]) for leaf in names)
        return f"`{keyword}` is `{text}`, made from the number of epochs" if is_bound else ""
    most = constant(bound)
    if not isinstance(most, int) or not isinstance(given, Constant | Collection):
        return ""
    if not _is_within(keyword, [constant(leaf) for leaf in leaves], most):
        return ""
    return f"`{keyword}` of `{text}` lies within the {most} epochs of the loop"


def _is_within(keyword: str, numbers: list[object], most: int) -> bool:
    """Whether numbers that are written down are numbers of epochs, if there are `most` of them.

    A short cosine may be meant to swing within an epoch; one as long as the run is not.
    """
    if keyword == "T_max":
        return numbers == [most]
    whole = [number for number in numbers if isinstance(number, int) and 1 < number <= most]
    return bool(numbers) and len(whole) == len(numbers)


def _bound(loop: Loop) -> Value | None:
    """The end of `for epoch in range(...)`; None for any other loop."""
    for value in origins(loop.source, 20):
        if isinstance(value, Result) and value.call.method in ("range", "trange"):
            if "epoch" not in loop.header and "ep " not in loop.header:
                return None
            args = value.call.args
            return args[1] if len(args) > 1 else args[0] if args else None
    return None


def _leaves(value: Value) -> list[Value]:
    """What a number is computed from, through arithmetic, rounding and lists."""
    if isinstance(value, Operation):
        return [leaf for operand in value.operands for leaf in _leaves(operand)]
    if isinstance(value, Collection) and value.kind in ("list", "tuple"):
        return [leaf for item in value.items for leaf in _leaves(item)]
    if isinstance(value, Result) and value.call.qualified in _ROUNDING:
        return [leaf for arg in value.call.args for leaf in _leaves(arg)]
    return [value]


_ROUNDING = frozenset({"builtins.int", "builtins.round", "math.ceil", "math.floor"})


def batches_counted(made: Call, batches: Loop) -> str:
    """How a scheduler's count shows that it means batches; empty if it does not show it."""
    per_epoch = made.keywords.get("steps_per_epoch")
    if made.method == "OneCycleLR" and per_epoch is not None:
        text = made.argument_text(None, "steps_per_epoch")
        return f"`steps_per_epoch` is `{text}`" if _is_length(per_epoch, batches) else ""
    count = _count(made)
    if count is None or not _multiplies_length(count[1], batches):
        return ""
    return f"`{count[0]}` is a number of epochs times `{_length_text(count[1], batches)}`"


def _multiplies_length(value: Value, batches: Loop) -> bool:
    """Whether a number is a product with the number of batches, and nowhere divided by it."""
    if isinstance(value, Result) and value.call.qualified in _ROUNDING and value.call.args:
        return _multiplies_length(value.call.args[0], batches)
    if not isinstance(value, Operation):
        return False
    if value.operator == "*":
        return any(
            _is_length(operand, batches) or _multiplies_length(operand, batches)
            for operand in value.operands
        )
    if value.operator in ("+", "-"):
        return any(_multiplies_length(operand, batches) for operand in value.operands)
    return False


def _is_length(value: Value, batches: Loop) -> bool:
    """Whether a number is the length of what the batch loop runs over."""
    if not isinstance(value, Result) or value.call.qualified != "builtins.len":
        return False
    return any(same(value.call.args[0], source) for source in origins(batches.source, 30))


def _length_text(value: Value, batches: Loop) -> str:
    for part in origins(value, 40):
        if isinstance(part, Result) and _is_length(part, batches):
            return part.call.text
    return "the number of batches"
