"""The rule `pretrained-left-in-eval`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import counted
from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Observation, Rule
from pytest_trainloop.rules.evaluation._modes_in_runs import model, modules, trained_steps
from pytest_trainloop.source.facts import (
    Call,
    FileFacts,
    Result,
    Trace,
    TrainingLoop,
    Value,
    is_accelerator,
    may_switch,
    may_switch_out_of_sight,
    options,
    trained_forwards,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run

#: Libraries whose `from_pretrained` gives a model in eval mode.
_EVAL_LIBRARIES = ("transformers.", "diffusers.")


class PretrainedLeftInEval(Rule):
    """A pretrained model is fine-tuned in eval mode, because nothing calls `train()`.

    Symptom: fine-tuning over-fits early; the dropout of the configuration has no effect.

    Why: `from_pretrained` of transformers and diffusers returns the model in eval mode. A
    loop that never calls `model.train()` fine-tunes it without dropout.

    What torch does: nothing. Training in eval mode is legal. (The `Trainer` of transformers
    calls `train()` itself.)
    """

    since = "0.1"
    triggers = ("from_pretrained", ".backward(|manual_backward(", "step")
    sources = (
        "https://huggingface.co/docs/transformers/main_classes/model",
        "https://github.com/autogluon/autogluon/pull/4965",
    )
    examples = (
        Bad(
            "nothing switches to train mode",
            """
            import torch
            from transformers import AutoModelForSequenceClassification

            def fine_tune(loader, epochs):
                model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased")
                optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
                for epoch in range(epochs):
                    for batch in loader:
                        optimizer.zero_grad()
                        model(**batch).loss.backward()  # error
                        optimizer.step()
            """,
        ),
        Good(
            "train mode is set before training",
            """
            import torch
            from transformers import AutoModelForSequenceClassification

            def fine_tune(loader, epochs):
                model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased")
                optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
                model.train()
                for epoch in range(epochs):
                    for batch in loader:
                        optimizer.zero_grad()
                        model(**batch).loss.backward()
                        optimizer.step()
            """,
        ),
        Bad(
            "prepared by Accelerate, which leaves the mode alone",
            """
            import torch
            from accelerate import Accelerator
            from transformers import AutoModelForCausalLM

            def fine_tune(loader):
                accelerator = Accelerator()
                model = AutoModelForCausalLM.from_pretrained("gpt2")
                optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
                model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
                for batch in loader:
                    loss = model(**batch).loss  # error
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
            """,
        ),
        Good(
            "a frozen feature extractor",
            """
            import torch
            from transformers import AutoModel

            def train(loader):
                encoder = AutoModel.from_pretrained("bert-base-uncased")
                head = torch.nn.Linear(768, 2)
                optimizer = torch.optim.AdamW(head.parameters())
                for batch, y in loader:
                    optimizer.zero_grad()
                    with torch.no_grad():
                        features = encoder(**batch).pooler_output
                    torch.nn.functional.cross_entropy(head(features), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "frozen by its parameters",
            """
            import torch
            from transformers import AutoModel

            def train(loader):
                encoder = AutoModel.from_pretrained("bert-base-uncased")
                for p in encoder.parameters():
                    p.requires_grad = False
                head = torch.nn.Linear(768, 2)
                optimizer = torch.optim.AdamW(head.parameters())
                for batch, y in loader:
                    optimizer.zero_grad()
                    features = encoder(**batch).pooler_output
                    torch.nn.functional.cross_entropy(head(features), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the Trainer switches",
            """
            from transformers import AutoModelForSequenceClassification, Trainer

            def fine_tune(dataset, arguments):
                model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased")
                Trainer(model, arguments, train_dataset=dataset).train()
            """,
        ),
        Good(
            "another library wraps the model",
            """
            import torch
            from peft import LoraConfig, get_peft_model
            from transformers import AutoModelForCausalLM

            def fine_tune(loader):
                model = AutoModelForCausalLM.from_pretrained("gpt2")
                model = get_peft_model(model, LoraConfig())
                optimizer = torch.optim.AdamW(model.parameters())
                for batch in loader:
                    optimizer.zero_grad()
                    model(**batch).loss.backward()
                    optimizer.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for trained forwards of pretrained models in programs that never switch."""
        for training in file.loops:
            if training.loop is None or _is_frozen(training.trace):
                continue
            for forward in trained_forwards(training):
                made = _pretrained(forward.callee)
                if made is not None and not _may_be_switched(training.trace, forward):
                    yield self._report(forward, made, training)
                    break

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for what `from_pretrained` gave and every step found in eval mode.

        Silent where the loop itself called `eval()` before the first step: it meant it.
        """
        steps = list(trained_steps(run))
        for root in dict.fromkeys(step.root for step in steps):
            own = [step for step in steps if step.root == root]
            pretrained = tuple(
                i for i, one in enumerate(run.mode_modules) if one.pretrained and one.root == root
            )
            on_purpose = any(
                switch.by_user
                and switch.backwards < own[0].backward
                and not set(pretrained).isdisjoint(switch.reached)
                for switch in run.mode_switches
            )
            # One step shows little.
            if not pretrained or on_purpose or len(own) < 2:  # noqa: PLR2004  # as said
                continue
            if all(step.in_eval_mode.issuperset(pretrained) for step in own):
                name = model(run, pretrained)
                yield self.observation(
                    f"`{name}` is fine-tuned in eval mode, as `from_pretrained` gave it:"
                    f" {modules(run, pretrained)} did nothing in {counted(len(own), 'step')}",
                    f"call `{name}.train()` before the training loop",
                    own[0].step.where,
                )

    def _report(self, forward: Call, made: Call, training: TrainingLoop) -> Finding:
        name = forward.name
        fix = None
        if training.loop is not None and training.loop.file is forward.file and name.isidentifier():
            edit = Edit("insert-before", training.loop.place, f"{name}.train()")
            fix = Fix((edit,), safe=False)
        return self.finding(
            forward.place,
            f"`{name}` is trained in eval mode: `{made.name}` (line {made.line}) returns it so, "
            f"and nothing calls `{name}.train()`",
            f"call `{name}.train()` before the training",
            fix,
        )


def _pretrained(model: Value) -> Call | None:
    """The call that loaded the model in eval mode, if the model can be nothing else."""
    found: Call | None = None
    for option in options(model):
        if not isinstance(option, Result) or option.call.method != "from_pretrained":
            return None
        if not option.call.qualified.startswith(_EVAL_LIBRARIES):
            return None
        found = option.call
    return found


def _may_be_switched(trace: Trace, forward: Call) -> bool:
    """Whether anything in the program may put the model into train mode."""
    return any(
        may_switch(call) or may_switch_out_of_sight(call, forward.callee) or _wraps(call, forward)
        for call in trace.calls
        if call.receiver is None or not is_accelerator(call.receiver)
    )


def _wraps(call: Call, forward: Call) -> bool:
    """Whether a function out of sight is given the model, and may switch it."""
    if call.followed or call.qualified.startswith(("torch.", "builtins.", "accelerate.")):
        return False
    return bool(call.qualified) and any(
        option is model
        for given in (*call.args, *call.keywords.values())
        for option in options(given)
        for model in options(forward.callee)
    )


def _is_frozen(trace: Trace) -> bool:
    """Whether some parameters are kept from training."""
    return any(_FREEZING.search(call.method) for call in trace.calls) or any(
        store.target.endswith(".requires_grad") for store in trace.stores
    )


_FREEZING = re.compile(r"^requires_grad_$|freeze")
