"""Weights on disk in half precision: half the size, and loaded into a network of any precision."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

__all__ = ["save_half"]


def save_half(network: nn.Module, path: str | Path) -> Path:
    """Write the state dictionary of a network, numbers with a fraction as float16."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = network.state_dict().items()
    torch.save({name: (x.half() if x.is_floating_point() else x).cpu() for name, x in state}, path)
    return path
