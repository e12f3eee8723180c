"""Loops that let go of their memory, and loops that do not: the examples of `@frees`."""

from __future__ import annotations

from pytest_trainloop.checks._check import Fails, Passes, Unjudged

EXAMPLES: tuple[Passes | Fails | Unjudged, ...] = (
    Passes(
        "the losses are kept as numbers",
        """
        import torch
        from torch import nn

        from pytest_trainloop import frees


        def train(loader, epochs=12):
            model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            losses = []
            for _ in range(epochs):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.item())
            return losses


        @frees
        def test_frees(tiny_loader):
            train(tiny_loader)
        """,
    ),
    Fails(
        "the losses are kept with their graphs",
        """
        import torch
        from torch import nn

        from pytest_trainloop import frees


        def train(loader, epochs=12):
            model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            losses = []
            for _ in range(epochs):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(model(x), y)
                    loss.backward()
                    losses.append(loss)
                    optimizer.step()
            return losses


        @frees
        def test_frees(tiny_loader):
            train(tiny_loader)
        """,
        cause="frees: `losses` keeps the graphs of past steps: this list holds 2",
    ),
    Fails(
        "a running total with a graph",
        """
        import torch
        from torch import nn

        from pytest_trainloop import frees


        @frees
        def test_frees(tiny_loader):
            model = nn.Linear(4, 2)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            running_loss = 0.0
            for _ in range(12):
                for x, y in tiny_loader:
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
                    running_loss += loss
        """,
        cause="frees: `running_loss` keeps the graphs of past steps: what computed it grows by",
    ),
    Passes(
        "a cache that the first epoch fills",
        """
        import torch
        from torch import nn
        from torch.utils.data import DataLoader, Dataset

        from pytest_trainloop import frees


        class Cached(Dataset):
            def __init__(self):
                self.cache = {}

            def __len__(self):
                return 8

            def __getitem__(self, index):
                if index not in self.cache:
                    self.cache[index] = torch.full((4,), float(index))
                return self.cache[index], index % 2


        @frees
        def test_frees():
            model = nn.Linear(4, 2)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            loader = DataLoader(Cached(), batch_size=1)
            for _ in range(4):
                for x, y in loader:
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(x), y).backward()
                    optimizer.step()
        """,
    ),
    Unjudged(
        "too few steps to see anything grow",
        """
        import torch
        from torch import nn

        from pytest_trainloop import frees


        @frees
        def test_frees(tiny_loader):
            model = nn.Linear(4, 2)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for x, y in tiny_loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        """,
        cause="frees: cannot judge: the loop made 2 steps, and whether memory grows shows after 12",
    ),
)
