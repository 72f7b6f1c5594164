"""Bright shadows over lungs, as consolidation, effusion or a large heart would throw them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monai_diffeo.augmentation.deformations import _unit_grid
from monai_diffeo.augmentation.intensity import _uniform
from monai_diffeo.errors import ShapeError

__all__ = ["random_opacities"]


def random_opacities(
    films: Tensor, masks: Tensor, generator: torch.Generator | None = None, share: float = 0.5, most: int = 3
) -> Tensor:
    """Films with opacities over some lungs, while the masks stay what they are: whoever segments them must know where a lung that cannot
    be seen ends.

    Each is an ellipse around a point of a mask, a sixteenth to seven tenths of the frame long and wide, of a soft or of a sharp edge; it lets
    what lies beneath shine through more or less, and darkens nothing.

    Args:
        films: shape ``(B, C, H, W)``, floating point, values in [0, 1].
        masks: of their lungs, shape ``(B, K, H, W)``, 0 or 1; films without any stay as they are.
        generator: source of all random numbers.
        share: of the films that get opacities; 0 leaves the films as they are.
        most: opacities on a film; from one on, all counts alike often.

    Returns:
        Shape ``(B, C, H, W)``, values in [0, 1].

    Raises:
        ShapeError: if films or masks have another shape.
        ValueError: if ``most`` is less than 1, or the films hold integers.
    """
    if films.ndim != 4:
        raise ShapeError(
            "random_opacities()", "films", "(B, C, H, W)", films.shape, "Opacities are made for films, not for volumes."
        )
    if masks.ndim != 4 or len(masks) != len(films) or masks.shape[2:] != films.shape[2:]:
        raise ShapeError("random_opacities()", "masks", f"({len(films)}, K, {films.shape[2]}, {films.shape[3]})", masks.shape)
    if most < 1 or not films.is_floating_point():
        raise ValueError(
            f"random_opacities(): 'most' must be at least 1 and films floating point in [0, 1], got {most} and {films.dtype}."
        )
    if not share:
        return films
    batch, size = len(films), tuple(films.shape[2:])
    shown = torch.rand(batch, generator=generator) < share
    count = torch.randint(1, most + 1, (batch,), generator=generator) * shown
    points = _unit_grid(size)
    inside = (masks > 0.5).any(1).flatten(1).float().cpu()
    count = count * (inside.sum(1) > 0)
    out = films
    for k in range(most):
        at = torch.multinomial(inside + (inside.sum(1, keepdim=True) == 0), 1, generator=generator).squeeze(1)
        away = (points.T - points[at][..., None]).unflatten(2, size)
        lengths = torch.exp(_uniform(math.log(0.125), math.log(1.4), (batch, 2, 1, 1), generator)) / 2
        angle = _uniform(0, math.pi, (batch, 1, 1), generator)
        along = torch.stack(
            [away[:, 0] * angle.cos() + away[:, 1] * angle.sin(), away[:, 1] * angle.cos() - away[:, 0] * angle.sin()], 1
        )
        radius = (along / (lengths / 2)).norm(dim=1, keepdim=True)
        one = (batch, 1, 1, 1)
        softness = torch.exp(_uniform(math.log(0.03), math.log(0.4), one, generator))
        weight = _uniform(0.4, 1.0, one, generator) * torch.sigmoid((1 - radius) / softness)
        brightness = _uniform(0.5, 1.0, one, generator)
        weight = (weight * (k < count).view(one)).to(films)
        out = out + weight * (brightness.to(films) - out).clamp(min=0)
    return out
