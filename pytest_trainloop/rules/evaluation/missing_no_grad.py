"""The rule `missing-no-grad`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import counted
from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Observation, Rule
from pytest_trainloop.source.facts import (
    Branch,
    Call,
    Context,
    FileFacts,
    Inside,
    Place,
    Result,
    Return,
    Returned,
    Store,
    Trace,
    Value,
    constant,
    exclusive,
    gradients,
    is_backward,
    is_optimizer,
    loops_of,
    options,
    origins,
    same,
    stepped_optimizer,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run
    from pytest_trainloop.runtime.sightings import Evaluation

#: Words of code that evaluates and still needs gradients.
_NEEDS_GRADIENTS = re.compile(
    r"attack|advers|pgd|fgsm|saliency|grad_?cam|influence|energy|force|hessian|jacob|langevin"
    r"|invert|inversion|attribut|deepdream|autograd|functorch|higher",
    re.IGNORECASE,
)
#: A module that switches itself, and a name in a docstring.
_NO_SWITCH = re.compile(r"(?:^|[^\w.])self$|`[\w.]*$")
#: How many values back a graph is traced.
_FARTHEST = 300
_GRADIENT_CALLS = frozenset(
    {"grad", "requires_grad_", "retain_grad", "set_grad_enabled", "enable_grad"}
)
#: Functions whose results carry no graph; numpy refuses a tensor with one.
_WITHOUT_GRAPH = re.compile(r"numpy\.|builtins\.(?:len|float|int|bool|str)$")


class MissingNoGrad(Rule):
    """An evaluation builds the graph for a backward that never comes.

    Symptom: evaluating needs as much memory as training, so the first validation runs out of
    memory at a batch size that trained well; it is slower too.

    Why: outside `torch.no_grad()` every operation on a parameter records what `backward()`
    would need. `model.eval()` does not change that: it switches dropout and batch
    normalisation, not gradients.

    What torch does: nothing. An output with a graph is as good as one without.

    Limits: an evaluation is reported where its callers are in sight, or where it switches the
    model to eval mode itself and loops. Evaluations that take gradients on purpose (attacks,
    saliency, forces from energies) are not.
    """

    since = "0.1"
    triggers = (".eval(|.train(False|.backward(|manual_backward(",)
    sources = (
        "https://pytorch.org/docs/stable/notes/autograd.html#locally-disabling-gradient-computation",
        "https://github.com/hszhao/semseg/issues/60",
        "https://github.com/skorch-dev/skorch/issues/218",
        "https://github.com/OpenNMT/OpenNMT-py/issues/1141",
        "https://github.com/facebookresearch/fairchem/issues/199",
    )
    examples = (
        Bad(
            "eval mode alone",
            """
            def validate(model, loader):
                model.eval()
                correct = 0
                for x, y in loader:
                    output = model(x)  # error
                    correct += (output.argmax(1) == y).sum().item()
                model.train()
                return correct
            """,
            fixed="""
            @torch.no_grad()
            def validate(model, loader):
                model.eval()
                correct = 0
                for x, y in loader:
                    output = model(x)  # error
                    correct += (output.argmax(1) == y).sum().item()
                model.train()
                return correct
            """,
        ),
        Good(
            "eval mode and no_grad",
            """
            @torch.no_grad()
            def validate(model, loader):
                model.eval()
                correct = 0
                for x, y in loader:
                    output = model(x)
                    correct += (output.argmax(1) == y).sum().item()
                model.train()
                return correct
            """,
        ),
        Bad(
            "inline, inside the training loop",
            """
            def main(model, loader, optimizer, test_x, test_y):
                for step, (x, y) in enumerate(loader):
                    loss = F.cross_entropy(model(x), y)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    if step % 50 == 0:
                        output = model(test_x)  # error
                        print((output.argmax(1) == test_y).float().mean().item())
            """,
        ),
        Bad(
            "a loss for the report",
            """
            def validate(model, loader, criterion):
                model.eval()
                losses = 0
                for x, y in loader:
                    loss = criterion(model(x), y)  # error
                    losses += loss.item()
                return losses / len(loader)

            def main(model, loader, criterion, optimizer):
                for epoch in range(10):
                    model.train()
                    for x, y in loader:
                        optimizer.zero_grad()
                        criterion(model(x), y).backward()
                        optimizer.step()
                    print(validate(model, loader, criterion))
            """,
        ),
        Bad(
            "another model is frozen, not this one",
            """
            import torch
            from torch.nn import functional as F

            def train(model, teacher, loader, val_loader, epochs):
                for p in teacher.parameters():
                    p.requires_grad = False
                optimizer = torch.optim.Adam(model.parameters())
                for epoch in range(epochs):
                    model.train()
                    for x, _ in loader:
                        optimizer.zero_grad()
                        F.mse_loss(model(x), teacher(x)).backward()
                        optimizer.step()
                    model.eval()
                    for x, y in val_loader:
                        print((model(x).argmax(1) == y).sum())  # error
            """,
        ),
        Good(
            "the caller holds no_grad",
            """
            def validate(model, loader, criterion):
                model.eval()
                losses = 0
                for x, y in loader:
                    losses += criterion(model(x), y).item()
                return losses / len(loader)

            def main(model, loader, criterion):
                with torch.no_grad():
                    print(validate(model, loader, criterion))
            """,
        ),
        Bad(
            "the function that trains is handed to what starts it",
            """
            import torch
            import torch.multiprocessing as mp

            def evaluate(model, loader):
                model.eval()
                correct = 0
                for x, y in loader:
                    correct += (model(x).argmax(1) == y).sum().item()  # error
                return correct

            def main(rank, train_loader, val_loader):
                model = torch.nn.Linear(8, 2)
                optimizer = torch.optim.Adam(model.parameters())
                for epoch in range(10):
                    model.train()
                    for x, y in train_loader:
                        optimizer.zero_grad()
                        torch.nn.functional.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    print(evaluate(model, val_loader))

            mp.spawn(main, nprocs=2)
            """,
        ),
        Good(
            "an evaluation is handed to what may switch gradients off",
            """
            import torch
            from engines import Engine

            model = torch.nn.Linear(8, 2)

            def evaluate(engine, loader):
                model.eval()
                return [model(x).argmax(1).item() for x, y in loader]

            def train(engine, loader):
                for x, y in loader:
                    torch.nn.functional.cross_entropy(model(x), y).backward()

            Engine(train)
            Engine(evaluate)
            """,
        ),
        Bad(
            "what is kept of the results are numbers of numpy",
            """
            import numpy as np
            import torch

            def evaluate(model, loader, report):
                model.eval()
                for x in loader:
                    results = {"all": model(x)}  # error
                    report.names = np.unique(list(results.keys()))
            """,
        ),
        Good(
            "the results are kept, and may be used for gradients",
            """
            import torch

            def evaluate(model, loader, report):
                model.eval()
                for x in loader:
                    results = {"all": model(x)}
                    report.results = list(results.values())
            """,
        ),
        Good(
            "one body for training and evaluation",
            """
            def run(model, loader, criterion, optimizer, training):
                model.train(training)
                with torch.set_grad_enabled(training):
                    for x, y in loader:
                        loss = criterion(model(x), y)
                        if training:
                            optimizer.zero_grad()
                            loss.backward()
                            optimizer.step()
            """,
        ),
        Good(
            "two context managers in one with",
            """
            def validate(model, loader):
                model.eval()
                for x, y in loader:
                    with torch.inference_mode(), torch.autocast("cuda"):
                        print(model(x))
            """,
        ),
        Good(
            "a helper that switches mode and gradients",
            """
            import contextlib
            import torch

            @contextlib.contextmanager
            def evaluating(model):
                model.eval()
                with torch.no_grad():
                    yield
                model.train()

            def validate(model, loader):
                with evaluating(model):
                    for x, y in loader:
                        print(model(x))
            """,
        ),
        Good(
            "adversarial evaluation needs the gradient of the input",
            """
            def attack(model, x, y):
                delta = torch.zeros_like(x, requires_grad=True)
                F.cross_entropy(model(x + delta), y).backward()
                return delta.grad.sign()

            def evaluate_robustness(model, loader):
                model.eval()
                for x, y in loader:
                    output = model(x + 0.1 * attack(model, x, y))
                    print((output.argmax(1) == y).sum().item())
            """,
        ),
        Good(
            "forces are gradients of the energy",
            """
            def validate(model, loader):
                model.eval()
                for positions, forces in loader:
                    positions.requires_grad_(True)
                    energy = model(positions)
                    predicted = -torch.autograd.grad(energy.sum(), positions)[0]
                    print((predicted - forces).abs().mean().item())
            """,
        ),
        Good(
            "the model's parameters are frozen",
            """
            def extract(model, loader):
                model.eval()
                model.requires_grad_(False)
                for x in loader:
                    print(model(x))
            """,
        ),
        Good(
            "gradients are off for the whole script",
            """
            import torch
            from models import build

            torch.set_grad_enabled(False)
            model = build().eval()
            for path in ["a.png", "b.png"]:
                print(model(path))
            """,
        ),
        Good(
            "a teacher in eval mode inside the graph of a student",
            """
            def train(student, teacher, loader, optimizer):
                teacher.eval()
                for x, y in loader:
                    target = teacher(x)
                    loss = F.mse_loss(student(x), target.detach())
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "Lightning switches gradients off by itself",
            """
            import lightning as L

            class Lit(L.LightningModule):
                def validation_step(self, batch, batch_idx):
                    x, y = batch
                    self.log("val_loss", self.criterion(self.net(x), y))
            """,
        ),
        Good(
            "fine-tuning with the model in eval mode on purpose",
            """
            def train(model, loader, optimizer):
                model.eval()
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Yield what switches a model or computes gradients, but for what is only spoken of."""
        return (at for at in super().seek(text) if not _NO_SWITCH.search(text, max(at - 40, 0), at))

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for forwards with gradients on whose results no backward ever uses."""
        silent = _places_without_gradients(file)
        for trace in file.traces:
            if _takes_gradients_elsewhere(trace):
                continue
            reported: list[Context] = []
            trained = _trained_forwards(trace, file.forwards(trace))
            for call in file.forwards(trace):
                if _is_evaluation(trace, call, trained) and call.place not in silent:
                    region = call.context[: _depth_of_function(call.context)]
                    if not any(region == known for known in reported):
                        reported.append(region)
                        yield self._report(call)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for outputs in eval mode that were dropped, graph and all, one after the other."""
        between: dict[tuple[int, int, str], list[Evaluation]] = {}
        for look in run.evaluations:
            for model in look.unused_graphs:
                between.setdefault((look.backwards, *model), []).append(look)
        for (_, number, name), looks in between.items():
            unused = sum(look.unused_graphs[number, name] for look in looks)
            # One alone may be a target that is detached, as may one of each of two critics.
            if unused < 2:  # noqa: PLR2004  # as said
                continue
            yield self.observation(
                f"`{name}` is evaluated with gradients: {counted(unused, 'graph')} built and"
                " dropped without a backward",
                "put the evaluation under `torch.no_grad()` or `torch.inference_mode()`",
                looks[0].where,
            )
            return

    def _report(self, call: Call) -> Finding:
        function = _function_of(call.context)
        name = f"`{function.function.name}`" if function is not None else "this evaluation"
        fix = None
        if function is not None and not _trains(function, call):
            fix = Fix((Edit("decorate", function.function.place, "@torch.no_grad()"),), safe=False)
        return self.finding(
            call.place,
            f"`{call.text}` builds a graph in {name} that no backward uses",
            "evaluate under `with torch.no_grad():`",
            fix,
        )


def _places_without_gradients(file: FileFacts) -> set[Place]:
    """Forwards that some caller in sight runs without gradients, so that others may be meant to."""
    return {
        call.place
        for trace in file.traces
        for call in file.forwards(trace)
        if gradients(call.context) is not True
    }


def _takes_gradients_elsewhere(trace: Trace) -> bool:
    """Whether gradients are switched by a statement, so that frames do not tell the state."""
    return any(call.method == "set_grad_enabled" and call.discarded for call in trace.calls)


def _is_evaluation(trace: Trace, call: Call, trained: tuple[Call, ...]) -> bool:
    if gradients(call.context) is not True or call.discarded:
        return False
    if _inside_a_module(call.context) or _is_handed(call.context, trace):
        return False
    if not (_in_eval_mode(trace, call, trained) or _is_a_probe(call, trained)):
        return False
    return not (
        _is_used_for_gradients(trace, call)
        or _needs_gradients(trace, call)
        or (_is_frozen(trace, call) and not _is_optimized(trace, call.callee))
    )


def _inside_a_module(context: Context) -> bool:
    return any(
        isinstance(frame, Inside)
        and frame.function.owner is not None
        and frame.function.owner.is_module
        for frame in context
    )


def _is_handed(context: Context, trace: Trace) -> bool:
    """Whether code out of sight drives the function, and may switch gradients off around it.

    It does not where the function trains: `mp.spawn(main)`, `fabric.launch(main)`.
    """
    return any(
        isinstance(frame, Inside) and frame.handed and not _is_trained_in(frame, trace)
        for frame in context
    )


def _is_trained_in(frame: Inside, trace: Trace) -> bool:
    return any(is_backward(call) for call in trace.calls if frame in call.context)


def _in_eval_mode(trace: Trace, call: Call, trained: tuple[Call, ...]) -> bool:
    """Whether the model was last switched to eval mode, in a loop or a function in sight."""
    last: Call | None = None
    for event in trace.calls:
        if event.index >= call.index:
            break
        if event.method in ("eval", "train") and event.receiver is not None and not event.qualified:
            if same(event.receiver, call.callee) and not exclusive(event.context, call.context):
                last = event
    if last is None or (last.method == "train" and constant(last.argument(0, "mode")) is not False):
        return False
    # A single prediction, outside of any loop, only where the model is trained in sight.
    return bool(loops_of(call.context)) or any(same(one.callee, call.callee) for one in trained)


def _is_a_probe(call: Call, trained: tuple[Call, ...]) -> bool:
    """Whether the model is in training around the call, and this forward is beside it, on a branch.

    The guard (`if step % 50 == 0`) tells it from a loss term that is built elsewhere.
    """
    if not loops_of(call.context):
        return False
    loop = loops_of(call.context)[-1]
    at = call.context.index(loop)
    guarded = any(isinstance(frame, Branch) for frame in call.context[at + 1 :])
    return guarded and any(
        other is not call and loop in other.context and same(other.callee, call.callee)
        for other in trained
    )


def _trained_forwards(trace: Trace, forwards: tuple[Call, ...]) -> tuple[Call, ...]:
    """The forwards whose results some backward uses."""
    used = {
        id(part.call)
        for backward in trace.calls
        if is_backward(backward)
        for given in backward.inputs
        for part in origins(given)
        if isinstance(part, Result | Returned)
    }
    return tuple(call for call in forwards if id(call) in used)


def _made_by(value: Value, call: Call) -> bool:
    return getattr(value, "call", None) is call


def _is_used_for_gradients(trace: Trace, call: Call) -> bool:
    """Whether the result reaches a backward or a gradient, or leaves for where one may be."""
    for event in trace.events:
        if isinstance(event, Call) and event.index > call.index:
            if is_backward(event) or event.method in _GRADIENT_CALLS:
                if any(_made_by(part, call) for given in event.inputs for part in origins(given)):
                    return True
        if isinstance(event, Return) and event.index > call.index and _leaves(event, trace):
            if any(_made_by(part, call) for part in _attached_origins(event.value)):
                return True
        if isinstance(event, Store) and event.index > call.index and event.kind == "attribute":
            if any(_made_by(part, call) for part in _attached_origins(event.value)):
                return True
    return False


def _attached_origins(value: Value) -> Iterator[Value]:
    """What a value was made from, as far as the graph reaches: numbers have none."""
    cut = ("item", "detach", "argmax", "numpy", "tolist", "cpu_numpy", "data")
    queue = [value]
    seen: set[int] = set()
    for current in queue:
        if id(current) in seen or len(seen) > _FARTHEST:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, Result) and (
            current.call.method in cut or _WITHOUT_GRAPH.match(current.call.qualified)
        ):
            continue
        if getattr(current, "name", "") in cut:
            continue
        queue.extend(current.parts())


def _leaves(event: Return, trace: Trace) -> bool:
    """Whether the return goes to a caller out of sight."""
    functions = [frame for frame in event.context if isinstance(frame, Inside)]
    return trace.entry is not None and len(functions) == 1


def _needs_gradients(trace: Trace, call: Call) -> bool:
    """Whether the function around the call, or what it calls, works with gradients of inputs."""
    function = _function_of(call.context)
    if function is not None and _NEEDS_GRADIENTS.search(function.function.name):
        return True
    if any(_asks_for_gradients(part) for given in call.args for part in origins(given)):
        return True
    depth = _depth_of_function(call.context)
    for event in trace.inside(call.context[:depth]) if function is not None else ():
        if isinstance(event, Call):
            if event.method in _GRADIENT_CALLS or _NEEDS_GRADIENTS.search(event.name):
                return True
            given = event.keywords.get("requires_grad")
            if given is not None and constant(given) is not False:
                return True
            if function is not None and is_backward(event) and not _is_training(trace, event):
                return True
        if isinstance(event, Store) and event.target.endswith(".requires_grad"):
            if constant(event.value) is not False:
                return True
    return False


def _asks_for_gradients(value: Value) -> bool:
    """Whether a value was made so that gradients reach it."""
    if not isinstance(value, Result):
        return False
    given = value.call.keywords.get("requires_grad")
    return value.call.method == "requires_grad_" or (
        given is not None and constant(given) is not False
    )


def _is_training(trace: Trace, backward: Call) -> bool:
    """Whether some optimizer is stepped in the function that back-propagates."""
    depth = _depth_of_function(backward.context)
    return any(
        isinstance(event, Call) and stepped_optimizer(event) is not None
        for event in trace.inside(backward.context[:depth])
    )


def _is_frozen(trace: Trace, call: Call) -> bool:
    """Whether the model's parameters take no gradients."""
    for event in trace.calls:
        if event.method == "requires_grad_" and event.receiver is not None:
            if same(event.receiver, call.callee) or not options(event.receiver):
                return True
        if event.method in ("freeze", "load", "jit_load") and event.qualified.startswith(
            "torch.jit"
        ):
            return True
    return any(store.target.endswith(".requires_grad") for store in trace.stores)


def _is_optimized(trace: Trace, model: Value) -> bool:
    """Whether an optimizer in sight is given the model's parameters: not all are frozen."""
    return any(
        isinstance(part, Result)
        and part.call.method in ("parameters", "named_parameters")
        and part.call.receiver is not None
        and same(part.call.receiver, model)
        for call in trace.calls
        if call.args and is_optimizer(Result(call))
        for part in origins(call.args[0], 60)
    )


def _function_of(context: Context) -> Inside | None:
    for frame in reversed(context):
        if isinstance(frame, Inside):
            return frame
    return None


def _depth_of_function(context: Context) -> int:
    for depth in range(len(context), 0, -1):
        if isinstance(context[depth - 1], Inside):
            return depth
    return 0


def _trains(function: Inside, call: Call) -> bool:
    """Whether the function that would be decorated also trains; told by its words."""
    return "backward" in function.function.identifiers or call.file is not function.file
