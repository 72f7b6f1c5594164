"""Distance between two outlines, with a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.utils import optional_import
from torch import Tensor

from monai_diffeo.flow.warp import sample

__all__ = ["boundary_distance"]

ndimage, _has_scipy = optional_import("scipy.ndimage")


def boundary_distance(points: Tensor, masks: Tensor, power: float = 8.0) -> Tensor:
    r"""Distance between outlines given by points and the edges of masks: between the mean and the Hausdorff distance.

    It is the power mean of two sets of distances that count alike: from every point to the mask's edge, and from every voxel
    of the edge to the nearest point. Each shape is compared with its own mask; shapes with an empty mask are left out. An edge
    voxel between two points is at best half of their spacing away.

    Args:
        points: on the outlines of K shapes, shape ``(B, K, D, N)``, voxels. Points outside the frame are first moved to its
            border, where a mask ends.
        masks: shape ``(B, K, *S)``, 0 or 1.
        power: 1 gives the mean distance; the larger it is, the nearer to the Hausdorff distance. One far point of N counts
            ``N**(-1/power)`` of its distance: 0.5 for N = 256 and power 8.

    Returns:
        Shape ``(B,)``, voxels, at least 0; its gradient reaches ``points``. 0 for an image of empty masks.

    Raises:
        ImportError: without scipy.
    """
    if not _has_scipy:
        raise ImportError("boundary_distance() needs scipy: pip install scipy.")
    size = torch.tensor(masks.shape[2:], device=points.device, dtype=points.dtype)
    points = torch.minimum(points.clamp(min=0), size[:, None] - 1)
    images = zip((masks.detach() > 0.5).cpu().numpy(), points)
    distances = [([d for inside, o in zip(m, p) if inside.any() for d in _distances(inside, o)], p) for m, p in images]
    return torch.stack([_power_mean(some, power, outlines) for some, outlines in distances])


_LEAST = 0.1  # voxels, so that a distance of 0 has a gradient


def _distances(inside: np.ndarray, outline: Tensor) -> tuple[Tensor, Tensor]:
    """From every point of an outline ``(D, N)`` to the edge of a mask; from every voxel of the edge to the nearest point."""
    edge = inside & ~ndimage.binary_erosion(inside)
    distance = torch.from_numpy(ndimage.distance_transform_edt(~edge)).to(outline)
    to_mask = sample(distance[None, None], outline.view(1, len(outline), -1, *[1] * (inside.ndim - 1)))
    voxels = torch.from_numpy(np.argwhere(edge)).to(outline)
    with torch.no_grad():
        nearest = torch.cdist(voxels, outline.T).argmin(1)
    to_points = (voxels - outline.T[nearest]).square().sum(1)
    return to_mask.flatten(), (to_points + _LEAST**2).sqrt()


def _power_mean(distances: Sequence[Tensor], power: float, like: Tensor) -> Tensor:
    """Power mean of sets of distances that count alike whatever their sizes; 0 without any."""
    if not distances:
        return like.sum() * 0
    farthest = torch.cat(list(distances)).detach().amax().clamp(min=_LEAST)  # no power overflows
    parts = [(d / farthest).pow(power).mean() for d in distances]
    return farthest * (torch.stack(parts).mean() + (_LEAST / farthest) ** power).pow(1 / power)
