"""Digits turned, enlarged, moved and bent."""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bundles.mnist_genus.scripts.digits import Digits
from monai_diffeo.families import CPAB
from monai_diffeo.flow import Deformation, warp

VERSION = 3  # of the distortions, so that images kept from others are not taken up


def _rigid(angle: Tensor, scale: Tensor, shift: Tensor, spatial_size: Sequence[int]) -> Deformation:
    """Maps that show an image turned by ``angle`` (B,), enlarged by ``scale`` (B,) and moved by ``shift`` (B, 2) voxels."""
    cos, sin = angle.cos() / scale, angle.sin() / scale
    linear = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    matrix = torch.cat([linear, -(linear @ shift[..., None])], 2)
    return Deformation(matrix, matrix.new_zeros(len(matrix), 2, *spatial_size))


def _uniform(count: int, low: float, high: float, draw: torch.Generator) -> Tensor:
    return torch.rand(count, generator=draw) * (high - low) + low


def _shifts(count: int, most: float, draw: torch.Generator) -> Tensor:
    return torch.stack([_uniform(count, -most, most, draw) for _ in range(2)], 1)


def _rotated(count: int, spatial_size: Sequence[int], draw: torch.Generator) -> Deformation:
    """Turned by up to 90 degrees either way."""
    return _rigid(_uniform(count, -math.pi / 2, math.pi / 2, draw), torch.ones(count), torch.zeros(count, 2), spatial_size)


def _rts(count: int, spatial_size: Sequence[int], draw: torch.Generator) -> Deformation:
    """Turned by up to 45 degrees, 0.7 to 1.2 times as large, moved by up to 7 voxels along each axis."""
    angle, scale = _uniform(count, -math.pi / 4, math.pi / 4, draw), _uniform(count, 0.7, 1.2, draw)
    return _rigid(angle, scale, _shifts(count, 7.0, draw), spatial_size)


def _cpab(count: int, spatial_size: Sequence[int], draw: torch.Generator) -> Deformation:
    """Random flows of velocities on 4 x 4 rectangles, moved by up to 4 voxels along each axis."""
    family = CPAB((4, 4), length_scale=0.2)
    flow = family(family.sample(count, 0.25, draw), spatial_size)
    return flow.after(_rigid(torch.zeros(count), torch.ones(count), _shifts(count, 4.0, draw), spatial_size))


DISTORTIONS: dict[str, Callable[..., Deformation]] = {"rotated": _rotated, "RTS": _rts, "CPAB": _cpab}


def distort(digits: Digits, distortion: str, side: int, seed: int = 0, keep: str | Path | None = None) -> dict[str, Tensor]:
    """Digits in the middle of a square of ``side`` voxels, distorted, each interpolated once; ``keep`` is a folder in which the
    images are kept, and looked for. ``image`` (N, 1, side, side), bytes, and ``label`` (N,), the digit."""
    chosen = hashlib.sha256(" ".join(digits.ids).encode()).hexdigest()[:8]
    path = keep and Path(keep) / f"digits_{distortion}_{VERSION}_{side}_{chosen}_{len(digits.ids)}_{seed}.pt"
    if path and path.is_file():
        return {"image": torch.load(path, weights_only=True), "label": digits.digits}
    draw, margin, parts = torch.Generator().manual_seed(seed), (side - digits.images.shape[-1]) // 2, []
    for images in digits.images.split(500):
        moved = DISTORTIONS[distortion](len(images), (side, side), draw).ddf()
        parts.append((warp(F.pad(images, (margin,) * 4), moved, padding_mode="zeros") * 255).round().byte())
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.cat(parts), path)
    return {"image": torch.cat(parts), "label": digits.digits}
