"""Loops that accumulate gradients and do it right, each a function of data and `accumulation`."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_trainloop.runtime.accumulation import Accumulation

STYLES: dict[str, Callable[[TensorDataset, Accumulation], object]] = {}
Loop = Callable[[TensorDataset, Accumulation], object]


def style(loop: Loop) -> Loop:
    """Add a loop to `STYLES`, under its name."""
    STYLES[loop.__name__] = loop
    return loop


def network() -> nn.Sequential:
    """Four features to two classes, with dropout."""
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


def batches(data: TensorDataset, accumulation: Accumulation) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(data, accumulation.batch_size, shuffle=True)


@style
def with_a_remainder_that_is_used(data: TensorDataset, accumulation: Accumulation) -> object:
    model, more = network(), TensorDataset(*(torch.cat([one, one[:3]]) for one in data.tensors))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = batches(more, accumulation)
    for _ in range(2):
        for i, (x, y) in enumerate(loader, 1):
            (F.cross_entropy(model(x), y) / accumulation.steps).backward()
            if i % accumulation.steps == 0 or i == len(loader):
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
    return model


@style
def divided_in_the_gradients(data: TensorDataset, accumulation: Accumulation) -> object:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        for i, (x, y) in enumerate(batches(data, accumulation), 1):
            F.cross_entropy(model(x), y).backward()
            if i % accumulation.steps == 0:
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.grad /= accumulation.steps
                optimizer.step()
                optimizer.zero_grad()
    return model


@style
def scaled_in_half_precision(data: TensorDataset, accumulation: Accumulation) -> object:
    model, scaler = network(), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for i, (x, y) in enumerate(batches(data, accumulation), 1):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(x), y) / accumulation.steps
            scaler.scale(loss).backward()
            if i % accumulation.steps == 0:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    return model


@style
def of_two_optimizers(data: TensorDataset, accumulation: Accumulation) -> object:
    body, head = network(), nn.Linear(2, 2)
    optimizers = [torch.optim.AdamW(one.parameters(), lr=1e-2) for one in (body, head)]
    schedules = [torch.optim.lr_scheduler.StepLR(one, 1) for one in optimizers]
    for _ in range(2):
        for i, (x, y) in enumerate(batches(data, accumulation), 1):
            (F.cross_entropy(head(body(x)), y) / accumulation.steps).backward()
            if i % accumulation.steps == 0:
                for optimizer, schedule in zip(optimizers, schedules, strict=True):
                    optimizer.step()
                    optimizer.zero_grad()
                    schedule.step()
    return body


@style
def of_a_transformer(data: TensorDataset, accumulation: Accumulation) -> object:
    """Key biases have no gradient but rounding, of which Adam makes steps of full length."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    for _ in range(4):
        for i, (x, _) in enumerate(batches(data, accumulation), 1):
            words = torch.stack([x, x + 1, x - 1], 1)
            (layer(words).pow(3).mean() / accumulation.steps).backward()
            if i % accumulation.steps == 0:
                optimizer.step()
                optimizer.zero_grad()
    return layer


@style
def by_tokens(data: TensorDataset, accumulation: Accumulation) -> object:
    """Each micro-batch holds another number of tokens; all of them are counted."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        waiting: list[tuple[Tensor, Tensor]] = []
        for x, y in batches(data, accumulation):
            waiting.append((x, y.masked_fill(x[:, 0] > 0, -100)))
            if len(waiting) == accumulation.steps:
                tokens = sum(int((target >= 0).sum()) for _, target in waiting)
                for given, target in waiting:
                    loss = F.cross_entropy(model(given), target, reduction="sum")
                    (loss / max(tokens, 1)).backward()
                optimizer.step()
                optimizer.zero_grad()
                waiting.clear()
    return model


@style
def without_a_loader(data: TensorDataset, accumulation: Accumulation) -> object:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = data.tensors

    def micro_batches() -> Iterator[tuple[Tensor, Tensor]]:
        size = accumulation.batch_size
        for start in range(0, len(x), size):
            yield x[start : start + size], y[start : start + size]

    for _ in range(2):
        for i, (given, target) in enumerate(micro_batches(), 1):
            (F.cross_entropy(model(given), target) / accumulation.steps).backward()
            if i % accumulation.steps == 0:
                optimizer.step()
                optimizer.zero_grad()
    return model


@style
def of_checkpointed_activations(data: TensorDataset, accumulation: Accumulation) -> object:
    from torch.utils.checkpoint import checkpoint

    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        for i, (x, y) in enumerate(batches(data, accumulation), 1):
            answers = checkpoint(model, x.requires_grad_(), use_reentrant=True)
            (F.cross_entropy(answers, y) / accumulation.steps).backward()
            if i % accumulation.steps == 0:
                optimizer.step()
                optimizer.zero_grad()
    return model


@style
def of_a_compiled_model(data: TensorDataset, accumulation: Accumulation) -> object:
    torch._dynamo.reset()
    model = network()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        for i, (x, y) in enumerate(batches(data, accumulation), 1):
            (F.cross_entropy(compiled(x), y) / accumulation.steps).backward()
            if i % accumulation.steps == 0:
                optimizer.step()
                optimizer.zero_grad()
    return model


@style
def accelerate(data: TensorDataset, accumulation: Accumulation) -> object:
    from accelerate import Accelerator  # type: ignore[import-untyped]

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation.steps)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, batches(data, accumulation))
    for _ in range(2):
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
    return model


@style
def accelerate_over_several_updates(data: TensorDataset, accumulation: Accumulation) -> object:
    """It fetches each batch before the one at hand is used."""
    more = TensorDataset(
        *(
            torch.cat([one, -one if one.is_floating_point() else one, one])[:21]
            for one in data.tensors
        )
    )
    return accelerate(more, accumulation)


@style
def lightning(data: TensorDataset, accumulation: Accumulation) -> object:
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return F.cross_entropy(self.network(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    with tempfile.TemporaryDirectory() as folder:
        lightning.Trainer(
            accelerator="cpu",
            max_epochs=2,
            accumulate_grad_batches=accumulation.steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        ).fit(Module(), batches(data, accumulation))
    return None


@style
def hugging_face_trainer(data: TensorDataset, accumulation: Accumulation) -> object:
    from transformers import Trainer, TrainingArguments

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.network(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    # Three updates and a half an epoch.
    pairs = [(x + shift, y) for shift in range(4) for x, y in zip(*data.tensors, strict=True)]
    examples: Any = [{"x": x, "labels": y} for x, y in pairs[:28]]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=accumulation.batch_size,
            gradient_accumulation_steps=accumulation.steps,
            num_train_epochs=2,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(model=Model(), args=arguments, train_dataset=examples).train()
    return None
