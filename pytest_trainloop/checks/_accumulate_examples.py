"""The examples of `accumulates`: whole test modules, kept apart from the check for their length."""

from __future__ import annotations

from pytest_trainloop.checks._check import Fails, Passes, Unjudged

_HEAD = """
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader

    from pytest_trainloop import accumulates

"""

_TRAIN = """
    def train(model, loader, accumulation_steps, epochs=2):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(epochs):
            for i, (x, y) in enumerate(loader):
"""

_TEST = """

    @accumulates
    def test_accumulates(tiny_model, tiny_dataset, accumulation):
        loader = DataLoader(tiny_dataset, accumulation.batch_size, shuffle=True)
        train(tiny_model, loader, accumulation.steps)
    """


def _loop(body: str, test: str = _TEST) -> str:
    """A module whose loop does `body` for each micro-batch."""
    return _HEAD + _TRAIN + body + test


EXAMPLES = (
    Passes(
        "the loss is divided, and the remainder of an epoch is used",
        _loop(
            """
                loss = cross_entropy(model(x), y) / accumulation_steps
                loss.backward()
                if (i + 1) % accumulation_steps == 0 or i + 1 == len(loader):
                    optimizer.step()
                    optimizer.zero_grad()
"""
        ),
    ),
    Fails(
        "the loss is not divided",
        _loop(
            """
                cross_entropy(model(x), y).backward()
                if (i + 1) % accumulation_steps == 0:
                    optimizer.step()
                    optimizer.zero_grad()
"""
        ),
        cause="accumulates: the gradients of 4 micro-batches are 4 times those of one batch of 8:"
        " the loss is not divided by the number of micro-batches",
    ),
    Fails(
        "gradients are cleared with every micro-batch",
        _loop(
            """
                optimizer.zero_grad()
                (cross_entropy(model(x), y) / accumulation_steps).backward()
                if (i + 1) % accumulation_steps == 0:
                    optimizer.step()
"""
        ),
        cause="accumulates: the gradients are cleared between the micro-batches of an update at"
        " test_example.py:14: those before are lost",
    ),
    Fails(
        "a step with every micro-batch",
        _loop(
            """
                optimizer.zero_grad()
                (cross_entropy(model(x), y) / accumulation_steps).backward()
                optimizer.step()
"""
        ),
        cause="accumulates: `optimizer` (SGD, built at test_example.py:10) steps after every"
        " micro-batch, not after 4 of them",
    ),
    Fails(
        "the remainder of an epoch is dropped",
        _loop(
            """
                (cross_entropy(model(x), y) / accumulation_steps).backward()
                if (i + 1) % accumulation_steps == 0:
                    optimizer.step()
                    optimizer.zero_grad()
            optimizer.zero_grad()
""",
            """

    @accumulates(steps=2, batch_size=3)
    def test_accumulates(tiny_model, tiny_dataset, accumulation):
        loader = DataLoader(tiny_dataset, accumulation.batch_size, shuffle=True)
        train(tiny_model, loader, accumulation.steps)
    """,
        ),
        cause="accumulates: 2 updates were made, not 4: the micro-batches that are left at the end"
        " of an epoch are dropped",
    ),
    Unjudged(
        "batch normalisation",
        _loop(
            """
                (cross_entropy(model(x), y) / accumulation_steps).backward()
                if (i + 1) % accumulation_steps == 0:
                    optimizer.step()
                    optimizer.zero_grad()
""",
            """

    @accumulates
    def test_accumulates(tiny_dataset, accumulation):
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        train(model, DataLoader(tiny_dataset, accumulation.batch_size), accumulation.steps)
    """,
        ),
        cause="accumulates: cannot judge: `1` (BatchNorm1d) normalises by the micro-batch, so the"
        " gradients differ by design",
    ),
    Unjudged(
        "a batch size of its own",
        _loop(
            """
                (cross_entropy(model(x), y) / accumulation_steps).backward()
                if (i + 1) % accumulation_steps == 0:
                    optimizer.step()
                    optimizer.zero_grad()
""",
            """

    @accumulates(steps=2, batch_size=4)
    def test_accumulates(tiny_model, tiny_loader, accumulation):
        train(tiny_model, tiny_loader, accumulation.steps)
    """,
        ),
        cause="accumulates: cannot judge: the first update of whole batches is made from 4 samples,"
        " not from 8",
    ),
)
