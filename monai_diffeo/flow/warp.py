"""Pull-back of images, labels and points along a displacement."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow.grid import axis_numbers, centered_grid, check_field, sampler_grid

__all__ = ["resize_ddf", "sample", "warp", "warp_points"]


def _float(tensor: Tensor) -> Tensor:
    """At least float32: a voxel grid in half precision is off by whole voxels."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def sample(image: Tensor, points: Tensor, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    """Values of an image at given points; differentiable in both.

    Args:
        image: shape ``(B, C, *S)``.
        points: shape ``(B, D, *T)``, voxel coordinates of ``image``, components in axis order.
        mode: ``"bilinear"`` (trilinear in 3D), ``"nearest"`` or, in 2D, ``"bicubic"``.
        padding_mode: ``"border"``, ``"zeros"`` or ``"reflection"``, for points outside the frame.

    Returns:
        Shape ``(B, C, *T)``.
    """
    unit = unit_of_sampler(image.shape[2:], points).view(-1, *[1] * (points.ndim - 2))
    return sample_normalized(image, points * unit - 1, mode, padding_mode)


def unit_of_sampler(spatial_size: Sequence[int], like: Tensor) -> Tensor:
    """One voxel along each axis in the sampler's coordinates, in which a frame is [-1, 1]; shape ``(D,)``."""
    return axis_numbers((2 / max(n - 1, 1) for n in spatial_size), like)


def sample_normalized(image: Tensor, points: Tensor, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    """:func:`sample` at points in the sampler's coordinates, in which the image's frame is [-1, 1]."""
    return _sample_at(image, points.flip(1).movedim(1, -1), mode, padding_mode)


def _sample_at(image: Tensor, where: Tensor, mode: str, padding_mode: str) -> Tensor:
    with torch.autocast(image.device.type, enabled=False):
        return F.grid_sample(image, where, mode=mode, padding_mode=padding_mode, align_corners=True)


def warp(image: Tensor, ddf: Tensor, mode: str = "bilinear", padding_mode: str = "border", *, centered: bool = False) -> Tensor:
    r"""Pull an image back along a displacement: ``warp(image, ddf)(x) = image(x + ddf(x))``.

    Equals ``monai.networks.blocks.Warp``, with the grid kept between calls. Works in float32 (float64 for float64), whatever
    autocast the caller runs. Labels, integers with ``"nearest"``, keep their value whatever it is.

    Args:
        image: image or label map, shape ``(B, C, *S)``, any real dtype.
        ddf: displacement, shape ``(B, D, *S)``, voxels, component d along spatial axis d.
        mode: ``"bilinear"`` for images and probabilities, ``"nearest"`` for label maps.
        padding_mode: what lies outside the frame: ``"border"``, ``"zeros"`` or ``"reflection"``.
        centered: allow an image on another frame than that of ``ddf``; their centres lie on each other.

    Returns:
        Dtype of ``image``, and its shape or, if ``centered``, ``(B, C, *S)`` of ``ddf``.

    Raises:
        ShapeError: if ``ddf`` is no displacement or does not fit the image.

    Example:
        >>> image = torch.arange(9.0).view(1, 1, 3, 3)
        >>> warp(image, torch.ones(1, 2, 3, 3))[0, 0, 0, 0].item()      # the value one row down, one column right
        4.0
    """
    check_field("warp()", "ddf", ddf)
    same = image.shape[2:] == ddf.shape[2:]
    if image.ndim != ddf.ndim or not (same or centered) or image.shape[0] != ddf.shape[0]:
        expected = f"({ddf.shape[0]}, C, {', '.join(map(str, ddf.shape[2:]))}) as 'ddf'"
        raise ShapeError("warp()", "image", expected, image.shape, "Resize one of them, or expand the batch.")
    if mode == "nearest" and not image.dtype.is_floating_point and image.element_size() > 2:
        pieces = range(24 * (image.element_size() // 4), -1, -24)  # float32 holds 24 bits: 2 pieces of int32, 3 of int64
        parts = torch.cat([(image.long() >> n) & (0xFFFFFF if n < pieces[0] else -1) for n in pieces], 1).float()
        chunks = warp(parts, ddf, mode, padding_mode, centered=centered).long().chunk(len(pieces), 1)
        return sum((part << n for part, n in zip(chunks, pieces)), torch.zeros_like(chunks[0])).to(image.dtype)
    dtype = torch.float64 if torch.float64 in (image.dtype, ddf.dtype) else torch.float32
    values, field = image.to(dtype), ddf.to(dtype)
    unit = unit_of_sampler(image.shape[2:], field)
    if same:
        where = torch.addcmul(sampler_grid(ddf.shape[2:], ddf.device, dtype), field.flip(1).movedim(1, -1), unit.flip(0))
        moved = _sample_at(values, where, mode, padding_mode)
    else:
        where = centered_grid(ddf.shape[2:], ddf.device, dtype) + field  # the sampler's origin is the centre, too
        moved = sample_normalized(values, where * unit.view(-1, *[1] * (ddf.ndim - 2)), mode, padding_mode)
    if not (image.dtype.is_floating_point or mode == "nearest"):
        moved = moved.round()
    return moved.to(image.dtype)


def resize_ddf(ddf: Tensor, size: tuple[int, ...], frame: tuple[int, ...] | None = None) -> Tensor:
    """The same displacement for an image of ``size`` voxels over the frame to which it leads, corners on corners.

    Args:
        ddf: shape ``(B, D, *S)``, voxels.
        size: of the image that it is to pull back.
        frame: to which ``ddf`` leads, by default its own ``*S``, or that with its axes in another order.

    Returns:
        Shape ``(B, D, *size)``, the axes of ``size`` ordered as those of ``*S`` are in ``frame``.
    """
    frame, dims = tuple(ddf.shape[2:]) if frame is None else frame, ddf.ndim - 2
    if frame == size:
        return ddf
    order = next(p for p in itertools.permutations(range(dims)) if tuple(frame[a] for a in p) == tuple(ddf.shape[2:]))
    new, column = tuple(size[a] for a in order), (-1, *[1] * dims)
    factor = axis_numbers(((n - 1) / max(m - 1, 1) for n, m in zip(size, frame)), ddf)
    mode = {2: "bilinear", 3: "trilinear"}[dims]
    if order == tuple(range(dims)):
        return F.interpolate(ddf, size, mode=mode, align_corners=True) * factor.view(column)
    where = F.interpolate(centered_grid(ddf.shape[2:], ddf.device, ddf.dtype) + ddf, new, mode=mode, align_corners=True)
    return where * factor.view(column) - centered_grid(new, ddf.device, ddf.dtype)


def warp_points(points: Tensor, ddf: Tensor) -> Tensor:
    """Send points through the map: ``p -> p + ddf(p)``.

    ``warp(image, ddf)`` shows at ``x`` what the image has at ``x + ddf(x)``; a landmark of the image therefore moves to
    the warped image by the *inverse* displacement, and a landmark of the warped image back to the image by ``ddf``.

    Args:
        points: shape ``(B, N, D)``, voxel coordinates in axis order, as those that are returned.
        ddf: shape ``(B, D, *S)``, voxels.

    Raises:
        ShapeError: if ``points`` or ``ddf`` has another shape.
    """
    check_field("warp_points()", "ddf", ddf)
    if points.ndim != 3 or points.shape[0] != ddf.shape[0] or points.shape[2] != ddf.shape[1]:
        raise ShapeError("warp_points()", "points", f"({ddf.shape[0]}, N, {ddf.shape[1]})", points.shape)
    dims = ddf.shape[1]
    where = points.to(ddf.dtype).transpose(1, 2).reshape(points.shape[0], dims, points.shape[1], *[1] * (dims - 1))
    moved = sample(ddf, where)
    return points + moved.flatten(2).transpose(1, 2).to(points.dtype)
