"""The rule `backward-bypasses-accelerator`."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Backward,
    Call,
    Either,
    FileFacts,
    FunctionFacts,
    Inside,
    Result,
    Returned,
    Step,
    TrainingLoop,
    Value,
    after,
    constant,
    is_accelerator,
    is_engine,
    is_fabric,
    is_lightning_module,
    is_optimizer,
    is_out_of_order,
    is_scaler,
    layers,
    may_use_gradients,
    options,
    origins,
)

#: How many ways a value can have before more of them are dropped.
MOST_WAYS = 8


class BackwardBypassesAccelerator(Rule):
    """The loss back-propagates by its own `backward()`, past Accelerate, Fabric or Lightning.

    Symptom: with fp16 small gradients vanish; with gradient accumulation the updates are as
    many times too large as there are micro-batches; with DeepSpeed nothing trains.

    Why: `accelerator.backward(loss)` divides the loss by the number of accumulation steps,
    multiplies it by the loss scale and hands it to the engine, if there is one.
    `fabric.backward(loss)` and, with manual optimization, `self.manual_backward(loss)` do the
    same for their settings. `loss.backward()` does none of it.

    What torch does: nothing. Fabric raises where its strategy or its precision needs
    `fabric.backward`; Accelerate and Lightning say nothing.

    Limits: an `Accelerator` that is told neither fp16 nor accumulation (`mixed_precision="no"`
    or `"bf16"`) is not reported, nor a `Fabric` without a precision or a strategy, because
    there both calls do the same.
    """

    since = "0.1"
    triggers = (
        ".backward(|manual_backward(",
        "ccelerat|abric|manual_backward|automatic_optimization",
        "step",
    )
    sources = (
        "https://huggingface.co/docs/accelerate/basic_tutorials/migration",
        "https://lightning.ai/docs/fabric/stable/api/fabric_methods.html#backward",
        "https://lightning.ai/docs/pytorch/stable/model/manual_optimization.html",
        "https://github.com/lucidrains/med-seg-diff-pytorch/issues/6",
        "https://github.com/insait-institute/GenieRedux/issues/2",
    )
    examples = (
        Bad(
            "loss.backward() in an accumulation of Accelerate",
            """
            from accelerate import Accelerator

            accelerator = Accelerator(gradient_accumulation_steps=4)

            def train(model, loader, optimizer):
                model, loader, optimizer = accelerator.prepare(model, loader, optimizer)
                for image, mask in loader:
                    with accelerator.accumulate(model):
                        loss = model(mask, image)
                        loss.backward()  # error
                        optimizer.step()
                        optimizer.zero_grad()
            """,
            fixed="""
            from accelerate import Accelerator

            accelerator = Accelerator(gradient_accumulation_steps=4)

            def train(model, loader, optimizer):
                model, loader, optimizer = accelerator.prepare(model, loader, optimizer)
                for image, mask in loader:
                    with accelerator.accumulate(model):
                        loss = model(mask, image)
                        accelerator.backward(loss)  # error
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Good(
            "the accelerator back-propagates",
            """
            from accelerate import Accelerator

            accelerator = Accelerator(gradient_accumulation_steps=4)

            def train(model, loader, optimizer):
                model, loader, optimizer = accelerator.prepare(model, loader, optimizer)
                for image, mask in loader:
                    with accelerator.accumulate(model):
                        loss = model(mask, image)
                        accelerator.backward(loss)
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Bad(
            "prepared in the constructor of a trainer",
            """
            import torch
            from accelerate import Accelerator

            class Trainer:
                def __init__(self, model, loader):
                    self.accelerator = Accelerator(mixed_precision="fp16")
                    self.loader = self.accelerator.prepare(loader)
                    self.opt = torch.optim.Adam(model.parameters())
                    self.model, self.opt = self.accelerator.prepare(model, self.opt)

                def train(self):
                    for x, y in self.loader:
                        self.opt.zero_grad()
                        torch.nn.functional.mse_loss(self.model(x), y).backward()  # error
                        self.opt.step()
            """,
        ),
        Bad(
            "the optimizer is prepared, the backward is not",
            """
            from accelerate import Accelerator
            import torch
            import torch.nn.functional as F

            def main(model, loader, epochs):
                accelerator = Accelerator(mixed_precision="fp16")
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
                model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()  # error
                        optimizer.step()
            """,
        ),
        Bad(
            "past Fabric",
            """
            from lightning.fabric import Fabric
            import torch
            import torch.nn.functional as F

            def main(model, loader):
                fabric = Fabric(precision="16-mixed")
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
                model, optimizer = fabric.setup(model, optimizer)
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()  # error
                    optimizer.step()
            """,
        ),
        Bad(
            "past Lightning, with manual optimization",
            """
            import lightning as L
            import torch.nn.functional as F

            class Lit(L.LightningModule):
                def __init__(self, net):
                    super().__init__()
                    self.net = net
                    self.automatic_optimization = False

                def training_step(self, batch, batch_idx):
                    x, y = batch
                    optimizer = self.optimizers()
                    optimizer.zero_grad()
                    loss = F.cross_entropy(self.net(x), y)
                    loss.backward()  # error
                    optimizer.step()
            """,
            fixed="""
            import lightning as L
            import torch.nn.functional as F

            class Lit(L.LightningModule):
                def __init__(self, net):
                    super().__init__()
                    self.net = net
                    self.automatic_optimization = False

                def training_step(self, batch, batch_idx):
                    x, y = batch
                    optimizer = self.optimizers()
                    optimizer.zero_grad()
                    loss = F.cross_entropy(self.net(x), y)
                    self.manual_backward(loss)  # error
                    optimizer.step()
            """,
        ),
        Bad(
            "prepared in each of two ways",
            """
            from accelerate import Accelerator
            import torch
            import torch.nn.functional as F

            def main(model, text_encoder, loader, train_text_encoder):
                accelerator = Accelerator(gradient_accumulation_steps=2)
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
                if train_text_encoder:
                    model, text_encoder, optimizer = accelerator.prepare(
                        model, text_encoder, optimizer
                    )
                else:
                    model, optimizer = accelerator.prepare(model, optimizer)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(text_encoder(x)), y).backward()  # error
                    optimizer.step()
            """,
        ),
        Good(
            "prepared in one of two ways only",
            """
            from accelerate import Accelerator
            import torch
            import torch.nn.functional as F

            def main(model, loader, distributed):
                accelerator = Accelerator(gradient_accumulation_steps=2)
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
                if distributed:
                    model, optimizer = accelerator.prepare(model, optimizer)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "past Fabric, set up one by one",
            """
            from lightning.fabric import Fabric
            import torch
            import torch.nn.functional as F

            def main(model, loader, strategy):
                fabric = Fabric(precision="16-mixed", strategy=strategy)
                model = fabric.setup_module(model)
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
                optimizer = fabric.setup_optimizers(optimizer)
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()  # error
                    optimizer.step()
            """,
        ),
        Good(
            "a loop of its own before anything is prepared",
            """
            from accelerate import Accelerator
            import torch
            import torch.nn.functional as F

            def main(model, codes, loader):
                accelerator = Accelerator(mixed_precision="fp16")
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
                for x, y in codes:
                    optimizer.zero_grad()
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
                model, optimizer = accelerator.prepare(model, optimizer)
                for x, y in loader:
                    optimizer.zero_grad()
                    accelerator.backward(F.cross_entropy(model(x), y))
                    optimizer.step()
            """,
        ),
        Good(
            "in full precision, without accumulation, both do the same",
            """
            from accelerate import Accelerator
            import torch
            import torch.nn.functional as F

            def main(model, loader):
                accelerator = Accelerator(cpu=True, mixed_precision="no")
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
                model, optimizer = accelerator.prepare(model, optimizer)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the same with Fabric",
            """
            from lightning.fabric import Fabric
            import torch
            import torch.nn.functional as F

            def main(model, loader):
                fabric = Fabric(accelerator="cpu")
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
                model, optimizer = fabric.setup(model, optimizer)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "only where there is no accelerator",
            """
            import torch.nn.functional as F

            def train(model, loader, optimizer, accelerator=None):
                if accelerator is not None:
                    model, optimizer = accelerator.prepare(model, optimizer)
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    if accelerator is None:
                        loss.backward()
                    else:
                        accelerator.backward(loss)
                    optimizer.step()
            """,
        ),
        Good(
            "an adversarial input is made by a backward of its own",
            """
            from accelerate import Accelerator
            import torch.nn.functional as F

            def train(model, loader, optimizer):
                accelerator = Accelerator()
                model, optimizer = accelerator.prepare(model, optimizer)
                for x, y in loader:
                    x.requires_grad_()
                    F.cross_entropy(model(x), y).backward()
                    x = (x + 0.01 * x.grad.sign()).detach()
                    optimizer.zero_grad()
                    accelerator.backward(F.cross_entropy(model(x), y))
                    optimizer.step()
            """,
        ),
        Good(
            "an auxiliary net that was not prepared",
            """
            from accelerate import Accelerator
            import torch
            import torch.nn.functional as F

            def main(model, probe, loader):
                accelerator = Accelerator(mixed_precision="fp16")
                model = accelerator.prepare(model)
                optimizer = torch.optim.SGD(probe.parameters(), lr=0.1)
                for x, y in loader:
                    with torch.no_grad():
                        features = model(x)
                    optimizer.zero_grad()
                    F.cross_entropy(probe(features), y).backward()
                    optimizer.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for plain backward calls whose gradients a prepared optimizer uses."""
        for loop in file.loops:
            if any(_is_by_wrapper(backward.call) for backward in loop.backwards):
                continue
            for backward in loop.backwards:
                if not _is_plain(backward.call) or is_out_of_order(loop, backward.call):
                    continue
                way = _way_around(loop, backward)
                if way is not None:
                    yield self._report(backward.call, *way)

    def _report(self, call: Call, step: Step, way: str) -> Finding:
        written = f"{way}({call.receiver_text})"
        return self.finding(
            call.place,
            f"`{call.text}` back-propagates past `{way}`, but `{step.call.text}` steps an "
            f"optimizer that `{way.rpartition('.')[0]}` manages",
            f"write `{written}`",
            None
            if call.args or call.keywords
            else Fix((Edit("replace", call.place, written),), safe=False),
        )


def _is_plain(call: Call) -> bool:
    """Whether a loss is back-propagated by its own method, without a scaler."""
    if call.method != "backward" or call.qualified or call.receiver is None:
        return False
    roles = (is_accelerator, is_fabric, is_engine, is_scaler)
    if any(role(call.receiver) for role in roles):
        return False
    return not any(
        isinstance(value, Result) and "scale" in value.call.name
        for value in origins(call.receiver, 100)
    )


def _is_by_wrapper(call: Call) -> bool:
    return call.method == "manual_backward" or (
        call.receiver is not None and (is_accelerator(call.receiver) or is_fabric(call.receiver))
    )


def _way_around(loop: TrainingLoop, backward: Backward) -> tuple[Step, str] | None:
    """The next step, and what should have back-propagated, if its optimizer is a prepared one."""
    later = [
        step
        for step in loop.steps
        if step.call in after([step.call for step in loop.steps], backward.call)
        and not is_out_of_order(loop, step.call)
    ]
    if not later or _uses_gradients_by_hand(loop, backward, later[0]):
        return None
    way = _prepared_by(later[0]) or _manual_optimization(loop, later[0])
    return (later[0], way) if way is not None else None


def _uses_gradients_by_hand(loop: TrainingLoop, backward: Backward, step: Step) -> bool:
    """Whether the gradients are read for something else, or cleared, before the step."""
    return any(
        may_use_gradients(event) or (isinstance(event, Call) and event.method == "zero_grad")
        for event in loop.events
        if backward.call.index < event.index < step.call.index
    )


def _prepared_by(step: Step) -> str | None:
    """`accelerator.backward` or `fabric.backward`, if the stepped optimizer was given to it."""
    for value in layers(step.optimizer):
        call = _preparation(value)
        # One in a branch of its own prepares on some ways only.
        if call is not None and all(
            isinstance(frame, Inside) or frame in step.call.context for frame in call.context
        ):
            return f"{call.receiver_text}.backward"
    ways = step.optimizer.options if isinstance(step.optimizer, Either) else ()
    calls = [call for call in map(_preparation, ways) if call is not None]
    if ways and len(calls) == len(ways) < MOST_WAYS:
        return f"{calls[0].receiver_text}.backward"
    return None


def _preparation(value: Value) -> Call | None:
    """The call that prepared the value, if what it was prepared for needs its own backward."""
    if not isinstance(value, Returned) or value.call.receiver is None:
        return None
    is_one = value.call.method in ("prepare", "setup", "setup_optimizers")
    return value.call if is_one and _matters(value.call.receiver) else None


def _matters(wrapper: Value) -> bool:
    """Whether the wrapper's backward is known to be needed: it was made here, and not for fp32."""
    made = [
        option.call
        for option in options(wrapper)
        if isinstance(option, Result)
        and option.call.qualified.startswith(("accelerate", "lightning.fabric.", "lightning."))
        and option.call.method in ("Accelerator", "Fabric")
    ]
    return bool(made) and len(made) == len(options(wrapper)) and not any(map(_is_idle, made))


def _is_idle(call: Call) -> bool:
    """Whether a wrapper neither scales nor accumulates nor hands over to an engine."""
    if call.method == "Fabric":
        told = {"precision", "strategy", "plugins", "devices", "num_nodes"}
        return not call.args and not call.starred and not told & set(call.keywords)
    precision = constant(call.argument(None, "mixed_precision"))
    others = set(call.keywords) - {"cpu", "mixed_precision", "log_with", "project_dir"}
    return precision in ("no", "bf16") and not others and not call.starred


def _manual_optimization(loop: TrainingLoop, step: Step) -> str | None:
    """`self.manual_backward`, if the loop is a `training_step` with manual optimization."""
    entry = loop.trace.entry
    if entry is None or entry.name != "training_step" or entry.owner is None:
        return None
    if not is_lightning_module(entry.owner) or not is_optimizer(step.optimizer):
        return None
    asked = any(
        isinstance(value, Result) and value.call.name == "self.optimizers"
        for value in origins(step.optimizer, 20)
    )
    return "self.manual_backward" if asked and _is_manual(entry) else None


def _is_manual(entry: FunctionFacts) -> bool:
    owner = entry.owner
    return owner is not None and any(
        "automatic_optimization = False" in line
        for line in owner.file.lines[owner.place.line - 1 : owner.place.end_line]
    )
