"""The rule `aliased-best-state`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import counted
from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Branch,
    Call,
    Collection,
    Element,
    Event,
    FileFacts,
    Instance,
    Loop,
    Result,
    Return,
    Store,
    Trace,
    TrainingLoop,
    Value,
    is_model,
    loops_of,
    options,
    origins,
    same,
    trained_forwards,
)

if TYPE_CHECKING:
    from pytest_trainloop.rules._rule import Observation
    from pytest_trainloop.runtime.record import Run

_SHALLOW = frozenset({"builtins.dict", "collections.OrderedDict", "copy.copy"})
_BEST = re.compile(r"best|backup|snapshot|saved?_|_saved|prev|initial|init_", re.IGNORECASE)
_PLAIN_NAME = re.compile(r"[A-Za-z_][\w.]*\Z")


class AliasedBestState(Rule):
    """The best weights are kept without a copy, so training goes on changing them.

    Symptom: the "best" model is always the last one; early stopping restores nothing.

    Why: `state_dict()` returns references to the weights, not copies. The optimizer updates
    the weights in place, and whatever was kept is updated with them.

    What torch does: nothing. Its documentation says that the best state must be copied,
    because the references are what saving to a file needs.

    Limits: `.cpu()` makes a copy of weights on a GPU, and none of weights on a CPU: the rule
    is silent there. A run shows a state dict that was not copied when it is loaded back.
    """

    since = "0.1"
    triggers = ("state_dict|best", ".backward(|manual_backward(", "step")
    sources = (
        "https://pytorch.org/tutorials/beginner/saving_loading_models.html",
        "https://github.com/pytorch/tutorials/issues/188",
        "https://github.com/thunlp/OpenKE/issues/131",
        "https://github.com/WenjieDu/PyPOTS/pull/667",
        "https://github.com/zhangj111/astnn/issues/8",
    )
    examples = (
        Bad(
            "the state dict is kept as it is",
            """
            def train(model, loader, optimizer, epochs, validate):
                best = float("inf")
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    loss = validate(model)
                    if loss < best:
                        best = loss
                        best_state = model.state_dict()  # error
                model.load_state_dict(best_state)
            """,
        ),
        Good(
            "the state dict is copied",
            """
            import copy
            import torch.nn.functional as F

            def train(model, loader, optimizer, epochs, validate):
                best = float("inf")
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    loss = validate(model)
                    if loss < best:
                        best = loss
                        best_state = copy.deepcopy(model.state_dict())
                model.load_state_dict(best_state)
            """,
        ),
        Bad(
            "with `copy` at hand, the fix copies",
            """
            import copy
            import torch.nn.functional as F

            def train(model, loader, optimizer, epochs, validate):
                best = float("inf")
                best_state = copy.deepcopy(model.state_dict())
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    loss = validate(model)
                    if loss < best:
                        best = loss
                        best_state = model.state_dict()  # error
                model.load_state_dict(best_state)
            """,
            fixed="""
            import copy
            import torch.nn.functional as F

            def train(model, loader, optimizer, epochs, validate):
                best = float("inf")
                best_state = copy.deepcopy(model.state_dict())
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    loss = validate(model)
                    if loss < best:
                        best = loss
                        best_state = copy.deepcopy(model.state_dict())  # error
                model.load_state_dict(best_state)
            """,
        ),
        Bad(
            "a shallow copy copies the dict, not the weights",
            """
            def train(model, loader, optimizer, epochs, validate):
                best = 0
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    score = validate(model)
                    if score > best:
                        best = score
                        best_state = dict(model.state_dict())  # error
                torch.save(best_state, "best.pt")
            """,
        ),
        Bad(
            "kept in an attribute, beside the epoch",
            """
            import torch

            class Trainer:
                def __init__(self, model, loader):
                    self.model = model
                    self.loader = loader
                    self.optimizer = torch.optim.Adam(model.parameters())
                    self.best = None

                def fit(self, epochs):
                    best_loss = float("inf")
                    for epoch in range(epochs):
                        loss = self.train_epoch()
                        if loss < best_loss:
                            best_loss = loss
                            self.best = {"epoch": epoch, "model": self.model.state_dict()}  # error
                    torch.save(self.best, "best.pt")

                def train_epoch(self):
                    for x, y in self.loader:
                        self.optimizer.zero_grad()
                        loss = torch.nn.functional.mse_loss(self.model(x), y)
                        loss.backward()
                        self.optimizer.step()
                    return loss.item()
            """,
        ),
        Bad(
            "the model itself is kept",
            """
            def train(model, loader, optimizer, epochs, validate):
                best = float("inf")
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    loss = validate(model)
                    if loss < best:
                        best = loss
                        best_model = model  # error
                return best_model
            """,
        ),
        Good(
            "saved at once",
            """
            def train(model, loader, optimizer, epochs, validate):
                best = float("inf")
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    loss = validate(model)
                    if loss < best:
                        best = loss
                        best_state = model.state_dict()
                        torch.save(best_state, "best.pt")
                model.load_state_dict(torch.load("best.pt"))
            """,
        ),
        Good(
            "each tensor is cloned",
            """
            def train(model, loader, optimizer, epochs, validate):
                best = float("inf")
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    loss = validate(model)
                    if loss < best:
                        best = loss
                        best_state = {k: v.cpu().clone() for k, v in model.state_dict().items()}
                model.load_state_dict(best_state)
            """,
        ),
        Good(
            "each tensor goes from the GPU to the CPU",
            """
            def train(model, loader, optimizer, epochs, validate):
                best = float("inf")
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    loss = validate(model)
                    if loss < best:
                        best = loss
                        best_state = {k: v.cpu() for k, v in model.state_dict().items()}
                model.load_state_dict(best_state)
            """,
        ),
        Good(
            "the model is copied",
            """
            from copy import deepcopy
            import torch.nn.functional as F

            def train(model, loader, optimizer, epochs, validate):
                best = float("inf")
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    loss = validate(model)
                    if loss < best:
                        best = loss
                        best_model = deepcopy(model)
                return best_model
            """,
        ),
        Good(
            "a new model for each fold",
            """
            def cross_validate(folds, make_model, epochs):
                best = float("inf")
                for train_set, test_set in folds:
                    model = nn.Linear(8, 2)
                    optimizer = torch.optim.Adam(model.parameters())
                    for epoch in range(epochs):
                        for x, y in train_set:
                            optimizer.zero_grad()
                            F.cross_entropy(model(x), y).backward()
                            optimizer.step()
                    loss = score(model, test_set)
                    if loss < best:
                        best = loss
                        best_model = model
                        best_state = model.state_dict()
                torch.save(best_state, "best.pt")
                return best_model
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for weights that are kept in one turn of a training loop and used after it."""
        for training in file.loops:
            for store in training.trace.stores:
                loop = _kept_across(store, training)
                if loop is not None and _is_lasting(store, loop, training):
                    yield self._report(store, training)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for a model that is given its own weights, long after they were to be kept."""
        from pytest_trainloop.runtime.sightings import StateLoad

        told: set[str] = set()
        for load in run.all(StateLoad):
            if not load.taken or not load.steps or load.where in told:
                continue
            told.add(load.where)
            kept = f"`{load.kept_in}`" if load.kept_in else "the state dict"
            yield self.observation(
                f"loading {kept} puts nothing back: it holds the weights of `{load.model}`"
                f" themselves, not a copy, and {counted(load.steps, 'step')} changed them since",
                "keep a copy when the state is taken: `copy.deepcopy(model.state_dict())`",
                load.where,
                (f"the state dict was taken at {load.taken}",),
            )

    def _report(self, store: Store, training: TrainingLoop) -> Finding:
        step = training.steps[-1].call.text
        kept = store.target
        source = store.value_text
        fix = None
        if _asks_state(store.value) and "copy.deepcopy(" in store.file.text:
            fix = Fix((Edit("replace", store.value_place, f"copy.deepcopy({source})"),), safe=True)
        return self.finding(
            store.value_place,
            f"`{kept}` holds the weights themselves, not a copy: every later `{step}` changes "
            "them too",
            f"keep a copy: `copy.deepcopy({source})`"
            if _PLAIN_NAME.match(source) or _asks_state(store.value)
            else "keep a copy: `copy.deepcopy(...)` of the state dict",
            fix,
        )


def _asks_state(value: Value) -> bool:
    return isinstance(value, Result) and value.call.method == "state_dict"


def _kept_across(store: Store, training: TrainingLoop) -> Loop | None:
    """The loop around the training in one of whose turns, by choice, the binding happens."""
    around = loops_of(training.context)
    within = [loop for loop in loops_of(store.context) if loop in around]
    if not within or store.augmented:
        return None
    at = store.context.index(within[-1])
    chosen = any(isinstance(frame, Branch) for frame in store.context[at:])
    return within[-1] if chosen else None


def _is_lasting(store: Store, loop: Loop, training: TrainingLoop) -> bool:
    """Whether what is kept are the trained weights, and they are used after later updates."""
    for weights in _aliases(store.value):
        if _is_trained(weights.call.receiver, training, loop):
            return _is_used_later(weights, store, loop, training.trace)
    return (
        bool(_BEST.search(store.target.rpartition(".")[2]))
        and bool(_PLAIN_NAME.match(store.value_text))
        and _is_trained(store.value, training, loop)
    )


def _aliases(value: Value) -> Iterator[Result]:
    """The state dicts whose tensors the value holds uncopied."""
    for option in options(value):
        if isinstance(option, Result):
            call = option.call
            if call.method == "state_dict" and call.receiver is not None:
                yield option
            elif call.qualified in _SHALLOW and call.args:
                yield from _aliases(call.args[0])
            elif call.method == "copy" and call.receiver is not None and not call.qualified:
                yield from _aliases(call.receiver)
        elif isinstance(option, Collection) and option.kind in ("dict", "tuple", "list"):
            for item in option.items:
                yield from _aliases(item)
        elif isinstance(option, Collection) and option.kind == "dictcomp":
            if isinstance(option.items[0], Element):
                yield from (
                    o for o in origins(option.items[0]) if isinstance(o, Result) and _asks_state(o)
                )


def _is_trained(model: Value | None, training: TrainingLoop, loop: Loop) -> bool:
    """Whether the training updates the model, and it is the same model in each turn of the loop."""
    if model is None or any(
        isinstance(option, Result | Instance)
        and option.call is not None
        and loop in option.call.context
        for option in options(model)
    ):
        return False
    forwards = trained_forwards(training)
    return is_model(model) and (any(same(call.callee, model) for call in forwards) or not forwards)


def _is_used_later(weights: Result, store: Store, loop: Loop, trace: Trace) -> bool:
    """Whether the kept weights are loaded back, saved or returned after the loop."""
    return any(
        event.index > store.index
        and (loop not in event.context or _loads(event))
        and any(origin is weights for used in _used(event) for origin in origins(used))
        for event in trace.events
    )


def _loads(event: Event) -> bool:
    return isinstance(event, Call) and event.method == "load_state_dict"


def _used(event: Event) -> tuple[Value, ...]:
    if isinstance(event, Return):
        return (event.value,)
    if isinstance(event, Call) and (_loads(event) or event.qualified == "torch.save"):
        return event.args
    return ()
