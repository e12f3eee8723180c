"""Reading import statements: what a name stands for outside the file."""

from __future__ import annotations

import ast
from functools import cache
from typing import TYPE_CHECKING

from pytest_trainloop.source.values import Imported

if TYPE_CHECKING:
    from pytest_trainloop.source.reader import Reader

#: Names under which the same thing is known in more than one place.
_SAME = {
    "torch.nn.modules": "torch.nn",
    "torch.autograd.grad_mode": "torch",
    "pytorch_lightning": "lightning.pytorch",
    "lightning.LightningModule": "lightning.pytorch.LightningModule",
    "lightning_fabric": "lightning.fabric",
    "lightning.Fabric": "lightning.fabric.Fabric",
    "torch.cuda.amp.autocast_mode": "torch.cuda.amp",
    "torch.amp.autocast_mode": "torch.amp",
    "torch.optim.optimizer": "torch.optim",
    "torch.utils.data.dataloader": "torch.utils.data",
    "torch.utils.data.distributed.DistributedSampler": "torch.utils.data.DistributedSampler",
    "torch.nn.utils.clip_grad": "torch.nn.utils",
}


@cache
def canonical(qualified: str) -> str:
    """The one full name of what may be imported from several places."""
    for alias, name in _SAME.items():
        if qualified == alias or qualified.startswith(alias + "."):
            return name + qualified[len(alias) :]
    return qualified


def read_import(reader: Reader, node: ast.Import | ast.ImportFrom) -> None:
    """Bind the imported names."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.asname:
                value = Imported(alias.name, reader.program.locate(reader.file, alias.name))
                reader.scope.bind(alias.asname, value, reader.context)
            else:
                top = alias.name.partition(".")[0]
                value = Imported(top, reader.program.locate(reader.file, top))
                reader.scope.bind(top, value, reader.context)
        return
    module = "." * node.level + (node.module or "")
    for alias in node.names:
        if alias.name == "*":
            reader.program.bind_star(reader, module)
            continue
        value = reader.program.imported(reader.file, module, alias.name)
        reader.scope.bind(alias.asname or alias.name, value, reader.context)
