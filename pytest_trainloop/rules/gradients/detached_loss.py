"""The rule `detached-loss`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import listed, title
from pytest_trainloop.rules._rule import Bad, Finding, Good, Observation, Rule
from pytest_trainloop.source.facts import (
    Backward,
    Call,
    Either,
    Event,
    FileFacts,
    Result,
    Returned,
    Store,
    TrainingLoop,
    Value,
    constant,
    cut_source,
    graph_of,
    is_forward,
    made_by,
    origins,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Optimizer, Parameter, Run

_LOSS = re.compile(
    r"loss|criterion|cross_entropy|^(?:Variable|kl_div|crit|bce|mse|ce)$", re.IGNORECASE
)
_NEW_TENSOR = re.compile(r"^torch\.(?:tensor|Tensor|\w*FloatTensor|DoubleTensor)$")


class DetachedLoss(Rule):
    """The loss is cut from the graph, and then made to look as if it were not.

    Symptom: no error and no learning: the loss is computed, `backward()` runs, the weights
    stay. Where only a part of the loss is cut, only a part of the network learns.

    Why: `torch.tensor(loss)`, `Variable(loss)`, `loss.detach()`, `loss.data` and NumPy copy
    the number and leave behind how it was computed. `backward()` on the copy would raise, but
    `requires_grad=True` makes the copy itself the thing to differentiate: its gradient is 1,
    and the model gets none.

    What torch does: nothing. A leaf that requires a gradient is a legitimate loss.

    Limits: reported only where the copy is back-propagated in sight, and what was copied comes
    from a model or a loss function.
    """

    since = "0.1"
    triggers = (".backward(|manual_backward(", "requires_grad|torch.tensor|Tensor(")
    sources = (
        "https://github.com/bermanmaxim/LovaszSoftmax/issues/28",
        "https://github.com/qianjinhao/circle-loss/issues/4",
        "https://github.com/wangle53/CSA-CDGAN/issues/5",
        "https://pytorch.org/docs/stable/generated/torch.tensor.html",
    )
    examples = (
        Bad(
            "a copy of the loss requires the gradient",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss = torch.tensor(loss, requires_grad=True)  # error
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the loss itself is back-propagated",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "a detached loss is told to require the gradient",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.mse_loss(model(x).detach(), y)
                    loss.requires_grad_(True)  # error
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "by setting the attribute",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    prediction = model(x).argmax(dim=1)
                    loss = F.l1_loss(prediction.float(), y.float())
                    loss.requires_grad = True  # error
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "in the loss function, with the old `Variable`",
            """
            import torch
            from torch import nn
            from torch.autograd import Variable

            class PairLoss(nn.Module):
                def forward(self, features, labels):
                    distance = torch.cdist(features, features).mean()
                    return Variable(distance.data, requires_grad=True)  # error

            def train(model, loader, optimizer):
                criterion = PairLoss()
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = criterion(model(x), y)
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "through NumPy and back",
            """
            def train(model, loader, optimizer, score):
                for x, y in loader:
                    optimizer.zero_grad()
                    value = score(model(x).detach().numpy(), y.numpy())
                    loss = torch.from_numpy(value).requires_grad_()  # error
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "a tensor made of a list of losses is a copy",
            """
            def train(model, loader, optimizer):
                for batches in loader:
                    optimizer.zero_grad()
                    losses = []
                    for x, y in batches:
                        losses.append(F.cross_entropy(model(x), y))
                    first = F.cross_entropy(model(x), y)
                    second = F.mse_loss(model(x), x)
                    total = first + torch.tensor([second]).sum()  # error
                    total.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "adversarial inputs",
            """
            def attack(model, loader, optimizer):
                for x, y in loader:
                    x = x.detach().clone().requires_grad_(True)
                    F.cross_entropy(model(x), y).backward()
                    x = (x + 0.1 * x.grad.sign()).detach()
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "targets, teachers and fakes are detached",
            """
            def train(student, teacher, net_d, loader, optimizer, opt_d):
                for x in loader:
                    target = teacher(x).detach()
                    optimizer.zero_grad()
                    F.mse_loss(student(x), target).backward()
                    optimizer.step()
                    opt_d.zero_grad()
                    net_d(student(x).detach()).mean().backward()
                    opt_d.step()
            """,
        ),
        Good(
            "an image is optimized",
            """
            def paint(model, target, steps):
                image = torch.tensor(target.mean().item()).expand(3, 8, 8).clone().requires_grad_()
                optimizer = torch.optim.LBFGS([image])
                for _ in range(steps):
                    optimizer.zero_grad()
                    loss = F.mse_loss(model(image), target)
                    loss.backward()
                    optimizer.step(lambda: loss)
            """,
        ),
        Good(
            "one vector for each sample is optimized",
            """
            def embed(decoder, samples):
                for x in samples:
                    code = torch.zeros(16, requires_grad=True)
                    optimizer = torch.optim.Adam([code])
                    for _ in range(100):
                        optimizer.zero_grad()
                        F.mse_loss(decoder(code), x).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "asking a loss with a graph to require the gradient changes nothing",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.requires_grad_(True)
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "weights of losses, and losses for the log, are copies on purpose",
            """
            def train(model, loader, optimizer, log):
                for x, y in loader:
                    optimizer.zero_grad()
                    first, second = F.cross_entropy(model(x), y), F.mse_loss(model(x), x)
                    weights = torch.tensor([first, second]).softmax(0)
                    (weights[0] * first + weights[1] * second).backward()
                    optimizer.step()
                    log(torch.tensor([first, second]))
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look at what each backward starts from for copies of what a model computed."""
        for loop in file.loops:
            for backward in loop.backwards:
                if backward.loss is None:
                    continue
                found = [*_made_to_require(loop, backward), *_copied_in_part(backward.loss)]
                for event in found:
                    yield self._report(event, backward.call)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for parts of a model that an optimizer updates and no gradient ever reaches.

        A whole model, or all of its parameters up to the first that the loss depends on: a
        part that the loss merely does not use (a head, an expert) comes after or between others.
        """
        if not run.backwards or _trains_what_no_optimizer_has(run):
            return
        for model, parameters in _by_model(run).items():
            dead = list(takewhile(_gets_nothing, (p for p in parameters if p.trainable)))
            optimizer = _common_optimizer(run, dead)
            if optimizer is None or not any(map(_computes, dead)):
                continue
            # One step shows little: a part may wait for its turn.
            if optimizer.steps < 2:  # noqa: PLR2004  # as said
                continue
            rest = [p.name for p in parameters if p.reached or p.had_gradient]
            names = listed(p.name for p in dead)
            yield self.observation(
                f"no gradient reaches {names}, which {title(optimizer)} is to update",
                "look for `.detach()`, `.data`, `.item()`, `torch.tensor(...)` or `no_grad` between"
                " them and the loss; freeze what is not to learn with `requires_grad_(False)`",
                run.backwards[-1].where,
                (f"the loss depends on `{rest[0]}` and what follows it in `{model}`",)
                if rest
                else (f"the loss depends on no parameter of `{model}`",),
            )

    def _report(self, event: Event, backward: Call) -> Finding:
        return self.finding(
            event.place,
            f"`{event.text}` has no graph, so `{backward.text}` gives the model no gradients "
            "for it",
            "compute the loss with torch operations from the model's output, without "
            "`detach()`, `item()`, `.data`, NumPy or a new tensor in between",
        )


def _made_to_require(loop: TrainingLoop, backward: Backward) -> Iterator[Event]:
    """What makes a loss without a graph require the gradient."""
    loss = backward.loss
    if loss is None:
        return
    chain = list(_chain(loss))
    for event in loop.trace.events:
        if event.index > backward.call.index:
            break
        given = _required(event)
        is_loss = any(given is value for value in chain) or any(
            event is call for value in chain for call in made_by(value)
        )
        if given is not None and is_loss and _is_copy_of_computed(given, event):
            yield event


def _chain(loss: Value, depth: int = 4) -> Iterator[Value]:
    """The loss, and what it is only a wrapping, a mean or a sum of."""
    yield loss
    if isinstance(loss, Returned):
        yield from _chain(loss.value, depth)
    elif isinstance(loss, Either):
        for option in loss.options:
            yield from _chain(option, depth)
    elif isinstance(loss, Result) and loss.call.method in ("mean", "sum", "to", "cuda") and depth:
        for given in loss.call.inputs[:1]:
            yield from _chain(given, depth - 1)


def _required(event: Event) -> Value | None:
    """What an event makes require the gradient."""
    if isinstance(event, Store):
        is_flag = event.kind == "attribute" and event.target.endswith(".requires_grad")
        return event.owner if is_flag and constant(event.value) is True else None
    if not isinstance(event, Call):
        return None
    if event.method == "requires_grad_":
        given = event.argument(0, "requires_grad")
        return event.receiver if given is None or constant(given) is True else None
    if (
        event.qualified.startswith("torch.")
        and constant(event.keywords.get("requires_grad")) is True
    ):
        return event.argument(0, "data")
    return None


def _is_copy_of_computed(given: Value, event: Event) -> bool:
    """Whether something that was computed has lost its graph."""
    copies = isinstance(event, Call) and event.method != "requires_grad_"
    behind = () if copies else graph_of(given).reached
    if any(_is_computed(value) and _is_learned(value) for value in behind):
        return False
    return any(_is_learned(value) for value in origins(given))


def _is_computed(value: Value) -> bool:
    return isinstance(value, Result | Returned)


def _is_learned(value: Value) -> bool:
    """Whether the value came out of a model."""
    return any(is_forward(call) for call in made_by(value))


def _copied_in_part(loss: Value) -> Iterator[Event]:
    """New tensors that hold losses which the loss holds nowhere else."""
    graph = graph_of(loss)
    for cut in graph.cuts:
        if not isinstance(cut, Result) or not _NEW_TENSOR.match(cut.call.qualified):
            continue
        if constant(cut.call.keywords.get("requires_grad")) is True:
            continue
        source = cut_source(cut)
        losses = _losses_in(graph_of(source).reached) if source is not None else []
        if losses and not any(value is other for value in losses for other in graph.reached):
            yield cut.call


def _losses_in(values: Iterable[Value]) -> list[Value]:
    return [
        value
        for value in values
        if any(_LOSS.search(call.method) for call in made_by(value))
        and any(_is_learned(origin) for origin in graph_of(value, 100).reached)
    ]


def _by_model(run: Run) -> dict[str, list[Parameter]]:
    models: dict[str, list[Parameter]] = {}
    for parameter in run.parameters:
        if parameter.model is not None:
            models.setdefault(parameter.model, []).append(parameter)
    return models


def _gets_nothing(parameter: Parameter) -> bool:
    """Whether an optimizer has it, but no step of it ever had a gradient for it."""
    return (
        bool(parameter.optimizers)
        and parameter.moved is False
        and not parameter.reached
        and not parameter.had_gradient
    )


def _common_optimizer(run: Run, parameters: list[Parameter]) -> Optimizer | None:
    if not parameters:
        return None
    return run.optimizers[parameters[0].optimizers[0]]


def _trains_what_no_optimizer_has(run: Run) -> bool:
    """Whether the loss depends on parameters that nobody updates: the optimizer is at fault."""
    return any(
        p.reached and p.trainable and not p.optimizers and p.moved is False for p in run.parameters
    )


def _computes(parameter: Parameter) -> bool:
    """Whether it is a matrix that inputs are multiplied with; an embedding may go unused."""
    matrix = 2
    return len(parameter.shape) >= matrix and "Embed" not in str(parameter.module)
