"""What a reader is told of each wrong order: the cause in their own names, then the remedy."""

from __future__ import annotations

import pytest

from pytest_trainloop.rules import Bad, all_rules
from pytest_trainloop.source.read import read_source

TOLD = {
    "zero-grad-before-step": (
        (
            "`optimizer.zero_grad()` clears the gradients of `loss.backward()` before "
            "`optimizer.step()` can use them"
        ),
        "move `optimizer.zero_grad()` behind `optimizer.step()`",
    ),
    "misplaced-clip": (
        "`nn.utils.clip_grad_norm_` clips gradients that `optimizer.step()` has already used",
        "clip between `backward()` and `optimizer.step()`",
    ),
    "step-before-backward": (
        (
            "`optimizer.step()` runs before `loss.backward()` has computed any gradients, and what "
            "it computes is cleared before the next step"
        ),
        "step after `loss.backward()`",
    ),
    "missing-step": (
        (
            "`loss.backward()` computes gradients, but `optimizer` never steps, so the weights "
            "stay as they are"
        ),
        "write `optimizer.step()` after `loss.backward()`",
    ),
    "uncalled-method": (
        "`optimizer.step` names the method but does not call it, so nothing happens",
        "call it: `optimizer.step()`",
    ),
    "detached-loss": (
        (
            "`torch.tensor(loss, requires_grad=True)` has no graph, so `loss.backward()` gives the "
            "model no gradients for it"
        ),
        (
            "compute the loss with torch operations from the model's output, without `detach()`, "
            "`item()`, `.data`, NumPy or a new tensor in between"
        ),
    ),
    "detached-generator": (
        (
            "`fake.detach()` cuts the loss of `bce(net_d(fake.detach()), ones).backward()` off "
            "from the network that it is meant to train"
        ),
        "use `fake` in this update; detach it only where the other network is trained",
    ),
    "discarded-result": (
        (
            "`hidden.detach()` returns a new tensor and leaves `hidden` as it is; the result is "
            "thrown away"
        ),
        "keep it: `hidden = hidden.detach()`",
    ),
    "training-step-detached": (
        (
            "`training_step` returns `loss.item()`, which has no graph, so the trainer cannot "
            "back-propagate it"
        ),
        "return the loss itself; log the detached one",
    ),
    "zero-grad-every-micro-batch": (
        (
            "`optimizer.zero_grad()` throws away the gradients of the micro-batches before: it "
            "runs at each of them, `optimizer.step()` only after "
            "`if (i + 1) % k == 0 or i + 1 == len(loader):`"
        ),
        "clear once an update, right after `optimizer.step()`",
    ),
    "clip-every-micro-batch": (
        (
            "`nn.utils.clip_grad_norm_` clips the partial sum of gradients at every micro-batch, "
            "but `optimizer.step()` runs only after `if (i + 1) % k == 0 or i + 1 == len(loader):`"
        ),
        "do it once an update, right before `optimizer.step()`",
    ),
    "unscaled-accumulation": (
        (
            "`loss.backward()` adds up the gradients of several micro-batches before "
            "`optimizer.step()`, and the loss is not divided by `k`"
        ),
        "divide the loss: `loss / k`",
    ),
    "dropped-accumulation-tail": (
        (
            "`optimizer.step()` depends on `if (i + 1) % k == 0:` alone, so the last batches of an "
            "epoch are left without a step where their number is no multiple of `k`"
        ),
        "step at the last batch too (`or i + 1 == len(loader)`), or once more after the loop",
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_the_message_names_the_cause_and_the_advice_what_to_write(name: str) -> None:
    """The first bad example of a rule, the one on its page, is told in exactly these words."""
    rule = all_rules()[name]
    example = next(example for example in rule.examples if isinstance(example, Bad))
    (finding,) = rule.lint(read_source(example.program, "train.py"))
    assert (finding.message, finding.advice) == TOLD[name]
