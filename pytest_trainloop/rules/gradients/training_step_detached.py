"""The rule `training-step-detached`."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Attribute,
    Collection,
    Constant,
    FileFacts,
    Inside,
    Leave,
    Result,
    Return,
    Trace,
    Value,
    constant,
    options,
    trains_automatically,
)

_CUTTING = frozenset({"item", "detach", "tolist", "numpy"})


class TrainingStepDetached(Rule):
    """Lightning's `training_step` returns no loss that can be back-propagated.

    Symptom: nothing is learned. Where the step returns nothing, Lightning skips every
    update, with one warning in a long log; where it returns a number, it raises.

    Why: with automatic optimization the trainer calls `backward()` on what `training_step`
    returns. A loss that went through `item()` or `detach()` has no graph, and None means
    "skip this batch".

    What torch does: `backward()` on a tensor without a graph raises, but Lightning wraps the
    loss first. Returning None is a documented way to skip a batch.
    """

    since = "0.1"
    triggers = ("training_step", "lightning")
    sources = (
        "https://github.com/Lightning-AI/pytorch-lightning/issues/4556",
        "https://lightning.ai/docs/pytorch/stable/common/lightning_module.html#training-step",
    )
    examples = (
        Bad(
            "the loss is returned as a number",
            """
            import lightning as L
            import torch.nn.functional as F

            class Lit(L.LightningModule):
                def training_step(self, batch, batch_idx):
                    x, y = batch
                    loss = F.cross_entropy(self.net(x), y)
                    self.log("loss", loss)
                    return loss.item()  # error
            """,
            fixed="""
            import lightning as L
            import torch.nn.functional as F

            class Lit(L.LightningModule):
                def training_step(self, batch, batch_idx):
                    x, y = batch
                    loss = F.cross_entropy(self.net(x), y)
                    self.log("loss", loss)
                    return loss  # error
            """,
        ),
        Good(
            "the loss is returned with its graph",
            """
            import lightning as L
            import torch.nn.functional as F

            class Lit(L.LightningModule):
                def training_step(self, batch, batch_idx):
                    x, y = batch
                    loss = F.cross_entropy(self.net(x), y)
                    self.log("loss", loss)
                    return loss
            """,
        ),
        Bad(
            "the loss in the returned dict is detached",
            """
            import pytorch_lightning as pl
            import torch.nn.functional as F

            class Lit(pl.LightningModule):
                def training_step(self, batch, batch_idx):
                    x, y = batch
                    loss = F.cross_entropy(self.net(x), y)
                    return {"loss": loss.detach(), "progress": loss}  # error
            """,
        ),
        Bad(
            "nothing is returned",
            """
            from pytorch_lightning import LightningModule
            import torch.nn.functional as F

            class Lit(LightningModule):
                def training_step(self, batch, batch_idx):  # error
                    x, y = batch
                    loss = F.cross_entropy(self.net(x), y)
                    self.log("loss", loss)
            """,
        ),
        Good(
            "manual optimization returns nothing",
            """
            import lightning as L
            import torch.nn.functional as F

            class Lit(L.LightningModule):
                def __init__(self):
                    super().__init__()
                    self.automatic_optimization = False

                def training_step(self, batch, batch_idx):
                    x, y = batch
                    optimizer = self.optimizers()
                    optimizer.zero_grad()
                    self.manual_backward(F.cross_entropy(self.net(x), y))
                    optimizer.step()
            """,
        ),
        Good(
            "a bad batch is skipped",
            """
            import lightning as L
            import torch
            import torch.nn.functional as F

            class Lit(L.LightningModule):
                def training_step(self, batch, batch_idx):
                    x, y = batch
                    loss = F.cross_entropy(self.net(x), y)
                    if not torch.isfinite(loss):
                        return None
                    return {"loss": loss, "logged": loss.detach()}
            """,
        ),
        Good(
            "subclasses say what to do",
            """
            import lightning as L

            class Base(L.LightningModule):
                def training_step(self, batch, batch_idx):
                    raise NotImplementedError
            """,
        ),
        Good(
            "the base class is out of sight",
            """
            import lightning as L
            import torch.nn.functional as F
            from framework import ManualModule

            class Lit(ManualModule, L.LightningModule):
                def training_step(self, batch, batch_idx):
                    self.update(F.mse_loss(self.net(batch), batch))
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look at what each `training_step` returns to the trainer."""
        for trace in file.traces:
            if not trains_automatically(trace):
                continue
            returned = [event for event in trace.returns if _is_own(event)]
            if not returned:
                yield from self._without_return(trace)
            for event in returned:
                cut = _cut_loss(event.value)
                if cut is not None:
                    yield self._report(event, cut)

    def _report(self, event: Return, cut: Value) -> Finding:
        text = cut.call.text if isinstance(cut, Result) else event.text
        is_plain = isinstance(cut, Result) and cut.call.receiver is not None
        return self.finding(
            event.place,
            f"`training_step` returns `{text}`, which has no graph, so the trainer cannot "
            "back-propagate it",
            "return the loss itself; log the detached one",
            Fix((Edit("replace", cut.call.place, cut.call.receiver_text),), safe=False)
            if is_plain and isinstance(cut, Result) and cut.call.receiver_text.isidentifier()
            else None,
        )

    def _without_return(self, trace: Trace) -> Iterator[Finding]:
        if trace.entry is None or not _computes(trace):
            return
        yield self.finding(
            trace.entry.place,
            "`training_step` returns nothing, so the trainer skips every update",
            "return the loss, or set `self.automatic_optimization = False` and step by hand",
        )


def _is_own(event: Return) -> bool:
    """Whether the return is that of `training_step`, and not of a function that it calls."""
    return sum(isinstance(frame, Inside) for frame in event.context) == 1


def _computes(trace: Trace) -> bool:
    """Whether the step does something in plain sight, and does not refuse to."""
    refuses = any(isinstance(event, Leave) and event.kind == "raise" for event in trace.events)
    return not refuses and not trace.cut and any(_is_loss(call.method) for call in trace.calls)


def _is_loss(method: str) -> bool:
    return "loss" in method or method in ("cross_entropy", "criterion", "binary_cross_entropy")


def _cut_loss(value: Value) -> Value | None:
    """The returned loss, if it is cut from its graph whatever way is taken."""
    found = options(value)
    if len(found) == 1 and isinstance(found[0], Collection) and found[0].kind == "dict":
        losses = [
            item
            for key, item in zip(found[0].keys, found[0].items, strict=False)
            if constant(key) == "loss"
        ]
        return _cut_loss(losses[0]) if losses else None
    return found[0] if found and all(_is_cut(option) for option in found) else None


def _is_cut(value: Value) -> bool:
    if isinstance(value, Result):
        call = value.call
        return call.qualified == "builtins.float" or (
            call.method in _CUTTING and call.receiver is not None and not call.qualified
        )
    if isinstance(value, Attribute):
        return value.name == "data"
    return isinstance(value, Constant) and isinstance(value.value, float)
