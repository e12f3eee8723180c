"""The rule `unscaled-accumulation`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Accumulation,
    Attribute,
    Call,
    Constant,
    Element,
    Event,
    FileFacts,
    Imported,
    Operation,
    Parameter,
    Result,
    Returned,
    Unknown,
    Value,
    accumulations,
    constant,
    is_accelerator,
    is_clip,
    is_engine,
    is_forward,
    is_out_of_order,
    made_by,
    may_use_gradients,
    options,
    origins,
)

_MEAN_LOSS = re.compile(
    r"^torch\.nn\.functional\.(?:cross_entropy|nll_loss|\w+_loss|binary_cross_entropy\w*|kl_div)$"
)
_LOSS_CLASS = re.compile(r"^torch\.nn\.\w*Loss$")
_LOSS_FUNCTION = re.compile(r"(?:criterion|loss_?(?:fn|func|function)|crit)$", re.IGNORECASE)
_ADAPTIVE = re.compile(r"Adam|Lion|Adafactor|RMSprop|Adagrad", re.IGNORECASE)


class UnscaledAccumulation(Rule):
    """Gradients of several micro-batches are added up, and the loss is not divided by their number.

    Symptom: the updates are k times as large as with one batch of the same size: with SGD
    the learning rate is in effect k times as high, and with clipping the limit is in effect
    k times as low.

    Why: `backward()` adds to `.grad`. A loss that is a mean over its micro-batch must be
    divided by the number of micro-batches, so that the sum becomes the mean over all.

    What torch does: nothing. A sum of gradients is what was asked for.

    Limits: reported only where the loss is in sight to be a plain mean. With Adam and its kin
    and no clipping the factor nearly cancels out, and nothing is reported.
    """

    since = "0.1"
    triggers = (".backward(|manual_backward(", "step", "%|accum|micro")
    sources = (
        "https://github.com/karpathy/nanoGPT/issues/206",
        "https://github.com/karpathy/nanoGPT/pull/207",
        "https://github.com/karpathy/nanoGPT/issues/168",
        "https://github.com/huggingface/transformers/issues/34191",
        "https://github.com/agokrani/distillKitPlus/issues/5",
        "https://github.com/hirofumi0810/neural_sp/issues/168",
        "https://pytorch.org/docs/stable/notes/amp_examples.html#gradient-accumulation",
    )
    examples = (
        Bad(
            "a mean loss is added up k times",
            """
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()  # error
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()
            """,
            fixed="""
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    loss = F.cross_entropy(model(x), y)
                    (loss / k).backward()  # error
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Good(
            "the loss is divided",
            """
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    loss = F.cross_entropy(model(x), y) / k
                    loss.backward()
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Bad(
            "a mean with something added, of a model that computes it when it is told the targets",
            """
            import torch
            from torch import nn
            from torch.nn import functional as F

            class Model(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.out = nn.Linear(8, 2)

                def forward(self, x, y=None):
                    out, loss = self.out(x), None
                    if y is not None:
                        loss = F.cross_entropy(out, y)
                    return out, loss

            def train(batches, updates, grad_accum_steps):
                model = Model()
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                for update in range(updates):
                    optimizer.zero_grad()
                    for micro_step in range(grad_accum_steps):
                        x, y = next(batches)
                        out, loss = model(x, y)
                        (loss + out.pow(2).sum() * 1e-4).backward()  # error
                    optimizer.step()
            """,
        ),
        Bad(
            "with a gradient scaler",
            """
            def train(model, loader, optimizer, scaler, args):
                criterion = nn.CrossEntropyLoss()
                for i, (x, y) in enumerate(loader):
                    loss = criterion(model(x), y)
                    scaler.scale(loss).backward()  # error
                    if (i + 1) % args.accumulate == 0 or i + 1 == len(loader):
                        scaler.step(optimizer)
                        scaler.update()
                        optimizer.zero_grad()
            """,
            fixed="""
            def train(model, loader, optimizer, scaler, args):
                criterion = nn.CrossEntropyLoss()
                for i, (x, y) in enumerate(loader):
                    loss = criterion(model(x), y)
                    scaler.scale(loss / args.accumulate).backward()  # error
                    if (i + 1) % args.accumulate == 0 or i + 1 == len(loader):
                        scaler.step(optimizer)
                        scaler.update()
                        optimizer.zero_grad()
            """,
        ),
        Bad(
            "in an inner loop over the micro-steps, clipped",
            """
            def train(model, next_batch, gradient_accumulation_steps):
                optimizer = torch.optim.AdamW(model.parameters())
                while True:
                    for micro_step in range(gradient_accumulation_steps):
                        x, y = next_batch()
                        logits, loss = model(x, y)
                        loss.backward()  # error
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
            """,
        ),
        Bad(
            "the model computes the loss",
            """
            class Trainer:
                def epoch(self, loader):
                    for i, batch in enumerate(loader):
                        loss = self.model(**batch).loss
                        loss.backward()  # error
                        if (i + 1) % self.steps == 0 or i + 1 == len(loader):
                            self.optimizer.step()
                            self.optimizer.zero_grad()
            """,
        ),
        Good(
            "the gradients are divided",
            """
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    F.cross_entropy(model(x), y).backward()
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        for p in model.parameters():
                            p.grad /= k
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Good(
            "the loss is a sum",
            """
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    F.cross_entropy(model(x), y, reduction="sum").backward()
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Good(
            "divided by the number of tokens in the whole batch",
            """
            def train(model, batches, optimizer):
                for batch in batches:
                    tokens = sum(len(micro_batch) for micro_batch in batch)
                    for micro_batch in batch:
                        loss = model(micro_batch).loss * len(micro_batch) / tokens
                        loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
            """,
        ),
        Good(
            "Accelerate divides",
            """
            from accelerate import Accelerator

            accelerator = Accelerator(gradient_accumulation_steps=4)

            def train(model, loader, optimizer):
                for i, batch in enumerate(loader):
                    loss = model(**batch).loss
                    accelerator.backward(loss)
                    if (i + 1) % 4 == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Good(
            "the learning rate is divided instead",
            """
            def train(model, loader, k):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / k)
                for i, (x, y) in enumerate(loader):
                    F.cross_entropy(model(x), y).backward()
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Good(
            "Adam alone is nearly invariant",
            """
            def train(model, loader, k):
                optimizer = torch.optim.Adam(model.parameters())
                for i, (x, y) in enumerate(loader):
                    F.cross_entropy(model(x), y).backward()
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Good(
            "the losses of several tasks are added up on purpose",
            """
            def train(model, tasks, optimizer):
                for batches in zip(*tasks):
                    optimizer.zero_grad()
                    for x, y in batches:
                        F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look at what each backward of an accumulation back-propagates."""
        for loop in file.loops:
            told: list[Call] = []
            for accumulation in accumulations(loop):
                backward = accumulation.backward
                if any(backward.call is call for call in told) or not _matters(accumulation):
                    continue
                if _counts_micro_batches(accumulation) and _is_plain_mean(backward.loss):
                    told.append(backward.call)
                    yield self._report(accumulation)

    def _report(self, accumulation: Accumulation) -> Finding:
        call, count = accumulation.backward.call, accumulation.modulus_text
        loss = _loss_text(call)
        by = f"`{count}`" if count else "their number"
        return self.finding(
            call.place,
            f"`{call.text}` adds up the gradients of several micro-batches before "
            f"`{accumulation.step.call.text}`, and the loss is not divided by {by}",
            f"divide the loss: `{loss} / {count}`" if count else "divide the loss by their number",
            _divided(accumulation, count),
        )


def _matters(accumulation: Accumulation) -> bool:
    """Whether the size of the gradients makes a difference, and nothing else can set it."""
    loop = accumulation.loop
    if accumulation.is_managed or is_out_of_order(loop, accumulation.step.call):
        return False
    if any(accumulation.is_every_time(step.call) for step in loop.steps):
        return False
    receiver = accumulation.backward.call.receiver
    if receiver is not None and (is_accelerator(receiver) or is_engine(receiver)):
        return False
    if any(may_use_gradients(event) for event in loop.events if not _is_look(event)):
        return False
    made = _makers(accumulation.step.optimizer)
    if any(_mentions(call, accumulation.modulus) for call in made):
        return False
    is_adaptive = any(_ADAPTIVE.search(call.method) for call in made)
    return not is_adaptive or any(is_clip(call) for call in loop.calls)


def _is_look(event: Event) -> bool:
    return isinstance(event, Call) and (is_forward(event) or event.discarded)


def _makers(optimizer: Value) -> list[Call]:
    return [option.call for option in options(optimizer) if isinstance(option, Result)]


def _mentions(call: Call, modulus: Value | None) -> bool:
    given = (*call.args[1:], *call.keywords.values())
    return any(
        value is modulus or (isinstance(value, Operation) and value.operator in ("/", "*"))
        for argument in given
        for value in origins(argument, 30)
    )


def _counts_micro_batches(accumulation: Accumulation) -> bool:
    """Whether it is plain that the k backward calls are of k parts of one batch."""
    if accumulation.guard is not None:
        modulus = accumulation.modulus
        is_known = modulus is not None and constant(modulus) != 1
        return is_known and bool(accumulation.modulus_text) and accumulation.is_reset_by_step
    return accumulation.counts_in_range


def _is_plain_mean(loss: Value | None) -> bool:
    """Whether the loss, or a term of it, is known to be a mean on every way, and nothing scales it.

    `loss = None` is a way that leads to no backward.
    """
    if loss is None:
        return False
    ways = [way for way in options(loss) if not isinstance(way, Constant)]
    return bool(ways) and all(_is_mean(way) for way in ways)


def _is_mean(value: Value) -> bool:
    if isinstance(value, Operation) and value.operator == "+":
        return any(_is_plain_mean(operand) for operand in value.operands)
    if isinstance(value, Attribute) and value.name == "loss":
        return any(is_forward(call) for call in made_by(value.base))
    if isinstance(value, Element):
        return any(is_forward(call) for call in made_by(value.base)) and not _is_known(value.base)
    if isinstance(value, Result):
        return _averages(value.call)
    return False


def _is_known(value: Value) -> bool:
    return isinstance(value, Returned)


def _averages(call: Call) -> bool:
    """Whether the call returns the mean over a batch."""
    if _MEAN_LOSS.match(call.qualified):
        return not {"reduction", "size_average", "reduce"} & set(call.keywords)
    if call.method == "mean" and call.receiver is not None and not call.args:
        return not call.keywords and not isinstance(call.receiver, Imported)
    for option in options(call.callee):
        if isinstance(option, Result) and _LOSS_CLASS.match(option.call.qualified):
            return not {"reduction", "size_average", "reduce"} & set(option.call.keywords)
        if isinstance(option, Parameter | Unknown):
            return bool(_LOSS_FUNCTION.search(option.spelling))
    return False


def _scaling(call: Call) -> Call | None:
    """The scaler's call that a backward is called on."""
    for option in options(call.receiver) if call.receiver is not None else ():
        if isinstance(option, Result) and option.call.method == "scale":
            return option.call
    return None


def _loss_text(call: Call) -> str:
    scaling = _scaling(call)
    return scaling.argument_text(0) if scaling is not None else call.receiver_text


def _divided(accumulation: Accumulation, count: str) -> Fix | None:
    """The fix that divides the loss where it is back-propagated."""
    call = accumulation.backward.call
    scaling, loss = _scaling(call), _loss_text(call)
    if not count or not loss.replace(".", "").isidentifier():
        return None
    if scaling is not None:
        edit = Edit("replace", scaling.argument_place(0), f"{loss} / {count}")
    else:
        rest = call.text[len(loss) :]
        edit = Edit("replace", call.place, f"({loss} / {count}){rest}")
    return Fix((edit,), safe=False)
