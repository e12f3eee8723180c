"""The order of one turn of a training loop, what accumulates in it, and where graphs are cut."""

from __future__ import annotations

from textwrap import dedent

import pytest

from pytest_trainloop.source.facts import (
    Call,
    TrainingLoop,
    accumulations,
    after,
    at_surface,
    before,
    comes_along,
    graph_of,
    made_by,
    may_use_gradients,
    mixed_gradients,
    together,
)
from pytest_trainloop.source.read import read_source


def training_loop(body: str) -> TrainingLoop:
    """The one training loop of `train`, whose body this is."""
    header = "import torch\ndef train(model, loader, optimizer, scaler, k, amp, loss_of, log):\n"
    code = header + "".join(f"    {line}\n" for line in dedent(body).strip().splitlines())
    (loop,) = read_source(code, "train.py").loops
    return loop


def the(loop: TrainingLoop, text: str) -> Call:
    """The one call whose text begins so."""
    (found,) = [call for call in loop.trace.calls if call.text.startswith(text)]
    return found


def test_arms_of_one_branch_never_happen_in_one_turn() -> None:
    """Two ways to step are no order, and neither comes along with what follows the branch."""
    loop = training_loop(
        """
        for x in loader:
            if amp:
                scaler.scale(model(x)).backward()
                scaler.step(optimizer)
            else:
                model(x).backward()
                optimizer.step()
            log(x)
        """
    )
    scaled, plain, last = the(loop, "scaler.step"), the(loop, "optimizer.step"), the(loop, "log(")
    assert not together(scaled, plain)
    assert before(loop.calls, plain)[-1].text == "model(x).backward()"
    assert after([scaled, plain, last], scaled) == [last]
    assert comes_along(last, plain)
    assert not comes_along(plain, last)


def test_what_a_helper_does_stands_at_the_helpers_call() -> None:
    """A reader of the loop is shown the line of the loop, not one of the helper."""
    loop = training_loop(
        """
        def apply():
            optimizer.step()
        for x in loader:
            model(x).backward()
            apply()
        """
    )
    assert at_surface(loop, the(loop, "optimizer.step")).line == the(loop, "apply(").line


@pytest.mark.parametrize(
    ("guard", "modulus"),
    [
        ("(i + 1) % k == 0", "k"),
        ("not (i + 1) % 4", "4"),
        ("i % k == k - 1 or i + 1 == len(loader)", "k"),
        ("amp", None),
        ("model.training", None),
    ],
)
def test_a_guard_that_takes_a_remainder_accumulates(guard: str, modulus: str | None) -> None:
    """Other conditions on the step say nothing about micro-batches."""
    loop = training_loop(
        f"""
        for i, x in enumerate(loader):
            model(x).backward()
            if {guard}:
                optimizer.step()
        """
    )
    found = [accumulation.modulus_text for accumulation in accumulations(loop)]
    assert found == ([] if modulus is None else [modulus])


def test_a_count_far_up_the_line_is_no_count_of_micro_batches() -> None:
    """A limit that was computed with a remainder is not a condition on the micro-batch."""
    loop = training_loop(
        """
        limit = int(k % 7)
        for i, x in enumerate(loader):
            model(x).backward()
            if i < limit:
                optimizer.step()
        """
    )
    assert list(accumulations(loop)) == []


def test_an_inner_loop_with_the_backward_accumulates() -> None:
    """What the inner loop holds happens at every micro-batch, what follows it does not."""
    loop = training_loop(
        """
        for batch in loader:
            for x in batch:
                model(x).backward()
            optimizer.step()
        """
    )
    (found,) = accumulations(loop)
    assert found.header == "for x in batch:"
    assert found.is_every_time(the(loop, "model(x).backward"))
    assert not found.is_every_time(the(loop, "optimizer.step"))


@pytest.mark.parametrize(
    ("loss", "learns"),
    [
        ("loss_of(model(x))", True),
        ("loss_of(model(x).detach())", False),
        ("torch.tensor(loss_of(model(x)))", False),
        ("loss_of(model(x).data) + 1", False),
        ("loss_of(model(x).detach()) + model(x).mean()", True),
    ],
)
def test_a_graph_ends_where_it_is_cut(loss: str, learns: bool) -> None:
    """The model is behind a loss exactly if some way to it is not cut."""
    loop = training_loop(
        f"""
        for x in loader:
            loss = {loss}
            loss.backward()
            optimizer.step()
        """
    )
    behind = loop.backwards[0].loss
    assert behind is not None
    reached = [call.name for value in graph_of(behind).reached for call in made_by(value)]
    assert ("model" in reached) is learns


@pytest.mark.parametrize(
    ("line", "uses"),
    [
        ("kept = [p.grad.clone() for p in model.parameters()]", True),
        ("log(torch.autograd.grad(x, y))", True),
        ("average_gradients(model)", True),
        ("p.grad /= k", True),
        ("y = x.view(k, model.num_heads)", False),
        ("loss = loss_of(model(x), x)", False),
        ("head.requires_grad_(False)", False),
        ("layers.extend(discriminator_block(x))", False),
        ("tokenizer = load_tokenizer(args.pretrained_model_name_or_path)", False),
        ("tokenizer = load_tokenizer(args.model)", True),
    ],
)
def test_gradients_that_are_read_by_hand_are_seen(line: str, uses: bool) -> None:
    """A value that is merely named like a part of a model is no use of its gradients."""
    loop = training_loop(
        f"""
        for x in loader:
            {line}
            model(x).backward()
            optimizer.step()
        """
    )
    assert any(may_use_gradients(event) for event in loop.events) is uses


def test_a_judges_update_leaves_gradients_in_the_network_it_judges() -> None:
    """Without a clearing in between, the second network steps on the sum."""
    loop = training_loop(
        """
        judge = torch.nn.Linear(2, 1)
        other = torch.optim.Adam(judge.parameters())
        mine = torch.optim.Adam(model.parameters())
        for x in loader:
            judged = judge(model(x))
            judged.mean().backward(retain_graph=True)
            other.step()
            (-judged.mean()).backward()
            mine.step()
        """
    )
    (found,) = mixed_gradients(loop)
    assert (found.meant_for.optimizer_text, found.step.optimizer_text) == ("other", "mine")
