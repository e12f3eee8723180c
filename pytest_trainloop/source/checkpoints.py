"""Saving and resuming: what goes into checkpoints, what comes back, and where training goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_trainloop.source.frames import Branch, Inside, loops_of
from pytest_trainloop.source.resuming import goes_on, is_loaded
from pytest_trainloop.source.roles import (
    is_accelerator,
    is_fabric,
    is_model,
    is_optimizer,
    is_scaler,
    is_scheduler,
)
from pytest_trainloop.source.values import (
    Collection,
    Constant,
    Element,
    Instance,
    Result,
    Value,
    options,
    origins,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_trainloop.source.events import Call, Trace
    from pytest_trainloop.source.loops import TrainingLoop

#: Tells whether a value plays a part in training: `is_optimizer`, `is_scaler`, ...
Role = Callable[[Value], bool]

_RESUMING = re.compile(r"resum", re.IGNORECASE)
_BEST = re.compile(r"best|better|improve|is_?min|<|>", re.IGNORECASE)
_SETTER = re.compile(r"(?:load|set|restore|resume)\w*state", re.IGNORECASE)
#: What saves or restores more than one part of a training run at once, out of sight.
_WHOLESALE = re.compile(
    r"^(?:save|load|restore|resume|store|auto_?load|auto_?resume|maybe_?load|maybe_?restore|reload)"
    r"(?:_\w*)?(?:state|checkpoint|ckpt|snapshot|training|session|all|trainer|run|resume)\w*$"
    r"|^(?:checkpointer|ckpt|checkpoint)\w*$|^resume\w*$|^restore\w*$|^(?:load|save)_(?:model|objects?)\w*$",
    re.IGNORECASE,
)


@dataclass(frozen=True, eq=False)
class Save:
    """A checkpoint is written: `content` is what goes into it."""

    call: Call
    content: Value

    @property
    def told_at(self) -> Call:
        """The call that says what is saved: the one that hands it to a helper, if one does."""
        saved = [
            option.call.receiver
            for option in options(self.content)
            if isinstance(option, Result) and option.call.receiver is not None
        ]
        return _outermost(self.call, (self.content, *saved))

    @property
    def is_best(self) -> bool:
        """Whether it is written because it is the best so far, rather than every so often."""
        return any(
            isinstance(frame, Branch)
            and frame.arm == "body"
            and _BEST.search(frame.test_text)
            and "%" not in frame.test_text
            for frame in self.call.context
        )


@dataclass(frozen=True, eq=False)
class Resume:
    """Training goes on with the weights of a checkpoint; `load` puts them into the model."""

    load: Call
    training: TrainingLoop

    @property
    def told_at(self) -> Call:
        """The call that says which model is loaded: a method of the model, if that loads it."""
        model = self.load.receiver
        return _outermost(self.load, (model,) if model is not None else ())

    @property
    def model_text(self) -> str:
        """The model as written: the argument that is it, else what the method is called on."""
        told, model = self.told_at, self.load.receiver
        if told is not self.load and model is not None:
            for position, given in enumerate(told.args):
                if _is_one_of(model, given):
                    return told.argument_text(position)
            for name, given in told.keywords.items():
                if _is_one_of(model, given):
                    return told.argument_text(None, name)
        return told.receiver_text or told.argument_text(0)


@dataclass(eq=False)
class Checkpoints:
    """All saving and loading of the traces of one file."""

    traces: tuple[Trace, ...]
    training: tuple[TrainingLoop, ...]

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """The calls of all traces."""
        return tuple(call for trace in self.traces for call in trace.calls)

    @cached_property
    def readings_of_saves(self) -> tuple[Save, ...]:
        """The checkpoints that hold weights, as often as their place was read."""
        contents = ((call, _saved(call)) for call in self.calls)
        return tuple(
            Save(call, content)
            for call, content in contents
            if content is not None and any(map(_is_weights, origins(content)))
        )

    @cached_property
    def saves(self) -> tuple[Save, ...]:
        """The checkpoints that hold weights, each place of the text once."""
        found: dict[int, Save] = {}
        for save in self.readings_of_saves:
            found.setdefault(id(save.told_at.node), save)
        return tuple(found.values())

    def saves_during(self, training: TrainingLoop) -> tuple[Save, ...]:
        """The saves that a run would resume from: not the best one, unless there is no other."""
        around = loops_of(training.context)
        during = [
            save
            for save in self.saves
            if any(loop in around for loop in loops_of(save.call.context))
        ]
        return tuple(save for save in during if not save.is_best) or tuple(during)

    @cached_property
    def loads(self) -> tuple[Call, ...]:
        """The calls that put loaded weights into a model."""
        return tuple(
            call
            for call in self.calls
            if call.method == "load_state_dict"
            and call.receiver is not None
            and is_model(call.receiver)
            and call.args
            and any(is_loaded(value) for value in origins(call.args[0]))
        )

    @cached_property
    def resumes(self) -> tuple[Resume, ...]:
        """The loads after which training goes on where it was left, each place once."""
        found: dict[int, Resume] = {}
        for load in self.loads:
            for training in self.training:
                if id(load.node) in found:
                    break
                if goes_on(load, training) or self._brings_back_more(load, training):
                    found[id(load.node)] = Resume(load, training)
        return tuple(found.values())

    def _brings_back_more(self, load: Call, training: TrainingLoop) -> bool:
        """Whether the schedule or the loss scale comes back with the weights, for this training.

        Nobody needs them for weights to begin with.
        """
        if not _is_for(load, training):
            return False
        files = _files_of(load)
        return any(
            _is_run_state(call.receiver) and not files.isdisjoint(_files_of(call))
            for call in self.calls
            if call.method == "load_state_dict" and call.receiver is not None
        )

    def restoring(self, role: Role) -> tuple[Call, ...]:
        """The calls that give such a thing a state that was loaded."""
        return tuple(
            call
            for call in self.calls
            if call.method == "load_state_dict"
            and call.receiver is not None
            and role(call.receiver)
            and any(is_loaded(value) for given in call.args for value in origins(given))
        )

    def restoring_optimizers_of(self, loops: Iterable[TrainingLoop]) -> tuple[Call, ...]:
        """The calls that restore an optimizer that the loops step: in their run, or by its name.

        A file may hold several runs, each with an optimizer of its own, as tests do.
        """
        names: set[str] = set()
        inside: set[int] = set()
        for loop in loops:
            names.update(step.optimizer_text for step in loop.steps)
            inside.update(id(call) for call in loop.trace.calls)
        return tuple(
            call
            for call in self.restoring(is_optimizer)
            if id(call) in inside or call.receiver_text in names
        )

    def saves_with(self, role: Role) -> tuple[Save, ...]:
        """The checkpoints that hold the weights and the state of such a thing."""
        return tuple(
            save for save in self.saves if any(_is_state(v, role) for v in origins(save.content))
        )

    def saves_state_of(self, role: Role) -> bool:
        """Whether the state of such a thing is saved, or may be, out of sight."""
        return (
            any(_asks_state(call, role) for call in self.calls)
            or any(_is_held(save.content, role) for save in self.saves)
            or self.is_opaque(role)
        )

    def restores_state_of(self, role: Role) -> bool:
        """Whether the state of such a thing is restored, or may be, out of sight."""
        return any(_gives_state(call, role) for call in self.calls) or self.is_opaque(role)

    def is_opaque(self, role: Role) -> bool:
        """Whether code out of sight may save or restore it."""
        return any(_is_wholesale(call, role) for call in self.calls)


def _is_run_state(value: Value) -> bool:
    """Whether a thing that is given a state is a scheduler or a loss scaler."""
    return is_scheduler(value) or is_scaler(value)


def _files_of(load: Call) -> set[int]:
    """The calls that read what `load_state_dict` is given, by the place in the text."""
    return {
        id(value.call.node)
        for given in load.args[:1]
        for value in origins(given)
        if isinstance(value, Result) and is_loaded(value)
    }


def _is_for(load: Call, training: TrainingLoop) -> bool:
    """Whether the load is of the training's run, and before it, or a method beside it."""
    around = loops_of(training.context)
    if any(loop in around for loop in loops_of(load.context)):
        return False
    if any(call is load for call in training.trace.calls):
        return all(load.index < step.call.index for step in training.steps)
    owners = _owners(training.steps[0].call) if training.steps else set()
    return not owners.isdisjoint(_owners(load))


def _owners(call: Call) -> set[int]:
    """The classes whose methods a call is made in."""
    return {
        id(frame.function.owner)
        for frame in call.context
        if isinstance(frame, Inside) and frame.function.owner is not None
    }


def _outermost(call: Call, handed: tuple[Value, ...]) -> Call:
    """The outermost of the followed calls around a call that were given one of the values."""
    told = call
    for frame in reversed(call.context):
        if isinstance(frame, Inside) and frame.call is not None and not frame.handed:
            given = frame.call.inputs
            if not any(_is_one_of(value, one) for value in handed for one in given):
                break
            told = frame.call
    return told


def _saved(call: Call) -> Value | None:
    """What the call writes to a file, if it writes a checkpoint."""
    if call.qualified == "torch.save" or (
        call.method in ("save", "save_on_master", "master_save")
        and call.receiver is not None
        and (is_accelerator(call.receiver) or is_fabric(call.receiver) or call.qualified)
    ):
        return call.argument(0, "obj")
    return None


def _is_weights(value: Value) -> bool:
    if isinstance(value, Result) and value.call.method == "state_dict":
        return value.call.receiver is not None and is_model(value.call.receiver)
    return isinstance(value, Instance) and value.definition.is_module


def _is_state(value: Value, role: Role) -> bool:
    """Whether the value is what such a thing returned when it was asked for its state."""
    if not isinstance(value, Result) or value.call.method != "state_dict":
        return False
    return value.call.receiver is not None and role(value.call.receiver)


def _is_one_of(wanted: Value, given: Value) -> bool:
    return any(one is other for one in options(wanted) for other in options(given))


def _asks_state(call: Call, role: Role) -> bool:
    if call.method in ("state_dict", "optim_state_dict", "full_optim_state_dict", "get_state_dict"):
        if call.receiver is not None and not call.qualified:
            return role(call.receiver) or _is_anything(call.receiver)
        return any(role(given) for given in call.inputs)
    return False


def _gives_state(call: Call, role: Role) -> bool:
    if call.method == "load_state_dict" and call.receiver is not None:
        return role(call.receiver) or _is_anything(call.receiver)
    if call.followed:
        return False  # what it does is in sight
    return bool(_SETTER.search(call.method)) and any(role(given) for given in call.inputs)


def _is_anything(value: Value) -> bool:
    """Whether a thing that is asked for its state may be any part of the training run."""
    return any(
        isinstance(option, Element) and not is_model(option) and not _has_known_key(option)
        for option in options(value)
    ) or any(
        isinstance(option, Instance) and not option.definition.is_module
        for option in options(value)
    )


def _has_known_key(element: Element) -> bool:
    return isinstance(element.key, Constant)


def _is_held(content: Value, role: Role) -> bool:
    """Whether a checkpoint holds the thing itself, or what cannot be looked into."""
    return any(
        role(option)
        for value in origins(content)
        if isinstance(value, Collection)
        for item in value.items
        for option in options(item)
    )


def _is_wholesale(call: Call, role: Role) -> bool:
    """Whether the call may save or restore such a thing out of sight."""
    if call.followed or call.qualified in ("torch.save", "torch.load", "torch.hub.load"):
        return False
    named = bool(_WHOLESALE.match(call.method)) and call.method not in (
        "load_state_dict",
        "load_state_dict_from_url",
    )
    receiver = call.receiver
    if named and receiver is not None and (is_accelerator(receiver) or is_fabric(receiver)):
        return True
    given = [*call.args, *call.keywords.values()]
    if any(role(value) or _mentions(value, role) for value in given):
        return named or "load" in call.name or "save" in call.name
    return named and not ((receiver is not None and is_model(receiver)) or _is_for_one_model(call))


def _is_for_one_model(call: Call) -> bool:
    """Whether the call was handed a model and nothing that could hold the rest of a run."""
    given = [option for value in call.args for option in options(value)]
    return bool(given) and all(isinstance(value, Constant) or is_model(value) for value in given)


def _mentions(value: Value, role: Role) -> bool:
    return any(
        isinstance(option, Collection) and any(role(item) for item in option.items)
        for option in options(value)
    )
