"""A mask of both lungs as two masks, one a lung."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from monai_diffeo.errors import ShapeError
from monai_diffeo.metrics import connected_components

__all__ = ["separate_lungs", "split_lungs"]


def split_lungs(mask: np.ndarray, min_share: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lung at the image's left, the lung at its right, and the rest of a mask, all ``(H, W)`` bool.

    The two largest parts, connected along rows and columns, are the lungs if the smaller has at least ``min_share`` of the
    larger one's area. Otherwise everything is rest.

    Args:
        mask: shape ``(H, W)``, foreground > 0.5.
        min_share: smallest area of the second lung, share of the first.
    """
    mask = np.asarray(mask) > 0.5
    labels: np.ndarray
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    largest = np.argsort(-sizes, kind="stable")[:2]
    if len(largest) < 2 or sizes[largest[1]] < min_share * sizes[largest[0]]:
        return np.zeros_like(mask), np.zeros_like(mask), mask
    left, right = sorted((labels == k + 1 for k in largest), key=lambda part: part.nonzero()[1].mean())
    return left, right, mask & ~left & ~right


def separate_lungs(mask: np.ndarray) -> np.ndarray:
    """The two largest parts of a mask, the one further left in the image first: as films are displayed, the patient's right lung.

    Args:
        mask: shape ``(H, W)``, everything but 0 is lung.

    Returns:
        Shape ``(2, H, W)``, bool: right lung, left lung of the patient. Smaller parts are left out.

    Raises:
        ShapeError: if ``mask`` has other than two axes.
        ValueError: if it has fewer than two parts.

    Example:
        >>> mask = np.zeros((4, 8)); mask[:, 1:3] = mask[:, 5:6] = 1
        >>> separate_lungs(mask).sum((1, 2)).tolist()
        [8, 4]
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ShapeError("separate_lungs()", "mask", "(H, W)", mask.shape, "Take one channel of one film.")
    labels, count = connected_components(mask, "full")
    if count < 2:
        raise ValueError(
            f"separate_lungs(): expected a mask of two lungs that do not touch, got {count} part{'s' if count != 1 else ''}."
        )
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    parts = [labels == k + 1 for k in np.argsort(-sizes, kind="stable")[:2]]
    return np.stack(sorted(parts, key=lambda part: part.nonzero()[1].mean()))
