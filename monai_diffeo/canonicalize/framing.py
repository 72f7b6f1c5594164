"""Images whose foreground is small within a constant border, such as a film on a black screen, and maps that enlarge it."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_diffeo.canonicalize.result import move_image
from monai_diffeo.flow import Deformation
from monai_diffeo.flow.grid import axis_numbers

__all__ = ["Enlarging"]

_TOLERANCE = 0.02  # of a channel's range: values within it of the border's are border
_LEAST = 0.1  # of an axis: what is smaller is a marker


class Enlarging:
    """Enlarges the foreground of images, each by itself, to the whole frame; each axis by a factor of its own.

    The foreground is the box of all that differs from the corners. It is enlarged where the corners are alike, and where it
    takes at most a share of each axis.

    Args:
        image: shape ``(B, C, *S)``, finite.
        most: largest share of an axis that a foreground to be enlarged takes; None enlarges nothing.

    Attributes:
        rows: which images are enlarged, ``(B,)``, bool.
        any: whether one of them is.
    """

    def __init__(self, image: Tensor, most: float | None) -> None:
        self.shape, self.any = tuple(image.shape[2:]), False
        self.rows = torch.zeros(len(image), dtype=torch.bool, device=image.device)
        if most is not None:
            low, high = image.flatten(2).aminmax(dim=2)
            noise, frame = _TOLERANCE * (high - low), axis_numbers(self.shape, image)
            box = _foreground(image, noise)
            self.share, self.center = (box[1] - box[0] + 1) / frame, box.mean(0) - (frame - 1) / 2
            self.rows = ((self.share <= most) & (self.share >= _LEAST)).all(1) & _alike(image, noise)
            self.any = bool(self.rows.any())

    def __call__(self, image: Tensor, sampling: str) -> Tensor:
        """The images, enlarged where they are to be."""
        if not self.any:
            return image
        still = Deformation.identity(len(image), self.shape, image.device, image.dtype)
        moved = move_image(image, Deformation(_matrix(self.share, self.center), still.residual).ddf(), sampling)
        return torch.where(self.rows.view(-1, *[1] * (image.ndim - 1)), moved, image)

    def maps(self, forward: Deformation, inverse: Deformation) -> tuple[Deformation, Deformation]:
        """Maps of enlarged images and their inverses, continued to the images."""
        if not self.any:
            return forward, inverse
        there = forward.then_affine(_matrix(self.share, self.center))
        undo = Deformation(_matrix(1 / self.share, -self.center / self.share), torch.zeros_like(inverse.residual))
        return there.where(self.rows, forward), inverse.after(undo).where(self.rows, inverse)


def _matrix(scale: Tensor, shift: Tensor) -> Tensor:
    """Affine maps ``(B, D, D + 1)`` of scales and shifts, each ``(B, D)``."""
    return torch.cat([torch.diag_embed(scale), shift[..., None]], 2)


def _alike(image: Tensor, noise: Tensor) -> Tensor:
    """Whether all corners of an image have one value but for the noise of its channels ``(B, C)``; ``(B,)``, bool."""
    corners = image
    for axis in range(2, image.ndim):
        corners = torch.cat([corners.narrow(axis, 0, 1), corners.narrow(axis, corners.shape[axis] - 1, 1)], axis)
    low, high = corners.flatten(2).aminmax(dim=2)
    return (high - low <= noise).all(1)


def _foreground(image: Tensor, noise: Tensor) -> Tensor:
    """First and last voxel along each axis that differ from the first corner by more than noise ``(B, C)``; ``(2, B, D)``.

    The frame where none does.
    """
    wide = (*image.shape[:2], *[1] * (image.ndim - 2))
    inside = ((image - image.flatten(2)[..., 0].view(wide)).abs() > noise.view(wide)).any(1)
    ends = []
    for axis in range(1, inside.ndim):
        along = inside.movedim(axis, -1).flatten(1, -2).any(1).to(torch.uint8)
        ends.append(torch.stack([along.argmax(1), along.shape[1] - 1 - along.flip(1).argmax(1)]))
    return torch.stack(ends, 2).to(image)
