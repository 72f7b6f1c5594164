"""How far outlines lie from the truth: mean distance and 95 % Hausdorff distance, in mm where the pixel is known."""

from collections.abc import Sequence

import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from torch import Tensor

FRAME = 1024  # pixels along each axis of the frame in which distances are given where mm are not known


def spacing_of(source: str, size: Sequence[int]) -> tuple[tuple[float, float], str]:
    """What a pixel of the resized film measures along rows and columns, and the unit.

    Films of montgomery have pixels of 0.0875 mm, 4020 x 4892 or 4892 x 4020 of them. Nothing says which, so that both axes get
    the mean.
    """
    if source != "montgomery":
        return (FRAME / size[0], FRAME / size[1]), f"pixels of {FRAME}"
    length = 0.0875 * (4020 + 4892) / 2
    return (length / size[0], length / size[1]), "mm"


def outline_distances(masks: Tensor, labels: Tensor, spacing: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """Mean symmetric distance of the outlines, and the 95 % Hausdorff distance, of each film ``(N,)``.

    Masks are ``(N, 1, H, W)``; a film with an empty mask gets infinity.
    """
    shared = {"include_background": True, "spacing": [list(step) for step in spacing]}
    mean = compute_average_surface_distance(masks, labels, symmetric=True, **shared).flatten()
    reach = compute_hausdorff_distance(masks, labels, percentile=95, **shared).flatten()
    empty = (masks.flatten(1).sum(1) == 0) | (labels.flatten(1).sum(1) == 0)
    return torch.where(empty, torch.inf, mean), torch.where(empty, torch.inf, reach)
