"""The rule `scaler-not-checkpointed`."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import (
    Constant,
    FileFacts,
    Imported,
    Result,
    Step,
    is_optimizer,
    is_scaler,
    options,
    origins,
)


class ScalerNotCheckpointed(Rule):
    """Training in mixed precision resumes without the state of its gradient scaler.

    Symptom: after each restart a few steps are skipped, because the loss scale starts at
    65,536 again and overflows until it has come down.

    Why: the scaler has found the loss scale that the run can bear, and counts the steps
    until it may grow. A new scaler must find it again, at the price of the batches whose
    gradients overflow meanwhile.

    What torch does: nothing. It skips the steps that overflow, silently.

    Limits: the rule speaks only where the optimizer's state is restored.
    """

    since = "0.1"
    triggers = ("load_state_dict", "GradScaler", "step")
    sources = (
        "https://pytorch.org/docs/stable/notes/amp_examples.html",
        "https://github.com/huggingface/transformers/issues/11663",
        "https://github.com/ultralytics/ultralytics/pull/22189",
        "https://github.com/mosaicml/composer/pull/1376",
    )
    examples = (
        Bad(
            "the loss scale begins anew",
            """
            def train(model, loader, epochs, path, resume):
                optimizer = torch.optim.AdamW(model.parameters())
                scaler = torch.amp.GradScaler()
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                    start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        with torch.autocast("cuda", torch.float16):
                            loss = F.cross_entropy(model(x), y)
                        scaler.scale(loss).backward()
                        scaler.step(optimizer)
                        scaler.update()
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**state, "epoch": epoch}, path)  # error
            """,
        ),
        Good(
            "the scaler's state goes into the checkpoint, and comes back",
            """
            def train(model, loader, epochs, path, resume):
                optimizer = torch.optim.AdamW(model.parameters())
                scaler = torch.amp.GradScaler()
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                    scaler.load_state_dict(checkpoint["scaler"])
                    start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        with torch.autocast("cuda", torch.float16):
                            loss = F.cross_entropy(model(x), y)
                        scaler.scale(loss).backward()
                        scaler.step(optimizer)
                        scaler.update()
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**state, "scaler": scaler.state_dict(), "epoch": epoch}, path)
            """,
        ),
        Bad(
            "saved, but not loaded",
            """
            def train(model, loader, epochs, path):
                optimizer = torch.optim.AdamW(model.parameters())
                scaler = torch.cuda.amp.GradScaler()
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])  # error
                for epoch in range(checkpoint["epoch"] + 1, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        scaler.scale(F.cross_entropy(model(x), y)).backward()
                        scaler.step(optimizer)
                        scaler.update()
                    state = {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "scaler": scaler.state_dict(),
                        "epoch": epoch,
                    }
                    torch.save(state, path)
            """,
        ),
        Good(
            "a scaler that is switched off has no state",
            """
            def train(model, loader, epochs, path):
                optimizer = torch.optim.AdamW(model.parameters())
                scaler = torch.amp.GradScaler(enabled=False)
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                for epoch in range(checkpoint["epoch"] + 1, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        scaler.scale(F.cross_entropy(model(x), y)).backward()
                        scaler.step(optimizer)
                        scaler.update()
                    torch.save(
                        {"m": model.state_dict(), "o": optimizer.state_dict(), "epoch": epoch}, path
                    )
            """,
        ),
        Good(
            "bfloat16 never overflows, so its loss scale only grows",
            """
            def train(model, loader, epochs, path):
                optimizer = torch.optim.AdamW(model.parameters())
                scaler = torch.amp.GradScaler()
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                for epoch in range(checkpoint["epoch"] + 1, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        with torch.autocast("cuda", dtype=torch.bfloat16):
                            loss = F.cross_entropy(model(x), y)
                        scaler.scale(loss).backward()
                        scaler.step(optimizer)
                        scaler.update()
                    torch.save(
                        {"m": model.state_dict(), "o": optimizer.state_dict(), "epoch": epoch}, path
                    )
            """,
        ),
        Good(
            "another run of the same file is saved",
            """
            def with_amp(model, loader, optimizer):
                scaler = torch.amp.GradScaler("cuda")
                for x, y in loader:
                    optimizer.zero_grad()
                    with torch.autocast("cuda"):
                        loss = F.cross_entropy(model(x), y)
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()

            def without_amp(model, loader, path):
                sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
                saved = torch.load(path)
                model.load_state_dict(saved["model"])
                sgd.load_state_dict(saved["optimizer"])
                for x, y in loader:
                    sgd.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    sgd.step()
                torch.save({"model": model.state_dict(), "optimizer": sgd.state_dict()}, path)
            """,
        ),
        Good(
            "no scaler at all",
            """
            def train(model, loader, epochs, path):
                optimizer = torch.optim.AdamW(model.parameters())
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                for epoch in range(checkpoint["epoch"] + 1, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    torch.save(
                        {"m": model.state_dict(), "o": optimizer.state_dict(), "epoch": epoch}, path
                    )
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Where the optimizer comes back, look for the scaler that steps it."""
        checkpoints = file.checkpoints
        scaled = [loop for loop in file.loops if any(map(_is_scaled, loop.steps))]
        restored = checkpoints.restoring_optimizers_of(scaled)
        steps = [step for loop in scaled for step in loop.steps if _is_scaled(step)]
        if not restored or not steps or checkpoints.restores_state_of(is_scaler):
            return
        if _computes_in_bfloat16(file):
            return
        name = steps[0].call.receiver_text
        saves = checkpoints.saves_with(is_optimizer)
        if checkpoints.saves_state_of(is_scaler):
            yield self.finding(
                restored[0].place,
                f"the optimizer's state is restored here, that of `{name}` is not, though the "
                "checkpoint holds it: the loss scale begins anew",
                f"restore it too: `{name}.load_state_dict(...)`",
            )
        elif saves:
            yield self.finding(
                saves[0].told_at.place,
                f"the checkpoint that training resumes from holds no state of `{name}`: after a "
                "restart the loss scale begins anew, and steps are skipped until it fits",
                f"save `{name}.state_dict()` too, and restore it where the optimizer is restored",
            )


def _is_scaled(step: Step) -> bool:
    """Whether the step goes through a scaler of torch that may be switched on."""
    receiver = step.call.receiver
    if receiver is None or receiver is step.optimizer:
        return False
    return any(
        isinstance(option, Result)
        and option.call.method in ("GradScaler", "ShardedGradScaler")
        and not _is_off(option)
        for option in options(receiver)
    )


def _is_off(scaler: Result) -> bool:
    enabled = scaler.call.argument(None, "enabled")
    return isinstance(enabled, Constant) and not enabled.value


def _computes_in_bfloat16(file: FileFacts) -> bool:
    """Whether some autocast region is told to compute in bfloat16, whatever else it may do."""
    return any(
        isinstance(origin, Imported) and origin.qualified == "torch.bfloat16"
        for call in file.calls("autocast")
        for given in call.inputs
        for origin in origins(given)
    )
