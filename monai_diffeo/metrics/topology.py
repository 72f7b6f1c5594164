"""Components, holes and cavities of masks on the lattice.

Two voxels are neighbours across a face (``"face"``: 4 in the plane, 6 in space) or across a face, an edge or a corner
(``"full"``: 8, 26). A foreground of one kind goes with a background of the other, as digital topology needs it.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from monai.utils import optional_import
from torch import Tensor

__all__ = [
    "BettiNumberMetric", "betti_numbers", "components_in_place", "connected_components", "euler_characteristic",
    "largest_components", "shape_topology", "shapes_intact",
]  # fmt: skip

ndimage, _has_scipy = optional_import("scipy.ndimage")
measure, _has_skimage = optional_import("skimage.measure")
_DUAL = {"face": "full", "full": "face"}


def connected_components(mask: np.ndarray, connectivity: str = "face") -> tuple[np.ndarray, int]:
    """Connected parts of a mask: labels from 1, 0 outside, and how many there are.

    Args:
        mask: shape ``S``, 2 or 3 axes; everything but 0 is inside.
        connectivity: ``"face"`` or ``"full"``.

    Raises:
        ValueError: for another connectivity, or another number of axes.
        ImportError: without scipy.

    Example:
        >>> diagonal = np.eye(2, dtype=bool)
        >>> connected_components(diagonal, "face")[1], connected_components(diagonal, "full")[1]
        (2, 1)
    """
    mask = _checked("connected_components", mask, connectivity, _has_scipy, "scipy")
    return ndimage.label(mask, None if connectivity == "face" else np.ones((3,) * mask.ndim, dtype=bool))


def largest_components(mask: np.ndarray, count: int, connectivity: str = "face") -> np.ndarray:
    """Labels 1 (the largest) to ``count`` of the largest connected parts of a mask; 0 elsewhere.

    Of parts of one size the first in scan order comes first. A mask of fewer parts has fewer labels. Arguments and errors as
    for :func:`connected_components`, and ValueError for a ``count`` below 1.

    Example:
        >>> largest_components(np.array([[1, 0, 1, 1, 0, 1, 1]]), 2).tolist()
        [[0, 0, 1, 1, 0, 2, 2]]
    """
    if count < 1:
        raise ValueError(f"largest_components(): 'count' must be at least 1, got {count}.")
    inside = np.asarray(mask) != 0
    result, box = np.zeros(inside.shape, dtype=np.min_scalar_type(count)), bounding_box(inside)
    result[box] = ranked_components(*connected_components(inside[box], connectivity), count)
    return result


def ranked_components(labels: np.ndarray, found: int, count: int) -> np.ndarray:
    """What :func:`connected_components` gave as :func:`largest_components` gives it."""
    return _ranked(labels, count, np.bincount(labels.ravel(), minlength=found + 1))


def _ranked(labels: np.ndarray, count: int, *measures: np.ndarray) -> np.ndarray:
    """1 for the part with most of the first measure, up to ``count``, 0 elsewhere; a further measure decides where one is
    equal. A measure has one number a label, from 0 on."""
    order = np.lexsort([-measure[1:] for measure in reversed(measures)])[:count]
    rank = np.zeros(len(measures[0]), dtype=np.min_scalar_type(count))  # few bytes a voxel: films are large
    rank[order + 1] = np.arange(1, len(order) + 1)
    return rank.take(labels)


def components_in_place(mask: np.ndarray, place: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` parts of a mask that have most of a place, bool: its sum over a part decides.

    Parts have neighbours of kind ``"full"``. Of parts that have as much the largest comes first. Errors as for
    :func:`largest_components`, and ValueError for a ``place`` of another shape.

    Args:
        mask: shape ``S``, 2 or 3 axes; everything but 0 is inside.
        place: how likely a voxel is inside, shape ``S``, at least 0.
        count: of parts, at least 1.

    Example:
        >>> components_in_place(np.array([[1, 1, 1, 0, 1]]), np.array([[0.0, 0.0, 0.1, 0.2, 0.9]]), 1).astype(int).tolist()
        [[0, 0, 0, 0, 1]]
    """
    if count < 1:
        raise ValueError(f"components_in_place(): 'count' must be at least 1, got {count}.")
    if np.shape(place) != np.shape(mask):
        raise ValueError(f"components_in_place(): 'place' must have the mask's shape {np.shape(mask)}, got {np.shape(place)}.")
    labels, found = connected_components(mask, "full")
    flat = labels.ravel()
    return _ranked(labels, count, np.bincount(flat, place.ravel(), found + 1), np.bincount(flat, minlength=found + 1)) > 0


def euler_characteristic(mask: np.ndarray, connectivity: str = "face") -> int:
    """Components minus holes in the plane; components minus tunnels plus cavities in space; by scikit-image.

    Arguments and errors as for :func:`betti_numbers`.
    """
    mask = _checked("euler_characteristic", mask, connectivity, _has_skimage, "scikit-image")
    return int(measure.euler_number(mask, connectivity=1 if connectivity == "face" else mask.ndim))


def betti_numbers(mask: np.ndarray, connectivity: str = "face") -> tuple[int, ...]:
    """Components and holes of a plane mask, ``(b0, b1)``; components, tunnels and cavities of one in space, ``(b0, b1, b2)``.

    Outside the frame is background; ``connectivity`` is that of the foreground. Arguments and errors as for
    :func:`connected_components`, and ImportError without scikit-image.

    Example:
        >>> ring = np.ones((3, 3)); ring[1, 1] = 0
        >>> betti_numbers(ring)
        (1, 1)
    """
    mask = _checked("betti_numbers", mask, connectivity, _has_scipy, "scipy")
    if not mask.any():
        return (0,) * mask.ndim
    mask = mask[bounding_box(mask)]
    components = connected_components(mask, connectivity)[1]
    euler = euler_characteristic(mask, connectivity)
    if mask.ndim == 2:
        return components, components - euler
    cavities = connected_components(np.pad(~mask, 1, constant_values=True), _DUAL[connectivity])[1] - 1
    return components, components + cavities - euler, cavities


def shapes_intact(masks: np.ndarray) -> bool:
    """Whether every mask is one part without holes, and no two touch, not even at a corner.

    A hole that only a corner closes is a hole. ``masks`` has shape ``(K, *S)``; everything but 0 is inside.
    """
    masks = np.asarray(masks) != 0
    union: np.ndarray = np.logical_or.reduce(masks)
    count = len(masks)
    if masks.ndim == 3:
        if not plane_parts_are_simple(union, count):
            return False
    elif any(betti_numbers(union, connectivity) != (count, 0, 0) for connectivity in _DUAL):
        return False
    parts, found = connected_components(union, "full")
    flat = parts.reshape(-1)  # each mask must be the part that its first voxel is in
    return found == count and all(np.array_equal(parts == flat[mask.argmax()], mask) for mask in masks)


def plane_parts_are_simple(mask: np.ndarray, count: int) -> bool:
    """Whether a plane mask of ``count`` parts has no holes, and no voxels that meet only at a corner.

    The Euler characteristic is vertices minus edges plus squares: a guard asks at every level of every film, and this takes
    a tenth of the time of scikit-image, which would have to be asked twice.
    """
    below, right = mask[1:] ^ mask[:-1], mask[1:, 1:] ^ mask[1:, :-1]
    if (below[:, 1:] & below[:, :-1] & right).any():
        return False
    pairs = mask[1:] & mask[:-1]
    edges = np.count_nonzero(pairs) + np.count_nonzero(mask[:, 1:] & mask[:, :-1])
    return np.count_nonzero(mask) - edges + np.count_nonzero(pairs[:, 1:] & pairs[:, :-1]) == count


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Where a mask is not empty: margins only cost time; all of a mask that is empty."""
    axes = range(mask.ndim)
    found = [np.flatnonzero(mask.any(tuple(other for other in axes if other != axis))) for axis in axes]
    return tuple(slice(part[0], part[-1] + 1) if part.size else slice(None) for part in found)


def _checked(who: str, mask: np.ndarray, connectivity: str, installed: bool, package: str) -> np.ndarray:
    mask = np.asarray(mask) != 0
    if connectivity not in _DUAL:
        raise ValueError(f"{who}(): 'connectivity' must be 'face' or 'full', got {connectivity!r}.")
    if mask.ndim not in (2, 3):
        raise ValueError(f"{who}(): 'mask' must have 2 or 3 axes, got {mask.ndim}. Take one channel of one image.")
    if not installed:
        raise ImportError(f"{who}() needs {package}: pip install {package}.")
    return mask


def shape_topology(masks: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Betti numbers of each shape, of every two together and of all together, with both kinds of neighbours.

    A one-to-one continuous map keeps them. :func:`shapes_intact` asks, more quickly, whether they are those of separate balls.
    ``masks`` has shape ``(K, *S)``; everything but 0 is inside.
    """
    masks = np.asarray(masks) != 0
    sizes = sorted({1, min(2, len(masks)), len(masks)})
    groups = [np.logical_or.reduce(masks[list(some)]) for size in sizes for some in combinations(range(len(masks)), size)]
    return tuple(betti_numbers(group, connectivity) for group in groups for connectivity in _DUAL)


class BettiNumberMetric(CumulativeIterationMetric):
    """One Betti number of every image and channel of binarised predictions, or how far it is from the label's.

    Args:
        number: 0 for components, 1 for holes (tunnels in space), 2 for cavities.
        connectivity: of the foreground, ``"face"`` or ``"full"``.

    ``aggregate()`` gives the mean over all images and channels that were seen; called with a label, of the absolute difference.
    """

    def __init__(self, number: int = 0, connectivity: str = "face") -> None:
        super().__init__()
        self.number, self.connectivity = number, connectivity

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs) -> Tensor:
        return self._count(y_pred) if y is None else (self._count(y_pred) - self._count(y)).abs()

    def _count(self, masks: Tensor) -> Tensor:
        rows = [[betti_numbers(m, self.connectivity)[self.number] for m in image] for image in masks.detach().cpu().numpy()]
        return torch.tensor(rows, dtype=torch.float32)

    def aggregate(self) -> Tensor:
        """Mean over images and channels."""
        data = self.get_buffer()
        if not isinstance(data, Tensor):
            raise ValueError("BettiNumberMetric: nothing was measured yet; call the metric with predictions first.")
        return data.mean()
