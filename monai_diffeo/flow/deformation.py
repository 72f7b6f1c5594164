"""A batch of maps, each an affine map plus a displacement on a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffeo.flow.axis_rotations import axis_rotations, inverse_rotation, rotate_axes
from monai_diffeo.flow.grid import axis_numbers, centered_grid, half_frame
from monai_diffeo.flow.warp import resize_ddf, sample, sample_normalized, unit_of_sampler

__all__ = ["Deformation", "crop_or_pad"]


def crop_or_pad(field: Tensor, spatial_size: Sequence[int]) -> Tensor:
    """Centred crop, or padding with the border's values, of ``(B, C, *S)`` to ``(B, C, *spatial_size)``.

    Both sizes of an axis must be even or both odd, so that the centre stays a centre.
    """
    difference = [int(new) - old for new, old in zip(spatial_size, field.shape[2:])]
    if not any(difference):
        return field
    if any(d % 2 for d in difference):
        raise ValueError(f"crop_or_pad(): sizes {tuple(field.shape[2:])} and {tuple(spatial_size)} have no common centre.")
    crop = [slice(max(-d // 2, 0), n - max(-d // 2, 0)) for d, n in zip(difference, field.shape[2:])]
    pad = [max(d // 2, 0) for d in reversed(difference) for _ in range(2)]
    field = field[(slice(None), slice(None), *crop)]
    return F.pad(field, pad, mode="replicate") if any(pad) else field


@dataclass(frozen=True)
class Deformation:
    r"""One map for each image, :math:`\phi(x) = M (x, 1) + u(x)`, ``x`` in voxels from the centre of the frame.

    The affine part holds everywhere; ``u`` lives on a grid around the same centre, which may be larger than the image, and
    continues with its border value. Maps compose without loss in the affine part, so that quarter turns stay exact.

    Attributes:
        matrix: shape ``(B, D, D + 1)``, last column in voxels.
        residual: shape ``(B, D, *S)``, voxels.
    """

    matrix: Tensor
    residual: Tensor

    @classmethod
    def identity(cls, batch_size: int, spatial_size: Sequence[int], device="cpu", dtype=torch.float32) -> Deformation:
        """The map that moves nothing."""
        dims = len(spatial_size)
        matrix = torch.eye(dims, dims + 1, device=device, dtype=dtype).repeat(batch_size, 1, 1)
        return cls(matrix, torch.zeros(batch_size, dims, *spatial_size, device=device, dtype=dtype))

    def _affine(self, points: Tensor) -> Tensor:
        linear, shift = self.matrix[..., :-1], self.matrix[..., -1]
        with torch.autocast(points.device.type, enabled=False):
            return torch.baddbmm(shift[..., None], linear, points.flatten(2)).view(points.shape)

    def _grid(self) -> Tensor:
        size = self.residual.shape[2:]
        return centered_grid(size, self.residual.device, self.residual.dtype).expand(self.residual.shape)

    def after(self, first: Deformation) -> Deformation:
        """The composition ``x -> self(first(x))``; ``warp(warp(im, a), b)`` equals one warp along ``a.after(b)``."""
        residual, linear, shift = self.residual, self.matrix[..., :-1], self.matrix[..., -1:]
        unit = unit_of_sampler(residual.shape[2:], residual)[:, None]
        with torch.autocast(residual.device.type, enabled=False):
            scaled = Deformation(first.matrix * unit, first.residual)  # from the centre, which is the sampler's origin
            where = torch.addcmul(scaled._affine(first._grid()).flatten(2), first.residual.flatten(2), unit)
            u = sample_normalized(residual, where.view(first.residual.shape))
            matrix = linear @ first.matrix
            matrix = torch.cat([matrix[..., :-1], matrix[..., -1:] + shift], dim=-1)
            return Deformation(matrix, torch.baddbmm(u.flatten(2), linear, first.residual.flatten(2)).view(u.shape))

    def ddf(self, spatial_size: Sequence[int] | None = None) -> Tensor:
        """Displacement of every voxel of the centred frame ``spatial_size``, shape ``(B, D, *S)``, voxels.

        Outside the residual's grid the affine part goes on exactly, and the residual with its border value.
        """
        whole = self if spatial_size is None else Deformation(self.matrix, crop_or_pad(self.residual, spatial_size))
        linear, shift = whole.matrix[..., :-1], whole.matrix[..., -1:]
        with torch.autocast(linear.device.type, enabled=False):
            still = torch.eye(linear.shape[1], device=linear.device, dtype=linear.dtype)
            field = torch.baddbmm(whole.residual.flatten(2), linear - still, whole._grid().flatten(2)) + shift
        return field.view(whole.residual.shape)

    def resized(self, spatial_size: Sequence[int], new_size: Sequence[int]) -> Deformation:
        """Maps of a frame of ``spatial_size`` voxels as maps of the same frame with ``new_size`` voxels, edges on edges."""
        if tuple(spatial_size) == tuple(new_size):
            return self
        ratio = axis_numbers((new / old for new, old in zip(new_size, spatial_size)), self.matrix)
        have, column = self.residual.shape[2:], ratio.view(-1, *[1] * len(ratio))
        grown = [max(new, round(n * new / old)) for n, old, new in zip(have, spatial_size, new_size)]
        grown = [n + (n - new) % 2 for n, new in zip(grown, new_size)]  # the centre stays a centre
        center = axis_numbers(((n - 1) / 2 for n in have), self.residual).view_as(column)
        matrix = self.matrix * ratio[:, None] / torch.cat([ratio, ratio.new_ones(1)])
        if all(m * old == n * new for m, n, old, new in zip(grown, have, spatial_size, new_size)):  # quicker, the same
            mode = "bilinear" if len(have) == 2 else "trilinear"
            return Deformation(matrix, F.interpolate(self.residual * column, grown, mode=mode, align_corners=False))
        where = centered_grid(grown, self.residual.device, self.residual.dtype) / column + center
        return Deformation(matrix, sample(self.residual * column, where.expand(self.residual.shape[0], -1, *grown)))

    def refined(self, new_size: Sequence[int]) -> Deformation:
        """The maps with ``new_size`` points over the extent of the residual, corners on corners; linear between the points."""
        have = self.residual.shape[2:]
        scale = half_frame(new_size, self.residual) / half_frame(have, self.residual)
        columns = torch.cat([1 / scale, scale.new_ones(1)])  # a matrix acts on voxels, whose size may differ between the axes
        residual = resize_ddf(self.residual, tuple(new_size))
        return Deformation(self.matrix * scale[:, None] * columns, residual)

    def turned(self, rotation: int, back: bool = False) -> Deformation:
        """The maps followed by a rotation of the axes, ``x -> R self(x)``, R by its number in :func:`axis_rotations`.

        With ``back``, the maps after its inverse, ``x -> self(R^-1 x)``. The frame of ``x`` is then the rotated one.
        """
        if rotation == 0:
            return self
        turn = axis_rotations(self.matrix.shape[1])[rotation].to(self.matrix)
        if back:
            linear, shift = self.matrix[..., :-1] @ turn.T, self.matrix[..., -1:]
            undo = inverse_rotation(len(turn))[rotation]
            return Deformation(torch.cat([linear, shift], -1), rotate_axes(self.residual, undo))
        return self.then_affine(F.pad(turn, (0, 1))[None])

    def then_affine(self, matrix: Tensor) -> Deformation:
        """The maps followed by affine maps ``(B or 1, D, D + 1)``, without sampling."""
        linear, shift = matrix[..., :-1].expand(self.matrix.shape[0], -1, -1), matrix[..., -1:]
        whole = linear @ self.matrix
        residual = (linear @ self.residual.flatten(2)).view(self.residual.shape)
        return Deformation(torch.cat([whole[..., :-1], whole[..., -1:] + shift], -1), residual)

    def where(self, mask: Tensor, other: Deformation) -> Deformation:
        """Rows of ``self`` where ``mask`` (B,) is true, of ``other`` elsewhere."""
        dims = self.matrix.shape[1]
        matrix = torch.where(mask.view(-1, 1, 1), self.matrix, other.matrix)
        return Deformation(matrix, torch.where(mask.view(-1, *[1] * (dims + 1)), self.residual, other.residual))

    def split(self, count: int) -> list[Deformation]:
        """Batches of ``count`` of the maps, one after another."""
        return [Deformation(*some) for some in zip(self.matrix.split(count), self.residual.split(count))]

    @classmethod
    def join(cls, maps: Sequence[Deformation]) -> Deformation:
        """One batch of several around one centre; smaller grids are continued by their border values."""
        size = [max(axis) for axis in zip(*(some.residual.shape[2:] for some in maps))]
        residuals = [crop_or_pad(some.residual, size) for some in maps]
        return cls(torch.cat([some.matrix for some in maps]), torch.cat(residuals))

    def detach(self) -> Deformation:
        """The same maps without a graph."""
        return Deformation(self.matrix.detach(), self.residual.detach())
