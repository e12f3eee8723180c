"""The rule `global-step-not-checkpointed`."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import (
    Constant,
    FileFacts,
    Store,
    TrainingLoop,
    Value,
    constant,
    is_loaded,
    is_optimizer,
    loops_of,
    options,
    origins,
)


class GlobalStepNotCheckpointed(Rule):
    """Training resumes with its step counter at zero, though the loss depends on it.

    Symptom: after a restart the weight of a loss term (KL annealing, a curriculum, a warm-up
    by hand) jumps back to where it began.

    Why: the counter is a state of the run like any other. The checkpoint brings back the
    weights and the optimizer; the counter begins at its first value.

    What torch does: nothing. The counter is the program's own.

    Limits: the rule speaks only where the optimizer's state is restored, and the counter
    goes into the loss. A counter for the logs is left alone.
    """

    since = "0.1"
    triggers = ("load_state_dict", ".backward(|manual_backward(", "+=")
    sources = (
        "https://github.com/microsoft/DeepSpeed/issues/120",
        "https://github.com/Lightning-AI/pytorch-lightning/issues/2952",
        "https://github.com/catalyst-team/catalyst/issues/970",
    )
    examples = (
        Bad(
            "the annealing begins anew",
            """
            def train(model, loader, epochs, path, resume):
                optimizer = torch.optim.AdamW(model.parameters())
                start = 0
                step = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                    start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    for x in loader:
                        reconstruction, kl = model(x)
                        beta = min(1.0, step / 10_000)
                        loss = F.mse_loss(reconstruction, x) + beta * kl
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                        step += 1  # error
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**state, "epoch": epoch}, path)
            """,
        ),
        Good(
            "the counter goes into the checkpoint, and comes back",
            """
            def train(model, loader, epochs, path, resume):
                optimizer = torch.optim.AdamW(model.parameters())
                start = 0
                step = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                    start = checkpoint["epoch"] + 1
                    step = checkpoint["step"]
                for epoch in range(start, epochs):
                    for x in loader:
                        reconstruction, kl = model(x)
                        beta = min(1.0, step / 10_000)
                        loss = F.mse_loss(reconstruction, x) + beta * kl
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                        step += 1
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**state, "step": step, "epoch": epoch}, path)
            """,
        ),
        Good(
            "the counter is derived from the epoch",
            """
            def train(model, loader, epochs, path, resume):
                optimizer = torch.optim.AdamW(model.parameters())
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                    start = checkpoint["epoch"] + 1
                step = start * len(loader)
                for epoch in range(start, epochs):
                    for x in loader:
                        reconstruction, kl = model(x)
                        loss = F.mse_loss(reconstruction, x) + min(1.0, step / 10_000) * kl
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                        step += 1
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**state, "epoch": epoch}, path)
            """,
        ),
        Good(
            "the counter is for the logs",
            """
            def train(model, loader, epochs, path, resume, writer):
                optimizer = torch.optim.AdamW(model.parameters())
                start = 0
                step = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                    start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    for x, y in loader:
                        loss = F.cross_entropy(model(x), y)
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                        writer.add_scalar("loss", loss.item(), step)
                        step += 1
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**state, "epoch": epoch}, path)
            """,
        ),
        Good(
            "the counter begins anew in each epoch",
            """
            def train(model, loader, epochs, path, resume):
                optimizer = torch.optim.AdamW(model.parameters())
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                    start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    step = 0
                    for x in loader:
                        reconstruction, kl = model(x)
                        loss = F.mse_loss(reconstruction, x) + step / len(loader) * kl
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                        step += 1
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**state, "epoch": epoch}, path)
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for counters that reach the loss, and neither are saved nor come back."""
        checkpoints = file.checkpoints
        saves = checkpoints.saves_with(is_optimizer)
        if not saves or not checkpoints.restoring(is_optimizer):
            return
        held = {id(origin) for save in saves for origin in origins(save.content)}
        for training in file.loops:
            for store in training.stores:
                first = _first(store, training)
                if first is None or id(first) in held or id(store.total) in held:
                    continue
                if _reaches_the_loss(first, training) and not _comes_back(store, training):
                    yield self._report(store, saves[0].told_at.line)

    def _report(self, store: Store, line: int) -> Finding:
        name = store.target
        return self.finding(
            store.place,
            f"the loss depends on `{name}`, and the checkpoint that training resumes from (line "
            f"{line}) does not hold it: after a restart it begins anew",
            f"save `{name}` with the checkpoint, and restore it",
        )


def _first(store: Store, training: TrainingLoop) -> Value | None:
    """What a counter of the whole run begins with, if the binding counts one."""
    if store.augmented != "+" or not isinstance(store.value, Constant) or store.total is None:
        return None
    if store.bound_in is None or any(
        loop in loops_of(store.bound_in) for loop in loops_of(training.context)
    ):
        return None
    for first in options(store.total.parts()[0]):
        if isinstance(first, Constant) and isinstance(constant(first), int):
            return first
    return None


def _reaches_the_loss(first: Value, training: TrainingLoop) -> bool:
    return any(
        origin is first
        for backward in training.backwards
        if backward.loss is not None
        for origin in origins(backward.loss)
    )


def _comes_back(store: Store, training: TrainingLoop) -> bool:
    """Whether the counter may begin with something that was loaded."""
    if store.total is None:
        return True
    bound = [other.value for other in training.trace.stores if other.target == store.target]
    return any(is_loaded(origin) for value in (*bound, store.total) for origin in origins(value))
