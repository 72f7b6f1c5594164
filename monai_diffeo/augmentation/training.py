"""How films are deformed and varied while networks are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from monai_diffeo.augmentation.common import uniform
from monai_diffeo.augmentation.deformations import random_homography, random_svf, tps_protocol
from monai_diffeo.augmentation.faults import random_faults
from monai_diffeo.augmentation.intensity import random_intensity
from monai_diffeo.augmentation.opacities import random_opacities
from monai_diffeo.families import DiffeomorphicAffine
from monai_diffeo.flow import compose, exp, folding_fraction, warp
from monai_diffeo.flow.grid import centered_grid
from monai_diffeo.flow.warp import resize_ddf

__all__ = ["random_framing", "random_strength_tps", "random_training_deformation", "varied_films"]


def random_training_deformation(
    batch_size: int,
    spatial_size: Sequence[int],
    generator: torch.Generator,
    identity_share: float = 0.2,
    angle: float = 45.0,
    jitter: float = 0.15,
    framing_share: float = 0.4,
    frames: tuple[float, float] = (0.85, 1.5),
    points: int | None = None,
) -> Tensor:
    """Displacements for training a predictor, shape ``(B, D, *S)``, voxels.

    Seven tenths are thin-plate splines of all strengths. The others are smooth flows after a perspective view, in space an
    affine map, or after such a spline. Some are then composed with another frame, and some are replaced by the identity.
    In the plane composed maps rarely fold. In space a displacement that folds is halved until it does not.

    Args:
        batch_size, spatial_size, generator, angle, jitter: as for :func:`tps_protocol`, of 2 or 3 axes.
        identity_share: probability that an image is not deformed.
        framing_share: probability of :func:`random_framing`.
        frames: least and largest scale of another frame.
        points: maps are drawn on at most so many points along each axis, with linear interpolation between. None draws at
            every voxel in the plane and on 24 points in space.
    """
    plane, size = len(spatial_size) == 2, tuple(spatial_size)
    points = points or (max(size) if plane else 24)
    spatial_size = tuple(min(n, points) for n in size)
    scale = torch.rand(1, generator=generator).item() * 0.35 + 0.75
    strength = torch.rand(batch_size, generator=generator).sqrt()
    tps = tps_protocol(batch_size, spatial_size, generator, strength, angle, jitter, scale, fold_free=True)
    amplitude = torch.rand(batch_size, generator=generator) * 0.08
    flow = exp(random_svf(batch_size, spatial_size, generator, amplitude, sigma=0.1), 5)
    if plane:
        view = random_homography(batch_size, spatial_size, generator, shift=0.12)
    else:
        affine = DiffeomorphicAffine(len(size))
        view = affine(affine.sample(batch_size, 0.08, generator), spatial_size).ddf(spatial_size)
    one = (batch_size, 1, *[1] * len(spatial_size))
    kind = torch.rand(one, generator=generator)
    ddf = torch.where(kind < 0.7, tps, torch.where(kind < 0.85, compose(view, flow), compose(tps, flow)))
    framed = torch.rand(one, generator=generator) < framing_share
    ddf = torch.where(framed, compose(ddf, random_framing(batch_size, spatial_size, generator, frames)), ddf)
    ddf = resize_ddf(ddf, size)
    ddf = ddf if plane else _halved_until_fold_free(ddf)
    still = torch.rand(one, generator=generator) < identity_share
    return torch.where(still, torch.zeros_like(ddf), ddf)


def _halved_until_fold_free(ddf: Tensor) -> Tensor:
    for _ in range(20):
        folded = folding_fraction(ddf) > 0
        if not folded.any():
            break
        ddf = torch.where(folded.view(-1, *[1] * (ddf.ndim - 1)), ddf / 2, ddf)
    return ddf


def random_framing(
    batch_size: int,
    spatial_size: Sequence[int],
    generator: torch.Generator | None = None,
    scales: tuple[float, float] = (0.85, 1.5),
) -> Tensor:
    """Displacements ``(B, D, *S)``, voxels, that change the frame around the anatomy, as collimation and black margins do.

    Each axis is scaled by a factor between ``scales``. It is shifted by at most the margin that this leaves on one side, or
    by 0.05 of half the frame where that is more.
    """
    dims, half = len(spatial_size), torch.tensor([(n - 1) / 2 for n in spatial_size])
    scale = uniform(*scales, (batch_size, dims), generator)
    shift = uniform(-1, 1, (batch_size, dims), generator) * ((scale - 1).clamp(min=0.05) * half)
    scale, shift = (x.view(-1, dims, *[1] * dims) for x in (scale, shift))
    return (scale - 1) * centered_grid(spatial_size) + shift


def random_strength_tps(
    batch_size: int, spatial_size: Sequence[int], generator: torch.Generator | None = None, strength: float = 1.0
) -> Tensor:
    """Displacements of :func:`tps_protocol`: half of them at ``strength``, the others at a uniform random part of it."""
    share = (2 * torch.rand(batch_size, generator=generator)).clamp(max=1)
    return tps_protocol(batch_size, spatial_size, generator, strength=share * strength)


def varied_films(
    image: Tensor,
    label: Tensor,
    generator: torch.Generator,
    strength: float | None = None,
    intensity: float = 0.0,
    framing_share: float = 0.0,
    opacities: float = 0.0,
    faults: float = 0.0,
    deformation: Callable[[int, tuple[int, ...], torch.Generator], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Films with opacities, faults, varied grey values and deformed, in this order, and their masks.

    Args:
        image: shape ``(B, C, H, W)``, values in [0, 1].
        label: masks, shape ``(B, K, H, W)``, 0 or 1.
        generator: source of all random numbers.
        strength: of :func:`random_strength_tps`; None leaves films and masks where they are.
        intensity: strength of :func:`random_intensity`.
        framing_share: share of batches that :func:`random_training_deformation` deforms instead.
        opacities: share of films with :func:`random_opacities`.
        faults: share of films with :func:`random_faults`.
        deformation: ``(B, S, generator) -> ddf`` that deforms all films; then ``strength`` and ``framing_share`` are not used.

    Returns:
        Films and masks of the same shapes, zero outside the old frame; a voxel is in a mask if more than half of it is.
    """
    if strength is None and framing_share:
        raise ValueError(f"varied_films(): 'framing_share' = {framing_share} needs a 'strength'; give 1.0, or framing_share=0.")
    if opacities:
        image = random_opacities(image, label, generator, opacities)
    if faults:
        image, label = random_faults(image, label, generator, faults)
    if intensity:
        image = random_intensity(image.cpu(), generator, intensity).to(image)
    count, size = len(image), tuple(image.shape[2:])
    if deformation is not None:
        ddf = deformation(count, size, generator).to(image)
    elif strength is None:
        return image, label
    elif framing_share and torch.rand(1, generator=generator).item() < framing_share:
        ddf = random_training_deformation(count, size, generator, identity_share=0.1).to(image)
    else:
        ddf = random_strength_tps(count, size, generator, strength).to(image)
    moved = (warp(label, ddf, padding_mode="zeros") > 0.5).to(label)
    return warp(image, ddf, padding_mode="zeros"), moved
