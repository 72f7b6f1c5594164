"""What a command does with memory that it no longer needs."""

from __future__ import annotations

import ctypes

__all__ = ["keep_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # their names in malloc.h begin with M_
_KEPT, _IN_THE_HEAP = 2**30, 2**25  # bytes


def keep_memory() -> None:
    """Let this process, as long as it lives, keep memory that is freed: networks ask for the same again and again, and the
    kernel clears all that it gives. It is a setting of glibc; without that nothing happens."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, _KEPT)
    mallopt(_MMAP_THRESHOLD, _IN_THE_HEAP)
