"""The examples of `evaluates`: whole test modules, kept apart from the check for their length."""

from __future__ import annotations

from pytest_trainloop.checks._check import Fails, Passes, Unjudged

_MODEL = """
    import pytest
    import torch
    from torch import nn
    from torch.nn import functional as F

    from pytest_trainloop import evaluates


    @pytest.fixture
    def model():
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

"""

_TEST = """

    @evaluates
    def test_evaluates(model, tiny_loader):
        evaluate(model, tiny_loader)
    """

EXAMPLES = (
    Passes(
        "the mode is put back, and nothing else is touched",
        _MODEL
        + """
    @torch.no_grad()
    def evaluate(model, loader):
        was_training = model.training
        model.eval()
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
        model.train(was_training)
        return right / len(loader.dataset)
"""
        + _TEST,
    ),
    Fails(
        "nobody switches to eval mode",
        _MODEL
        + """
    @torch.no_grad()
    def evaluate(model, loader):
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
        return right / len(loader.dataset)
"""
        + _TEST,
        cause="evaluates: `model` is evaluated in train mode, on which `1` (BatchNorm1d) and"
        " `2` (Dropout) depend",
    ),
    Fails(
        "the model is left in eval mode",
        _MODEL
        + """
    @torch.no_grad()
    def evaluate(model, loader):
        model.eval()
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
        return right / len(loader.dataset)
"""
        + _TEST,
        cause="evaluates: `model` is left in eval mode: training would go on without dropout,"
        " with BatchNorm as it stands",
    ),
    Passes(
        "a loop that switches back itself",
        _MODEL
        + """
    @torch.no_grad()
    def evaluate(model, loader):
        model.eval()
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
        return right / len(loader.dataset)


    @evaluates(modes=False)
    def test_evaluates(model, tiny_loader):
        evaluate(model, tiny_loader)
    """,
    ),
    Fails(
        "a graph for a backward that never comes",
        _MODEL
        + """
    def evaluate(model, loader):
        model.eval()
        loss = sum(F.cross_entropy(model(x), y).item() for x, y in loader)
        model.train()
        return loss
"""
        + _TEST,
        cause="evaluates: the evaluation builds a graph that nobody back-propagates: `model` is"
        " called with gradients at test_example.py:",
    ),
    Fails(
        "dropout that does not ask for the mode",
        """
    import torch
    from torch import nn
    from torch.nn import functional as F

    from pytest_trainloop import evaluates


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(F.dropout(x, 0.5))


    @evaluates
    def test_evaluates(tiny_loader):
        net = Net().eval()
        with torch.no_grad():
            for x, _ in tiny_loader:
                net(x)
    """,
        cause="evaluates: `net` gives something else for the same input, under other random"
        " numbers: a value differs by ",
    ),
    Fails(
        "a softmax over the batch",
        """
    import torch
    from torch import nn

    from pytest_trainloop import evaluates


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.softmax = nn.Softmax(dim=0)

        def forward(self, x):
            return self.softmax(self.head(x))


    @evaluates
    def test_evaluates(tiny_loader):
        net = Net().eval()
        with torch.no_grad():
            for x, _ in tiny_loader:
                net(x)
    """,
        cause="evaluates: what `net` gives for a sample depends on the other samples of its batch,"
        " from `softmax` (Softmax) on",
    ),
    Fails(
        "an evaluation that trains",
        _MODEL
        + """
    def evaluate(model, loader):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.eval()
        for x, y in loader:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
"""
        + _TEST,
        cause="evaluates: the evaluation trains: `optimizer` (SGD, built at test_example.py:15)"
        " stepped 2 times, first at test_example.py:19, in eval mode",
    ),
    Fails(
        "random numbers, if they are asked about",
        _MODEL
        + """
    @evaluates(rng=True)
    def test_evaluates(model, tiny_loader):
        model.eval()
        with torch.no_grad():
            for x, y in tiny_loader:
                model(x)
    """,
        cause="evaluates: the evaluation draws from the global generator of `torch`: training would"
        " go on with other random numbers than without it",
    ),
    Unjudged(
        "dropout that stays on by design",
        _MODEL
        + """
    @torch.no_grad()
    def predict(model, x, times=10):
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        return torch.stack([model(x) for _ in range(times)]).mean(0)


    @evaluates(modes=False)
    def test_predicts(model, tiny_dataset):
        predict(model, tiny_dataset.tensors[0])
    """,
        cause="evaluates: cannot judge: `model` draws by design: it is in eval mode, with `2`"
        " (Dropout) in train mode",
    ),
    Passes(
        "a loop that trains and evaluates",
        _MODEL
        + """
    def train(model, loader, epochs=2):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(epochs):
            model.train()
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                print(sum(F.cross_entropy(model(x), y).item() for x, y in loader))


    @evaluates
    def test_evaluates(model, tiny_loader):
        train(model, tiny_loader)
    """,
    ),
    Unjudged(
        "nothing is evaluated",
        """
    from pytest_trainloop import evaluates


    @evaluates
    def test_evaluates(tiny_model, tiny_loader):
        assert len(tiny_loader) > 0
    """,
        cause="evaluates: cannot judge: the test body called no model",
    ),
)
