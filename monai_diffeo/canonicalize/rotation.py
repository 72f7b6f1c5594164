"""Images that are rotated back, and the maps of their upright frames continued to them."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_diffeo.flow import Deformation, rotate_axes
from monai_diffeo.flow.axis_rotations import inverse_rotation

__all__ = ["rotated_back", "rotated_maps"]


def rotated_maps(forward: Deformation, inverse: Deformation, rotations: Tensor) -> tuple[Deformation, Deformation]:
    """Maps of upright frames and their inverses, continued to the images, which show these rotations."""
    undo = [inverse_rotation(forward.matrix.shape[1])[k] for k in rotations.tolist()]
    if not any(undo):
        return forward, inverse
    maps = zip(forward.split(1), inverse.split(1), undo)
    there, back = zip(*((there.turned(k), back.turned(k, back=True)) for there, back, k in maps))
    return Deformation.join(there), Deformation.join(back)


def rotated_back(image: Tensor, rotations: Tensor) -> Tensor:
    """Images rotated back, each by the rotation that it shows."""
    undo = [inverse_rotation(image.ndim - 2)[k] for k in rotations.tolist()]
    return torch.cat([rotate_axes(row, k) for row, k in zip(image.split(1), undo)]) if any(undo) else image
