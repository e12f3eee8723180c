"""The rule `ema-not-checkpointed`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import (
    Attribute,
    Call,
    FileFacts,
    Instance,
    Parameter,
    Result,
    Unknown,
    Value,
    is_optimizer,
    loops_of,
    options,
    origins,
    spelling,
)

_EMA_NAME = re.compile(
    r"(?:^|[._])(?:\w+_)?ema(?:_?(?:model|net|helper|weights|\d+))?$", re.IGNORECASE
)
_EMA_CLASS = re.compile(
    r"^(?:\w*EMA|\w*ExponentialMovingAverage|ModelEma\w*|AveragedModel|EMA\w*)$"
)
_EMA_WORD = re.compile(r"(?<![a-z])ema(?![a-z])|ema_|_ema|averaged", re.IGNORECASE)
_UPDATES = frozenset({"update", "update_parameters", "update_ema", "step", "step_ema"})


class EmaNotCheckpointed(Rule):
    """Training resumes without the moving average of its weights.

    Symptom: the validation score, which is measured with the averaged weights, drops after
    each restart and takes thousands of steps to come back.

    Why: the average is a state of its own, built over many steps. On resume it is copied
    from the weights of the moment, and all that it had averaged is lost.

    What torch does: nothing. The state dict of the model does not hold the average.

    Limits: the rule speaks only where the optimizer's state is restored, so that the run is
    meant to go on.
    """

    since = "0.1"
    triggers = ("load_state_dict", "ema|EMA|Ema|AveragedModel|MovingAverage", "step")
    sources = (
        "https://pytorch.org/docs/stable/optim.html#weight-averaging-swa-and-ema",
        "https://github.com/Megvii-BaseDetection/YOLOX/issues/1318",
        "https://github.com/ultralytics/yolov5/issues/310",
        "https://github.com/Vchitect/Latte/issues/55",
        "https://github.com/ai2cm/ace/pull/349",
    )
    examples = (
        Bad(
            "the average begins anew",
            """
            import torch
            from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

            def train(model, loader, epochs, path, resume):
                optimizer = torch.optim.AdamW(model.parameters())
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                    start = checkpoint["epoch"] + 1
                ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        torch.nn.functional.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        ema.update_parameters(model)
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**state, "epoch": epoch}, path)  # error
            """,
        ),
        Good(
            "the average goes into the checkpoint, and comes back",
            """
            import torch
            from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

            def train(model, loader, epochs, path, resume):
                optimizer = torch.optim.AdamW(model.parameters())
                ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
                start = 0
                if resume:
                    checkpoint = torch.load(path)
                    model.load_state_dict(checkpoint["model"])
                    optimizer.load_state_dict(checkpoint["optimizer"])
                    ema.load_state_dict(checkpoint["ema"])
                    start = checkpoint["epoch"] + 1
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        torch.nn.functional.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        ema.update_parameters(model)
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**state, "ema": ema.state_dict(), "epoch": epoch}, path)
            """,
        ),
        Bad(
            "saved, but built from the raw weights on resume",
            """
            import torch
            from timm.utils import ModelEmaV2

            def train(model, loader, epochs, path):
                optimizer = torch.optim.AdamW(model.parameters())
                checkpoint = torch.load(path)
                model.load_state_dict(checkpoint["model"])
                optimizer.load_state_dict(checkpoint["optimizer"])  # error
                model_ema = ModelEmaV2(model)
                for epoch in range(checkpoint["epoch"] + 1, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        torch.nn.functional.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        model_ema.update(model)
                    state = {
                        "model": model.state_dict(),
                        "ema": model_ema.module.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "epoch": epoch,
                    }
                    torch.save(state, path)
            """,
        ),
        Good(
            "the average goes into a file of its own",
            """
            import torch
            from torch_ema import ExponentialMovingAverage

            def train(model, loader, epochs, folder, start):
                optimizer = torch.optim.AdamW(model.parameters())
                ema = ExponentialMovingAverage(model.parameters(), decay=0.999)
                if start:
                    model.load_state_dict(torch.load(f"{folder}/model{start}.pt"))
                    optimizer.load_state_dict(torch.load(f"{folder}/opt{start}.pt"))
                    ema.load_state_dict(torch.load(f"{folder}/ema{start}.pt"))
                for epoch in range(start, epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        torch.nn.functional.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        ema.update()
                    torch.save(model.state_dict(), f"{folder}/model{epoch + 1}.pt")
                    torch.save(optimizer.state_dict(), f"{folder}/opt{epoch + 1}.pt")
                    torch.save(ema.state_dict(), f"{folder}/ema{epoch + 1}.pt")
            """,
        ),
        Good(
            "only the average is saved, to be used",
            """
            import torch
            from torch.optim.swa_utils import AveragedModel

            def train(model, loader, epochs, path):
                optimizer = torch.optim.AdamW(model.parameters())
                ema = AveragedModel(model)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        torch.nn.functional.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        ema.update_parameters(model)
                torch.save(ema.module.state_dict(), path)
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Where the optimizer comes back, look for the average that follows it."""
        checkpoints = file.checkpoints
        restored = checkpoints.restoring(is_optimizer)
        updates = _updates(file)
        if not restored or not updates or _restores(file) or checkpoints.is_opaque(_is_ema):
            return
        name = updates[0].receiver_text
        saves = checkpoints.saves_with(is_optimizer)
        if _saves(file):
            yield self.finding(
                restored[0].place,
                f"the optimizer's state is restored here, that of `{name}` is not, though it is "
                "saved: the moving average of the weights begins anew",
                f"restore it too: `{name}.load_state_dict(...)`",
            )
        elif saves:
            yield self.finding(
                saves[0].told_at.place,
                f"the checkpoint that training resumes from holds no state of `{name}`: after a "
                "restart the moving average of the weights begins anew",
                f"save `{name}.state_dict()` too, and restore it where the optimizer is restored",
            )


def _is_ema(value: Value) -> bool:
    """Whether the value is a moving average of weights, or belongs to one."""
    return any(_is_one(option) for option in options(value))


def _is_one(value: Value) -> bool:
    if isinstance(value, Result):
        return bool(_EMA_CLASS.match(value.call.method))
    if isinstance(value, Instance):
        return bool(_EMA_CLASS.match(value.definition.name))
    if isinstance(value, Attribute):
        return bool(_EMA_NAME.search(value.name)) or _is_ema(value.base)
    return isinstance(value, Unknown | Parameter) and bool(_EMA_NAME.search(spelling(value)))


def _updates(file: FileFacts) -> list[Call]:
    """The updates of an average that was made in sight, in a training loop."""
    return [
        call
        for loop in file.loops
        for call in loop.calls
        if call.method in _UPDATES
        and call.receiver is not None
        and any(isinstance(option, Result | Instance) for option in options(call.receiver))
        and _is_ema(call.receiver)
        and loops_of(call.context)
    ]


def _restores(file: FileFacts) -> bool:
    """Whether anything that was loaded goes into an average, in whatever way."""
    return any(
        _EMA_WORD.search(call.text) and "load" in call.text
        for trace in file.traces
        for call in trace.calls
        if "load" in call.method or "copy" in call.method
    )


_EMA_WORD = re.compile(r"(?<![a-z])ema(?![a-z])|Ema|averaged", re.IGNORECASE)


def _saves(file: FileFacts) -> bool:
    """Whether any part of an average is saved."""
    return any(
        _is_ema(origin) or (isinstance(origin, Result) and _EMA_WORD.search(origin.call.text))
        for save in file.checkpoints.saves
        for origin in origins(save.content)
    ) or any(
        call.receiver is not None and _is_ema(call.receiver) for call in file.calls("state_dict")
    )
