"""Tensors for a size, a device and a dtype: computed once and kept, within a bound of bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["MOST_BYTES", "keep_tensors", "kept_bytes"]

MOST_BYTES = 256 * 2**20  # of all functions together, on all devices
# the last is the last that was used; no lock, which a forked worker may find closed
_kept: dict[Hashable, tuple[Any, int]] = {}


def keep_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of hashable arguments that gives a tensor or a tuple of such, each computed once; do not write to them.

    The least recently used go first when all that is kept passes :data:`MOST_BYTES`; what is larger alone is not kept. Results
    serve autograd later, whatever mode the first caller runs. Compilers see the function itself, exporters what is kept.
    """

    @wraps(function)
    def kept(*arguments: Hashable) -> Any:
        key = (function, *arguments)
        if torch.compiler.is_compiling():
            exporting = getattr(torch.compiler, "is_exporting", bool)()  # torch 2.4 cannot say
            return _kept[key][0] if exporting and key in _kept else function(*arguments)
        found = _kept.pop(key, None)
        if found is not None:
            _kept[key] = found
            return found[0]
        with torch.inference_mode(False), torch.no_grad():
            value = function(*arguments)
        if (size := _bytes(value)) <= MOST_BYTES:
            _kept[key] = value, size
        while kept_bytes() > MOST_BYTES:
            _kept.pop([*_kept, None][0], None)
        return value

    return kept


def kept_bytes() -> int:
    """How many bytes are kept."""
    return sum(size for _, size in list(_kept.values()))


def _bytes(value: Any) -> int:
    return value.untyped_storage().nbytes() if isinstance(value, Tensor) else sum(map(_bytes, value))
