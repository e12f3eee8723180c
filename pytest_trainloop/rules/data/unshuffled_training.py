"""The rule `unshuffled-training`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Call,
    ClassFacts,
    Element,
    FileFacts,
    Instance,
    LoaderPass,
    Result,
    Trace,
    Value,
    constant,
    loader_passes,
    options,
    origins,
    samplers_of,
)

_STREAMS = re.compile(r"iterable|stream|webdataset|shuffl|lazy|buffer", re.IGNORECASE)
#: Data whose order means something, or that somebody put in an order.
_ORDERED = re.compile(
    r"shuffl|perm|seq|series|temporal|window|stream|iter|bptt|curricul|sorted|bucket|val|test|dev"
    r"|eval|overfit|tiny|toy|dummy|random",
    re.IGNORECASE,
)


class UnshuffledTraining(Rule):
    """Every training epoch goes through the samples in the same order.

    Symptom: training converges slowly or badly, most of all where the data is sorted by class,
    and batch statistics are those of neighbours.

    Why: `DataLoader` shuffles only if it is told to. In order, each batch holds the samples that
    happen to lie side by side, the same ones in every epoch.

    What torch does: nothing; `shuffle` is false unless given.

    Limits: not on by default. Whether an order matters is a property of the data, which code
    does not show: data may have been shuffled before, or be a series in time. Loaders with a
    sampler, iterable datasets, and datasets whose name or code tells of an order are passed over.
    """

    since = "0.1"
    default = False
    triggers = (".backward(|manual_backward(", "DataLoader")
    sources = (
        "https://pytorch.org/docs/stable/data.html#data-loading-order-and-sampler",
        "https://github.com/ultralytics/yolov5/issues/5622",
        "https://github.com/joaoamcarvalho/mpd-public/issues/6",
        "https://github.com/microsoft/nni/issues/4696",
    )
    examples = (
        Bad(
            "the loader is not told to shuffle",
            """
            from torch.utils.data import DataLoader
            import torch.nn.functional as F

            def train(model, images, optimizer, epochs):
                loader = DataLoader(images, batch_size=32, num_workers=4)  # error
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
            fixed="""
            from torch.utils.data import DataLoader
            import torch.nn.functional as F

            def train(model, images, optimizer, epochs):
                loader = DataLoader(images, batch_size=32, num_workers=4, shuffle=True)  # error
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "the loader shuffles",
            """
            from torch.utils.data import DataLoader
            import torch.nn.functional as F

            def train(model, images, optimizer, epochs):
                loader = DataLoader(images, batch_size=32, num_workers=4, shuffle=True)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Bad(
            "told not to, in a class",
            """
            import torch
            import torch.nn.functional as F
            from torch.utils.data import DataLoader

            class Trainer:
                def __init__(self, model, images):
                    self.model = model
                    self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                    self.loader = DataLoader(images, batch_size=32, shuffle=False)  # error

                def fit(self, epochs):
                    for epoch in range(epochs):
                        self.epoch()

                def epoch(self):
                    for x, y in self.loader:
                        self.optimizer.zero_grad()
                        F.cross_entropy(self.model(x), y).backward()
                        self.optimizer.step()
            """,
        ),
        Good(
            "a sampler chooses the order",
            """
            import torch.nn.functional as F
            from torch.utils.data import DataLoader, WeightedRandomSampler

            def train(model, images, weights, optimizer, epochs):
                sampler = WeightedRandomSampler(weights, len(images))
                loader = DataLoader(images, batch_size=32, sampler=sampler)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "an iterable dataset has an order of its own",
            """
            import torch.nn.functional as F
            from torch.utils.data import DataLoader, IterableDataset

            class Lines(IterableDataset):
                def __init__(self, path):
                    self.path = path

                def __iter__(self):
                    yield from open(self.path)

            def train(model, path, optimizer, epochs):
                loader = DataLoader(Lines(path), batch_size=32)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "the dataset draws at random itself",
            """
            import random
            import torch.nn.functional as F
            from torch.utils.data import DataLoader, Dataset

            class Pairs(Dataset):
                def __init__(self, images):
                    self.images = images

                def __len__(self):
                    return 1000

                def __getitem__(self, index):
                    return random.choice(self.images), random.choice(self.images)

            def train(model, images, optimizer, epochs):
                loader = DataLoader(Pairs(images), batch_size=32)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.mse_loss(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "a series in time",
            """
            import torch.nn.functional as F
            from torch.utils.data import DataLoader

            def train(model, sequences, optimizer, epochs):
                loader = DataLoader(sequences, batch_size=32)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "shuffled before",
            """
            import torch
            import torch.nn.functional as F
            from torch.utils.data import DataLoader, TensorDataset

            def train(model, x, y, optimizer, epochs):
                order = torch.randperm(len(x))
                loader = DataLoader(TensorDataset(x[order], y[order]), batch_size=32)
                for epoch in range(epochs):
                    for a, b in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(a), b).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "an evaluation goes in order",
            """
            import torch
            import torch.nn.functional as F
            from torch.utils.data import DataLoader

            def train(model, images, held_out, optimizer, epochs):
                loader = DataLoader(images, batch_size=32, shuffle=True)
                others = DataLoader(held_out, batch_size=32)
                for epoch in range(epochs):
                    model.train()
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    model.eval()
                    with torch.no_grad():
                        print(sum(F.cross_entropy(model(x), y).item() for x, y in others))
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for loaders without a shuffle or a sampler that are trained on more than once."""
        for trace in file.traces:
            told: list[Call] = []
            for found in loader_passes(trace):
                loader = found.loader
                if loader not in told and _is_in_order(loader) and not _is_ordered(trace, loader):
                    told.append(loader)
                    yield self._report(found)

    def _report(self, found: LoaderPass) -> Finding:
        loader = found.loader
        fix = None
        if loader.argument(2, "shuffle") is None:
            fix = Fix((Edit("add-argument", loader.place, "shuffle=True"),), safe=False)
        return self.finding(
            loader.place,
            f"`{loader.name}` does not shuffle: `{found.header}` trains on "
            f"`{loader.argument_text(0, 'dataset')}` in the same order in every turn",
            "shuffle it: `shuffle=True`",
            fix,
        )


def _is_in_order(loader: Call) -> bool:
    """Whether the loader surely goes through its dataset in order."""
    given = loader.argument(2, "shuffle")
    if loader.starred or any(samplers_of(loader)):
        return False
    return given is None or all(constant(option) is False for option in options(given))


def _is_ordered(trace: Trace, loader: Call) -> bool:
    """Whether the data may have an order that is meant, or was shuffled before."""
    dataset = loader.argument(0, "dataset")
    if dataset is None or _ORDERED.search(loader.argument_text(0, "dataset")):
        return True
    names = [
        store.target
        for store in trace.stores
        if any(_is_made_by(option, loader) for option in options(store.value))
    ]
    if any(_ORDERED.search(name) for name in names):
        return True
    return any(_may_be_ordered(option) for option in options(dataset))


def _is_made_by(value: Value, call: Call) -> bool:
    return isinstance(value, Result) and value.call is call


def _may_be_ordered(dataset: Value) -> bool:
    if isinstance(dataset, Instance):
        return _tells_of_order(dataset.definition)
    return any(_ORDERED.search(call.text) for call in _made_by(dataset))


def _made_by(dataset: Value) -> Iterator[Call]:
    """The calls that a dataset was made by, also those that chose its rows."""
    for origin in origins(dataset, 60):
        if isinstance(origin, Result):
            yield origin.call
        elif isinstance(origin, Element) and origin.key is not None:
            yield from (key.call for key in options(origin.key) if isinstance(key, Result))


def _tells_of_order(definition: ClassFacts) -> bool:
    """Whether a dataset's class is iterable, or its code speaks of chance or order."""
    names = [base for base in definition.ancestors() if isinstance(base, str)]
    names += [definition.name]
    if any(_STREAMS.search(name) for name in names):
        return True
    return any(
        _ORDERED.search(word)
        for method in definition.methods.values()
        for word in method.identifiers
    )
