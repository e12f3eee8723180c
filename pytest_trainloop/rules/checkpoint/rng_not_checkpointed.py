"""The rule `rng-not-checkpointed`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import Call, FileFacts, is_optimizer, loops_of

_STATES = re.compile(r"rng_state|getstate|get_state$|random_state|generator_state", re.IGNORECASE)
_SEEDS = frozenset(
    {"torch.manual_seed", "numpy.random.seed", "random.seed", "torch.cuda.manual_seed_all"}
)


class RngNotCheckpointed(Rule):
    """A seeded training resumes without the state of its random number generators.

    Symptom: a resumed run is a fair run, but not the run that was interrupted: dropout,
    noise and the order of the data differ from the first step on.

    Why: every draw depends on all draws before. After a restart the generators begin at
    their seed, so the epochs that follow see the masks and the order of the first ones.

    What torch does: nothing. `torch.get_rng_state()` has to be saved and given back by hand,
    and so have those of CUDA, NumPy and Python.

    Limits: the rule looks only at programs that set a seed. Even so most runs do not need to
    be repeated bit by bit after a restart, and seeds that are derived from the step need no
    state, wherever they are set. So it speaks only when it is asked to, with `--select`.
    """

    since = "0.1"
    default = False
    triggers = ("load_state_dict", "seed", "step")
    sources = ("https://pytorch.org/docs/stable/notes/randomness.html",)
    examples = (
        Bad(
            "the random numbers begin anew",
            """
            def train(model, loader, epochs, path, resume):
                torch.manual_seed(0)
                optimizer = torch.optim.AdamW(model.parameters())
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                    start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**state, "epoch": epoch}, path)  # error
            """,
        ),
        Good(
            "their state goes into the checkpoint, and comes back",
            """
            def train(model, loader, epochs, path, resume):
                torch.manual_seed(0)
                optimizer = torch.optim.AdamW(model.parameters())
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                    torch.set_rng_state(checkpoint["rng"])
                    start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**state, "rng": torch.get_rng_state(), "epoch": epoch}, path)
            """,
        ),
        Good(
            "the seed is derived from the epoch",
            """
            def train(model, loader, epochs, path):
                optimizer = torch.optim.AdamW(model.parameters())
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                for epoch in range(checkpoint["epoch"] + 1, epochs):
                    torch.manual_seed(epoch)
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**state, "epoch": epoch}, path)
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Where the optimizer comes back, look for anything that speaks of a generator's state."""
        checkpoints = file.checkpoints
        saves = checkpoints.saves_with(is_optimizer)
        if not saves or not checkpoints.restoring(is_optimizer) or not file.loops:
            return
        seeds = [call for call in checkpoints.calls if _is_seed(call)]
        if not seeds or any(_is_kept(call) for call in checkpoints.calls):
            return
        yield self.finding(
            saves[0].told_at.place,
            "the checkpoint that training resumes from holds no state of the random number "
            f"generators: a resumed run begins at `{seeds[0].text}` again and repeats the draws of "
            "the first epochs",
            "save `torch.get_rng_state()`, and the states of CUDA, NumPy and Python if they draw",
        )


def _is_kept(call: Call) -> bool:
    """Whether the call asks for the state of a generator, or sets it from where the run stands."""
    if _STATES.search(call.name):
        return True
    return "seed" in call.method and bool(loops_of(call.context))


def _is_seed(call: Call) -> bool:
    return call.qualified in _SEEDS
