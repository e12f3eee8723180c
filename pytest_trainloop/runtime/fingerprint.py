"""Fingerprints of a run, step by step, so that two runs can be compared bit for bit.

Taken only where runs are compared: they read every weight. A `StepPrint` is plain data; two
of them are equal exactly where the runs were.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_trainloop.runtime.live_modules import collect_garbage
from pytest_trainloop.runtime.models import LiveModel, live_models
from pytest_trainloop.runtime.observe import Listener
from pytest_trainloop.runtime.record import Batch
from pytest_trainloop.runtime.seed import take_states

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from pytest_trainloop.runtime.observe import Observer
    from pytest_trainloop.runtime.record import Step

#: Values kept of each parameter, to tell how far apart two sets of weights are.
_SAMPLE = 16
Digest = bytes


@dataclass(slots=True)
class StepPrint:
    """All that a training step depends on, and its loss, just before the weights change."""

    #: The step's number among those of its optimizer, and that optimizer.
    number: int
    optimizer: str
    #: `path:line` of the call in the user's code.
    where: str
    #: Which pass over its data loader the latest batch for training was of.
    epoch: int
    loss: float | None
    learning_rates: tuple[float, ...]
    weights: dict[str, Digest]
    buffers: dict[str, Digest]
    #: By the name of the value (`exp_avg`): one digest for all parameters of the optimizer.
    state: dict[str, Digest]
    #: How often the optimizer has stepped according to its own state; None if it keeps no count.
    state_steps: float | None
    gradients: dict[str, Digest]
    #: What data loaders delivered since the step before.
    batches: tuple[Digest, ...]
    #: The state of the global generators: `torch`, `numpy`, `python`, `cuda:0`.
    rng: dict[str, Digest]
    #: Scale and growth count of each `GradScaler`.
    scalers: tuple[tuple[float, float], ...]
    #: Models that nobody trains (an average of the weights): parameters and buffers.
    other_models: dict[str, Digest]
    #: A few values of each weight.
    sample: tuple[float, ...]


@dataclass
class RunPrint:
    """The fingerprints of a run."""

    steps: list[StepPrint] = field(default_factory=list)
    #: Weights when the run ended.
    final_weights: dict[str, Digest] = field(default_factory=dict)
    #: After how many training steps something was written to the checkpoint folder.
    saved_after: list[int] = field(default_factory=list)
    #: After how many training steps a data loader had no more batches, or was begun anew.
    epoch_ends: list[int] = field(default_factory=list)
    #: Training steps: those of the optimizer that made the most.
    made: int = 0


class TakeFingerprints(Listener):
    """Takes the fingerprints of a run, and notes when its checkpoint folder changes.

    Made before the body's fixtures are, so that it can tell models of this run from those
    that other tests left behind.
    """

    def __init__(self, folder: Path) -> None:
        self.prints = RunPrint()
        self._folder = folder
        self._files = _listing(folder)
        self._batches: list[Digest] = []
        self._pass = 0
        collect_garbage()
        self._before = weakref.WeakSet(
            root for model in live_models() if (root := model.ref()) is not None
        )
        self._others: list[LiveModel] | None = None
        self._observer: Observer | None = None

    def begin(self, observer: Observer) -> None:
        """Remember whom to ask for parameters."""
        self._observer = observer

    def deliver(self, loader: int, batch: Any) -> Any:
        """Take the fingerprint of a batch."""
        self._batches.append(digest_of(batch))
        delivered = self._observer.run.events[-1] if self._observer is not None else None
        if isinstance(delivered, Batch) and delivered.grad_enabled:
            # Not every loop asks a loader for more than its last batch.
            self._pass = delivered.epoch
            if delivered.number == 0:
                self.prints.epoch_ends.append(self.prints.made)
        return batch

    def epoch_ended(self, loader: int) -> None:
        """Note that a pass over the data is over."""
        self.prints.epoch_ends.append(self.prints.made)

    def before_step(self, optimizer: Optimizer, step: Step) -> None:
        """Take the fingerprint of a step."""
        self._note_saving()
        print_ = self._take(optimizer, step)
        self._batches.clear()
        self.prints.steps.append(print_)

    def after_step(self, optimizer: Optimizer, step: Step) -> None:
        """Add the loss, which a closure computes in the middle of the step."""
        self.prints.steps[-1].loss = step.loss
        self.prints.made = max(self.prints.made, step.number)

    def end(self) -> None:
        """Take the fingerprint of the weights that the run ended with."""
        self._note_saving()
        self.prints.final_weights = dict(self._weights())

    def _note_saving(self) -> None:
        files = _listing(self._folder)
        if files != self._files:
            self._files = files
            self.prints.saved_after.append(self.prints.made)

    def _weights(self) -> Iterator[tuple[str, Digest]]:
        for name, tensor in self._parameters():
            yield name, digest(tensor)

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        if self._observer is not None:
            yield from self._observer.people.named_tensors()

    def _take(self, optimizer: Optimizer, step: Step) -> StepPrint:
        parameters = list(self._parameters())
        states = [optimizer.state[p] for _, p in parameters if p in optimizer.state]
        scalers = self._observer.scalers.values() if self._observer else ()
        return StepPrint(
            number=step.number,
            optimizer=type(optimizer).__name__,
            where=step.where,
            epoch=self._pass,
            loss=None,
            learning_rates=step.learning_rates,
            weights={name: digest(tensor) for name, tensor in parameters},
            buffers=dict(self._buffers()),
            state=_state_digests(states),
            state_steps=_state_steps(states),
            gradients={n: digest(p.grad) for n, p in parameters if p.grad is not None},
            batches=tuple(self._batches),
            rng=rng_digests(),
            scalers=tuple((s.get_scale(), float(s._get_growth_tracker())) for s in scalers),
            other_models=dict(self._other_models()),
            sample=_sample([tensor for _, tensor in parameters]),
        )

    def _buffers(self) -> Iterator[tuple[str, Digest]]:
        if self._observer is None:
            return
        for model in self._observer.people.models:
            root = model.ref()
            for name, tensor in root.named_buffers() if root is not None else ():
                yield f"{model.name}.{name}", digest(tensor)

    def _other_models(self) -> Iterator[tuple[str, Digest]]:
        if self._others is None:
            trained = set(map(id, self._observer.people.models)) if self._observer else set()
            roots = {id(m.ref()) for m in (self._observer.people.models if self._observer else ())}
            self._others = [
                model
                for model in live_models()
                if (root := model.ref()) is not None
                and id(root) not in roots
                and root not in self._before
                and id(model) not in trained
            ]
        for position, model in enumerate(self._others):
            root = model.ref()
            for name, tensor in root.state_dict().items() if root is not None else ():
                if hasattr(tensor, "untyped_storage"):
                    yield f"{position}.{model.name}.{name}", digest(tensor)


def digest(tensor: Tensor) -> Digest:
    """A hash of a tensor's values, kind and shape, wherever it lives."""
    import torch

    plain = tensor.detach()
    if plain.layout != torch.strided:
        plain = plain.to_dense()
    hashed = hashlib.blake2b(f"{plain.dtype}{tuple(plain.shape)}".encode(), digest_size=12)
    flat = plain.cpu().contiguous().reshape(-1).view(torch.uint8)
    try:
        values: Any = flat.numpy()
        hashed.update(values)
    except RuntimeError:
        # NumPy is not installed.
        hashed.update(bytes(flat.tolist()))
    return hashed.digest()


def digest_of(thing: Any) -> Digest:
    """A hash of a batch: tensors, NumPy arrays, numbers and texts, in whatever they are held."""
    hashed = hashlib.blake2b(digest_size=12)
    for part in _parts(thing):
        hashed.update(part)
    return hashed.digest()


def _parts(thing: Any) -> Iterator[bytes]:
    import torch

    if isinstance(thing, torch.Tensor):
        yield digest(thing)
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            yield repr(key).encode()
            yield from _parts(value)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from _parts(value)
    elif hasattr(thing, "tobytes"):
        yield thing.tobytes()
    elif isinstance(thing, (str, bytes, int, float, bool, type(None))):
        yield repr(thing).encode()
    else:
        # The address in a default repr would differ from run to run.
        yield type(thing).__name__.encode()
        yield from _parts(vars(thing) if hasattr(thing, "__dict__") else None)


def rng_digests() -> dict[str, Digest]:
    """Fingerprints of the global random number generators, by name."""
    states = take_states()
    digests = {
        "torch": digest(states["torch"]),
        "python": hashlib.blake2b(repr(states["python"]).encode(), digest_size=12).digest(),
    }
    if "numpy" in states:
        digests["numpy"] = digest_of(states["numpy"])
    for number, state in enumerate(states.get("cuda", ())):
        digests[f"cuda:{number}"] = digest(state)
    return digests


def _state_digests(states: list[Mapping[str, Any]]) -> dict[str, Digest]:
    keys = sorted({str(key) for state in states for key in state if key != "step"})
    return {key: digest_of([state.get(key) for state in states]) for key in keys}


def _state_steps(states: list[Mapping[str, Any]]) -> float | None:
    counts = [float(state["step"]) for state in states if "step" in state]
    return max(counts, default=None)


def _sample(tensors: list[Tensor]) -> tuple[float, ...]:
    values = [tensor.detach().reshape(-1)[:_SAMPLE].double().tolist() for tensor in tensors]
    return tuple(value for part in values for value in part)


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below `folder`, with its size and time of writing."""
    found: dict[str, tuple[int, int]] = {}
    for path, _, files in os.walk(folder):
        for name in files:
            full = os.path.join(path, name)
            try:
                status = os.stat(full)
            except FileNotFoundError:
                # Renamed or removed between the two looks, as an atomic save does.
                continue
            found[full] = (status.st_size, status.st_mtime_ns)
    return found
