"""The updates of a run, so that micro-batches can be compared with one batch of their size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import dropwhile
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from pytest_trainloop.runtime.ahead import Delivery, places_of_use
from pytest_trainloop.runtime.calls import tensors_in
from pytest_trainloop.runtime.drive import StopAfter
from pytest_trainloop.runtime.fingerprint import Digest, digest, rng_digests
from pytest_trainloop.runtime.record import Backward, Batch, Clearing

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from pytest_trainloop.runtime.observe import Observer
    from pytest_trainloop.runtime.record import Step

#: Updates of each optimizer whose gradients are kept.
_KEPT = 3
#: What drops values by chance, in `torch.nn.functional`.
_DROPOUTS = (
    *("dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("alpha_dropout", "feature_alpha_dropout"),
)


@dataclass(frozen=True, slots=True)
class Accumulation:
    """How a loop shall make an update: of so many micro-batches, each of so many samples."""

    steps: int = 4
    batch_size: int = 2


@dataclass(slots=True)
class Update:
    """A step of an optimizer, and what it was made of."""

    #: The optimizer, as an index into `Run.optimizers`.
    optimizer: int
    where: str
    #: How many backward calls its gradients come from.
    backwards: int
    loss: float | None
    learning_rates: tuple[float, ...]
    #: How many events there were before it.
    position: int
    #: Whether random numbers were drawn between a batch and its backward.
    drew: bool
    #: How many of its backward calls but the first found no gradient to add to, and where the
    #: loop cleared them last between two of the calls; empty if that was not seen.
    restarts: int
    cleared: str
    #: The samples that data loaders delivered for it; known when the run has ended.
    samples: tuple[Digest, ...] = ()
    #: Norm before the gradients were clipped; None if they were not.
    clipped_from: float | None = None
    #: By name, for the first updates: the gradients, and the weights before and after.
    gradients: dict[str, Tensor] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)


class TakeUpdates(StopAfter):
    """Collects the updates of a run, without the dropout, and stops it after so many steps.

    Dropout draws one mask for each batch, so it is left out: micro-batches could not equal one
    batch of their size with it.
    """

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self.updates: list[Update] = []
        #: Whether some of the loop computes in half the precision.
        self.half_precision = False
        #: The weights that were known at the first backward, by name.
        self.start: dict[str, Tensor] = {}
        self._deliveries: list[Delivery] = []
        self._rng: dict[str, Digest] | None = None
        self._drew = False
        #: Whether each backward call found a gradient, since the last step and before it.
        self._found: list[bool] = []
        self._used: list[bool] = []
        self._calls = 0
        self._begun = False
        self._norm: float | None = None

    def begin(self, observer: Observer) -> None:
        """Replace dropout by nothing, and look at what autocast and clipping are given."""
        import torch
        from torch.amp import autocast_mode
        from torch.nn import functional
        from torch.nn.utils import clip_grad

        super().begin(observer)
        for name in _DROPOUTS:
            observer.patches.replace(functional, name, _keep_all)
        attention = "scaled_dot_product_attention"
        observer.patches.replace(functional, attention, _attend_to_all)
        observer.patches.replace(autocast_mode.autocast, "__enter__", self._see_autocast)
        observer.patches.replace(clip_grad, "_clip_grads_with_norm_", self._see_clip)
        self._half = (torch.float16, torch.bfloat16)

    def deliver(self, loader: int, batch: Any) -> Any:
        """Take the fingerprint of each sample."""
        events = [] if self.run is None else self.run.events
        delivered = events[-1] if events else None
        if isinstance(delivered, Batch) and delivered.grad_enabled:
            first = next((one for one in tensors_in(batch) if one.ndim), None)
            samples = tuple(map(digest, () if first is None else first))
            self._deliveries.append(Delivery(delivered, len(events) - 1, samples))
        self._rng = rng_digests()
        return batch

    def before_backward(self, backward: Backward) -> None:
        """Note whether the forward drew, and whether there is something to add to."""
        self._drew = self._drew or (self._rng is not None and self._rng != rng_digests())
        self._found.append(any(_is_there(one.grad) for _, one in self._parameters()))
        if not self._begun:
            self._begun = True
            self.start = {name: _copy(one) for name, one in self._parameters()}

    def before_step(self, optimizer: Optimizer, step: Step) -> None:
        """Keep the gradients."""
        update = Update(
            optimizer=step.optimizer,
            where=step.where,
            backwards=0,
            loss=None,
            learning_rates=step.learning_rates,
            position=0 if self.run is None else len(self.run.events),
            drew=self._drew,
            restarts=0,
            cleared="",
            clipped_from=self._norm,
        )
        if step.number <= _KEPT:
            own = self._own(optimizer)
            update.gradients = _gradients(own)
            update.before = {name: _copy(one) for name, one in own.items()}
            dtypes = {one.dtype for one in (*update.gradients.values(), *update.before.values())}
            self.half_precision = self.half_precision or not dtypes.isdisjoint(self._half)
        self._calls = len(self._found)
        self.updates.append(update)

    def after_step(self, optimizer: Optimizer, step: Step) -> None:
        """Add what a closure computes in the middle of the step, and what came out."""
        __tracebackhide__ = True
        update = self.updates[-1]
        # Optimizers that step one after the other use the same gradients.
        self._found = self._found or self._used
        update.backwards = len(self._found) if step.counted is None else step.counted
        update.restarts = self._found[1:].count(False)
        update.loss = step.loss
        update.cleared = self._cleared()
        if step.number <= _KEPT:
            own = self._own(optimizer)
            update.after = {name: _copy(one) for name, one in own.items()}
            if len(self._found) > self._calls:
                # A closure made them inside of the step.
                update.gradients = _gradients(own)
        self._used, self._found = self._found, []
        self._drew = False
        self._norm = None
        super().after_step(optimizer, step)

    def end(self) -> None:
        """Tell which samples each update is made of, now that all uses are known."""
        begin = 0
        places = places_of_use([] if self.run is None else self.run.events, self._deliveries)
        used = list(zip(self._deliveries, places, strict=True))
        for update in self.updates:
            own = [one for one, place in used if begin <= place < update.position]
            update.samples = tuple(sample for one in own for sample in one.samples)
            begin = update.position

    def _parameters(self) -> list[tuple[str, Tensor]]:
        return [] if self._observer is None else list(self._observer.people.named_tensors())

    def _own(self, optimizer: Optimizer) -> dict[str, Tensor]:
        held = {id(one) for group in optimizer.param_groups for one in group["params"]}
        return {name: one for name, one in self._parameters() if id(one) in held}

    def _cleared(self) -> str:
        """Where gradients were cleared last, between two of the latest backward calls."""
        latest: list[object] = []
        calls = 0
        for event in reversed([] if self.run is None else self.run.events):
            calls += isinstance(event, Backward)
            if calls >= len(self._found):
                break
            latest.append(event)
        between = dropwhile(lambda event: not isinstance(event, Backward), latest)
        return next((one.where for one in between if isinstance(one, Clearing)), "")

    def _see_autocast(self, original: Callable[..., Any]) -> FunctionType:
        def __enter__(autocast: Any) -> Any:  # noqa: N807
            __tracebackhide__ = True
            half = autocast._enabled and autocast.fast_dtype in self._half
            self.half_precision = self.half_precision or half
            return original(autocast)

        return cast("FunctionType", __enter__)

    def _see_clip(self, original: Callable[..., Any]) -> FunctionType:
        def _clip_grads_with_norm_(parameters: Any, max_norm: Any, total: Any, *rest: Any) -> Any:
            __tracebackhide__ = True
            self._norm = float(total)
            return original(parameters, max_norm, total, *rest)

        return cast("FunctionType", _clip_grads_with_norm_)


def _keep_all(_: Callable[..., Any]) -> FunctionType:
    def dropout(input: Any, *_: Any, **__: Any) -> Any:  # noqa: A002  # as torch calls it
        return input

    return cast("FunctionType", dropout)


def _attend_to_all(original: Callable[..., Any]) -> FunctionType:
    def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        # Query, key, value and mask come before the rate.
        if len(args) > 4:  # noqa: PLR2004  # as said
            return original(*args[:4], 0.0, *args[5:], **kwargs)
        return original(*args, **{**kwargs, "dropout_p": 0.0})

    return cast("FunctionType", scaled_dot_product_attention)


def _is_there(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.detach().to_dense().count_nonzero())


def _gradients(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: _copy(one.grad) for name, one in parameters.items() if one.grad is not None}


def _copy(tensor: Tensor) -> Tensor:
    plain = tensor.detach()
    return (plain.to_dense() if plain.is_sparse else plain).clone()
