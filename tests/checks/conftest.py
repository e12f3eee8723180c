"""Load torch once, with what it loads at a first step: it cannot be loaded twice.

`pytester` forgets what a run in this process imported; what was there before stays.
"""

from __future__ import annotations

import torch

torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()
