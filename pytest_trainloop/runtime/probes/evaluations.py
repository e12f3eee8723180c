"""See trained models evaluated: what mode they are in, what they build, what they write to.

A window opens where an evaluation may go on: with `eval()` of a whole trained model and with each
batch after it, and with a batch that was asked for without gradients. It closes with the next
batch, backward, or switch of the mode. Modules of trained models have forward hooks inside of the
first few windows, and nowhere else: a training step in train mode has none.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from collections.abc import Callable
from types import FrameType, FunctionType
from typing import TYPE_CHECKING, Any, cast

from pytest_trainloop.runtime.place import (
    belongs_to_user,
    frame_beyond,
    functions_on_stack,
    self_of,
)
from pytest_trainloop.runtime.record import Batch
from pytest_trainloop.runtime.sightings import Evaluation, ModeSwitch
from pytest_trainloop.runtime.window import Window

if TYPE_CHECKING:
    from torch.nn import Module

    from pytest_trainloop.runtime.observe import Observer

#: Windows that are opened for the batches of one loader, and after `eval()`.
_LOOKS = 8


def install(observer: Observer) -> None:
    """Replace `Module.train`, and once more what delivers the batches of a `DataLoader`."""
    from torch.nn import Module
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    watch = Evaluations(observer)
    observer.patches.replace(_BaseDataLoaderIter, "__next__", watch.replace_next)
    observer.patches.replace(Module, "train", watch.replace_train)
    observer.patches.on_exit(watch.before_backward)


class Evaluations:
    """What a run's probes share about its evaluations."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self._waits = False
        self._moment = 0
        self._asked_for_train = -1
        self._switching = False
        #: Whether `eval()` of a whole trained model was the last that was asked for.
        self._in_eval_mode = False
        self._window: Window | None = None
        #: How many windows there were, by loader; under None those after `eval()`.
        self._looks: dict[int | None, int] = {}
        #: Evaluations whose graphs may still be back-propagated.
        self._pending: list[tuple[Evaluation, Window]] = []
        self._gradient_calls = 0
        #: Switches that nobody asked about so far, and of modules of no trained model: the latest
        #: of them are asked about again when another model is trained.
        self._unresolved: list[tuple[weakref.ref[Module], ModeSwitch]] = []
        self._unreached: deque[tuple[weakref.ref[Module], ModeSwitch]] = deque(maxlen=64)
        #: How many trained models were known then, and their modules by identity.
        self._models = 0
        self._numbers: dict[int, int] = {}

    def replace_next(self, original: Callable[..., Any]) -> FunctionType:
        """Make what opens a window with a batch."""
        import torch

        observer = self.observer

        def __next__(iterator: Any) -> Any:  # noqa: N807
            __tracebackhide__ = True
            if self._window is not None:
                self._close()
            try:
                batch = original(iterator)
            except StopIteration:
                if self._in_eval_mode and observer.patches.active:
                    self._open(None)
                raise
            if (self._in_eval_mode or not torch.is_grad_enabled()) and observer.patches.active:
                event = observer.run.events[-1]
                if isinstance(event, Batch) and observer.people.models:
                    self._open(event.loader)
            return batch

        return cast("FunctionType", __next__)

    def replace_train(self, original: Callable[..., Any]) -> FunctionType:
        """Make what notes each switch of the mode."""
        #: What calls itself for each child.
        code = getattr(original, "__code__", None)

        def train(module: Any, mode: bool = True) -> Any:
            __tracebackhide__ = True
            if self._switching or not self.observer.patches.active:
                return original(module, mode)
            frame = sys._getframe(1)
            if frame.f_code is code or _is_part_of_another(module, frame):
                return original(module, mode)
            if mode:
                self._asked_for_train = self.observer.backwards
                self._in_eval_mode = False
            if self._window is not None:
                self._close()
            if mode and module.training:
                # Many loops ask for it in each step.
                return original(module, mode)
            self._switching = True
            try:
                result = original(module, mode)
            finally:
                self._switching = False
            self._note_switch(module, mode)
            return result

        return cast("FunctionType", train)

    def before_backward(self) -> None:
        """Close the window: what follows is training. Called when a backward begins."""
        self._waits = False
        if self._window is not None:
            self._close()
        if self._pending:
            unused = self.observer.run.gradient_calls == self._gradient_calls
            for evaluation, window in self._pending:
                evaluation.unused_graphs = window.graphs_gone() if unused else {}
            self._pending.clear()
        if self._unresolved:
            self._resolve()

    def _note_switch(self, module: Module, mode: bool) -> None:
        frame = frame_beyond(module, sys._getframe(2))
        by_user = frame is not None and belongs_to_user(frame.f_code.co_filename)
        self._moment += 1
        backwards = self.observer.backwards
        switch = ModeSwitch(mode, self.observer.place(), by_user, backwards, self._moment)
        self.observer.run.mode_switches.append(switch)
        self._unresolved.append((weakref.ref(module), switch))
        self._wait()
        if mode or not self.observer.people.models:
            return
        self._resolve()
        if switch.whole:
            self._in_eval_mode = True
            self._open(None)

    def _resolve(self) -> None:
        """Tell which modules the switches reached, now that more models may be known."""
        people, facts = self.observer.people, self.observer.run.mode_modules
        if self._models != len(people.models):
            self._models = len(people.models)
            self._numbers = {id(ref()): index for index, ref in enumerate(people.modes)}
            self._unresolved = [*self._unreached, *self._unresolved]
            self._unreached.clear()
        for ref, switch in self._unresolved:
            module = ref()
            below = map(id, module.modules()) if module is not None else ()
            switch.reached = tuple(self._numbers[one] for one in below if one in self._numbers)
            reached = {facts[index].root for index in switch.reached}
            own = {index for index, fact in enumerate(facts) if fact.root in reached}
            is_model = any(module is model.ref() for model in people.models)
            switch.whole = is_model or (bool(own) and own == set(switch.reached))
            if not switch.whole:
                self._unreached.append((ref, switch))
        self._unresolved.clear()

    def _open(self, loader: int | None) -> None:
        looks = self._looks.get(loader, 0)
        if looks >= _LOOKS:
            return
        self._looks[loader] = looks + 1
        self._wait()
        if not self._pending:
            self._gradient_calls = self.observer.run.gradient_calls
        self._window = Window(self.observer.people)
        self._window.facts = Evaluation(
            loader=loader,
            where=self.observer.place(),
            within=functions_on_stack(),
            backwards=self.observer.backwards,
            moment=self._moment,
            asked_for_train=self._asked_for_train == self.observer.backwards,
        )

    def _wait(self) -> None:
        """See to it that the next backward is told to this."""
        if not self._waits:
            self._waits = True
            self.observer.at_next_backward.append(self.before_backward)

    def _close(self) -> None:
        window, self._window = self._window, None
        if window is None:
            return
        evaluation = window.close()
        if evaluation is None:
            return
        self._moment += 1
        evaluation.moment = self._moment
        self.observer.run.evaluations.append(evaluation)
        if window.graphs:
            self._pending.append((evaluation, window))


def _is_part_of_another(module: Module, frame: FrameType) -> bool:
    """Whether it is the `train` of another module that switches this one, part of it, again."""
    from torch.nn import Module

    if frame.f_code.co_name != "train":
        return False
    other = self_of(frame)
    return isinstance(other, Module) and other is not module
