"""Weights from files: weights only, strict, or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from monai_diffeo.errors import WeightsError

__all__ = ["load_weights", "mean_weights", "weights_fingerprint"]

Network = TypeVar("Network", bound=nn.Module)


def load_weights(network: Network, path: str | Path) -> Network:
    """Load a state dictionary into a network, every key of it and no other; give back the network in eval mode.

    Args:
        network: of the architecture that was trained.
        path: file written by ``torch.save(network.state_dict(), path)``.

    Raises:
        WeightsError: if the file is missing, damaged, holds more than tensors, or does not fit the network.
    """
    path = _existing("load_weights", path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state, strict=True)
    except Exception as error:
        raise WeightsError(f"load_weights(): {path.name} does not load into {type(network).__name__}: {error}") from error
    return network.eval()


def mean_weights(paths: Sequence[str | Path], shares: Sequence[float]) -> dict[str, Tensor]:
    """The mean of the weights of one network after several trainings that went on from each other or from the same weights.

    Between a network and its further training there are networks that keep more of what the first was good at, on other populations above
    all, for little of what the second has won.

    Args:
        paths: files of state dictionaries with the same keys and shapes.
        shares: of each; they add up to 1.

    Returns:
        A state dictionary; what counts instead of weighing, as of batch normalisation, is the last's.

    Raises:
        ValueError: if there are not as many shares as files, or they do not add up to 1.
        WeightsError: if a file is missing, or they do not hold the same keys, shapes and dtypes.

    References: Wortsman et al. (2022), Robust fine-tuning of zero-shot models, https://arxiv.org/abs/2109.01903, and Model soups,
    https://arxiv.org/abs/2203.05482
    """
    if len(paths) != len(shares) or not paths or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"mean_weights(): 'shares' must be one for each of {len(paths)} files and add up to 1, got {list(shares)}.")
    states = [torch.load(_existing("mean_weights", path), map_location="cpu", weights_only=True) for path in paths]
    for path, state in zip(paths, states):
        if {k: (v.shape, v.dtype) for k, v in state.items()} != {k: (v.shape, v.dtype) for k, v in states[0].items()}:
            raise WeightsError(f"mean_weights(): {Path(paths[0]).name} and {Path(path).name} are of different networks; give one and its further "
                               "training.")
    return {key: sum(share * state[key] for share, state in zip(shares, states)) if value.is_floating_point() else value
            for key, value in states[-1].items()}


def _existing(who: str, path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{who}(): no weights at {path}. Train them with the bundle's configs, or check the path.")
    return path


def weights_fingerprint(path: str | Path) -> str:
    """SHA-256 of a file of weights, for reports."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
