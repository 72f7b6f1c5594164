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
    "BettiNumberMetric",
    "betti_numbers",
    "connected_components",
    "euler_characteristic",
    "largest_components",
    "shape_topology",
    "shapes_intact",
]

ndimage, _has_scipy = optional_import("scipy.ndimage")
_DUAL = {"face": "full", "full": "face"}


def connected_components(mask: np.ndarray, connectivity: str = "face") -> tuple[np.ndarray, int]:
    """Connected parts of a mask: labels from 1, 0 outside, and how many there are.

    Args:
        mask: shape ``S``, 2 or 3 axes; everything but 0 is inside.
        connectivity: ``"face"`` or ``"full"``.

    Raises:
        ValueError: for another connectivity.
        ImportError: without scipy.

    Example:
        >>> diagonal = np.eye(2, dtype=bool)
        >>> connected_components(diagonal, "face")[1], connected_components(diagonal, "full")[1]
        (2, 1)
    """
    if connectivity not in _DUAL:
        raise ValueError(f"connected_components(): 'connectivity' must be 'face' or 'full', got {connectivity!r}.")
    if not _has_scipy:
        raise ImportError("connected_components() needs scipy: pip install scipy.")
    mask = np.asarray(mask) != 0
    structure = None if connectivity == "face" else np.ones((3,) * mask.ndim, dtype=bool)
    return ndimage.label(mask, structure)


def largest_components(mask: np.ndarray, count: int, connectivity: str = "face") -> np.ndarray:
    """The largest connected parts of a mask: labels 1 to ``count`` from largest to smallest, 0 elsewhere.

    Args:
        mask: as for :func:`connected_components`.
        count: keep at most so many parts.
        connectivity: ``"face"`` or ``"full"``.

    Example:
        >>> largest_components(np.array([[1, 0, 1, 1, 0, 1]]), 2).tolist()
        [[2, 0, 1, 1, 0, 0]]
    """
    labels, found = connected_components(mask, connectivity)
    order = np.argsort(-np.bincount(labels.ravel(), minlength=found + 1)[1:], kind="stable")[:count]
    rank = np.zeros(found + 1, dtype=np.int64)
    rank[order + 1] = np.arange(1, len(order) + 1)
    return rank[labels]


def euler_characteristic(mask: np.ndarray, connectivity: str = "face") -> int:
    """Components minus holes (minus tunnels, plus cavities, in space), by counting cells, in the plane by counting corners.

    With face neighbours the voxels are the vertices of a complex, and two, four or eight voxels that fill a block span its edges,
    squares and cubes. With full neighbours voxels are closed cubes, and the cells are theirs. In the plane the turns of the outline say the
    same: blocks of 2 x 2 with one voxel inside against those with one outside, and those with two across a corner (Gray, 1971,
    https://doi.org/10.1109/T-C.1971.223289).
    """
    mask = np.asarray(mask) != 0
    full = connectivity == "full"
    if mask.ndim == 2:
        return _plane_euler(mask)[int(full)]
    if full:
        mask = np.pad(mask, 1)
    total = 0
    for size in range(mask.ndim + 1):
        for axes in combinations(range(mask.ndim), size):
            cells = mask
            for axis in axes:
                first = [slice(None)] * mask.ndim
                second = list(first)
                first[axis], second[axis] = slice(None, -1), slice(1, None)
                one, other = cells[tuple(first)], cells[tuple(second)]
                cells = one | other if full else one & other
            total += (-1) ** (mask.ndim - size if full else size) * int(np.count_nonzero(cells))
    return total


def _plane_euler(mask: np.ndarray) -> tuple[int, int]:
    """The Euler characteristic of a plane mask with face and with full neighbours."""
    corners = np.zeros([n + 2 for n in mask.shape], np.uint8)
    corners[1:-1, 1:-1] = mask
    rows = corners[1:] + 2 * corners[:-1]
    blocks = np.bincount((rows[:, 1:] + 4 * rows[:, :-1]).ravel(), minlength=16).tolist()
    turns, across = sum(blocks[i] for i in (1, 2, 4, 8)) - sum(blocks[i] for i in (7, 11, 13, 14)), 2 * (blocks[6] + blocks[9])
    return (turns + across) // 4, (turns - across) // 4


def betti_numbers(mask: np.ndarray, connectivity: str = "face") -> tuple[int, ...]:
    """Components and holes of a plane mask, ``(b0, b1)``; components, tunnels and cavities of one in space, ``(b0, b1, b2)``.

    Args:
        mask: shape ``S``, 2 or 3 axes; everything but 0 is inside; outside the frame is background.
        connectivity: of the foreground, ``"face"`` or ``"full"``.

    Example:
        >>> ring = np.ones((3, 3)); ring[1, 1] = 0
        >>> betti_numbers(ring)
        (1, 1)
    """
    mask = np.asarray(mask) != 0
    if mask.ndim not in (2, 3):
        raise ValueError(f"betti_numbers(): 'mask' must have 2 or 3 axes, got {mask.ndim}. Take one channel of one image.")
    components = connected_components(mask, connectivity)[1]
    euler = euler_characteristic(mask, connectivity)
    if mask.ndim == 2:
        return components, components - euler
    cavities = connected_components(np.pad(~mask, 1, constant_values=True), _DUAL[connectivity])[1] - 1
    return components, components + cavities - euler, cavities


def shapes_intact(masks: np.ndarray) -> bool:
    """Whether every mask is one part without holes and no two touch, not even at a corner, whichever kind of neighbours counts: a hole that
    only a corner closes is one.

    Args:
        masks: shape ``(K, *S)``, bool.
    """
    masks = np.asarray(masks) != 0
    union = masks.any(0)
    # in the plane both numbers differ by the corners at which parts meet: equal ones leave no corner to join parts or to close holes
    if masks.ndim == 3 and _plane_euler(union) != (len(masks), len(masks)):
        return False
    loose, count = connected_components(union, "full")
    if count != len(masks) or (masks.ndim > 3 and connected_components(union, "face")[1] != count):
        return False
    flat = loose.reshape(-1)
    if not all(
        np.array_equal(loose == flat[mask.argmax()], mask) for mask in masks
    ):  # each mask is the part that its first voxel is in
        return False
    return masks.ndim == 3 or all(betti_numbers(mask, kind) == (1, 0, 0) for mask in masks for kind in _DUAL)


def shape_topology(masks: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """What one-to-one continuous maps keep of some shapes: Betti numbers of each, of every two together and of all together, with both
    kinds of neighbours. Equal for equal shapes; :func:`shapes_intact` is the same question for balls apart, and quicker.

    Args:
        masks: shape ``(K, *S)``, bool.
    """
    masks = np.asarray(masks) != 0
    sizes = sorted({1, min(2, len(masks)), len(masks)})
    groups = [masks[list(some)].any(0) for size in sizes for some in combinations(range(len(masks)), size)]
    return tuple(betti_numbers(group, connectivity) for group in groups for connectivity in ("face", "full"))


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
        found = self._count(y_pred)
        return found if y is None else (found - self._count(y)).abs()

    def _count(self, masks: Tensor) -> Tensor:
        rows = [[betti_numbers(m, self.connectivity)[self.number] for m in image] for image in masks.detach().cpu().numpy()]
        return torch.tensor(rows, dtype=torch.float32)

    def aggregate(self) -> Tensor:
        """Mean over images and channels."""
        data = self.get_buffer()
        if not isinstance(data, Tensor):
            raise ValueError("BettiNumberMetric: nothing was measured yet; call the metric with predictions first.")
        return data.mean()
