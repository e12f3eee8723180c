"""Evaluations that people write and that are right, each as a function of a loader."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Loader = DataLoader[tuple[Tensor, ...]]
STYLES: dict[str, Callable[[Loader], object]] = {}


def style(evaluation: Callable[[Loader], object]) -> Callable[[Loader], object]:
    """Add an evaluation to `STYLES`, under its name."""
    STYLES[evaluation.__name__] = evaluation
    return evaluation


def network() -> nn.Sequential:
    """Four features to three classes, by way of layers that depend on the mode."""
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )


def put_back(model: nn.Module, loader: Iterable[Any]) -> float:
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
    model.train(was_training)
    return float(right)


@style
def in_inference_mode(loader: Loader) -> object:
    return put_back(network(), loader)


@style
def over_a_list(loader: Loader) -> object:
    return put_back(network(), list(loader))


@style
def in_another_order_each_time(loader: Loader) -> object:
    return [put_back(network(), DataLoader(loader.dataset, 4, shuffle=True)) for _ in range(2)]


@style
def compiled(loader: Loader) -> object:
    torch._dynamo.reset()
    return put_back(torch.compile(network(), backend="aot_eager"), loader)  # type: ignore[arg-type]


@style
def with_a_weighted_criterion(loader: Loader) -> object:
    model, criterion = network().eval(), nn.CrossEntropyLoss(torch.ones(3))
    with torch.no_grad():
        return [criterion(model(x), y).item() for x, y in loader]


@style
def of_averaged_weights(loader: Loader) -> object:
    """Weights are exchanged for the average of them, and put back."""
    model = network()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value * 0 for name, value in own.items()})
    score = put_back(model, loader)
    model.load_state_dict(own)
    return score


class Stateful(nn.Module):
    """Carries a hidden state from batch to batch; reads time first."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(4, 4)
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        out, self.hidden = self.cell(x[:, None], self.hidden)
        result: Tensor = out
        return result


@style
def of_a_model_that_keeps_a_state(loader: Loader) -> object:
    model = Stateful().eval()
    with torch.no_grad():
        return [model(x) for x, _ in loader]


class Positions(nn.Module):
    """Keeps a table that grows with its inputs."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.register_buffer("table", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.table.shape[0] < x.shape[1]:
            self.table = torch.arange(float(x.shape[1]))
        result: Tensor = self.head(x + self.table)
        return result


@style
def of_a_model_with_a_table(loader: Loader) -> object:
    return put_back(Positions(), loader)


class Matching(nn.Module):
    """Compares each sample with each other one, as contrastive models do."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 8), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.left(x) @ self.right(x).T
        return result


@style
def of_a_model_that_compares_samples(loader: Loader) -> object:
    model = Matching().eval()
    with torch.no_grad():
        return [model(x) for x, _ in loader]


@style
def with_padding_to_the_longest(loader: Loader) -> object:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)).eval()
    lengths = range(1, len(loader) + 4)
    sentences = [torch.arange(1, 1 + length) for length in lengths]

    def collate(batch: list[Tensor]) -> Tensor:
        return nn.utils.rnn.pad_sequence(batch, batch_first=True)

    shuffled: Any = DataLoader(sentences, 2, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    for _ in range(2):
        with torch.no_grad():
            for x in shuffled:
                model(x)
    return model


@style
def under_attack(loader: Loader) -> object:
    """Needs gradients, and leaves none behind."""
    model = network().eval()
    scores = []
    for x, y in loader:
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
        scores.append(F.cross_entropy(model(x + 0.1 * slope.sign()), y).item())
    return scores


@style
def scripted(loader: Loader) -> object:
    return put_back(torch.jit.script(network()), loader)


@style
def quantized(loader: Loader) -> object:
    model = torch.ao.quantization.quantize_dynamic(network().eval(), {nn.Linear})
    return put_back(model, loader)


@style
def generating(loader: Loader) -> object:
    """Each call is given what the one before it kept of the sequence."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=8, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    model: Any = GPT2LMHeadModel(config)
    model.eval()
    return [
        model.generate(
            y[:, None], attention_mask=torch.ones(len(y), 1), max_new_tokens=3, do_sample=False
        )
        for _, y in loader
    ]


@style
def ignite(loader: Loader) -> object:
    from ignite.engine import Engine, create_supervised_evaluator
    from ignite.metrics import Accuracy

    evaluator: Engine = create_supervised_evaluator(network(), {"accuracy": Accuracy()})
    return evaluator.run(loader).metrics


@style
def lightning(loader: Loader) -> object:
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            self.log("loss", F.cross_entropy(self.network(x), y))

    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        return trainer.validate(Module(), loader, verbose=False)


@style
def hugging_face_trainer(loader: Loader) -> object:
    from transformers import Trainer, TrainingArguments

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.network(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    dataset: Any = loader.dataset
    examples: Any = _Examples(dataset)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, report_to=[], disable_tqdm=True, use_cpu=True)
        return Trainer(model=Model(), args=arguments, eval_dataset=examples).evaluate()


class _Examples(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, dataset: TensorDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = self.dataset[index]
        return {"x": x, "labels": y}
