"""Which part of a mask is which lung, by its side in the image; whose side it is depends on how the film is displayed."""

from __future__ import annotations

import numpy as np

from monai_diffeo.errors import ShapeError
from monai_diffeo.metrics import largest_components

__all__ = ["separate_lungs", "split_lungs"]


def split_lungs(mask: np.ndarray, min_share: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lung further left in the image, the one further right, and the rest of a mask, all ``(H, W)`` bool.

    The two largest parts (joined over corners too) are the lungs if the smaller has at least ``min_share`` of the larger
    one's area. Otherwise everything is rest. As films are displayed, the first is the patient's right lung.

    Args:
        mask: shape ``(H, W)``, foreground > 0.5.
        min_share: smallest share, 0 to 1.

    Raises:
        ShapeError: if ``mask`` has other than two axes.

    Example:
        >>> mask = np.zeros((4, 8)); mask[:, 1:3] = mask[:, 5:6] = 1
        >>> [int(part.sum()) for part in split_lungs(mask)], [int(part.sum()) for part in split_lungs(mask, 0.6)]
        ([8, 4, 0], [0, 0, 12])
    """
    mask = np.asarray(mask)
    mask = mask if mask.dtype == bool else mask > 0.5
    if mask.ndim != 2:
        raise ShapeError("split_lungs() and separate_lungs()", "mask", "(H, W)", mask.shape, "Take one channel of one film.")
    labels = largest_components(mask, 2, "full")
    parts = [labels == 1, labels == 2]
    larger, smaller = map(np.count_nonzero, parts)
    if not smaller or smaller < min_share * larger:
        return np.zeros_like(mask), np.zeros_like(mask), mask
    first, second = sorted(parts, key=lambda part: np.average(np.arange(part.shape[1]), weights=np.count_nonzero(part, 0)))
    return first, second, mask & ~first & ~second


def separate_lungs(mask: np.ndarray) -> np.ndarray:
    """The two lungs of a label ``(H, W)`` as :func:`split_lungs` finds them, whatever their sizes.

    Everything but 0 is lung. Gives ``(2, H, W)``, bool: the lung further left in the image first, without smaller parts.

    Raises:
        ValueError: if there are fewer than two parts.
    """
    inside = np.asarray(mask) != 0
    first, second, _ = split_lungs(inside, min_share=0.0)
    if not first.any():
        found = "1 part" if inside.any() else "0 parts"
        raise ValueError(f"separate_lungs(): expected a mask of two lungs that do not touch, got {found}.")
    return np.stack([first, second])
