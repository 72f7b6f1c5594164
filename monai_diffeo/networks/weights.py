"""Weights from files: weights only, strict, or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from monai_diffeo.errors import WeightsError

__all__ = ["load_weights", "weights_fingerprint"]

Network = TypeVar("Network", bound=nn.Module)


def load_weights(network: Network, path: str | Path) -> Network:
    """Load a state dictionary into a network, every key of it and no other; give back the network in eval mode.

    Args:
        network: of the architecture that was trained.
        path: file written by ``torch.save(network.state_dict(), path)``.

    Raises:
        WeightsError: if the file is missing, damaged, holds more than tensors, or does not fit the network.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"load_weights(): no weights at {path}. Train them with the bundle's configs, or check the path.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state, strict=True)
    except Exception as error:
        raise WeightsError(f"load_weights(): {path.name} does not load into {type(network).__name__}: {error}") from error
    return network.eval()


def weights_fingerprint(path: str | Path) -> str:
    """SHA-256 of a file of weights, for reports."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
