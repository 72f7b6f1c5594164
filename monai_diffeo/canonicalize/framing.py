"""Images within a constant border, such as a small film on a black screen, and the maps that enlarge them to the frame."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_diffeo.canonicalize.result import move_image
from monai_diffeo.flow import Deformation
from monai_diffeo.flow.grid import axis_numbers

__all__ = ["Enlarging"]

_TOLERANCE = 0.02  # of an image's range: values within it of the border's are border
_LEAST = 0.1  # of an axis: what is smaller is a marker


class Enlarging:
    """Enlarges what lies within a constant border to the whole frame, image by image.

    An image has such a border if its corners are alike, and if what differs from them takes at most a share of each axis.

    Args:
        image: shape ``(B, C, *S)``, finite.
        most: largest share of an axis that what lies within a border takes; None enlarges nothing.

    Attributes:
        rows: which images have a border, ``(B,)``, bool.
    """

    def __init__(self, image: Tensor, most: float | None) -> None:
        self.shape = tuple(image.shape[2:])
        self.rows = torch.zeros(len(image), dtype=torch.bool, device=image.device)
        if most is not None:
            box, frame = _box(image), axis_numbers(self.shape, image)
            self.share, self.center = (box[1] - box[0] + 1) / frame, box.mean(0) - (frame - 1) / 2
            self.rows = ((self.share <= most) & (self.share >= _LEAST)).all(1) & _alike(image)

    def __call__(self, image: Tensor, sampling: str) -> Tensor:
        """The images, those with a border enlarged."""
        if not bool(self.rows.any()):
            return image
        still = Deformation.identity(len(image), self.shape, image.device)
        moved = move_image(image, Deformation(_matrix(self.share, self.center), still.residual).ddf(), sampling)
        return torch.where(self.rows.view(-1, *[1] * (image.ndim - 1)), moved, image)

    def maps(self, forward: Deformation, inverse: Deformation) -> tuple[Deformation, Deformation]:
        """Maps of enlarged images and their inverses, continued to the images."""
        if not bool(self.rows.any()):
            return forward, inverse
        there = forward.then_affine(_matrix(self.share, self.center))
        undo = Deformation(_matrix(1 / self.share, -self.center / self.share), torch.zeros_like(inverse.residual))
        back = inverse.after(undo)
        return there.where(self.rows, forward), back.where(self.rows, inverse)


def _matrix(scale: Tensor, shift: Tensor) -> Tensor:
    """Affine maps ``(B, D, D + 1)`` of scales and shifts, each ``(B, D)``."""
    return torch.cat([torch.diag_embed(scale), shift[..., None]], 2)


def _alike(image: Tensor) -> Tensor:
    """Whether all corners of an image have one value, ``(B,)``, bool."""
    corners = image
    for axis in range(2, image.ndim):
        corners = torch.cat([corners.narrow(axis, 0, 1), corners.narrow(axis, corners.shape[axis] - 1, 1)], axis)
    low, high = corners.flatten(2).aminmax(dim=2)
    return (high - low <= _TOLERANCE * _spread(image)).all(1)


def _spread(image: Tensor) -> Tensor:
    """Largest minus smallest value of an image, ``(B, 1)``."""
    low, high = image.flatten(1).aminmax(dim=1, keepdim=True)
    return high - low


def _box(image: Tensor) -> Tensor:
    """First and last voxel along each axis that differ from the first corner, ``(2, B, D)``; the frame where none does."""
    one = [1] * (image.ndim - 2)
    border = image.flatten(2)[..., :1].view(*image.shape[:2], *one)
    inside = ((image - border).abs() > _TOLERANCE * _spread(image).view(-1, 1, *one)).any(1)
    ends = []
    for axis in range(1, inside.ndim):
        along = inside.movedim(axis, -1).flatten(1, -2).any(1).to(torch.uint8)
        ends.append(torch.stack([along.argmax(1), along.shape[1] - 1 - along.flip(1).argmax(1)]))
    return torch.stack(ends, 2).to(image)
