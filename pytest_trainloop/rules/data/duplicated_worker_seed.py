"""The rule `duplicated-worker-seed`."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import (
    Call,
    ClassFacts,
    Constant,
    FileFacts,
    Function,
    Inside,
    Instance,
    Operation,
    Store,
    Trace,
    Value,
    constant,
    global_seed,
    is_loader_call,
    options,
    origins,
    random_stream,
)

_DATASETS = frozenset({"torch.utils.data.Dataset", "torch.utils.data.dataset.Dataset"})
#: Words of a dataset, or of what its loader is given, that gives each worker its own stream.
_APART = frozenset({"get_worker_info", "worker_id", "initial_seed", "worker_info"})


class DuplicatedWorkerSeed(Rule):
    """All worker processes of a data loader draw the same random numbers.

    Symptom: samples of different workers are cropped, flipped and masked alike, in every epoch
    again: the augmentation shows a fraction of its variety.

    Why: a worker begins as a copy of the dataset. A random stream that is stored on it is
    copied with its state, anew for each epoch, so all workers draw from the same place. A seed
    in `worker_init_fn` that does not depend on the worker does the same to the shared streams.

    What torch does: it gives each worker a seed of its own for `torch`, `random` and, since
    version 1.9, NumPy. It cannot know of a stream that the dataset keeps.

    Limits: global NumPy random numbers in a dataset were the famous case; they are right since
    torch 1.9, and are not reported. A dataset is reported where it is made for a loader with
    workers in sight.
    """

    since = "0.1"
    triggers = (
        "worker_init_fn|num_workers",
        "oader",
        "seed|default_rng|RandomState|Random(|Generator(",
    )
    sources = (
        "https://pytorch.org/docs/stable/data.html#randomness-in-multi-process-data-loading",
        "https://github.com/pytorch/pytorch/issues/5059",
        "https://github.com/dhlab-epfl/dhSegment-torch/issues/5",
        "https://github.com/pytorch/pytorch/pull/56488",
    )
    examples = (
        Bad(
            "each worker has a copy of the same random stream",
            """
            import numpy as np
            from torch.utils.data import DataLoader, Dataset

            class Crops(Dataset):
                def __init__(self, images):
                    self.images = images
                    self.rng = np.random.default_rng(0)  # error

                def __len__(self):
                    return len(self.images)

                def __getitem__(self, index):
                    start = self.rng.integers(9)
                    return self.images[index][start : start + 8]

            def make_loader(images):
                return DataLoader(Crops(images), batch_size=8, shuffle=True, num_workers=4)
            """,
        ),
        Good(
            "each worker makes its own",
            """
            import numpy as np
            import torch
            from torch.utils.data import DataLoader, Dataset

            class Crops(Dataset):
                def __init__(self, images):
                    self.images = images
                    self.rng = None

                def __len__(self):
                    return len(self.images)

                def __getitem__(self, index):
                    if self.rng is None:
                        self.rng = np.random.default_rng(torch.initial_seed())
                    start = self.rng.integers(9)
                    return self.images[index][start : start + 8]

            def make_loader(images):
                return DataLoader(Crops(images), batch_size=8, shuffle=True, num_workers=4)
            """,
        ),
        Bad(
            "all workers are given one seed",
            """
            import numpy as np
            from torch.utils.data import DataLoader

            def make_loader(dataset, workers):
                return DataLoader(
                    dataset,
                    num_workers=workers,
                    worker_init_fn=lambda _: np.random.seed(0),  # error
                )
            """,
        ),
        Bad(
            "a function that seeds all streams",
            """
            import random
            import torch
            from torch.utils.data import DataLoader

            SEED = 42

            def seed_worker(worker_id):
                random.seed(SEED)  # error
                torch.manual_seed(SEED)  # error

            def make_loader(dataset):
                return DataLoader(dataset, num_workers=8, worker_init_fn=seed_worker)
            """,
        ),
        Bad(
            "a stream of Python's, drawn from in a method",
            """
            import random
            from torch.utils.data import DataLoader, Dataset

            class Masked(Dataset):
                def __init__(self, texts, seed):
                    self.texts = texts
                    self.random = random.Random(seed)  # error

                def __getitem__(self, index):
                    return self.mask(self.texts[index])

                def mask(self, text):
                    return [word for word in text if self.random.random() > 0.1]

            dataset = Masked(["a b c"], 0)
            loader = DataLoader(dataset, batch_size=2, num_workers=2)
            """,
        ),
        Good(
            "a seed for each worker",
            """
            import numpy as np
            import torch
            from torch.utils.data import DataLoader

            def seed_worker(worker_id):
                np.random.seed(torch.initial_seed() % 2**32)

            def other_seed(worker_id):
                np.random.seed(1234 + worker_id)

            def make_loaders(dataset):
                yield DataLoader(dataset, num_workers=4, worker_init_fn=seed_worker)
                yield DataLoader(dataset, num_workers=4, worker_init_fn=other_seed)
            """,
        ),
        Good(
            "the stream is set by the loader's worker_init_fn",
            """
            import numpy as np
            import torch
            from torch.utils.data import DataLoader, Dataset

            class Crops(Dataset):
                def __init__(self, images):
                    self.images = images
                    self.rng = np.random.default_rng(0)

                def __getitem__(self, index):
                    return self.images[index][self.rng.integers(9) :]

            def seed_worker(worker_id):
                info = torch.utils.data.get_worker_info()
                info.dataset.rng = np.random.default_rng(info.seed)

            def make_loader(images):
                return DataLoader(Crops(images), num_workers=4, worker_init_fn=seed_worker)
            """,
        ),
        Good(
            "no workers",
            """
            import numpy as np
            from torch.utils.data import DataLoader, Dataset

            class Crops(Dataset):
                def __init__(self, images):
                    self.images = images
                    self.rng = np.random.default_rng(0)

                def __getitem__(self, index):
                    return self.images[index][self.rng.integers(9) :]

            def make_loader(images):
                return DataLoader(Crops(images), num_workers=0)
            """,
        ),
        Good(
            "one worker, which lives on",
            """
            import numpy as np
            from torch.utils.data import DataLoader, Dataset

            class Crops(Dataset):
                def __init__(self, images):
                    self.images = images
                    self.rng = np.random.default_rng(0)

                def __getitem__(self, index):
                    return self.images[index][self.rng.integers(9) :]

            def make_loader(images):
                return DataLoader(Crops(images), num_workers=1, persistent_workers=True)
            """,
        ),
        Good(
            "drawn once, when the dataset is made",
            """
            import numpy as np
            from torch.utils.data import DataLoader, Dataset

            class Crops(Dataset):
                def __init__(self, images):
                    self.images = images
                    self.rng = np.random.default_rng(0)
                    self.starts = self.rng.integers(9, size=len(images))

                def __getitem__(self, index):
                    return self.images[index][self.starts[index] :]

            def make_loader(images):
                return DataLoader(Crops(images), num_workers=4)
            """,
        ),
        Good(
            "a seed for each index, so that samples repeat",
            """
            import numpy as np
            from torch.utils.data import DataLoader, Dataset

            class Crops(Dataset):
                def __init__(self, images, seed):
                    self.images = images
                    self.seed = seed

                def __getitem__(self, index):
                    rng = np.random.default_rng(self.seed + index)
                    return self.images[index][rng.integers(9) :]

            def make_loader(images):
                return DataLoader(Crops(images, 0), num_workers=4)
            """,
        ),
        Good(
            "NumPy's global stream, which torch seeds",
            """
            import numpy as np
            from torch.utils.data import DataLoader, Dataset

            class Crops(Dataset):
                def __init__(self, images):
                    self.images = images

                def __getitem__(self, index):
                    return self.images[index][np.random.randint(9) :]

            def make_loader(images):
                return DataLoader(Crops(images), num_workers=4)
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look at what the loaders with workers are given: a seed, and a dataset."""
        for trace in file.traces:
            for call in trace.calls:
                if is_loader_call(call) and _has_workers(call):
                    yield from self._seeds(trace, call)
                    yield from self._streams(trace, call)

    def _seeds(self, trace: Trace, loader: Call) -> Iterator[Finding]:
        for call in trace.calls:
            seed = global_seed(call)
            if seed is None or not _is_run_by_workers(call, loader) or not _is_literal(seed):
                continue
            yield self.finding(
                call.place,
                f"`{call.text}` gives all workers of `{loader.name}` one seed: they draw the "
                f"same random numbers{_how_often(loader)}",
                "take the seed that the worker already has: `torch.initial_seed() % 2**32`",
            )

    def _streams(self, trace: Trace, loader: Call) -> Iterator[Finding]:
        dataset = loader.argument(0, "dataset")
        if dataset is None or _initializes(loader):
            return
        for option in options(dataset):
            if isinstance(option, Instance) and _is_plain_dataset(option.definition):
                for store, made in _streams_of(trace, option):
                    yield self.finding(
                        made.place,
                        f"`{store.target}` is copied into each worker of `{loader.name}`: all of "
                        f"them draw the same random numbers{_how_often(loader)}",
                        f"make `{store.target}` in the worker, at its first sample, with "
                        "`torch.initial_seed()` as its seed",
                    )


def _has_workers(loader: Call) -> bool:
    """Whether the loader is made with workers; one that lives on has a stream of its own."""
    given = loader.argument(5, "num_workers")
    too_few = (0, 1) if "persistent_workers" in loader.keywords else (0,)
    return given is not None and not any(constant(option) in too_few for option in options(given))


def _how_often(loader: Call) -> str:
    """When the copies begin anew: with each epoch, unless the workers live on."""
    return "" if "persistent_workers" in loader.keywords else ", in every epoch"


def _initializes(loader: Call) -> bool:
    return loader.starred or loader.argument(9, "worker_init_fn") is not None


def _is_run_by_workers(call: Call, loader: Call) -> bool:
    """Whether the call happens in the function that the loader runs in each worker."""
    given = loader.argument(9, "worker_init_fn")
    if given is None:
        return False
    wanted = [option.definition for option in options(given) if isinstance(option, Function)]
    return any(
        isinstance(frame, Inside) and frame.call is loader and frame.function in wanted
        for frame in call.context
    )


def _is_literal(seed: Value) -> bool:
    """Whether the seed is written down, so that no worker can have another one."""
    return all(isinstance(origin, Constant | Operation) for origin in origins(seed))


def _is_plain_dataset(definition: ClassFacts) -> bool:
    """Whether a class is a dataset by index, all of whose code is in sight."""
    outside = {base for base in definition.ancestors() if isinstance(base, str)}
    if not outside or not outside <= _DATASETS | {"builtins.object", "typing.Generic"}:
        return False
    methods = definition.methods.values()
    return not any(_APART & method.identifiers for method in methods)


def _streams_of(trace: Trace, dataset: Instance) -> Iterator[tuple[Store, Call]]:
    """The random streams that the constructor stores for good, and samples are drawn by."""
    for store in trace.stores:
        if store.kind != "attribute" or store.owner is not dataset:
            continue
        made = random_stream(store.value)
        name = store.target.rpartition(".")[2]
        assigned_in = dataset.definition.methods_assigning(name)
        if made is None or [method.name for method in assigned_in] != ["__init__"]:
            continue
        if _is_drawn_by(dataset.definition, name):
            yield store, made


def _is_drawn_by(definition: ClassFacts, name: str) -> bool:
    """Whether a sample is made with an attribute, in `__getitem__` or a method that it names."""
    sampling = definition.method("__getitem__")
    if sampling is None:
        return False
    named = [definition.method(other) for other in sampling.identifiers]
    return any(
        method is not None and method.name != "__init__" and name in method.identifiers
        for method in (sampling, *named)
    )
