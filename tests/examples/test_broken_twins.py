"""The broken twins: each differs from the classifier by its bug alone, and shows its symptom."""

from __future__ import annotations

from types import ModuleType

import pytest

from examples.broken import (
    kept_loss_graph,
    missing_zero_grad,
    optimizer_not_checkpointed,
    side_by_side,
    train_mode_not_restored,
)
from examples.broken.side_by_side import CLONE, Symptom, difference, said_by
from examples.classifier.checkpoint import Checkpoint
from examples.classifier.train import evaluate, train_steps


def test_the_twin_without_zero_grad_lacks_just_that() -> None:
    assert difference(train_steps, missing_zero_grad.train_steps) == ["- optimizer.zero_grad()"]


def test_the_twin_that_keeps_graphs_lacks_just_an_item() -> None:
    assert difference(train_steps, kept_loss_graph.train_steps) == [
        "- losses.append(loss.item())",
        "+ losses.append(loss)",
    ]


def test_the_twin_that_forgets_the_optimizer_forgets_just_that() -> None:
    twin = optimizer_not_checkpointed.Checkpoint
    assert difference(Checkpoint.save, twin.save) == ['- "optimizer": run.optimizer.state_dict(),']
    assert difference(Checkpoint.restore, twin.restore) == [
        '- run.optimizer.load_state_dict(contents["optimizer"])'
    ]


def test_the_twin_left_in_eval_mode_lacks_just_the_way_back() -> None:
    assert difference(evaluate, train_mode_not_restored.evaluate) == [
        "- was_training = model.training",
        "- model.train(was_training)",
    ]
    signatures = difference(side_by_side.epochs, train_mode_not_restored.epochs)
    assert all("def epochs" in line or "train_steps" in line for line in signatures)


def numbers(symptom: Symptom, name: str) -> tuple[list[float], list[float]]:
    return symptom.numbers[name]


def test_without_zero_grad_gradients_grow_and_accuracy_stays_behind() -> None:
    symptom = missing_zero_grad.symptom()
    healthy, broken = numbers(symptom, "gradient norm")
    assert healthy[-1] < healthy[0] < broken[0] < broken[-1]
    healthy, broken = numbers(symptom, "held-out accuracy")
    assert all(worse < better - 0.1 for worse, better in zip(broken, healthy, strict=True))


def test_kept_losses_keep_the_operations_of_every_step() -> None:
    healthy, broken = numbers(kept_loss_graph.symptom(), "operations in memory")
    assert healthy == [0.0] * len(healthy)
    assert broken[0] > 0
    assert broken == [broken[0] * epoch for epoch in range(1, len(broken) + 1)]


def test_without_the_optimizer_a_resumed_run_jumps_after_its_first_step() -> None:
    symptom = optimizer_not_checkpointed.symptom()
    stop = optimizer_not_checkpointed.STOP_AFTER - symptom.first + 1
    healthy, broken = numbers(symptom, "loss")
    assert healthy[: stop + 1] == broken[: stop + 1]  # the first loss has the saved weights
    assert broken[stop + 1] > 2 * healthy[stop + 1]
    healthy, broken = numbers(symptom, "learning rate")
    assert healthy[:stop] == broken[:stop]
    assert broken[stop] > 2 * healthy[stop]


def test_left_in_eval_mode_batch_norm_stands_still_and_learning_is_slower() -> None:
    symptom = train_mode_not_restored.symptom()
    healthy, broken = numbers(symptom, "batch norm's mean moved")
    assert healthy[0] == broken[0] > 0
    assert min(healthy[1:]) > 0
    assert broken[1:] == [0.0] * (len(broken) - 1)
    healthy, broken = numbers(symptom, "loss")
    assert healthy[0] == broken[0]
    assert all(worse > better for worse, better in zip(broken[1:], healthy[1:], strict=True))


@pytest.mark.parametrize(
    ("twin", "verdict"),
    [
        (missing_zero_grad, "missing-zero-grad: the gradients that `loss.backward()` adds to"),
        (kept_loss_graph, "kept-loss-graph: `losses.append(loss)` keeps the graph of every turn"),
        (optimizer_not_checkpointed, "resumes: optimizer state not the same at step 3: "),
        (
            train_mode_not_restored,
            (
                "train-mode-not-restored: `model` stays in eval mode after an evaluation, and is"
                " trained on: `features.1` (BatchNorm2d), `features.4` (BatchNorm2d), `features.7`"
                " (BatchNorm2d) and 1 more"
            ),
        ),
    ],
    ids=["missing-zero-grad", "kept-loss-graph", "optimizer", "train-mode"],
)
def test_the_guard_names_the_bug(twin: ModuleType, verdict: str) -> None:
    said = said_by(twin.GUARD)
    assert verdict in said
    assert twin.__name__.rpartition(".")[2] in said


def test_a_twin_shows_the_numbers_then_the_bug_then_what_the_guard_says() -> None:
    shown = said_by("python -m examples.broken.kept_loss_graph")
    parts = [
        "A loop that keeps its losses as tensors",
        "epoch      healthy      broken",
        "+ losses.append(loss)",
        f"$ {kept_loss_graph.GUARD}",
        "1 problem in 1 of ",
    ]
    places = [shown.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)


def test_the_folder_says_which_twins_there_are() -> None:
    shown = said_by("python -m examples.broken")
    for twin in CLONE.glob("examples/broken/[!_]*.py"):
        if twin.stem != "side_by_side":
            assert f"python -m examples.broken.{twin.stem}\n" in shown


def test_the_classifier_itself_gives_no_finding() -> None:
    assert said_by("trainloop-lint examples/classifier").startswith("no problems in ")
