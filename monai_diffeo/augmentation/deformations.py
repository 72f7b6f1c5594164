"""Random deformations: the paper's thin-plate-spline protocol, and other kinds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffeo.augmentation.common import uniform, unit_grid
from monai_diffeo.flow import folding_fraction, thin_plate_spline
from monai_diffeo.flow.grid import half_frame

__all__ = ["random_elastic", "random_homography", "random_svf", "tps_protocol"]


def _to_ddf(points: Tensor, spatial_size: Sequence[int]) -> Tensor:
    """Displacement in voxels from the images ``(B, N, D)`` of every voxel in [-0.5, 0.5] coordinates."""
    moved = (points - unit_grid(spatial_size)) * (2 * half_frame(spatial_size, points))
    return moved.transpose(1, 2).unflatten(2, tuple(spatial_size))


def tps_protocol(
    batch_size: int,
    spatial_size: Sequence[int] = (128, 128),
    generator: torch.Generator | None = None,
    strength: float | Tensor = 1.0,
    angle: float = 30.0,
    jitter: float = 0.12,
    scale: float = 0.9,
    fold_free: bool = False,
) -> Tensor:
    """Displacements of the paper's test deformation: scaled, turned and jittered control points, thin-plate spline between.

    Frame = [-0.5, 0.5]²; control points on the 3x3 grid ``linspace(-0.5, 0.5, 3) * 0.6``; targets
    ``scale * R(theta) p + jitter``, clipped to the frame. In space the grid is 3x3x3, and R turns about a random axis. An
    oblong frame is treated as if it were square, and so are rotations.

    Args:
        batch_size: B.
        spatial_size: (H, W) or (H, W, D).
        generator: source of all random numbers.
        strength: factor on the displacement, a number or shape ``(B,)``: 1 is the full map, 0.5 what the published
            implementation applies.
        angle: largest rotation, degrees, uniform in both directions.
        jitter: largest shift of a control point, in units of the frame.
        scale: factor on the control points.
        fold_free: halve the jitter of a map until it has no folded voxel.

    Returns:
        Displacement, shape ``(B, D, *S)``, voxels; sample films with zeros outside and keep masks > 0.5.

    Reference: arXiv 2602.06695.
    """
    dims = len(spatial_size)
    control = torch.cartesian_prod(*[torch.linspace(-0.5, 0.5, 3) * 0.6] * dims)
    rotation = _rotation(uniform(-1, 1, (batch_size,), generator) * math.radians(angle), dims, generator)
    shift = uniform(-1, 1, (batch_size, len(control), dims), generator) * jitter
    turned = scale * control @ rotation.transpose(1, 2)
    strength = torch.as_tensor(strength, dtype=torch.float32).view(-1, *[1] * (dims + 1))

    def displacement(shift: Tensor) -> Tensor:
        targets = (turned + shift).clamp(-0.5, 0.5)
        return _to_ddf(thin_plate_spline(control, targets, unit_grid(spatial_size)), spatial_size) * strength

    ddf = displacement(shift)
    for _ in range(8 if fold_free else 0):
        folded = folding_fraction(ddf) > 0
        if not folded.any():
            break
        shift = torch.where(folded.view(-1, 1, 1), shift / 2, shift)
        ddf = displacement(shift)
    return ddf


def _rotation(turn: Tensor, dims: int, generator: torch.Generator | None) -> Tensor:
    """Matrices ``(B, D, D)`` that turn by ``turn`` (B,), radians; in space about axes drawn evenly from all directions."""
    if dims == 2:
        return torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], -1).view(-1, 2, 2)
    axis = F.normalize(torch.randn(len(turn), 3, generator=generator), dim=1) * turn[:, None]
    return torch.linalg.matrix_exp(torch.linalg.cross(axis[:, None], torch.eye(3)[None], dim=2).transpose(1, 2))


def _smooth_noise(batch_size: int, spatial_size: Sequence[int], sigma: float, generator: torch.Generator | None) -> Tensor:
    """Gaussian-smoothed white noise, largest length 1 in each field, zero at the frame; shape ``(B, D, *S)``."""
    dims = len(spatial_size)
    noise = torch.randn(batch_size, dims, *spatial_size, generator=generator)
    radius = int(3 * sigma)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1.0) ** 2) / (2 * sigma**2))
    convolve = {2: F.conv2d, 3: F.conv3d}[dims]
    for axis in range(dims):
        weights = kernel.view(1, 1, -1, *[1] * (dims - 1)).transpose(2, 2 + axis)
        noise = convolve(noise.flatten(0, 1)[:, None], weights, padding="same").view_as(noise)
    for axis, n in enumerate(spatial_size):
        window = torch.sin(torch.linspace(0, math.pi, n)).clamp(min=0)
        noise = noise * window.view(-1, *[1] * (dims - 1 - axis))
    return noise / torch.linalg.vector_norm(noise, dim=1).flatten(1).amax(1).view(-1, *[1] * (dims + 1)).clamp(min=1e-12)


def random_svf(
    batch_size: int,
    spatial_size: Sequence[int],
    generator: torch.Generator | None = None,
    amplitude: float | Tensor = 0.06,
    sigma: float = 0.06,
) -> Tensor:
    """Random smooth stationary velocities that vanish at the frame; their flows invert by sign.

    Args:
        batch_size, spatial_size, generator: as for :func:`tps_protocol`, of 2 or 3 axes.
        amplitude: largest speed, as share of the shortest side, a number or shape ``(B,)``.
        sigma: width of the smoothing, as share of the shortest side.

    Returns:
        Velocity, shape ``(B, D, *S)``, voxels per unit time.
    """
    return random_elastic(batch_size, spatial_size, generator, amplitude, sigma)


def random_elastic(
    batch_size: int,
    spatial_size: Sequence[int],
    generator: torch.Generator | None = None,
    amplitude: float | Tensor = 0.06,
    sigma: float = 0.05,
) -> Tensor:
    """Elastic displacements in the classical sense: smoothed noise added to the coordinates, no flow behind it.

    Arguments as :func:`random_svf`. Returns a displacement ``(B, D, *S)``, voxels.
    """
    amplitude = torch.as_tensor(amplitude, dtype=torch.float32).view(-1, *[1] * (len(spatial_size) + 1))
    return _smooth_noise(batch_size, spatial_size, sigma * min(spatial_size), generator) * amplitude * min(spatial_size)


def random_homography(
    batch_size: int, spatial_size: Sequence[int], generator: torch.Generator | None = None, shift: float = 0.15
) -> Tensor:
    """Perspective views ``(B, 2, H, W)``, voxels: each corner moves by at most ``shift`` of the frame along each axis."""
    corners = torch.tensor([[-0.5, -0.5], [-0.5, 0.5], [0.5, 0.5], [0.5, -0.5]])
    targets = corners + uniform(-1, 1, (batch_size, 4, 2), generator) * shift
    x, y = corners.expand(batch_size, -1, -1).unbind(-1)
    u, v = targets.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
    more = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
    solution = torch.linalg.solve(torch.cat([rows, more], 1), torch.cat([u, v], 1).unsqueeze(-1)).squeeze(-1)
    matrix = torch.cat([solution, torch.ones(batch_size, 1)], 1).view(-1, 3, 3)
    homogeneous = F.pad(unit_grid(spatial_size), (0, 1), value=1.0) @ matrix.transpose(1, 2)
    return _to_ddf(homogeneous[..., :2] / homogeneous[..., 2:], spatial_size)
