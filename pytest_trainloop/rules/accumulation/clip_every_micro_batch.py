"""The rule `clip-every-micro-batch`."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Accumulation,
    Call,
    Event,
    FileFacts,
    Inside,
    Operation,
    Place,
    Result,
    Value,
    accumulations,
    at_surface,
    before,
    constant,
    is_clearing,
    is_clip,
    is_measuring,
    is_out_of_order,
    is_scheduler_call,
    may_use_gradients,
    only_statement,
    options,
    origins,
)


class ClipEveryMicroBatch(Rule):
    """Gradients are clipped, or the schedule moves on, at every micro-batch of an accumulation.

    Symptom: with clipping, the first micro-batches count for less than the last, and the
    effective limit depends on the number of micro-batches. With the scheduler, the learning
    rate runs through its schedule several times too fast.

    Why: the norm that matters is that of the whole accumulated gradient. Clipping after each
    `backward()` clips partial sums again and again. Likewise a schedule that was made for the
    number of updates must move once an update.

    What torch does: nothing about the clip. A gradient scaler raises at the second `unscale_()`
    before an update.

    Limits: clipping each value by itself (`clip_grad_value_`) is not reported. A scheduler is
    reported only where it was made for a number of steps divided by the number of
    micro-batches.
    """

    since = "0.1"
    triggers = (".backward(|manual_backward(", "step", "clip_grad|sched")
    sources = (
        "https://github.com/huggingface/transformers/issues/1563",
        "https://github.com/Deci-AI/super-gradients/issues/653",
        "https://pytorch.org/docs/stable/notes/amp_examples.html#gradient-accumulation",
    )
    examples = (
        Bad(
            "partial sums are clipped",
            """
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    (F.cross_entropy(model(x), y) / k).backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # error
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()
            """,
            fixed="""
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    (F.cross_entropy(model(x), y) / k).backward()
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # error
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Good(
            "clipped once an update",
            """
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    (F.cross_entropy(model(x), y) / k).backward()
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Bad(
            "in one of two ways to back-propagate",
            """
            def train(model, loader, optimizer, scaler, args):
                for step, (x, y) in enumerate(loader):
                    loss = F.cross_entropy(model(x), y) / args.gradient_accumulation_steps
                    if args.fp16:
                        scaler.scale(loss).backward()
                        scaler.unscale_(optimizer)  # error
                    else:
                        loss.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)  # error
                    last = step + 1 == len(loader)
                    if (step + 1) % args.gradient_accumulation_steps == 0 or last:
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Bad(
            "in the inner loop over micro-batches",
            """
            def train(model, loader, optimizer, k):
                for batch in loader:
                    optimizer.zero_grad()
                    for micro_batch in batch.chunk(k):
                        loss = model(micro_batch).loss / k
                        loss.backward()
                        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # error
                    optimizer.step()
            """,
        ),
        Bad(
            "a schedule made for the updates moves at every micro-batch",
            """
            from transformers import get_linear_schedule_with_warmup

            def train(model, loader, optimizer, args):
                total = len(loader) // args.accumulate * args.epochs
                scheduler = get_linear_schedule_with_warmup(optimizer, 0, total)
                for i, batch in enumerate(loader):
                    loss = model(**batch).loss / args.accumulate
                    loss.backward()
                    scheduler.step()  # error
                    if (i + 1) % args.accumulate == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Good(
            "a schedule made for the batches moves at every batch",
            """
            from transformers import get_linear_schedule_with_warmup

            def train(model, loader, optimizer, args):
                scheduler = get_linear_schedule_with_warmup(optimizer, 0, len(loader) * args.epochs)
                for i, batch in enumerate(loader):
                    loss = model(**batch).loss / args.accumulate
                    loss.backward()
                    if (i + 1) % args.accumulate == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()
                    scheduler.step()
            """,
        ),
        Good(
            "each value is clipped by itself",
            """
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    (F.cross_entropy(model(x), y) / k).backward()
                    nn.utils.clip_grad_value_(model.parameters(), 1.0)
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Good(
            "differential privacy clips each sample's gradient",
            """
            def train(model, loader, optimizer, limit):
                for batch in loader:
                    for p in model.parameters():
                        p.summed = torch.zeros_like(p)
                    for x, y in batch:
                        F.cross_entropy(model(x), y).backward()
                        nn.utils.clip_grad_norm_(model.parameters(), limit)
                        for p in model.parameters():
                            p.summed.add_(p.grad)
                        model.zero_grad()
                    for p in model.parameters():
                        p.grad = p.summed + torch.randn_like(p) * limit
                    optimizer.step()
            """,
        ),
        Good(
            "the norm is only measured",
            """
            def train(model, loader, optimizer, k, log):
                for i, (x, y) in enumerate(loader):
                    (F.cross_entropy(model(x), y) / k).backward()
                    log(nn.utils.clip_grad_norm_(model.parameters(), float("inf")))
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for clips and scheduler steps that each micro-batch of an accumulation comes by."""
        for loop in file.loops:
            told: set[Place] = set()
            for accumulation in accumulations(loop):
                if any(accumulation.is_every_time(step.call) for step in loop.steps):
                    continue
                for finding in (*self._clips(accumulation), *self._schedules(accumulation)):
                    if finding.place not in told:
                        told.add(finding.place)
                        yield finding

    def _clips(self, accumulation: Accumulation) -> Iterator[Finding]:
        loop, step = accumulation.loop, accumulation.step.call
        if any(accumulation.is_every_time(event) and _is_by_hand(event) for event in loop.events):
            return
        for call in (*loop.unscales, *loop.clips):
            if not _touches_partial_sums(accumulation, call):
                continue
            what = (
                f"`{call.name}` clips the partial sum of gradients"
                if is_clip(call)
                else f"`{call.text}` takes the loss scale off the partial sum of gradients"
            )
            yield self.finding(
                at_surface(loop, call).place,
                f"{what} at every micro-batch, but `{step.text}` runs only after "
                f"`{accumulation.header}`",
                f"do it once an update, right before `{step.text}`",
                _moved(accumulation, call) if is_clip(call) else None,
            )

    def _schedules(self, accumulation: Accumulation) -> Iterator[Finding]:
        loop, step = accumulation.loop, accumulation.step.call
        for call in loop.scheduler_steps:
            divided = _made_for_updates(call.receiver, accumulation)
            if divided and accumulation.is_every_time(call) and not is_out_of_order(loop, call):
                yield self.finding(
                    at_surface(loop, call).place,
                    f"`{call.text}` moves the schedule at every micro-batch, but it was made for "
                    f"one move an update: `{step.text}` runs only after `{accumulation.header}`",
                    f"move it on once an update, right after `{step.text}`",
                )


def _touches_partial_sums(accumulation: Accumulation, call: Call) -> bool:
    loop = accumulation.loop
    if "value" in call.method or is_out_of_order(loop, call) or accumulation.is_managed:
        return False
    if is_clip(call) and is_measuring(call):
        return False
    comes_after = before([backward.call for backward in loop.backwards], call)
    return bool(comes_after) and accumulation.is_every_time(call)


def _is_by_hand(event: Event) -> bool:
    return is_clearing(event) or may_use_gradients(event)


def _made_for_updates(scheduler: Value | None, accumulation: Accumulation) -> bool:
    """Whether the scheduler was told a number of steps divided by that of micro-batches."""
    modulus = accumulation.modulus
    if scheduler is None or modulus is None or constant(modulus) is not None:
        return False
    for option in options(scheduler):
        if isinstance(option, Result) and is_scheduler_call(option.call):
            given = (*option.call.args[1:], *option.call.keywords.values())
            return any(
                _divides(value, modulus) for argument in given for value in origins(argument, 60)
            )
    return False


def _divides(value: Value, modulus: Value) -> bool:
    return (
        isinstance(value, Operation)
        and value.operator in ("/", "//")
        and any(operand is modulus for operand in value.operands[1:])
    )


def _moved(accumulation: Accumulation, clip: Call) -> Fix | None:
    loop, step = accumulation.loop, accumulation.step.call
    if only_statement(loop, clip) is not clip or clip.context != loop.context:
        return None
    is_near = step.context[-1] is accumulation.guard and not loop.unscales
    if not is_near or any(isinstance(frame, Inside) for frame in loop.inner(step)):
        return None
    return Fix((Edit("move-before", clip.place, to=step.place),), safe=False)
