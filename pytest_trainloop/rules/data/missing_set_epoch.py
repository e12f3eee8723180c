"""The rule `missing-set-epoch`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import (
    Call,
    Collection,
    Event,
    FileFacts,
    Instance,
    LoaderPass,
    Loop,
    Result,
    Store,
    Trace,
    Value,
    constant,
    is_known_harmless,
    loader_passes,
    loaders_behind,
    options,
    samplers_of,
)

if TYPE_CHECKING:
    from pytest_trainloop.rules._rule import Observation
    from pytest_trainloop.runtime.record import Run

_SAMPLER = "torch.utils.data.DistributedSampler"
_BATCH_SAMPLER = "torch.utils.data.BatchSampler"


class MissingSetEpoch(Rule):
    """A distributed sampler is never told which epoch it is, so all epochs have the same order.

    Symptom: with more than one process, each epoch shows every process the same samples in the
    same order. Training generalises worse than on one GPU, and nothing says why.

    Why: a `DistributedSampler` must shuffle alike in all processes, so it seeds its permutation
    with `seed + epoch`. The epoch stays 0 until somebody calls `set_epoch`.

    What torch does: nothing. One sentence of its documentation asks for the call.

    Limits: samplers, loaders and loops that a framework made (Lightning, Accelerate, Fabric,
    Ray) are not reported: it sets the epoch itself.
    """

    since = "0.1"
    triggers = ("epoch|.backward(|manual_backward(", "DistributedSampler|distributed", "oader")
    sources = (
        "https://pytorch.org/docs/stable/data.html#torch.utils.data.distributed.DistributedSampler",
        "https://github.com/lucidrains/DALLE-pytorch/issues/230",
        "https://github.com/pytorch/pytorch/issues/31771",
        "https://github.com/kan-bayashi/ParallelWaveGAN/issues/177",
        "https://github.com/Spijkervet/SimCLR/issues/26",
        "https://github.com/rosinality/stylegan2-pytorch/issues/319",
    )
    examples = (
        Bad(
            "the sampler shuffles each epoch alike",
            """
            from torch.utils.data import DataLoader, DistributedSampler
            import torch.nn.functional as F

            def train(model, dataset, optimizer, epochs):
                sampler = DistributedSampler(dataset)  # error
                loader = DataLoader(dataset, batch_size=32, sampler=sampler)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "the sampler is told the epoch",
            """
            from torch.utils.data import DataLoader, DistributedSampler
            import torch.nn.functional as F

            def train(model, dataset, optimizer, epochs):
                sampler = DistributedSampler(dataset)
                loader = DataLoader(dataset, batch_size=32, sampler=sampler)
                for epoch in range(epochs):
                    sampler.set_epoch(epoch)
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Bad(
            "a sampler only where training is distributed, and progress bars around the loops",
            """
            import torch
            from torch.utils.data import DataLoader
            from torch.utils.data.distributed import DistributedSampler
            from tqdm import tqdm, trange
            import torch.nn.functional as F

            def main(args, model, dataset, optimizer):
                if args.local_rank == -1:
                    sampler = torch.utils.data.RandomSampler(dataset)
                else:
                    sampler = DistributedSampler(dataset)  # error
                loader = DataLoader(dataset, sampler=sampler, batch_size=args.batch_size)
                for _ in trange(args.epochs):
                    for step, (x, y) in enumerate(tqdm(loader)):
                        loss = F.cross_entropy(model(x), y)
                        loss.backward()
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Bad(
            "the loader is built in another function, and an epoch is a function too",
            """
            import torch
            import torch.nn.functional as F
            from torch.utils import data

            def build(dataset, shuffle, distributed):
                sampler = None
                if distributed:
                    sampler = data.distributed.DistributedSampler(dataset, shuffle=shuffle)  # error
                return data.DataLoader(dataset, batch_size=8, sampler=sampler, drop_last=True)

            def train_epoch(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()

            def main(args, model, dataset, optimizer):
                loader = build(dataset, True, args.distributed)
                for epoch in range(args.start_epoch, args.epochs):
                    train_epoch(model, loader, optimizer)
            """,
        ),
        Bad(
            "a generator that goes over the loader for ever",
            """
            import torch.nn.functional as F
            from torch.utils.data import DataLoader, DistributedSampler

            def endless(loader):
                while True:
                    for batch in loader:
                        yield batch

            def train(model, dataset, optimizer, steps):
                sampler = DistributedSampler(dataset)  # error
                batches = endless(DataLoader(dataset, batch_size=8, sampler=sampler))
                for step in range(steps):
                    x, y = next(batches)
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "a batch sampler over the sampler",
            """
            import torch.nn.functional as F
            from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

            class Trainer:
                def __init__(self, model, dataset, optimizer):
                    self.model = model
                    self.optimizer = optimizer
                    self.sampler = DistributedSampler(dataset, shuffle=True)  # error
                    batches = BatchSampler(self.sampler, 16, drop_last=True)
                    self.loader = DataLoader(dataset, batch_sampler=batches)

                def fit(self, epochs):
                    for epoch in range(epochs):
                        for x, y in self.loader:
                            self.optimizer.zero_grad()
                            F.cross_entropy(self.model(x), y).backward()
                            self.optimizer.step()
            """,
        ),
        Good(
            "told through the loader, in another function",
            """
            import torch.nn.functional as F
            from torch.utils.data import DataLoader, DistributedSampler

            def train_epoch(model, loader, optimizer, epoch, distributed):
                if distributed:
                    loader.sampler.set_epoch(epoch)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()

            def main(args, model, dataset, optimizer):
                sampler = DistributedSampler(dataset) if args.distributed else None
                loader = DataLoader(dataset, batch_size=8, sampler=sampler)
                for epoch in range(args.epochs):
                    train_epoch(model, loader, optimizer, epoch, args.distributed)
            """,
        ),
        Good(
            "told in another file",
            """
            from torch.utils.data import DataLoader, DistributedSampler
            from engine import train_epoch

            def main(args, model, dataset, optimizer):
                loader = DataLoader(dataset, batch_size=8, sampler=DistributedSampler(dataset))
                for epoch in range(args.epochs):
                    train_epoch(model, loader, optimizer, epoch)
            """,
            beside=(
                (
                    "engine.py",
                    (
                        "import torch.nn.functional as F\n"
                        "\n"
                        "def train_epoch(model, loader, optimizer, epoch):\n"
                        "    loader.sampler.set_epoch(epoch)\n"
                        "    for x, y in loader:\n"
                        "        optimizer.zero_grad()\n"
                        "        F.cross_entropy(model(x), y).backward()\n"
                        "        optimizer.step()\n"
                    ),
                ),
            ),
        ),
        Good(
            "a sampler that does not shuffle",
            """
            import torch.nn.functional as F
            from torch.utils.data import DataLoader, DistributedSampler

            def train(model, dataset, optimizer, epochs):
                sampler = DistributedSampler(dataset, shuffle=False)
                loader = DataLoader(dataset, batch_size=8, sampler=sampler)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "a sampler that counts the epochs itself",
            """
            import torch.nn.functional as F
            from torch.utils.data import DataLoader, DistributedSampler

            class Counting(DistributedSampler):
                def __iter__(self):
                    self.epoch += 1
                    return super().__iter__()

            def train(model, dataset, optimizer, epochs):
                loader = DataLoader(dataset, batch_size=8, sampler=Counting(dataset))
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "the epoch is set by hand",
            """
            import torch.nn.functional as F
            from torch.utils.data import DataLoader, DistributedSampler

            def train(model, dataset, optimizer, epochs):
                sampler = DistributedSampler(dataset)
                loader = DataLoader(dataset, batch_size=8, sampler=sampler)
                for epoch in range(epochs):
                    sampler.epoch = epoch
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "Accelerate's loader tells its sampler",
            """
            from accelerate import Accelerator
            import torch.nn.functional as F
            from torch.utils.data import DataLoader, DistributedSampler

            def train(model, dataset, optimizer, epochs):
                accelerator = Accelerator()
                loader = DataLoader(dataset, batch_size=8, sampler=DistributedSampler(dataset))
                model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        accelerator.backward(F.cross_entropy(model(x), y))
                        optimizer.step()
            """,
        ),
        Good(
            "Lightning replaces the sampler's epoch itself",
            """
            import lightning as L
            import torch
            from torch.utils.data import DataLoader, DistributedSampler

            class Lit(L.LightningModule):
                def train_dataloader(self):
                    return DataLoader(self.data, sampler=DistributedSampler(self.data))

                def training_step(self, batch, batch_idx):
                    x, y = batch
                    return torch.nn.functional.cross_entropy(self.net(x), y)

                def configure_optimizers(self):
                    return torch.optim.Adam(self.parameters())
            """,
        ),
        Good(
            "a callback out of sight is given the loader",
            """
            import torch.nn.functional as F
            from torch.utils.data import DataLoader, DistributedSampler

            def train(model, dataset, optimizer, callbacks, epochs):
                loader = DataLoader(dataset, batch_size=8, sampler=DistributedSampler(dataset))
                for epoch in range(epochs):
                    callbacks.begin_epoch(epoch, loader)
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "only the evaluation has a distributed sampler",
            """
            import torch
            import torch.nn.functional as F
            from torch.utils.data import DataLoader, DistributedSampler

            def train(model, dataset, held_out, optimizer, epochs):
                loader = DataLoader(dataset, batch_size=8, shuffle=True)
                test = DataLoader(held_out, batch_size=8, sampler=DistributedSampler(held_out))
                for epoch in range(epochs):
                    model.train()
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    model.eval()
                    with torch.no_grad():
                        print(sum((model(x).argmax(1) == y).sum().item() for x, y in test))
            """,
        ),
        Good(
            "one pass over the data",
            """
            import torch.nn.functional as F
            from torch.utils.data import DataLoader, DistributedSampler

            def train(model, dataset, optimizer):
                loader = DataLoader(dataset, batch_size=8, sampler=DistributedSampler(dataset))
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for loaders with a shuffling sampler that are trained on more than once."""
        for trace in file.traces:
            passes = list(loader_passes(trace))
            samplers = {id(call): call for one in passes for call in _distributed_samplers(one)}
            for sampler in samplers.values():
                drawn = [one for one in passes if sampler in _distributed_samplers(one)]
                if not any(_may_be_told(trace, one, sampler) for one in drawn):
                    yield self._report(trace, drawn[0], sampler)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for passes of one training that a sampler shuffled by the same seed and epoch."""
        for index, loader in enumerate(run.loaders):
            trained = _trained_passes(run, index)
            orders = {loader.orders[number] for number in trained}
            if len(trained) < 2 or len(orders) > 1 or None in orders:  # noqa: PLR2004  # a repetition
                continue
            if set.intersection(*trained.values()):
                ((seed, epoch),) = (order for order in orders if order)
                yield self.observation(
                    f"`{loader.sampler}` shuffled all {len(trained)} passes over"
                    f" `{loader.dataset}` alike: by seed {seed} and epoch {epoch}",
                    "tell it the epoch before each pass: `loader.sampler.set_epoch(epoch)`",
                    loader.where,
                )

    def _report(self, trace: Trace, found: LoaderPass, sampler: Call) -> Finding:
        name = _name_of(trace, sampler)
        loader = _name_of(trace, found.loader)
        again = found.again
        number = again.targets[0] if isinstance(again, Loop) and again.targets else "_"
        epoch = number if number != "_" else "epoch"
        receiver = name or (f"{loader}.sampler" if loader else "sampler")
        return self.finding(
            sampler.place,
            f"`{name or sampler.name}` shuffles every epoch alike: `{found.header}` goes over "
            f"{f'`{loader}`' if loader else 'its loader'} again without `set_epoch`",
            f"tell it the epoch before each pass: `{receiver}.set_epoch({epoch})`",
        )


def _distributed_samplers(found: LoaderPass) -> Iterator[Call]:
    """The shuffling `DistributedSampler(...)` calls that a loader may draw by."""
    for value in samplers_of(found.loader):
        for option in options(value):
            if not isinstance(option, Result):
                continue
            call = option.call
            if call.qualified == _SAMPLER and _shuffles(call):
                yield call
            elif call.qualified == _BATCH_SAMPLER and call.args:
                yield from (
                    inner.call
                    for inner in options(call.args[0])
                    if isinstance(inner, Result)
                    and inner.call.qualified == _SAMPLER
                    and _shuffles(inner.call)
                )


def _shuffles(sampler: Call) -> bool:
    given = sampler.argument(3, "shuffle")
    if given is None:
        return not sampler.starred
    return all(constant(option) is True for option in options(given))


def _may_be_told(trace: Trace, found: LoaderPass, sampler: Call) -> bool:
    """Whether something may tell the sampler the epoch, before another pass begins."""
    again = found.again
    if trace.cut or again in sampler.context:
        return True
    if not isinstance(again, Loop) and "set_epoch" in again.identifiers:
        return True
    around = again if isinstance(again, Loop) else found.batches
    return any(
        _may_tell(event, found, sampler) for event in trace.events if around in event.context
    )


def _may_tell(event: Event, found: LoaderPass, sampler: Call) -> bool:
    if isinstance(event, Store):
        return event.kind == "attribute" and event.target.endswith(".epoch")
    if not isinstance(event, Call):
        return False
    if event.method == "set_epoch":
        return True
    if event.followed or is_known_harmless(event) or any(loaders_behind(Result(event))):
        return False
    return any(_holds(given, (found.loader, sampler)) for given in event.inputs) or (
        found.batches not in event.context and _is_out_of_sight(event)
    )


def _holds(value: Value, calls: tuple[Call, ...]) -> bool:
    """Whether a value is what one of the calls made, or written down to hold it."""
    return any(
        option.call in calls
        if isinstance(option, Result)
        else isinstance(option, Collection) and any(_holds(item, calls) for item in option.items)
        for option in options(value)
    )


def _is_out_of_sight(call: Call) -> bool:
    """Whether the call runs a method that the object has from a class out of sight."""
    receiver = call.receiver
    return receiver is not None and any(
        isinstance(option, Instance)
        and option.definition.has_unknown_base()
        and not option.definition.is_module
        for option in options(receiver)
    )


def _name_of(trace: Trace, call: Call) -> str:
    """The name that the code gives to what a call made, the first of several; else empty."""
    names = [
        store.target
        for store in trace.stores
        if store.kind in ("name", "attribute") and _is_made_by(store.value, call)
    ]
    return names[0] if names else ""


def _is_made_by(value: Value, call: Call) -> bool:
    return any(isinstance(option, Result) and option.call is call for option in options(value))


def _trained_passes(run: Run, loader: int) -> dict[int, set[int]]:
    """The passes over a loader in which optimizers stepped, and which did."""
    from pytest_trainloop.runtime.record import Batch, EpochEnd, Step

    passes: dict[int, set[int]] = {}
    now: int | None = None
    for event in run.events:
        if isinstance(event, Batch) and event.loader == loader:
            now = event.epoch
        elif isinstance(event, EpochEnd) and event.loader == loader:
            now = None
        elif isinstance(event, Step) and now is not None:
            passes.setdefault(now, set()).add(event.optimizer)
    return passes
