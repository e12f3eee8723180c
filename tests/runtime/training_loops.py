"""Training loops in the styles people write them, each as a function of nothing.

Each builds what it needs under a seed of its own, trains for a few steps, and returns its losses
and its final weights, so that two runs of it can be compared bit for bit.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Result = tuple[list[float], list[Tensor]]
STYLES: dict[str, Callable[[], Result]] = {}


def style(loop: Callable[[], Result]) -> Callable[[], Result]:
    """Add a loop to `STYLES`, under its name."""
    STYLES[loop.__name__] = loop
    return loop


def network(dropout: float = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 2))


def data(examples: int = 16) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(examples) % 2
    inputs = torch.randn(examples, 4, generator=generator) + 2 * targets[:, None]
    return TensorDataset(inputs, targets)


def batches(**options: Any) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(data(), batch_size=4, shuffle=True, **options)


def weights(*models: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for model in models for p in model.parameters()]


@style
def plain() -> Result:
    model, losses = network(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        for x, y in batches():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, weights(model)


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Evaluates on data of its own, and puts the mode back."""
    was_training = model.training
    model.eval()
    held_out = DataLoader(data(8), batch_size=4)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in held_out)
    model.train(was_training)
    return right / 8


@style
def with_evaluations() -> Result:
    model, losses = network(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        for x, y in batches():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        accuracy(model)
    return losses, weights(model)


@style
def with_workers() -> Result:
    model, losses = network(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        for x, y in batches(num_workers=2):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, weights(model)


@style
def scaled_on_the_cpu() -> Result:
    """Automatic mixed precision with a GradScaler, unscaling and clipping."""
    model, losses = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(3):
        for x, y in batches():
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
    return losses, weights(model)


@style
def fused_and_scaled() -> Result:
    model, losses = network(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    for x, y in batches():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses, weights(model)


@style
def lbfgs_closure() -> Result:
    model, losses = network(dropout=0.0), []
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    x, y = data().tensors

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    losses += [float(optimizer.step(closure)) for _ in range(4)]
    return losses, weights(model)


@style
def accumulation() -> Result:
    model, losses, total = network(), [], 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    for _ in range(4):
        for number, (x, y) in enumerate(batches(), 1):
            loss = F.cross_entropy(model(x), y) / 2
            loss.backward()
            total += loss.item()
            if number % 2 == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad(set_to_none=False)
                losses.append(total)
                total = 0.0
    return losses, weights(model)


@style
def two_optimizers_in_turn() -> Result:
    """A generative adversarial network."""
    torch.manual_seed(0)
    generator, critic = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    opt_g = torch.optim.Adam(generator.parameters(), lr=1e-2)
    opt_d = torch.optim.Adam(critic.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        for x, _ in batches():
            fake = generator(torch.randn(len(x), 3))
            opt_d.zero_grad()
            loss_d = F.softplus(-critic(x)).mean() + F.softplus(critic(fake.detach())).mean()
            loss_d.backward()
            opt_d.step()
            opt_g.zero_grad()
            loss_g = F.softplus(-critic(fake)).mean()
            loss_g.backward()
            opt_g.step()
            losses += [loss_d.item(), loss_g.item()]
    return losses, weights(generator, critic)


@style
def two_optimizers_of_one_loss() -> Result:
    encoder, losses = network(), []
    head = nn.Linear(2, 2)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (encoder, head)]
    for x, y in batches():
        loss = F.cross_entropy(head(encoder(x)), y)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses, weights(encoder, head)


@style
def optimizer_in_backward() -> Result:
    model, losses = network(), []
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def update(parameter: nn.Parameter) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(cast("Callable[[Tensor], None]", update))
    for x, y in batches():
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        losses.append(loss.item())
    return losses, weights(model)


@style
def checkpointed_activations() -> Result:
    from torch.utils.checkpoint import checkpoint

    model, head = network(), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-2)
    losses = []
    for x, y in batches():
        optimizer.zero_grad()
        hidden = checkpoint(model, x.requires_grad_(), use_reentrant=True)
        loss = F.cross_entropy(head(hidden), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, weights(model, head)


@style
def compiled_model() -> Result:
    torch._dynamo.reset()
    model, losses = network(dropout=0.0), []
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for x, y in batches():
        optimizer.zero_grad()
        loss = F.cross_entropy(compiled(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, weights(model)


@style
def compiled_step() -> Result:
    torch._dynamo.reset()
    model, losses = network(dropout=0.0), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    @torch.compile(backend="aot_eager")
    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    for x, y in batches():
        losses.append(step(x, y).item())
    return losses, weights(model)


@style
def scripted_model() -> Result:
    model, losses = network(dropout=0.0), []
    scripted = torch.jit.script(model)
    optimizer = torch.optim.AdamW(scripted.parameters(), lr=1e-2)
    for x, y in batches():
        optimizer.zero_grad()
        loss = F.cross_entropy(scripted(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        accuracy(scripted)
    return losses, weights(scripted)


@style
def stateful_loader() -> Result:
    from torchdata.stateful_dataloader import (  # type: ignore[import-untyped]
        StatefulDataLoader,
    )

    model, losses = network(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for x, y in StatefulDataLoader(data(), batch_size=4, shuffle=True):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, weights(model)


@style
def nanogpt() -> Result:
    """NanoGPT's loop: micro-steps, scaling, clipping, a schedule by hand, `get_batch`."""
    torch.manual_seed(1337)
    tokens = torch.arange(200) % 7
    model = nn.Sequential(nn.Embedding(8, 16), nn.Linear(16, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    gradient_accumulation_steps, losses = 2, []

    def get_batch() -> tuple[Tensor, Tensor]:
        ix = torch.randint(len(tokens) - 9, (4,))
        x = torch.stack([tokens[i : i + 8] for i in ix.tolist()])
        y = torch.stack([tokens[i + 1 : i + 9] for i in ix.tolist()])
        return x, y

    x, y = get_batch()
    for iter_num in range(20):
        for group in optimizer.param_groups:
            group["lr"] = 6e-3 * min(1.0, (iter_num + 1) / 5)
        loss = torch.zeros(())
        for _ in range(gradient_accumulation_steps):
            logits = model(x)
            loss = F.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1))
            loss = loss / gradient_accumulation_steps
            x, y = get_batch()
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item() * gradient_accumulation_steps)
    return losses, weights(model)


@style
def accelerate() -> Result:
    from accelerate import Accelerator  # type: ignore[import-untyped]

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, losses = network(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, batches())
    for _ in range(3):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
    return losses, weights(model)


@style
def ignite() -> Result:
    from ignite.engine import (
        Engine,
        Events,
        create_supervised_evaluator,
        create_supervised_trainer,
    )

    model, losses = network(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trainer: Engine = create_supervised_trainer(model, optimizer, F.cross_entropy)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output)
    )
    evaluator: Engine = create_supervised_evaluator(model)
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda _: evaluator.run(DataLoader(data(8), batch_size=4))
    )
    trainer.run(batches(), max_epochs=3)
    return losses, weights(model)


def _lightning(automatic: bool) -> Result:
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = automatic
            self.network = network()
            self.losses: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            loss = F.cross_entropy(self.network(x), y)
            self.losses.append(loss.item())
            if not automatic:
                optimizer: Any = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            self.log("loss", F.cross_entropy(self.network(x), y))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    module = Module()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        lightning.Trainer(
            accelerator="cpu",
            max_epochs=3,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        ).fit(module, batches(), DataLoader(data(8), batch_size=4))
    return module.losses, weights(module)


@style
def lightning_automatic() -> Result:
    return _lightning(automatic=True)


@style
def lightning_manual() -> Result:
    return _lightning(automatic=False)


@style
def hugging_face_trainer() -> Result:
    from transformers import Trainer, TrainingArguments

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()
            self.losses: list[float] = []

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.network(x)
            loss = F.cross_entropy(logits, labels)
            if self.training:
                self.losses.append(loss.item())
            return {"loss": loss, "logits": logits}

    model = Model()
    examples = [{"x": x, "labels": y} for x, y in zip(*data().tensors, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=4,
            num_train_epochs=3,
            learning_rate=1e-2,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            logging_strategy="no",
            eval_strategy="epoch",
        )
        train, held_out = _Examples(examples), _Examples(examples[:8])
        Trainer(model=model, args=arguments, train_dataset=train, eval_dataset=held_out).train()
    return model.losses, weights(model)


class _Examples(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, examples: Iterable[dict[str, Tensor]]) -> None:
        self.examples = list(examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.examples[index]
