"""The rule `missing-zero-grad`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import call_of, counted, listed, title
from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Observation, Rule
from pytest_trainloop.source.facts import (
    Attribute,
    Call,
    Collection,
    Constant,
    Context,
    Event,
    FileFacts,
    Function,
    Instance,
    Loop,
    MixedGradients,
    Result,
    Step,
    TrainingLoop,
    Value,
    cleared,
    exclusive,
    is_clearing,
    is_engine_step,
    is_model,
    is_optimizer,
    may_do_anything,
    mixed_gradients,
    options,
    same,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run


class MissingZeroGrad(Rule):
    """Gradients are never cleared between two updates.

    Symptom: the loss falls at first, then oscillates or diverges as if the learning rate
    were too high; with a tiny learning rate it may look fine.

    Why: `backward()` adds to `.grad`. Without `zero_grad()` every update applies the sum of
    the gradients of all batches so far, most of them computed for weights that are long gone.

    What torch does: nothing. Accumulating is a feature (it is how gradient accumulation
    works), so torch cannot know that it was not meant.
    """

    since = "0.1"
    triggers = (".backward(|manual_backward(", "step")
    sources = (
        "https://pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html",
        "https://github.com/wenet-e2e/wekws/pull/73",
        "https://github.com/facebookresearch/nwm/pull/16",
        "https://github.com/snakers4/silero-vad/issues/699",
        "https://github.com/tatsu-lab/alpaca_farm/pull/58",
    )
    examples = (
        Bad(
            "nothing clears the gradients",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()  # error
                    optimizer.step()
            """,
            fixed="""
            def train(model, loader, optimizer):
                for x, y in loader:
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()  # error
                    optimizer.step()
                    optimizer.zero_grad()
            """,
        ),
        Good(
            "cleared before each backward",
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
            "cleared once an epoch, stepped at every batch",
            """
            def train(model, loader, optimizer, epochs):
                for epoch in range(epochs):
                    optimizer.zero_grad()
                    for x, y in loader:
                        F.cross_entropy(model(x), y).backward()  # error
                        optimizer.step()
            """,
        ),
        Bad(
            "only one of two branches clears",
            """
            def train(model, loader, optimizer, scaler, amp):
                for x, y in loader:
                    if amp:
                        scaler.scale(F.cross_entropy(model(x), y)).backward()
                        scaler.step(optimizer)
                        scaler.update()
                        optimizer.zero_grad()
                    else:
                        F.cross_entropy(model(x), y).backward()  # error
                        optimizer.step()
            """,
        ),
        Bad(
            "one of two optimizers is never cleared",
            """
            def train(net_g, net_d, loader, opt_g, opt_d, bce):
                for real in loader:
                    opt_d.zero_grad()
                    bce(net_d(real), 1).backward()
                    opt_d.step()
                    bce(net_d(net_g(real)), 1).backward()  # error
                    opt_g.step()
            """,
        ),
        Bad(
            "the step function is called in a loop, and neither clears",
            """
            def train_step(model, x, y, optimizer):
                loss = F.mse_loss(model(x), y)
                loss.backward()  # error
                optimizer.step()
                return loss.item()

            def train(model, loader, optimizer):
                for x, y in loader:
                    train_step(model, x, y, optimizer)
            """,
        ),
        Bad(
            "a checkpoint saved in the loop clears nothing",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    F.cross_entropy(model(x), y).backward()  # error
                    optimizer.step()
                    torch.save([model.state_dict(), optimizer.state_dict()], "last.pt")
            """,
        ),
        Bad(
            "with Accelerate too",
            """
            from accelerate import Accelerator

            accelerator = Accelerator()

            def train(model, loader, optimizer):
                model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
                for batch in loader:
                    loss = model(**batch).loss
                    accelerator.backward(loss)  # error
                    optimizer.step()
            """,
        ),
        Bad(
            "the generator keeps the gradients of the discriminator's loss",
            """
            def train(net_g, net_d, loader):
                opt_g = torch.optim.Adam(net_g.parameters())
                opt_d = torch.optim.Adam(net_d.parameters())
                for real in loader:
                    opt_g.zero_grad()
                    opt_d.zero_grad()
                    judged_real, judged_fake = net_d(real), net_d(net_g(torch.randn(8, 100)))
                    d_loss = judged_fake.mean() - judged_real.mean()
                    d_loss.backward(retain_graph=True)
                    opt_d.step()
                    g_loss = -judged_fake.mean()
                    g_loss.backward()  # error
                    opt_g.step()
            """,
        ),
        Good(
            "the generator is cleared after the discriminator's update",
            """
            def train(net_g, net_d, loader):
                opt_g = torch.optim.Adam(net_g.parameters())
                opt_d = torch.optim.Adam(net_d.parameters())
                for real in loader:
                    opt_d.zero_grad()
                    (net_d(net_g(torch.randn(8, 100))).mean() - net_d(real).mean()).backward()
                    opt_d.step()
                    opt_g.zero_grad()
                    (-net_d(net_g(torch.randn(8, 100))).mean()).backward()
                    opt_g.step()
            """,
        ),
        Good(
            "a generator learns from two losses, its encoder from one of them",
            """
            def train(encoder, net_g, loader):
                opt_e = torch.optim.Adam(encoder.parameters())
                opt_g = torch.optim.Adam(net_g.parameters())
                for x in loader:
                    opt_e.zero_grad()
                    opt_g.zero_grad()
                    F.l1_loss(net_g(encoder(x)), x).backward()
                    opt_e.step()
                    z = torch.randn(8, 16)
                    F.l1_loss(encoder(net_g(z)), z).backward()
                    opt_g.step()
            """,
        ),
        Good(
            "two tasks add up in the encoder that they share",
            """
            def train(encoder, first, second, loader):
                opt_encoder = torch.optim.Adam(encoder.parameters())
                opt_first = torch.optim.Adam(first.parameters())
                for x, y, z in loader:
                    opt_encoder.zero_grad()
                    opt_first.zero_grad()
                    F.cross_entropy(first(encoder(x)), y).backward()
                    opt_first.step()
                    F.mse_loss(second(encoder(x)), z).backward()
                    opt_encoder.step()
            """,
        ),
        Bad(
            "the loop is in a function that is handed to a launcher",
            """
            import torch.multiprocessing as mp
            import torch.nn.functional as F

            def worker(rank, model, loader, optimizer):
                for x, y in loader:
                    F.cross_entropy(model(x), y).backward()  # error
                    optimizer.step()

            def main(model, loader, optimizer):
                mp.spawn(worker, args=(model, loader, optimizer), nprocs=2)
            """,
        ),
        Bad(
            "an Ignite engine calls the update function for each batch",
            """
            from ignite.engine import Engine
            import torch.nn.functional as F

            def run(model, optimizer, loader):
                def update(engine, batch):
                    loss = F.cross_entropy(model(batch[0]), batch[1])
                    loss.backward()  # error
                    optimizer.step()
                    return loss.item()

                Engine(update).run(loader)
            """,
        ),
        Good(
            "gradient accumulation",
            """
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    (F.cross_entropy(model(x), y) / k).backward()
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Good(
            "cleared in a callback that is out of sight",
            """
            def train(model, loader, optimizer, callbacks):
                for x, y in loader:
                    callbacks.before_batch(optimizer)
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "cleared by the parent class, out of sight",
            """
            from framework import BaseTrainer

            class Trainer(BaseTrainer):
                def train(self, loader):
                    for x, y in loader:
                        self.before_step()
                        F.cross_entropy(self.model(x), y).backward()
                        self.optimizer.step()
            """,
        ),
        Good(
            "cleared by hand",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    for p in model.parameters():
                        p.grad = None
            """,
        ),
        Good(
            "LBFGS clears in its closure",
            """
            def train(model, x, y, steps):
                optimizer = torch.optim.LBFGS(model.parameters())
                for _ in range(steps):
                    def closure():
                        optimizer.zero_grad()
                        loss = F.mse_loss(model(x), y)
                        loss.backward()
                        return loss
                    optimizer.step(closure)
            """,
        ),
        Good(
            "sharpness-aware minimization clears in its steps",
            """
            from sam import SAM

            def train(model, loader):
                optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
                for x, y in loader:
                    F.cross_entropy(model(x), y).backward()
                    optimizer.first_step(zero_grad=True)
                    F.cross_entropy(model(x), y).backward()
                    optimizer.second_step(zero_grad=True)
            """,
        ),
        Good(
            "the optimizer steps and clears in a backward hook",
            """
            def train(model, loader):
                optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

                def update(p):
                    optimizers[p].step()
                    optimizers[p].zero_grad()

                for p in model.parameters():
                    p.register_post_accumulate_grad_hook(update)
                for x, y in loader:
                    F.cross_entropy(model(x), y).backward()
            """,
        ),
        Good(
            "Lightning's automatic optimization",
            """
            import lightning as L
            import torch

            class Lit(L.LightningModule):
                def training_step(self, batch, batch_idx):
                    x, y = batch
                    return torch.nn.functional.cross_entropy(self.net(x), y)

                def configure_optimizers(self):
                    return torch.optim.Adam(self.parameters())
            """,
        ),
        Good(
            "Accelerate's accumulation clears where it steps",
            """
            from accelerate import Accelerator

            accelerator = Accelerator(gradient_accumulation_steps=4)

            def train(model, loader, optimizer):
                for batch in loader:
                    with accelerator.accumulate(model):
                        accelerator.backward(model(**batch).loss)
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Good(
            "the model clears",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    model.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "a helper of the same file clears",
            """
            def reset(optimizer):
                optimizer.zero_grad(set_to_none=True)

            def train(model, loader, optimizer):
                for x, y in loader:
                    reset(optimizer)
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "distributed autograd keeps gradients in a context of its own",
            """
            import torch.distributed.autograd as dist_autograd

            def train(model, loader, opt, loss_fn):
                for x, y in loader:
                    with dist_autograd.context() as context_id:
                        dist_autograd.backward(context_id, [loss_fn(model(x), y)])
                        opt.step(context_id)
            """,
        ),
        Good(
            "the optimizer and what it optimizes are new in each turn",
            """
            def attack(model, images, labels):
                for x, y in zip(images, labels):
                    delta = torch.zeros_like(x, requires_grad=True)
                    optimizer = torch.optim.SGD([delta], lr=0.1)
                    F.cross_entropy(model(x + delta), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "a DeepSpeed engine clears after its step",
            """
            import deepspeed
            import torch

            def train(net, loader):
                model, optimizer, _, _ = deepspeed.initialize(model=net)
                for x, y in loader:
                    loss = torch.nn.functional.cross_entropy(model(x), y)
                    model.backward(loss)
                    model.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look along the way from each step back to the next backward for anything that clears."""
        for loop in file.loops:
            if loop.loop is None:
                continue
            for step in _uncleared(loop):
                yield self._report(loop, loop.loop, step)
            for mixed in mixed_gradients(loop):
                yield self._report_mixed(mixed)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask whether a backward added to gradients that a step had used already."""
        for index, optimizer in enumerate(run.optimizers):
            looked = [step for step in run.steps_of(index) if step.stale is not None]
            added = [step for step in looked if step.stale]
            if not added:
                continue
            first = added[0]
            yield self.observation(
                f"the gradients of {listed(run.names(first.stale or ()))} are not cleared between"
                f" steps of {title(optimizer)}: {len(added)} of {counted(len(looked), 'step')}"
                " also used those of the step before",
                f"call {call_of(optimizer, 'zero_grad')} once for each"
                f" {call_of(optimizer, 'step')}, before the next `backward()`",
                first.backwards[0].where if first.backwards else first.where,
                (f"the first is step {first.number}",),
            )

    def _report(self, loop: TrainingLoop, around: Loop, step: Step) -> Finding:
        name = step.optimizer_text
        backward = _backward_for(loop, step)
        outside = [
            event
            for event in loop.trace.events
            if is_clearing(event)
            and _clears(event, step.optimizer)
            and _encloses(event.context, loop)
        ]
        message = (
            f"the gradients that `{backward.text}` adds to are not cleared between two "
            f"`{step.call.text}`"
        )
        if outside:
            message += f"; `{outside[-1].text}` stands outside the loop `{around.header}`"
        return self.finding(
            backward.place,
            message,
            f"clear them in the same loop: `{name}.zero_grad()` after `{step.call.text}`",
            Fix((Edit("insert-after", step.call.place, f"{name}.zero_grad()"),), safe=False)
            if name.isidentifier() or name.replace(".", "").isidentifier()
            else None,
        )

    def _report_mixed(self, mixed: MixedGradients) -> Finding:
        own, stray, name = mixed.own.call, mixed.stray.call, mixed.step.optimizer_text
        return self.finding(
            own.place,
            f"the gradients that `{own.text}` adds to are those of `{stray.text}`: it reaches the "
            f"network of `{name}` too, and nothing clears them before `{mixed.step.call.text}`",
            f"clear them first: `{name}.zero_grad()` before `{own.text}`",
        )


def _uncleared(loop: TrainingLoop) -> Iterator[Step]:
    """The first step of each optimizer whose gradients nothing in the loop clears."""
    told: list[Value] = []
    for step in loop.steps:
        if any(same(step.optimizer, known) for known in told):
            continue
        if _needs_clearing(loop, step) and not _is_cleared(loop, step):
            told.append(step.optimizer)
            yield step


def _needs_clearing(loop: TrainingLoop, step: Step) -> bool:
    """Whether the optimizer outlives a turn of the loop, and keeps its gradients in `.grad`."""
    if any(is_engine_step(call) for call in loop.calls):
        return False
    if step.call.method == "step" and step.call.receiver is step.optimizer:
        if any(not isinstance(arg, Function | Constant) for arg in step.call.args):
            return False
    return not any(
        isinstance(option, Result) and loop.loop in option.call.context
        for option in options(step.optimizer)
    )


def _is_cleared(loop: TrainingLoop, step: Step) -> bool:
    """Whether something in the loop clears the optimizer's gradients, or may."""
    clearings = [event for event in loop.clearings if _clears(event, step.optimizer)]
    if any(not exclusive(event.context, step.call.context) for event in clearings):
        return True
    if any(_passes_on_clearing(call, step.optimizer) for call in loop.trace.calls):
        return True
    return any(
        _may_clear(call, step.optimizer)
        for call in loop.calls
        if not is_clearing(call) and not exclusive(call.context, step.call.context)
    )


def _passes_on_clearing(call: Call, optimizer: Value) -> bool:
    """Whether the call is given `optimizer.zero_grad` itself, to be called some day."""
    return any(
        isinstance(value, Attribute) and value.name == "zero_grad" and same(value.base, optimizer)
        for value in (*call.args, *call.keywords.values())
    )


def _clears(event: Event, optimizer: Value) -> bool:
    """Whether a clearing concerns the optimizer: it does unless it is another optimizer's own."""
    target = cleared(event)
    if target is None or same(target, optimizer):
        return True
    if any(isinstance(option, Collection) for option in options(target)):
        return True
    return not (is_optimizer(target) and _distinct(target, optimizer)) or is_model(target)


def _distinct(first: Value, second: Value) -> bool:
    """Whether two values are known to be two things: each with a name or a maker of its own."""
    return bool(first.__class__ is second.__class__ and not same(first, second))


def _may_clear(call: Call, optimizer: Value) -> bool:
    if call.followed:
        return False
    if may_do_anything(call, optimizer) and call.method not in ("step", "update", "unscale_"):
        return True
    receiver = call.receiver
    return receiver is not None and any(
        isinstance(option, Instance)
        and option.definition.has_unknown_base()
        and not option.definition.is_module
        for option in options(receiver)
    )


def _encloses(context: Context, loop: TrainingLoop) -> bool:
    return loop.loop not in context


def _backward_for(loop: TrainingLoop, step: Step) -> Call:
    """The last backward before the step, on the same way; else the first of the loop."""
    before = [
        backward.call
        for backward in loop.backwards
        if not exclusive(backward.call.context, step.call.context)
    ]
    earlier = [call for call in before if call.index < step.call.index]
    return (earlier or before)[-1]
