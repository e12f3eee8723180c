"""Load once what a run of `pytester` in this process would load, and forget, each time.

`pytester` forgets what was imported in a run; what was there before stays. torch cannot even be
loaded twice, and of it this loads also what it loads at a first step.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def loaded_once() -> Iterator[None]:
    """Load torch and all checks, rules and probes; what lives then is not searched for models."""
    import torch

    from pytest_trainloop.checks import check_class, check_names
    from pytest_trainloop.rules import all_rules
    from pytest_trainloop.runtime import drive, fingerprint, seed, watch  # noqa: F401  # as above
    from pytest_trainloop.runtime.observe import all_probes

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()
    all_rules()
    all_probes()
    for name in check_names():
        check_class(name)
    # A search among all objects, of which a run makes several, is then a short one.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
