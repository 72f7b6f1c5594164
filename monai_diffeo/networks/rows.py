"""Networks whose answer on an image does not depend on the others of its batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ROWS_ON_CUDA", "row_by_row"]

ROWS_ON_CUDA = 32  # of small images, the launches of the kernels take longer than the kernels
_switching = threading.Lock()


def row_by_row(network: Callable[[Tensor], Tensor], images: Tensor, rows: int = ROWS_ON_CUDA) -> Tensor:
    """What a network gives for each of the images ``(B, ...)``, whatever the others are.

    Rounding depends on the size of a batch, so on a CPU images go one by one. On CUDA they go in batches of ``rows``, the last
    one filled up with zeros: kernels are chosen by shape alone, and compute every row alike. Convolutions are in full float32
    there, without TF32.
    """
    if not images.is_cuda:
        return torch.cat([network(row) for row in images.split(1)])
    with _switching, _full_precision():
        return torch.cat([network(_filled(some, rows))[: len(some)] for some in images.split(rows)])


def _filled(images: Tensor, rows: int) -> Tensor:
    """The images and as many black ones as a batch lacks."""
    return F.pad(images, [0] * (2 * images.ndim - 1) + [rows - len(images)])


@contextmanager
def _full_precision() -> Iterator[None]:
    """Convolutions without TF32, for all threads."""
    cudnn: Any = torch.backends.cudnn
    try:
        readable = cudnn.allow_tf32 in (True, False)
    except RuntimeError:  # somebody set it by the newer names, which the older one does not understand
        readable = False
    if readable:
        with cudnn.flags(cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False):
            yield
        return
    before, cudnn.conv.fp32_precision = cudnn.conv.fp32_precision, "ieee"
    try:
        yield
    finally:
        cudnn.conv.fp32_precision = before
