"""Networks whose answer on an image does not depend on the others of its batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ROWS_ON_CUDA", "row_by_row"]

ROWS_ON_CUDA = 32  # a batch of these takes hardly longer than one image


def row_by_row(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What a network gives for each of the images ``(B, ...)``, whatever the others are.

    Rounding depends on the size of a batch, so on a CPU images go one by one. On CUDA they go in batches of
    :data:`ROWS_ON_CUDA`, the last one filled up with zeros: kernels are chosen by shape alone, and compute every row alike.
    Convolutions are in full float32 there, without TF32.
    """
    if not images.is_cuda:
        return torch.cat([network(row) for row in images.split(1)])
    with torch.backends.cudnn.flags(torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False):
        return torch.cat([network(_filled(some))[: len(some)] for some in images.split(ROWS_ON_CUDA)])


def _filled(images: Tensor) -> Tensor:
    """The images and as many black ones as a batch lacks."""
    return F.pad(images, [0] * (2 * images.ndim - 1) + [ROWS_ON_CUDA - len(images)])
