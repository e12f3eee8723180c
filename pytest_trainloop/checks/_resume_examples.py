"""The examples of `resumes`: whole test modules, long enough to keep apart from the check."""

from __future__ import annotations

from pytest_trainloop.checks._check import Fails, Passes, Unjudged

_LOOP = """
    import torch
    from torch import nn

    from pytest_trainloop import resumes


    def train(loader, folder, epochs=3, keys=("model", "optimizer", "epoch")):
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        newest = folder / "newest.pt"
        start = 0
        if newest.exists():
            checkpoint = torch.load(newest)
            model.load_state_dict(checkpoint["model"])
            if "optimizer" in checkpoint:
                optimizer.load_state_dict(checkpoint["optimizer"])
            start = checkpoint.get("epoch", 0)
        for epoch in range(start, epochs):
            for x, y in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            checkpoint = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epoch": epoch + 1,
            }
            torch.save({key: checkpoint[key] for key in keys}, newest)

"""

_TRAINER = """
    import torch
    from torch import nn

    from pytest_trainloop import resumes


    class Trainer:
        def __init__(self):
            self.model = nn.Linear(4, 2)
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

        def fit(self, loader, epochs):
            for _ in range(epochs):
                for x, y in loader:
                    self.optimizer.zero_grad()
                    nn.functional.cross_entropy(self.model(x), y).backward()
                    self.optimizer.step()

        def save(self, path):
            parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(parts, path)

        def load(self, path):
            parts = torch.load(path)
            self.model.load_state_dict(parts["model"])
            self.optimizer.load_state_dict(parts["optimizer"])

"""

EXAMPLES: tuple[Passes | Fails | Unjudged, ...] = (
    Passes(
        "a training function that resumes by itself",
        _LOOP
        + """
    @resumes
    def test_resume(tiny_loader, checkpoint_dir):
        train(tiny_loader, checkpoint_dir)
    """,
    ),
    Fails(
        "the optimizer is not in the checkpoint",
        _LOOP
        + """
    @resumes
    def test_resume(tiny_loader, checkpoint_dir):
        train(tiny_loader, checkpoint_dir, keys=("model", "epoch"))
    """,
        "resumes: optimizer state not the same at step 3: the state of AdamW lacks `exp_avg`"
        " and `exp_avg_sq`, and has counted no steps instead of 2",
    ),
    Fails(
        "the epoch is not in the checkpoint",
        _LOOP
        + """
    @resumes
    def test_resume(tiny_loader, checkpoint_dir):
        train(tiny_loader, checkpoint_dir, keys=("model", "optimizer"))
    """,
        "resumes: it made 6 steps after step 2, where 4 were left",
    ),
    Fails(
        "what was saved is not loaded",
        _LOOP
        + """
    @resumes
    def test_resume(tiny_loader, checkpoint_dir, monkeypatch):
        monkeypatch.setattr(torch, "load", lambda path: {"model": {}})
        monkeypatch.setattr(nn.Module, "load_state_dict", lambda self, state: None)
        train(tiny_loader, checkpoint_dir)
    """,
        "resumes: nothing was restored: it started over and made all 6 steps again",
    ),
    Passes(
        "a trainer that saves at a planned stop",
        _TRAINER
        + """
    @resumes
    def test_resume(tiny_loader, checkpoint_dir, interruption):
        trainer = Trainer()
        if interruption.resuming:
            trainer.load(checkpoint_dir / "stopped.pt")
        trainer.fit(tiny_loader, epochs=1 if interruption.stopping or interruption.resuming else 2)
        if interruption.stopping:
            trainer.save(checkpoint_dir / "stopped.pt")
    """,
    ),
    Unjudged(
        "the loop saves at its end only, and the test does not ask for a planned stop",
        _TRAINER
        + """
    @resumes
    def test_resume(tiny_loader, checkpoint_dir):
        trainer = Trainer()
        trainer.fit(tiny_loader, epochs=2)
        trainer.save(checkpoint_dir / "end.pt")
    """,
        "resumes: cannot judge: the loop wrote to `checkpoint_dir` only at its end",
    ),
    Unjudged(
        "a loop that does not repeat",
        _LOOP
        + """
    @resumes
    def test_resume(checkpoint_dir):
        generator = torch.Generator()
        generator.seed()
        x = torch.randn(8, 4, generator=generator)
        train([(x, torch.arange(8) % 2)], checkpoint_dir)
    """,
        "resumes: cannot judge: two uninterrupted runs differ at step 1: loss",
    ),
)
