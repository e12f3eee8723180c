"""What rules read: the facts of one file, and every name that rules need to speak of them.

Plain data; no rule sees a syntax tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pytest_trainloop.source.accumulation import (
    Accumulation,
    accumulations,
    is_counting,
    is_managed,
)
from pytest_trainloop.source.activations import Activation, activations, layers_of
from pytest_trainloop.source.attachment import attached, is_forward
from pytest_trainloop.source.checkpoints import (
    Checkpoints,
    Resume,
    Role,
    Save,
)
from pytest_trainloop.source.criteria import (
    criterion_maker,
    criterion_of,
    expected,
    predicted,
)
from pytest_trainloop.source.cuts import Graph, cut_source, graph_of, is_cut, layers, made_by
from pytest_trainloop.source.definitions import ClassFacts, FunctionFacts, SourceFile
from pytest_trainloop.source.events import (
    Bare,
    Call,
    Delete,
    Event,
    Leave,
    Return,
    Store,
    Trace,
)
from pytest_trainloop.source.frames import (
    Branch,
    Context,
    Frame,
    Inside,
    Loop,
    Try,
    With,
    common,
    exclusive,
    loops_of,
)
from pytest_trainloop.source.gradients_by_hand import (
    has_more_arguments,
    is_measuring,
    may_set_gradients,
    may_use_gradients,
)
from pytest_trainloop.source.lightning import is_lightning_module, trains_automatically
from pytest_trainloop.source.loading import (
    LoaderPass,
    is_loader_call,
    loader_passes,
    loaders_behind,
    samplers_of,
)
from pytest_trainloop.source.loops import Backward, Step, TrainingLoop, training_loops
from pytest_trainloop.source.modes import gradients
from pytest_trainloop.source.networks import (
    MixedGradients,
    is_output_of,
    mixed_gradients,
    trains,
)
from pytest_trainloop.source.place import Place
from pytest_trainloop.source.randomness import global_seed, random_stream
from pytest_trainloop.source.replicas import (
    is_asked_for_replica,
    is_replica,
    replicas,
    unwrapped,
)
from pytest_trainloop.source.resuming import is_loaded, start_of
from pytest_trainloop.source.roles import (
    identity,
    is_accelerator,
    is_engine,
    is_fabric,
    is_model,
    is_optimizer,
    is_scaler,
    is_scheduler,
    is_scheduler_call,
    maker,
    same,
)
from pytest_trainloop.source.stateful import has_state
from pytest_trainloop.source.switches import (
    depends_on_mode,
    may_switch,
    may_switch_out_of_sight,
    switch_of,
    trained_forwards,
)
from pytest_trainloop.source.trailing import trailing
from pytest_trainloop.source.turns import (
    after,
    at_surface,
    before,
    between,
    comes_along,
    is_out_of_order,
    only_statement,
    together,
)
from pytest_trainloop.source.unclaimed import unclaimed
from pytest_trainloop.source.values import (
    Attribute,
    Class,
    Collection,
    Constant,
    Either,
    Element,
    Function,
    Imported,
    Instance,
    Operation,
    Parameter,
    Partial,
    Result,
    Returned,
    Super,
    Unknown,
    Value,
    constant,
    either,
    options,
    origins,
    spelling,
)
from pytest_trainloop.source.verbs import (
    cleared,
    is_backward,
    is_clearing,
    is_clip,
    is_engine_step,
    is_known_harmless,
    is_scaled_backward,
    is_scheduler_step,
    is_unscale,
    loss_of,
    may_do_anything,
    stepped_optimizer,
)

_OTHER_LIBRARY = re.compile(
    r"^\s*(?:import|from)\s+(?:mxnet|tensorflow|jax|paddle|keras|tinygrad|mlx)\b", re.MULTILINE
)


@dataclass(eq=False, repr=False)
class FileFacts:
    """What is known of one file.

    `traces` are its readings: the module's body first, then each function that nobody in
    sight calls. A function that is called is read at its calls, so the same place of the
    text may turn up in several traces, each time in another context.
    """

    source: SourceFile
    traces: tuple[Trace, ...]

    @property
    def path(self) -> str:
        """The file's path."""
        return self.source.path

    @property
    def functions(self) -> list[FunctionFacts]:
        """All functions and methods that the file defines."""
        return self.source.functions

    @property
    def classes(self) -> list[ClassFacts]:
        """All classes that the file defines."""
        return self.source.classes

    @cached_property
    def loops(self) -> tuple[TrainingLoop, ...]:
        """The training loops (and step functions) of all traces."""
        return tuple(loop for trace in self.traces for loop in training_loops(trace))

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """All saving and loading of training state."""
        return Checkpoints(self.traces, self.loops)

    def take_apart(self) -> None:
        """Free the memory now; nothing else can be asked (see `SourceFile.take_apart`)."""
        for trace in self.traces:
            trace.events.clear()
        self.source.take_apart()
        for each in (*self.traces, self):
            vars(each).clear()

    @cached_property
    def uses_other_library(self) -> bool:
        """Whether the file imports a library whose training verbs have the same names."""
        return bool(_OTHER_LIBRARY.search(self.source.text))

    def forwards(self, trace: Trace) -> tuple[Call, ...]:
        """The calls of models in one of the traces, in order."""
        if trace not in self._forwards:
            self._forwards[trace] = tuple(call for call in trace.calls if is_forward(call))
        return self._forwards[trace]

    @cached_property
    def _forwards(self) -> dict[Trace, tuple[Call, ...]]:
        return {}

    def calls(self, *methods: str) -> Iterator[Call]:
        """The calls whose last name is one of `methods`, each place of the text once."""
        seen: set[int] = set()
        for trace in self.traces:
            for call in trace.calls:
                if call.method in methods and id(call.node) not in seen:
                    seen.add(id(call.node))
                    yield call


__all__ = [
    "Accumulation",
    "Activation",
    "Attribute",
    "Backward",
    "Bare",
    "Branch",
    "Call",
    "Checkpoints",
    "Class",
    "ClassFacts",
    "Collection",
    "Constant",
    "Context",
    "Delete",
    "Either",
    "Element",
    "Event",
    "FileFacts",
    "Frame",
    "Function",
    "FunctionFacts",
    "Graph",
    "Imported",
    "Inside",
    "Instance",
    "Leave",
    "LoaderPass",
    "Loop",
    "MixedGradients",
    "Operation",
    "Parameter",
    "Partial",
    "Place",
    "Result",
    "Resume",
    "Return",
    "Returned",
    "Role",
    "Save",
    "Step",
    "Store",
    "Super",
    "Trace",
    "TrainingLoop",
    "Try",
    "Unknown",
    "Value",
    "With",
    "accumulations",
    "activations",
    "after",
    "at_surface",
    "attached",
    "before",
    "between",
    "cleared",
    "comes_along",
    "common",
    "constant",
    "criterion_maker",
    "criterion_of",
    "cut_source",
    "depends_on_mode",
    "either",
    "exclusive",
    "expected",
    "global_seed",
    "gradients",
    "graph_of",
    "has_more_arguments",
    "has_state",
    "identity",
    "is_accelerator",
    "is_asked_for_replica",
    "is_backward",
    "is_clearing",
    "is_clip",
    "is_counting",
    "is_cut",
    "is_engine",
    "is_engine_step",
    "is_fabric",
    "is_forward",
    "is_known_harmless",
    "is_lightning_module",
    "is_loaded",
    "is_loader_call",
    "is_managed",
    "is_measuring",
    "is_model",
    "is_optimizer",
    "is_out_of_order",
    "is_output_of",
    "is_replica",
    "is_scaled_backward",
    "is_scaler",
    "is_scheduler",
    "is_scheduler_call",
    "is_scheduler_step",
    "is_unscale",
    "layers",
    "layers_of",
    "loader_passes",
    "loaders_behind",
    "loops_of",
    "loss_of",
    "made_by",
    "maker",
    "may_do_anything",
    "may_set_gradients",
    "may_switch",
    "may_switch_out_of_sight",
    "may_use_gradients",
    "mixed_gradients",
    "only_statement",
    "options",
    "origins",
    "predicted",
    "random_stream",
    "replicas",
    "same",
    "samplers_of",
    "spelling",
    "start_of",
    "stepped_optimizer",
    "switch_of",
    "together",
    "trailing",
    "trained_forwards",
    "trains",
    "trains_automatically",
    "unclaimed",
    "unwrapped",
]
