"""`@resumes` on loops that lose one thing each, and on frameworks as their pages show them."""

from __future__ import annotations

import pytest

LOOP = """
import random

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_trainloop import resumes


def make_data():
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(24, 4, generator=generator), torch.randint(2, (24,), generator=generator)
    )


def train(folder, lost="", epochs=2):
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)
    )
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    scaler = torch.amp.GradScaler("cpu", growth_interval=3)
    path = folder / "newest.pt"
    parts = {
        "model": model, "average": average, "optimizer": optimizer, "scheduler": scheduler,
        "scaler": scaler,
    }
    epoch = batch = 0
    order = torch.get_rng_state()
    rng = None
    if path.exists() and lost != "everything":
        saved = torch.load(path)
        for name, part in parts.items():
            if name != lost:
                part.load_state_dict(saved[name])
        if lost != "epoch":
            epoch, batch, order, rng = (saved[n] for n in ("epoch", "batch", "order", "rng"))
        if lost == "position":
            batch, rng = 0, None
        if lost == "buffers":
            model[1].reset_running_stats()
        if lost == "precision":
            model.half().float()
    while epoch < epochs:
        if lost != "order" or rng is None:
            torch.set_rng_state(order)
        batches = iter(DataLoader(make_data(), batch_size=4, shuffle=True))
        for _ in range(batch):
            next(batches)
        if rng is not None and lost != "rng":
            torch.set_rng_state(rng)
        rng = None
        for x, y in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            average.update_parameters(model)
            batch += 1
            if batch % 2 == 0:
                states = {name: part.state_dict() for name, part in parts.items()}
                position = {"epoch": epoch, "batch": batch, "order": order}
                torch.save({**states, **position, "rng": torch.get_rng_state()}, path)
        epoch, batch = epoch + 1, 0
        order = torch.get_rng_state()

@resumes(after=9)
def test_it(checkpoint_dir):
    train(checkpoint_dir, LOST)
"""


@pytest.mark.parametrize(
    ("lost", "cause"),
    [
        (
            "model",
            "the weights were not restored: it went on with those the training began with",
        ),
        (
            "optimizer",
            (
                "optimizer state not the same at step 9: the state of AdamW lacks `exp_avg`"
                " and `exp_avg_sq`, and has counted no steps instead of 8"
            ),
        ),
        ("scheduler", "learning rate not the same at step 10: learning rate 0.0"),
        ("scaler", "loss scale not the same at step 9: (scale, growth) of the GradScaler (65536, "),
        (
            "position",
            (
                "batch not the same at step 9: it was given the batch of step 7: the data"
                " position is not restored"
            ),
        ),
        (
            "order",
            "batch not the same at step 9: it was given the batch of step 3, of another epoch",
        ),
        ("rng", "RNG state not the same at step 9: loss "),
        (
            "buffers",
            (
                "buffers not the same at step 9: other values in the buffers"
                " `model.1.running_mean`, `model.1.running_var` and `model.1.num_batches_tracked`"
            ),
        ),
        ("average", "averaged weights not the same at step 9: other values in `average."),
        (
            "epoch",
            "batch not the same at step 9: it was given the batch of step 1, of another epoch",
        ),
        ("precision", "it went on with weights that the uninterrupted run never had"),
        ("everything", "nothing was restored: it started over and made all 12 steps again"),
    ],
)
def test_what_is_lost_is_named(pytester: pytest.Pytester, lost: str, cause: str) -> None:
    pytester.makepyfile(LOOP.replace("LOST", repr(lost)))
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    assert f"\nresumes: {cause}" in result.stdout.str()
    step = 1 + LOOP.strip().split("\n").index("            scaler.step(optimizer)")
    result.stdout.fnmatch_lines([f"  Where: *.py:{step}"])


def test_a_loop_that_loses_nothing_passes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(LOOP.replace("LOST", "''"))
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            (
                "resumes passed *::test_it  resumed from step 8 of 12 (interrupted after step 9),"
                " then equal bit for bit"
            )
        ]
    )


@pytest.mark.parametrize("lost", ["position", "order"])
def test_chance_that_is_drawn_anew_can_be_left_out(pytester: pytest.Pytester, lost: str) -> None:
    pytester.makepyfile(
        LOOP.replace("LOST", repr(lost))
        .replace("(after=9)", "(after=9, chance=False)")
        # Without the position, it makes the steps of the whole epoch again.
        .replace("batch, rng = 0, None", "batch, rng, epochs = batch, None, epochs")
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            (
                "resumes passed *::test_it  resumed from step 8 of 12 (interrupted after step 9),"
                " with other batches and random numbers"
            )
        ]
    )


@pytest.mark.parametrize(
    ("lost", "cause"),
    [
        ("scheduler", "learning rate not the same at step 10: "),
        ("average", "averaged weights not the same at step 9: "),
        ("position", "it made 6 steps after step 8, where 4 were left"),
    ],
)
def test_what_is_lost_besides_chance_is_named(
    pytester: pytest.Pytester, lost: str, cause: str
) -> None:
    code = LOOP.replace("LOST", repr(lost)).replace("(after=9)", "(after=9, chance=False)")
    pytester.makepyfile(code)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    assert f"\nresumes: {cause}" in result.stdout.str()


def test_a_loop_that_starts_over_is_told_where_weights_stand_still(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import torch
        from torch import nn
        from pytest_trainloop import resumes

        @resumes
        def test_it(tiny_loader, checkpoint_dir):
            model = nn.Linear(4, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for x, y in list(tiny_loader) * 3:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), torch.ones(len(x), 1)).backward()
                optimizer.step()
                torch.save(model.state_dict(), checkpoint_dir / "last.pt")
        """
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").stdout.fnmatch_lines(
        ["resumes: nothing was restored: it started over and made all 6 steps again"]
    )


@pytest.mark.parametrize(
    ("shuffle", "given"),
    [
        (True, "step 1, of another epoch: the data order is not restored"),
        (False, "step 5: the data position is not restored"),
    ],
)
def test_epochs_are_told_apart_where_nobody_asks_for_their_end(
    pytester: pytest.Pytester, *, shuffle: bool, given: str
) -> None:
    """A loop may know how many batches there are, and leave the loader at the last one."""
    pytester.makepyfile(
        f"""
        import torch
        from torch import nn
        from torch.utils.data import DataLoader
        from pytest_trainloop import resumes

        @resumes(after=7)
        def test_it(tiny_dataset, checkpoint_dir):
            model, path = nn.Linear(4, 3), checkpoint_dir / "last.pt"
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            step, weights = torch.load(path) if path.exists() else (0, model.state_dict())
            model.load_state_dict(weights)
            while step < 8:
                batches = iter(DataLoader(tiny_dataset, 2, shuffle={shuffle}))
                for _ in range(4 - step % 4):
                    x, y = next(batches)
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    step += 1
                    torch.save((step, model.state_dict()), path) if step == 6 else None
        """
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").stdout.fnmatch_lines(
        [f"resumes: batch not the same at step 7: it was given the batch of {given}"]
    )


def test_a_test_that_only_asks_whether_it_resumes_is_preempted(pytester: pytest.Pytester) -> None:
    """As one does who hands the checkpoint to a script by an argument."""
    pytester.makepyfile(
        LOOP.replace("LOST", "'' if interruption.resuming else 'everything'").replace(
            "def test_it(checkpoint_dir)", "def test_it(checkpoint_dir, interruption)"
        )
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)


def test_a_loop_without_a_loader_is_not_told_of_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import torch
        from torch import nn
        from pytest_trainloop import resumes

        @resumes
        def test_it(checkpoint_dir):
            model, path = nn.Linear(4, 2), checkpoint_dir / "last.pt"
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            step, weights = torch.load(path) if path.exists() else (0, model.state_dict())
            model.load_state_dict(weights)
            for step in range(step, 6):
                optimizer.zero_grad()
                model(torch.randn(8, 4)).square().mean().backward()
                optimizer.step()
                torch.save((step + 1, model.state_dict()), path)
        """
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").stdout.fnmatch_lines(
        [
            (
                "resumes: RNG state not the same at step 4: loss * instead of *: another RNG state"
                " (torch)"
            ),
            (
                "  What to do: save the RNG states and restore them; a loop that draws anew by"
                " design takes @resumes(chance=False)"
            ),
        ]
    )


HUGGING_FACE = """
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from pytest_trainloop import resumes


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 2))

    def forward(self, x, labels):
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@resumes
def test_it(checkpoint_dir):
    torch.manual_seed(0)
    x = torch.randn(24, 4)
    data = [{"x": row, "labels": int(row.sum() > 0)} for row in x]
    arguments = TrainingArguments(
        str(checkpoint_dir), per_device_train_batch_size=4, num_train_epochs=2, save_steps=4,
        report_to=[], disable_tqdm=True, use_cpu=True,
    )
    trainer = Trainer(model=Model(), args=arguments, train_dataset=data)
    trainer.train(resume_from_checkpoint=any(checkpoint_dir.iterdir()))
"""

LIGHTNING = """
import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from pytest_trainloop import resumes


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 2))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.layers(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


@resumes
def test_it(checkpoint_dir):
    from lightning.pytorch.callbacks import ModelCheckpoint
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(24, 4), torch.arange(24) % 2)
    newest = checkpoint_dir / "last.ckpt"
    lightning.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(checkpoint_dir, save_last=True, every_n_train_steps=4)],
    ).fit(Model(), DataLoader(data, 4, shuffle=True), ckpt_path=newest if newest.exists() else None)
"""


def test_hugging_face_resumes_and_lightning_loses_the_data_order_within_an_epoch(
    pytester: pytest.Pytester,
) -> None:
    """In a process of their own: frameworks are slow to load, and would be forgotten here."""
    pytester.makepyfile(test_hugging_face=HUGGING_FACE, test_lightning=LIGHTNING)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "ignore")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["resumes passed *test_hugging_face.py::test_it *"])
    assert "\nresumes: batch not the same at step " in result.stdout.str()


def test_fixtures_of_every_scope_are_as_new_in_each_run(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        import torch
        from torch import nn
        from pytest_trainloop import resumes

        @pytest.fixture(scope="module")
        def model():
            torch.manual_seed(0)
            return nn.Linear(4, 2)

        @pytest.fixture
        def optimizer(model):
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        runs = []

        class TestLoop:
            def setup_method(self):
                self.own = []

            @resumes
            @pytest.mark.parametrize("every", [2, 3])
            def test_it(self, model, optimizer, tiny_loader, checkpoint_dir, tmp_path, every):
                assert self.own == [] and list(tmp_path.iterdir()) == []
                self.own.append(1)
                (tmp_path / "mine").touch()
                path = checkpoint_dir / "newest.pt"
                step = 0
                if path.exists():
                    saved = torch.load(path)
                    model.load_state_dict(saved["model"])
                    optimizer.load_state_dict(saved["optimizer"])
                    step = saved["step"]
                batches = list(tiny_loader)
                while step < 8:
                    x, y = batches[step % 2]
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    step += 1
                    if step % every == 0:
                        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                        torch.save({**parts, "step": step}, path)
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)


def test_what_the_resumed_run_raises_is_shown(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        LOOP.replace("LOST", "''").replace("torch.load(path)", "torch.load(path)[7]")
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert "KeyError: 7" in text
    assert "in the run that went on from what was saved" in text
    assert "checks/resumes.py" not in text
