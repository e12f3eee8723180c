"""The rule `zero-grad-every-micro-batch`."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Accumulation,
    Call,
    FileFacts,
    Inside,
    TrainingLoop,
    accumulations,
    at_surface,
    cleared,
    comes_along,
    has_more_arguments,
    is_managed,
    is_model,
    is_optimizer,
    is_out_of_order,
    may_use_gradients,
    origins,
    same,
)


class ZeroGradEveryMicroBatch(Rule):
    """Gradients are cleared at every micro-batch of an accumulation.

    Symptom: training is slow and noisy, as with the small batch that accumulation was meant
    to enlarge; and since the loss is divided by the number of micro-batches, the updates are
    that much too small besides.

    Why: accumulation lets the gradients of several `backward()` calls add up before one
    `step()`. A `zero_grad()` before each of them throws away all but the last.

    What torch does: nothing. It cannot know that the cleared gradients were still needed.
    """

    since = "0.1"
    triggers = (".backward(|manual_backward(", "step", "zero_grad")
    sources = (
        "https://github.com/bytetriper/RAE/issues/67",
        "https://github.com/bytetriper/RAE/pull/78",
        "https://github.com/tatsu-lab/alpaca_farm/pull/58",
        "https://github.com/gaozhihan/PreDiff/pull/33",
        "https://github.com/ultralytics/ultralytics/issues/11217",
        "https://github.com/pytorch/torchtitan/pull/3575",
    )
    examples = (
        Bad(
            "cleared at every micro-batch, stepped at every k-th",
            """
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    optimizer.zero_grad()  # error
                    (F.cross_entropy(model(x), y) / k).backward()
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        optimizer.step()
            """,
            fixed="""
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    (F.cross_entropy(model(x), y) / k).backward()
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()  # error
            """,
        ),
        Good(
            "cleared where it steps",
            """
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    (F.cross_entropy(model(x), y) / k).backward()
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Bad(
            "cleared in the inner loop over micro-batches",
            """
            def train(model, loader, optimizer, k):
                for batch in loader:
                    for micro_batch in batch.chunk(k):
                        optimizer.zero_grad(set_to_none=True)  # error
                        loss = model(micro_batch).loss / k
                        loss.backward()
                    optimizer.step()
            """,
            fixed="""
            def train(model, loader, optimizer, k):
                for batch in loader:
                    optimizer.zero_grad(set_to_none=True)  # error
                    for micro_batch in batch.chunk(k):
                        loss = model(micro_batch).loss / k
                        loss.backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "cleared at the end of every micro-batch",
            """
            class Trainer:
                def epoch(self, loader):
                    for i, (x, y) in enumerate(loader):
                        loss = F.cross_entropy(self.model(x), y) / self.accumulate
                        self.scaler.scale(loss).backward()
                        if (i + 1) % self.accumulate == 0 or i + 1 == len(loader):
                            self.scaler.step(self.optimizer)
                            self.scaler.update()
                        self.optimizer.zero_grad()  # error
            """,
        ),
        Bad(
            "cleared in the function that computes each micro-batch",
            """
            def forward_backward(model, optimizer, x, y, k):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y) / k
                loss.backward()

            def train(model, batches, optimizer, k):
                for batch in batches:
                    for x, y in batch:
                        forward_backward(model, optimizer, x, y, k)  # error
                    optimizer.step()
            """,
        ),
        Bad(
            "the model clears under Accelerate's `accumulate`",
            """
            from accelerate import Accelerator

            accelerator = Accelerator(gradient_accumulation_steps=4)

            def train(model, loader, optimizer):
                for batch in loader:
                    with accelerator.accumulate(model):
                        accelerator.backward(model(**batch).loss)
                        optimizer.step()
                        model.zero_grad()  # error
            """,
        ),
        Good(
            "Accelerate's `accumulate` makes the clearing a no-op until it steps",
            """
            from accelerate import Accelerator

            accelerator = Accelerator(gradient_accumulation_steps=4)

            def train(model, loader, optimizer):
                for batch in loader:
                    with accelerator.accumulate(model):
                        optimizer.zero_grad()
                        accelerator.backward(model(**batch).loss)
                        optimizer.step()
            """,
        ),
        Good(
            "cleared at the first micro-batch only",
            """
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    if i % k == 0:
                        optimizer.zero_grad()
                    (F.cross_entropy(model(x), y) / k).backward()
                    if i % k == k - 1 or i + 1 == len(loader):
                        optimizer.step()
            """,
        ),
        Good(
            "cleared after each task, and the gradients are kept",
            """
            def train(model, tasks, optimizer, project):
                for batches in tasks:
                    rows = []
                    for x, y in batches:
                        optimizer.zero_grad()
                        F.mse_loss(model(x), y).backward()
                        rows.append([p.grad.clone() for p in model.parameters()])
                    for p, grad in zip(model.parameters(), project(rows)):
                        p.grad = grad
                    optimizer.step()
            """,
        ),
        Good(
            "the generator is updated every few batches, by a backward of its own",
            """
            def train(net_g, net_d, loader, opt_g, opt_d, n_critic):
                for i, real in enumerate(loader):
                    opt_g.zero_grad()
                    opt_d.zero_grad()
                    fake = net_g(torch.randn_like(real))
                    (net_d(fake.detach()).mean() - net_d(real).mean()).backward()
                    opt_d.step()
                    if i % n_critic == 0:
                        (-net_d(fake).mean()).backward()
                        opt_g.step()
            """,
        ),
        Good(
            "one of two optimizers skips batches on purpose",
            """
            def train(model, loader, fast, slow):
                for i, (x, y) in enumerate(loader):
                    fast.zero_grad()
                    slow.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    fast.step()
                    if i % 10 == 0:
                        slow.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for a clearing that each micro-batch of an accumulation comes by."""
        for loop in file.loops:
            yield from self._by_the_model(loop)
            for accumulation in accumulations(loop):
                clearing = _clearing_every_time(accumulation)
                if clearing is not None:
                    yield self._report(accumulation, clearing)

    def _by_the_model(self, loop: TrainingLoop) -> Iterator[Finding]:
        """Accelerate holds back the optimizer's clearing between updates, not the model's."""
        for event in loop.clearings:
            target = cleared(event)
            if target is None or not isinstance(event, Call) or is_optimizer(target):
                continue
            if is_model(target) and is_managed(event) and not loop.guards(event):
                yield self.finding(
                    event.place,
                    f"`{event.text}` throws away the gradients of the micro-batches before: under "
                    "`accumulate`, only the optimizer's own `zero_grad()` waits for the update",
                    "call `zero_grad()` of the prepared optimizer",
                )

    def _report(self, accumulation: Accumulation, clearing: Call) -> Finding:
        step = accumulation.step.call
        return self.finding(
            at_surface(accumulation.loop, clearing).place,
            f"`{clearing.text}` throws away the gradients of the micro-batches before: it runs "
            f"at each of them, `{step.text}` only after `{accumulation.header}`",
            f"clear once an update, right after `{step.text}`",
            _moved(accumulation, clearing),
        )


def _clearing_every_time(accumulation: Accumulation) -> Call | None:
    loop, step = accumulation.loop, accumulation.step
    if has_more_arguments(step) or is_out_of_order(loop, step.call) or accumulation.is_managed:
        return None
    if any(accumulation.is_every_time(other.call) for other in loop.steps):
        return None
    if any(accumulation.is_every_time(event) and may_use_gradients(event) for event in loop.events):
        return None
    for event in loop.clearings:
        if (
            isinstance(event, Call)
            and accumulation.is_every_time(event)
            and comes_along(event, accumulation.backward.call)
            and _concerns(event, accumulation)
        ):
            return event
    return None


def _concerns(clearing: Call, accumulation: Accumulation) -> bool:
    target, optimizer = cleared(clearing), accumulation.step.optimizer
    if target is None:
        return False
    if is_optimizer(target):
        return same(target, optimizer)
    return any(same(target, origin) for origin in origins(optimizer, 60))


def _moved(accumulation: Accumulation, clearing: Call) -> Fix | None:
    loop, step = accumulation.loop, accumulation.step.call
    both = (*loop.inner(clearing), *loop.inner(step))
    if not clearing.discarded or any(isinstance(frame, Inside) for frame in both):
        return None
    if accumulation.micro_batches is not None:
        inner = clearing.context[-1] is accumulation.micro_batches
        edit = Edit("move-before", clearing.place, to=accumulation.micro_batches.place)
        return Fix((edit,), safe=False) if inner else None
    if clearing.context != loop.context or step.context[-1] is not accumulation.guard:
        return None
    return Fix((Edit("move-after", clearing.place, to=step.place),), safe=False)
