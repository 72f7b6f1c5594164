"""Random changes of grey values and of the frame, as another hospital's machine would make them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffeo.augmentation.common import uniform

__all__ = ["random_intensity"]


def random_intensity(films: Tensor, generator: torch.Generator | None = None, strength: float = 1.0) -> Tensor:
    """Random gamma, contrast, brightness, smooth shading, blur, noise and black bands at the frame, drawn for each film.

    Args:
        films: shape ``(B, C, H, W)``, values in [0, 1].
        generator: source of all random numbers.
        strength: factor on every change; 0 leaves the films as they are.

    Returns:
        Shape ``(B, C, H, W)``, values in [0, 1].
    """
    if strength == 0:
        return films
    batch, _, height, width = films.shape
    one = (batch, 1, 1, 1)
    gamma = torch.exp(uniform(-0.7, 0.7, one, generator) * strength)
    out = films.clamp(0, 1) ** gamma
    contrast = torch.exp(uniform(-0.5, 0.5, one, generator) * strength)
    out = (out - 0.5) * contrast + 0.5 + uniform(-0.15, 0.15, one, generator) * strength
    shading = F.interpolate(uniform(-1, 1, (batch, 1, 3, 3), generator), (height, width), mode="bicubic")
    out = out + 0.2 * strength * torch.rand(one, generator=generator) * shading
    blurred = F.avg_pool2d(F.pad(out, (1, 1, 1, 1), mode="replicate"), 3, 1)
    out = torch.where(torch.rand(one, generator=generator) < 0.3, blurred, out)
    noise = torch.randn(films.shape, generator=generator) * 0.05 * strength * torch.rand(one, generator=generator)
    out = (out + noise).clamp(0, 1)
    edges = uniform(0, 0.12 * strength, (batch, 4), generator) * (torch.rand(batch, 4, generator=generator) < 0.15)
    y, x = torch.linspace(0, 1, height).view(1, 1, -1, 1), torch.linspace(0, 1, width).view(1, 1, 1, -1)
    top, bottom, left, right = (e.view(one) for e in edges.unbind(1))
    inside = (y >= top) & (y <= 1 - bottom) & (x >= left) & (x <= 1 - right)
    return out * inside
