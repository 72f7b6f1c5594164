"""The one coordinate convention: voxels, axis order ``ij``, ``align_corners`` known only here and in the sampler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow.kept import keep_tensors

__all__ = ["axis_numbers", "check_field", "centered_grid", "half_frame", "sampler_grid", "voxel_grid"]


@keep_tensors
def _cached_grid(spatial_size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    axes = [torch.arange(n, device=device, dtype=dtype) for n in spatial_size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def voxel_grid(spatial_size: Sequence[int], device: torch.device | str = "cpu", dtype=torch.float32) -> Tensor:
    """Voxel coordinates of every voxel, shape ``(D, *S)``; kept for each size, device and dtype, do not write to it."""
    return _cached_grid(tuple(int(n) for n in spatial_size), torch.device(device), dtype)


@keep_tensors
def _cached_centered_grid(spatial_size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    center = torch.tensor([(n - 1) / 2 for n in spatial_size], device=device, dtype=dtype)
    return _cached_grid(spatial_size, device, dtype) - center.view(-1, *[1] * len(spatial_size))


def centered_grid(spatial_size: Sequence[int], device: torch.device | str = "cpu", dtype=torch.float32) -> Tensor:
    """Voxel coordinates measured from the centre of the frame, shape ``(D, *S)``; cached as :func:`voxel_grid`."""
    return _cached_centered_grid(tuple(int(n) for n in spatial_size), torch.device(device), dtype)


@keep_tensors
def _cached_sampler_grid(spatial_size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    axes = [torch.arange(n, device=device, dtype=dtype) / (max(n - 1, 1) / 2) - 1 for n in spatial_size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1]).movedim(0, -1)
    return grid.contiguous() if len(axes) == 3 else grid  # the layout that the sampler reads fastest on a CPU


def sampler_grid(spatial_size: Sequence[int], device: torch.device | str = "cpu", dtype=torch.float32) -> Tensor:
    """Every voxel in the sampler's coordinates and reversed order of axes, shape ``(*S, D)``; cached as :func:`voxel_grid`."""
    return _cached_sampler_grid(tuple(int(n) for n in spatial_size), torch.device(device), dtype)


@keep_tensors
def _cached_numbers(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, device=device, dtype=dtype)


def axis_numbers(values: Iterable[float], like: Tensor) -> Tensor:
    """A number for each axis, shape ``(D,)``, device and dtype of ``like``. Cached, since a GPU waits for numbers of the host.

    Do not write to it.
    """
    return _cached_numbers(tuple(values), like.device, like.dtype)


def half_frame(spatial_size: Sequence[int], like: Tensor) -> Tensor:
    """Half the frame along each axis, the unit of ``theta``, in voxels, shape ``(D,)``; device and dtype of ``like``.

    Cached: do not write to it.
    """
    return axis_numbers((max(n - 1, 1) / 2 for n in spatial_size), like)


def check_field(who: str, argument: str, field: Tensor) -> None:
    """Raise :class:`ShapeError` unless ``field`` has shape ``(B, D, *S)`` with ``D`` spatial axes, 2 or 3."""
    if field.ndim not in (4, 5) or field.shape[1] != field.ndim - 2:
        remedy = "Component d moves along spatial axis d; add a batch axis with field[None] if it lacks one."
        raise ShapeError(who, argument, "(B, D, *S) with D = 2 or 3 = number of spatial axes", field.shape, remedy)
