"""What a reader is told of scalers, schedulers and optimizers: the cause, then the remedy."""

from __future__ import annotations

import pytest

from pytest_trainloop.rules import Bad, all_rules
from pytest_trainloop.source.read import read_source

#: The message of each rule's page example, and of further examples by their titles.
TOLD = {
    ("clip-before-unscale", "clipped without unscale_"): (
        (
            "`nn.utils.clip_grad_norm_` clips gradients that are still multiplied by the "
            "loss scale of `scaler`: nothing takes it off after "
            "`scaler.scale(loss).backward()`"
        ),
        ("write `scaler.unscale_(optimizer)` before the clip"),
    ),
    ("step-bypasses-scaler", "a plain step after a scaled backward"): (
        (
            "`optimizer.step()` uses gradients that `scaler.scale(loss).backward()` has "
            "multiplied by the loss scale"
        ),
        ("write `scaler.step(optimizer)`, then `scaler.update()`"),
    ),
    ("step-bypasses-scaler", "one of two losses is not scaled"): (
        (
            "`F.mse_loss(side, aux).backward()` back-propagates without the loss scale, "
            "but `scaler.step(optimizer)` divides its gradients by that of "
            "`scaler.scale(F.cross_entropy(out, y)).backward(retain_graph=True)`"
        ),
        ("write `scaler.scale(...)` around this loss too"),
    ),
    ("backward-bypasses-accelerator", "loss.backward() in an accumulation of Accelerate"): (
        (
            "`loss.backward()` back-propagates past `accelerator.backward`, but "
            "`optimizer.step()` steps an optimizer that `accelerator` manages"
        ),
        ("write `accelerator.backward(loss)`"),
    ),
    ("backward-bypasses-accelerator", "past Lightning, with manual optimization"): (
        (
            "`loss.backward()` back-propagates past `self.manual_backward`, but "
            "`optimizer.step()` steps an optimizer that `self` manages"
        ),
        ("write `self.manual_backward(loss)`"),
    ),
    ("scheduler-before-optimizer", "the scheduler steps first"): (
        (
            "`scheduler.step()` runs before `optimizer.step()` in each turn of `for x, y "
            "in loader:`, so the first value of the schedule is never used"
        ),
        ("move it after `optimizer.step()`"),
    ),
    ("scheduler-before-optimizer", "at the head of the epoch, as it was right before torch 1.1"): (
        (
            "`scheduler.step()` runs before `optimizer.step()` in each turn of `for epoch"
            " in range(epochs):`, so the first value of the schedule is never used"
        ),
        ("move it to the end of `for epoch in range(epochs):`"),
    ),
    ("scheduler-wrong-cadence", "milestones in epochs, stepped at every batch"): (
        (
            "`scheduler.step()` runs at every turn of `for x, y in loader:`, but "
            "`MultiStepLR` was made to count epochs: its `milestones` of `[60, 120]` lies"
            " within the 200 epochs of the loop"
        ),
        ("move it out of the batch loop, to the end of `for epoch in range(200):`"),
    ),
    ("scheduler-wrong-cadence", "one cycle over all batches, stepped every epoch"): (
        (
            "`scheduler.step()` runs once in each turn of `for epoch in range(epochs):`, "
            "but `OneCycleLR` was made to count batches: its `steps_per_epoch` is "
            "`len(loader)`"
        ),
        ("move it into `for x, y in loader:`, right after the optimizer's step"),
    ),
    ("scheduler-wrong-cadence", "stepped at every batch and once more every epoch"): (
        (
            "`scheduler.step()` moves the schedule once more in each turn of `for epoch "
            "in range(10):`, though `scheduler.step()` moves it at every turn of `for x, "
            "y in loader:`"
        ),
        ("step the scheduler in one of the two loops only"),
    ),
    ("scheduler-never-stepped", "a scheduler that nothing uses"): (
        ("`scheduler` is made here and never stepped, so the learning rate stays what it is"),
        ("call `scheduler.step()` in or around `for x, y in loader:`, after the optimizer's step"),
    ),
    ("scheduler-never-stepped", "manual optimization in Lightning"): (
        (
            "with `automatic_optimization = False` the trainer never steps this "
            "`ExponentialLR`, and nothing in `Gan` does"
        ),
        ("call `self.lr_schedulers().step()` in `training_step` or `on_train_epoch_end`"),
    ),
    ("optimizer-in-loop", "a new optimizer every epoch"): (
        (
            "`torch.optim.Adam` is made anew in each turn of `for epoch in "
            "range(epochs):`, so its averages and step counts are lost each time, while "
            "the model goes on"
        ),
        ("make it once, before `for epoch in range(epochs):`"),
    ),
    ("parameters-not-in-optimizer", "the second group is filled and never used"): (
        (
            "the group of parameters `group` is filled, but given to no optimizer: "
            "`torch.optim.AdamW` does not get it"
        ),
        ("add it to the list that `torch.optim.AdamW` gets"),
    ),
    ("parameters-not-in-optimizer", "one of two networks is left out"): (
        (
            "no optimizer gets the parameters of `predictor`, though the loss of "
            "`loss.backward()` leads to them, and it is set up to be trained"
        ),
        ("add `predictor.parameters()`, or freeze it: `predictor.requires_grad_(False)`"),
    ),
    ("parameters-not-in-optimizer", "one layer of the model is in no group"): (
        (
            "`self.down` is in no group of `torch.optim.SGD`, which names the layers of "
            "`Tracker` one by one: backbone, head"
        ),
        ("add a group with the parameters of `down`, or freeze them"),
    ),
    ("parameters-after-optimizer", "the head is replaced after the optimizer was made"): (
        (
            "`model.fc` becomes a new layer after `torch.optim.SGD` was given "
            "`model.parameters()`, so `optimizer.step()` never updates its parameters"
        ),
        ("make the optimizer after this line, or call `optimizer.add_param_group(...)`"),
    ),
    ("parameters-after-optimizer", "the optimizer is made before the model is sharded"): (
        (
            "`FSDP(net)` gives the model new parameters after `torch.optim.AdamW` was "
            "given `net.parameters()`, so `optimizer.step()` never updates its parameters"
        ),
        ("make the optimizer after this line"),
    ),
    ("wrong-optimizer-stepped", "the discriminator is cleared, the generator is stepped"): (
        ("`opt_g.step()` steps `opt_g`, but this update cleared `opt_d`, which nothing ever steps"),
        ("write `opt_d.step()`"),
    ),
    ("wrong-optimizer-stepped", "cleared together, and one of them stepped twice"): (
        (
            "`opt_g.step()` steps `opt_g` a second time, while `opt_d`, which the loop clears "
            "too, is never stepped"
        ),
        ("step `opt_d` after the backward that is meant for it"),
    ),
    ("zero-learning-rate", "a warm-up in whole numbers"): (
        (
            "the factor `min(1.0, step // warmup)` divides whole numbers, so the learning"
            " rate is 0 until the end of the warm-up"
        ),
        ("write `min(1.0, step / warmup)`"),
    ),
    ("zero-learning-rate", "an optimizer with a rate of 0"): (
        (
            "`torch.optim.SGD` is made with a learning rate of 0, and nothing raises it: "
            "no step changes `model.parameters()`"
        ),
        ("give it a learning rate above 0"),
    ),
}


@pytest.mark.parametrize(("rule", "title"), list(TOLD))
def test_the_message_names_the_cause_and_the_advice_says_what_to_write(
    rule: str, title: str
) -> None:
    """In the user's own names, as they stand in the example."""
    lint = all_rules()[rule]
    example = next(each for each in lint.examples if each.title == title)
    assert isinstance(example, Bad)

    findings = list(lint.lint(read_source(example.program, "train.py")))

    assert {(each.message, each.advice) for each in findings} == {TOLD[rule, title]}
