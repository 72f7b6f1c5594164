"""Bright shadows over lungs, like those of consolidation, effusion or a large heart."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monai_diffeo.augmentation.common import check_films_and_masks, uniform, unit_grid

__all__ = ["random_opacities"]


def random_opacities(
    films: Tensor, masks: Tensor, generator: torch.Generator | None = None, share: float = 0.5, most: int = 3
) -> Tensor:
    """Films with opacities over some lungs; the masks stay as they are.

    A network trained on them must know where a lung ends that it cannot see. Each opacity is an ellipse around a point of a
    mask. Its axes measure a sixteenth to seven tenths of the frame; its edge is soft or sharp. It is partly transparent, and
    it darkens nothing.

    Args:
        films: shape ``(B, C, H, W)``, floating point, values in [0, 1].
        masks: lungs of the films, shape ``(B, K, H, W)``, 0 or 1; films with empty masks stay as they are.
        generator: source of all random numbers.
        share: probability that a film gets opacities; 0 leaves the films as they are.
        most: largest number of opacities on a film; every number from 1 to ``most`` is equally likely.

    Returns:
        Shape ``(B, C, H, W)``, values in [0, 1].

    Raises:
        ShapeError: if films or masks have another shape.
        ValueError: if ``most`` is less than 1, or the films hold integers.
    """
    check_films_and_masks("random_opacities()", films, masks)
    if most < 1 or not films.is_floating_point():
        expected = "'most' of at least 1 and floating point films in [0, 1]"
        raise ValueError(f"random_opacities(): expected {expected}, got {most} and {films.dtype}.")
    if not share:
        return films
    batch, size, one = len(films), tuple(films.shape[2:]), (len(films), 1, 1, 1)
    shown = torch.rand(batch, generator=generator) < share
    count = torch.randint(1, most + 1, (batch,), generator=generator) * shown
    points = unit_grid(size)
    inside = (masks > 0.5).any(1).flatten(1).float().cpu()
    count, out = count * (inside.sum(1) > 0), films.clone()
    for k in range(most):
        at = torch.multinomial(inside + (inside.sum(1, keepdim=True) == 0), 1, generator=generator).squeeze(1)
        lengths = torch.exp(uniform(math.log(0.125), math.log(1.4), (batch, 2, 1, 1), generator)) / 2
        angle = uniform(0, math.pi, (batch, 1, 1), generator)
        softness = torch.exp(uniform(math.log(0.03), math.log(0.4), one, generator))
        weight, brightness = (uniform(low, 1.0, one, generator) for low in (0.4, 0.5))
        rows = (k < count).nonzero().flatten()  # only films that get one more are computed
        away = (points.T - points[at[rows]][..., None]).unflatten(2, size)
        (y, x), cos, sin = away.unbind(1), angle[rows].cos(), angle[rows].sin()
        along = torch.stack([y * cos + x * sin, x * cos - y * sin], 1)
        radius = (along / (lengths[rows] / 2)).norm(dim=1, keepdim=True)
        cover = (weight[rows] * torch.sigmoid((1 - radius) / softness[rows])).to(films)
        out[rows] += cover * (brightness[rows].to(films) - out[rows]).clamp(min=0)
    return out
