"""The rule `optimizer-not-checkpointed`."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import (
    Constant,
    FileFacts,
    Result,
    Resume,
    Save,
    Step,
    Value,
    is_engine,
    is_optimizer,
    options,
)


class OptimizerNotCheckpointed(Rule):
    """Training resumes without the state of its optimizer.

    Symptom: the loss jumps up after every restart and needs a while to come back; the
    more often a run is preempted, the worse it ends.

    Why: an optimizer has a memory of its own: momentum, the moments of Adam and the number
    of steps for their bias correction. A checkpoint with the weights alone brings back the
    weights; the optimizer starts as if they were fresh.

    What torch does: nothing. `load_state_dict` of the model knows nothing of the optimizer,
    and a new optimizer is a valid one.

    Limits: the rule speaks only where the code resumes: it goes on counting epochs or
    steps where the checkpoint left off, restores the learning-rate scheduler or the loss
    scale from it, or says "resume". Weights that are saved to be used, and weights that
    are loaded to begin something new, are left alone; so is plain SGD without momentum,
    which has no state.
    """

    since = "0.1"
    triggers = (
        "load_state_dict|resum|save|.backward(|manual_backward(",
        "load_state_dict|resum",
        ".backward(|manual_backward(",
        "step",
    )
    sources = (
        "https://pytorch.org/tutorials/beginner/saving_loading_models.html",
        "https://github.com/NVlabs/stylegan2-ada-pytorch/issues/108",
        "https://github.com/EvolvingLMMs-Lab/OneVision-Encoder/issues/65",
        "https://github.com/zylo117/Yet-Another-EfficientDet-Pytorch/issues/269",
        "https://github.com/OpenNMT/OpenNMT-py/issues/617",
    )
    examples = (
        Bad(
            "the checkpoint has the weights and the epoch, and no more",
            """
            def train(model, loader, epochs, path, resume):
                optimizer = torch.optim.AdamW(model.parameters())
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])  # error
                    start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    torch.save({"model": model.state_dict(), "epoch": epoch}, path)  # error
            """,
        ),
        Good(
            "the optimizer's state goes into the checkpoint, and comes back",
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
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    torch.save(
                        {
                            "model": model.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "epoch": epoch,
                        },
                        path,
                    )
            """,
        ),
        Bad(
            "saved, but not loaded",
            """
            def train(model, loader, epochs, path, resume):
                optimizer = torch.optim.AdamW(model.parameters())
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])  # error
                    start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    state = {"model": model.state_dict(), "epoch": epoch}
                    state["optimizer"] = optimizer.state_dict()
                    torch.save(state, path)
            """,
        ),
        Bad(
            "the epoch that is given chooses the files to go on from",
            """
            import argparse
            import torch

            parser = argparse.ArgumentParser()
            parser.add_argument("--epoch", type=int, default=0)
            opt = parser.parse_args()
            generator = torch.nn.Linear(2, 2)
            discriminator = torch.nn.Linear(2, 1)
            if opt.epoch != 0:
                generator.load_state_dict(torch.load("g_%d.pth" % opt.epoch))  # error
                discriminator.load_state_dict(torch.load("d_%d.pth" % opt.epoch))
            opt_g = torch.optim.Adam(generator.parameters())
            opt_d = torch.optim.Adam(discriminator.parameters())
            for epoch in range(opt.epoch, 200):
                for real in loader:
                    opt_g.zero_grad()
                    discriminator(generator(noise())).mean().backward()
                    opt_g.step()
                    opt_d.zero_grad()
                    (discriminator(real) - discriminator(generator(noise()))).mean().backward()
                    opt_d.step()
                torch.save(generator.state_dict(), "g_%d.pth" % epoch)  # error
                torch.save(discriminator.state_dict(), "d_%d.pth" % epoch)
            """,
        ),
        Bad(
            "in the methods of a trainer",
            """
            import torch

            class Trainer:
                def __init__(self, model, loader, path):
                    self.model = model
                    self.loader = loader
                    self.path = path
                    self.optimizer = torch.optim.Adam(model.parameters())
                    self.epochs_run = 0

                def resume(self):
                    snapshot = torch.load(self.path)
                    self.model.load_state_dict(snapshot["weights"])  # error
                    self.epochs_run = snapshot["epoch"] + 1

                def save(self, epoch):
                    state = {"weights": self.model.state_dict(), "epoch": epoch}
                    torch.save(state, self.path)  # error

                def train(self, epochs):
                    for epoch in range(self.epochs_run, epochs):
                        for x, y in self.loader:
                            self.optimizer.zero_grad()
                            torch.nn.functional.mse_loss(self.model(x), y).backward()
                            self.optimizer.step()
                        self.save(epoch)
            """,
        ),
        Bad(
            "the schedule comes back, the optimizer does not",
            """
            import torch

            class Trainer:
                def __init__(self, model, loader):
                    self.model = model
                    self.loader = loader
                    self.optimizer = torch.optim.Adam(model.parameters())
                    self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 10)

                def load_model(self, path):
                    checkpoint = torch.load(path)
                    self.model.load_state_dict(checkpoint["model"], strict=False)  # error
                    self.scheduler.load_state_dict(checkpoint["scheduler"])

                def train(self, epochs):
                    for epoch in range(epochs):
                        for x, y in self.loader:
                            self.optimizer.zero_grad()
                            torch.nn.functional.mse_loss(self.model(x), y).backward()
                            self.optimizer.step()
                        self.scheduler.step()
            """,
        ),
        Good(
            "the schedule comes from another file than the weights",
            """
            import torch

            def fine_tune(model, loader, epochs, pretrained, schedule):
                model.load_state_dict(torch.load(pretrained))
                optimizer = torch.optim.Adam(model.parameters())
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
                scheduler.load_state_dict(torch.load(schedule))
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        torch.nn.functional.mse_loss(model(x), y).backward()
                        optimizer.step()
                    scheduler.step()
            """,
        ),
        Good(
            "weights and schedule for the training of another class",
            """
            import torch

            class Trainer:
                def __init__(self, model, loader):
                    self.model = model
                    self.loader = loader
                    self.optimizer = torch.optim.Adam(model.parameters())

                def train(self):
                    for x, y in self.loader:
                        self.optimizer.zero_grad()
                        torch.nn.functional.mse_loss(self.model(x), y).backward()
                        self.optimizer.step()

            class Store:
                def load(self, model, scheduler, path):
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    scheduler.load_state_dict(checkpoint["scheduler"])
            """,
        ),
        Good(
            "weights saved to be used",
            """
            def train(model, loader, epochs, path):
                optimizer = torch.optim.AdamW(model.parameters())
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    torch.save(model.state_dict(), path)
            """,
        ),
        Good(
            "weights loaded to begin something new",
            """
            def fine_tune(model, loader, epochs, pretrained):
                model.load_state_dict(torch.load(pretrained), strict=False)
                optimizer = torch.optim.AdamW(model.parameters())
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                torch.save(model.state_dict(), "fine_tuned.pt")
            """,
        ),
        Good(
            "plain SGD has no state",
            """
            def train(model, loader, epochs, path, resume):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    torch.save({"model": model.state_dict(), "epoch": epoch}, path)
            """,
        ),
        Good(
            "the optimizer goes into a file of its own",
            """
            def train(model, loader, epochs, folder, resume_step):
                optimizer = torch.optim.AdamW(model.parameters())
                if resume_step:
                    model.load_state_dict(torch.load(f"{folder}/model{resume_step}.pt"))
                    optimizer.load_state_dict(torch.load(f"{folder}/opt{resume_step}.pt"))
                for step in range(resume_step, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    torch.save(model.state_dict(), f"{folder}/model{step + 1}.pt")
                    torch.save(optimizer.state_dict(), f"{folder}/opt{step + 1}.pt")
            """,
        ),
        Good(
            "another file restores the rest",
            """
            import torch
            from checkpoints import restore_optimizer

            def train(model, loader, epochs, path, resume):
                optimizer = torch.optim.AdamW(model.parameters())
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    restore_optimizer(optimizer, checkpoint)
                    start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        torch.nn.functional.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "Accelerate saves and loads everything",
            """
            import torch
            from accelerate import Accelerator

            accelerator = Accelerator()

            def train(model, loader, epochs, folder, resume):
                optimizer = torch.optim.AdamW(model.parameters())
                model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
                if resume:
                    accelerator.load_state(folder)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        accelerator.backward(torch.nn.functional.cross_entropy(model(x), y))
                        optimizer.step()
                    accelerator.save_state(folder)
            """,
        ),
        Good(
            "all parts of the run are saved in one turn",
            """
            def train(model, loader, epochs, path, resume):
                optimizer = torch.optim.AdamW(model.parameters())
                parts = {"model": model, "optimizer": optimizer}
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    for name, part in parts.items():
                        part.load_state_dict(checkpoint[name])
                    start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    state = {name: part.state_dict() for name, part in parts.items()}
                    torch.save({**state, "epoch": epoch}, path)
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Where training resumes, look for the optimizer's state on the way out and back."""
        checkpoints = file.checkpoints
        resumes = [resume for resume in checkpoints.resumes if _stateful(resume)]
        if not resumes or checkpoints.restores_state_of(is_optimizer):
            return
        yield self._not_restored(resumes[0], checkpoints.saves_state_of(is_optimizer))
        if not checkpoints.saves_state_of(is_optimizer):
            for save in _groups(checkpoints.saves_during(resumes[0].training)):
                yield self._not_saved(save, resumes[0])

    def _not_restored(self, resume: Resume, is_saved: bool) -> Finding:
        name = _stateful(resume)[0].optimizer_text
        model = f"`{resume.model_text}`" if resume.model_text else "the model"
        there = "though the checkpoint holds it" if is_saved else "and no checkpoint holds it"
        return self.finding(
            resume.told_at.place,
            f"training resumes here with the weights of {model}, but the state of "
            f"`{name}` is not restored, {there}",
            f"restore it from the checkpoint too: `{name}.load_state_dict(...)`",
        )

    def _not_saved(self, save: Save, resume: Resume) -> Finding:
        name = _stateful(resume)[0].optimizer_text
        return self.finding(
            save.told_at.place,
            f"the checkpoint that training resumes from holds no state of `{name}`",
            f"save `{name}.state_dict()` beside the weights",
        )


def _stateful(resume: Resume) -> list[Step]:
    """The steps of the optimizers that have a state to lose."""
    return [
        step
        for step in resume.training.steps
        if _has_state(step.optimizer) and not is_engine(step.optimizer)
    ]


def _has_state(optimizer: Value) -> bool:
    for option in options(optimizer):
        if isinstance(option, Result) and option.call.qualified == "torch.optim.SGD":
            momentum = option.call.argument(2, "momentum")
            if option.call.starred:
                return False
            if momentum is None or (isinstance(momentum, Constant) and not momentum.value):
                return False
    return True


def _groups(saves: tuple[Save, ...]) -> Iterator[Save]:
    """One save of each place where several models are saved one after the other."""
    told: list[object] = []
    for save in saves:
        place = save.told_at.context[-1] if save.told_at.context else None
        if not any(place is known for known in told):
            told.append(place)
            yield save
