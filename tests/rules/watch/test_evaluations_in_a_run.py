"""Rules about evaluations in watched runs: what they say, and what they are silent about."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_trainloop import watch
from tests.rules.watch.conftest import Observed

HERE = "tests/rules/watch/test_evaluations_in_a_run.py"
Loader = DataLoader[tuple[Tensor, ...]]
Evaluate = Callable[[nn.Module, Loader], object]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)
    )


def loader(examples: int = 12) -> Loader:
    return DataLoader(TensorDataset(torch.randn(examples, 4), torch.arange(examples) % 2), 4)


def train_and(
    evaluate: Evaluate,
    model: nn.Module | None = None,
    begin: Callable[[nn.Module], object] | None = None,
    epochs: int = 3,
) -> None:
    """Train in train mode, or each epoch as `begin` has it, and evaluate after each epoch."""
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training, held_out = loader(), loader(8)
    model.train()
    for _ in range(epochs):
        if begin is not None:
            begin(model)
        for x, y in training:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        evaluate(model, held_out)


def score(model: nn.Module, data: Loader) -> float:
    return sum(F.cross_entropy(model(x), y).item() for x, y in data)


def restoring(model: nn.Module, data: Loader) -> None:
    model.eval()
    with torch.no_grad():
        score(model, data)
    model.train()


def leaving_eval_mode(model: nn.Module, data: Loader) -> None:
    model.eval()
    with torch.no_grad():
        score(model, data)


# -- train-mode-not-restored


def test_training_that_goes_on_in_eval_mode(observed: Observed) -> None:
    assert observed(lambda: train_and(leaving_eval_mode)) == [
        (
            "train-mode-not-restored: `model` stays in eval mode after an evaluation, and is"
            " trained on: `1` (BatchNorm1d) and `3` (Dropout)"
        )
    ]


def test_where_the_mode_was_switched_and_how_many_steps_are_concerned() -> None:
    with watch() as run:
        train_and(leaving_eval_mode)
    (one,) = run.observations
    line = leaving_eval_mode.__code__.co_firstlineno
    assert one.where == f"{HERE}:{line + 1}"
    step = train_and.__code__.co_firstlineno + 17
    assert one.evidence == (f"6 steps in eval mode, the first at {HERE}:{step}",)
    assert one.advice == "switch back after the evaluation: `model.train()`"


def test_an_evaluation_of_a_list_with_gradients_is_one_too(observed: Observed) -> None:
    def evaluate(model: nn.Module, data: Loader) -> None:
        model.eval()
        sum(F.cross_entropy(model(x), y).item() for x, y in list(data))

    said = observed(lambda: train_and(evaluate))
    assert [one.partition(":")[0] for one in said] == ["missing-no-grad", "train-mode-not-restored"]


class Wrapped(nn.Module):
    """Freezes its BatchNorm for good, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def train(self, mode: bool = True) -> Wrapped:
        super().train(mode)
        self.net[1].eval()
        return self


def freeze_batch_norm(model: nn.Module) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()


class FreezeLater:
    """Trains in eval mode from the second epoch on, and means it."""

    def __init__(self) -> None:
        self.epoch = 0

    def __call__(self, model: nn.Module) -> None:
        self.epoch += 1
        model.train(self.epoch < 2)


def test_a_model_with_a_train_of_its_own_that_stays_in_eval_mode(observed: Observed) -> None:
    (said,) = observed(lambda: train_and(leaving_eval_mode, Wrapped()))
    assert said.endswith("trained on: `net.3` (Dropout)")


@pytest.mark.parametrize(
    ("evaluate", "model", "begin"),
    [
        (restoring, None, None),
        (leaving_eval_mode, None, lambda model: model.train()),
        (restoring, None, nn.Module.eval),
        (leaving_eval_mode, None, nn.Module.eval),
        (restoring, Wrapped(), lambda model: model.train()),
        (leaving_eval_mode, None, freeze_batch_norm),
        (restoring, None, FreezeLater()),
        (leaving_eval_mode, None, FreezeLater()),
    ],
    ids=[
        "restored",
        "each epoch switches itself",
        "eval mode on purpose",
        "eval mode on purpose, set in each epoch",
        "a model that keeps its BatchNorm in eval mode",
        "a loop that does so",
        "frozen later on",
        "frozen later on, after an evaluation that does not restore",
    ],
)
def test_a_mode_that_is_meant(
    observed: Observed,
    evaluate: Evaluate,
    model: nn.Module | None,
    begin: Callable[[nn.Module], object] | None,
) -> None:
    assert observed(lambda: train_and(evaluate, model, begin)) == []


def test_an_attack_in_eval_mode(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in loader():
            model.eval()
            delta = torch.zeros_like(x, requires_grad=True)
            for _ in range(3):
                F.cross_entropy(model(x + delta), y).backward()
                assert delta.grad is not None
                delta.data += 0.1 * delta.grad.sign()
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(x + delta.detach()), y).backward()
            optimizer.step()

    assert observed(loop) == []


def test_a_teacher_that_was_trained_before(observed: Observed) -> None:
    """Both are called `model` where they are trained."""

    def distil(model: nn.Module, teacher: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, _ in loader():
            with torch.no_grad():
                target = teacher(x)
            optimizer.zero_grad()
            F.mse_loss(model(x), target).backward()
            optimizer.step()

    def loop() -> None:
        teacher = network()
        train_and(leaving_eval_mode, teacher, lambda model: model.train())
        distil(network(), teacher)

    assert observed(loop) == []


# -- missing-eval-mode, evaluation-changes-state


def in_train_mode(model: nn.Module, data: Loader) -> None:
    with torch.no_grad():
        score(model, data)


def test_an_evaluation_in_train_mode(observed: Observed) -> None:
    assert observed(lambda: train_and(in_train_mode)) == [
        (
            "missing-eval-mode: `model` is evaluated in train mode: `1` (BatchNorm1d) and `3`"
            " (Dropout)"
        )
    ]


def update_bn(model: nn.Module, data: Loader) -> None:
    in_train_mode(model, data)


def adapted(model: nn.Module, data: Loader) -> None:
    in_train_mode(model, data)
    restoring(model, data)


def monte_carlo(model: nn.Module, data: Loader) -> None:
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    with torch.no_grad():
        score(model, data)
    model.train()


def all_of_it_drawn(model: nn.Module, data: Loader) -> None:
    model.eval()
    model.train()
    with torch.no_grad():
        score(model, data)


def of_another_model(model: nn.Module, data: Loader) -> None:
    in_train_mode(copy.deepcopy(model), data)


def of_what_it_is_trained_on(model: nn.Module, data: Loader) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0001)
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    torch.optim.swa_utils.update_bn(data, model)
    in_train_mode(model, data)


@pytest.mark.parametrize(
    "evaluate",
    [update_bn, adapted, monte_carlo, all_of_it_drawn, of_another_model, of_what_it_is_trained_on],
)
def test_train_mode_that_is_meant(observed: Observed, evaluate: Evaluate) -> None:
    assert observed(lambda: train_and(evaluate)) == []


def test_a_model_that_does_not_care(observed: Observed) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.0), nn.LayerNorm(8), nn.Linear(8, 2))
    assert observed(lambda: train_and(in_train_mode, model)) == []


class Stubborn(Wrapped):
    """Leaves BatchNorm in train mode."""

    def train(self, mode: bool = True) -> Stubborn:
        nn.Module.train(self, mode)
        self.net[1].train()
        return self


def test_statistics_that_follow_the_evaluation(observed: Observed) -> None:
    assert observed(lambda: train_and(restoring, Stubborn())) == [
        "evaluation-changes-state: an evaluation in eval mode changes `net.1.running_mean`"
    ]


# -- missing-no-grad


def with_gradients(model: nn.Module, data: Loader) -> None:
    model.eval()
    score(model, data)
    model.train()


def test_graphs_that_nobody_wants(observed: Observed) -> None:
    (said,) = observed(lambda: train_and(with_gradients))
    assert said == (
        "missing-no-grad: `model` is evaluated with gradients: 2 graphs built and dropped without"
        " a backward"
    )


def saliency(model: nn.Module, data: Loader) -> None:
    model.eval()
    for x, y in data:
        x = x.requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(x), y), x)
    model.train()


def saliency_by_backward(model: nn.Module, data: Loader) -> None:
    model.eval()
    for x, y in data:
        F.cross_entropy(model(x.requires_grad_()), y).backward()
    model.train()


def by_function_transforms(model: nn.Module, data: Loader) -> None:
    model.eval()
    weights: dict[str, Tensor] = dict(model.named_parameters())

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, (x,)), y)

    for x, y in data:
        torch.func.grad(loss)(x, y)
    model.train()


def one_look(model: nn.Module, data: Loader) -> None:
    model.eval()
    model(next(iter(data))[0]).detach()
    model.train()


def frozen_for_it(model: nn.Module, data: Loader) -> None:
    model.eval().requires_grad_(requires_grad=False)
    score(model, data)
    model.train().requires_grad_()


@pytest.mark.parametrize(
    "evaluate", [saliency, saliency_by_backward, by_function_transforms, one_look, frozen_for_it]
)
def test_gradients_that_are_wanted(observed: Observed, evaluate: Evaluate) -> None:
    assert observed(lambda: train_and(evaluate)) == []


# -- pretrained-left-in-eval


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of transformers, as `save_pretrained` leaves it."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("pretrained")
    config = BertConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=8,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def fine_tune(folder: Path, prepare: Callable[[nn.Module], object] = nn.Module.parameters) -> None:
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(folder)
    prepare(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    for _ in range(3):
        tokens = torch.randint(16, (4, 8))
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens[:, 0] % 2).loss.backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore")
def test_a_pretrained_model_that_nobody_switched(observed: Observed, pretrained: Path) -> None:
    assert observed(lambda: fine_tune(pretrained)) == [
        (
            "pretrained-left-in-eval: `model` is fine-tuned in eval mode, as `from_pretrained` gave"
            " it: `bert.embeddings.dropout` (Dropout),"
            " `bert.encoder.layer.0.attention.self.dropout` (Dropout),"
            " `bert.encoder.layer.0.attention.output.dropout` (Dropout) and 2 more did nothing in"
            " 3 steps"
        )
    ]


def freeze_the_encoder(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("classifier")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "prepare", [nn.Module.train, nn.Module.eval, freeze_the_encoder], ids=lambda one: one.__name__
)
def test_a_pretrained_model_whose_mode_is_meant(
    observed: Observed, pretrained: Path, prepare: Callable[[nn.Module], object]
) -> None:
    assert observed(lambda: fine_tune(pretrained, prepare)) == []


class Checkpointing(nn.Module):
    """Reads the mode, but computes the same in both; its block drops nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.block(x[:, None])
        if self.training:
            hidden = hidden.clone()
        out: Tensor = self.head(hidden[:, 0])
        return out


@pytest.mark.parametrize("evaluate", [in_train_mode, leaving_eval_mode])
def test_a_mode_that_makes_no_difference(observed: Observed, evaluate: Evaluate) -> None:
    assert observed(lambda: train_and(evaluate, Checkpointing())) == []


@pytest.mark.filterwarnings("ignore")
def test_a_pretrained_model_without_dropout(observed: Observed, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)

    def loop() -> None:
        model = LlamaForCausalLM.from_pretrained(tmp_path)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        for _ in range(3):
            tokens = torch.randint(16, (4, 8))
            optimizer.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()

    assert observed(loop) == []


# -- the windows themselves


@pytest.mark.parametrize("ending", [None, RuntimeError])
def test_no_hook_is_left_on_a_model(ending: type[Exception] | None) -> None:
    model = network()
    kept: list[nn.Module] = []

    def breaks_off(model: nn.Module, data: Loader) -> None:
        model.eval()
        with torch.no_grad():
            for x, _ in data:
                model(x)
                kept.append(copy.deepcopy(model))
                torch.save(model, io.BytesIO())
                break
        if ending is not None:
            raise ending

    expected: AbstractContextManager[object] = (
        nullcontext() if ending is None else pytest.raises(ending)
    )
    with expected, watch() as run:
        train_and(breaks_off, model, lambda model: model.train())
    assert not any(module._forward_hooks for module in model.modules())
    assert run.evaluations
    number = len(run.evaluations)
    for one in kept:
        one(torch.randn(4, 4))
    assert len(run.evaluations) == number


def test_only_the_first_batches_of_an_evaluation_are_looked_at() -> None:
    def evaluate(model: nn.Module, data: Loader) -> None:
        restoring(model, DataLoader(data.dataset, 1))

    with watch() as run:
        train_and(evaluate, epochs=4)
    assert sum(one.loader is not None for one in run.evaluations) == 8


def test_a_target_of_two_critics_is_no_evaluation(observed: Observed) -> None:
    def loop() -> None:
        critics = [network(), network()]
        optimizer = torch.optim.SGD([p for one in critics for p in one.parameters()], lr=0.01)
        for _ in range(4):
            now, then = torch.randn(6, 4), torch.randn(6, 4)
            for critic in critics:
                critic.eval()
            target = torch.min(critics[0](then), critics[1](then)).detach() + 1
            for critic in critics:
                critic.train()
            optimizer.zero_grad()
            torch.stack([F.mse_loss(critic(now), target) for critic in critics]).sum().backward()
            optimizer.step()

    assert observed(loop) == []


def test_an_evaluation_of_two_models_with_gradients(observed: Observed) -> None:
    def loop() -> None:
        one, other = network(), network()
        optimizer = torch.optim.SGD([*one.parameters(), *other.parameters()], lr=0.01)
        for _ in range(4):
            one.train()
            other.train()
            for x, y in loader():
                optimizer.zero_grad()
                F.cross_entropy(one(x) + other(x), y).backward()
                optimizer.step()
            one.eval()
            other.eval()
            for x, y in loader():
                F.cross_entropy(one(x) + other(x), y).item()

    assert observed(loop) == [
        (
            "missing-no-grad: `one` is evaluated with gradients: 3 graphs built and dropped"
            " without a backward"
        )
    ]
