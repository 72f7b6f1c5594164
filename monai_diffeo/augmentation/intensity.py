"""Random changes of grey values and of the frame, as another hospital's machine would make them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffeo.augmentation.common import uniform

__all__ = ["random_intensity", "value_range"]


def random_intensity(films: Tensor, generator: torch.Generator | None = None, strength: float = 1.0) -> Tensor:
    """Random gamma, contrast, brightness, smooth shading, blur, noise and black bands at the frame, drawn for each image.

    Gamma, contrast, brightness and shading are drawn for each channel, since modalities and colours vary apart. Blur, the
    level of the noise and the bands are common to all channels.

    Args:
        films: shape ``(B, C, *S)``, of 2 or 3 axes; values in [0, 1], or any: see :func:`value_range`.
        generator: source of all random numbers.
        strength: factor on every change; 0 leaves the images as they are.

    Returns:
        Shape ``(B, C, *S)``, values in the range of the channel.
    """
    if strength == 0:
        return films
    batch, channels, *size = films.shape
    dims = len(size)
    one, each = (batch, 1, *[1] * dims), (batch, channels, *[1] * dims)
    low, width = value_range(films)
    gamma = torch.exp(uniform(-0.7, 0.7, each, generator) * strength)
    out = ((films - low) / width).clamp(0, 1) ** gamma
    contrast = torch.exp(uniform(-0.5, 0.5, each, generator) * strength)
    out = (out - 0.5) * contrast + 0.5 + uniform(-0.15, 0.15, each, generator) * strength
    coarse = uniform(-1, 1, (batch, channels, *[3] * dims), generator)
    shading = F.interpolate(coarse, size, mode="bicubic" if dims == 2 else "trilinear")
    out = out + 0.2 * strength * torch.rand(each, generator=generator) * shading
    mean = F.avg_pool2d if dims == 2 else F.avg_pool3d
    blurred = mean(F.pad(out, (1, 1) * dims, mode="replicate"), 3, 1)
    out = torch.where(torch.rand(one, generator=generator) < 0.3, blurred, out)
    noise = torch.randn(films.shape, generator=generator) * 0.05 * strength * torch.rand(one, generator=generator)
    out = (out + noise).clamp(0, 1)
    edges = uniform(0, 0.12 * strength, (batch, 2 * dims), generator)
    edges = edges * (torch.rand(batch, 2 * dims, generator=generator) < 0.15)
    for axis, n in enumerate(size):
        place = torch.linspace(0, 1, n).view(-1, *[1] * (dims - 1 - axis))
        first, last = (e.view(one) for e in edges[:, 2 * axis : 2 * axis + 2].unbind(1))
        out = out * ((place >= first) & (place <= 1 - last))
    return out * width + low


def value_range(image: Tensor) -> tuple[Tensor, Tensor]:
    """What is black in each channel of each image, and how far white is from it; each ``(B, C, 1, ...)``.

    0 and 1 for a channel that lies in [0, 1], give or take a tenth. Otherwise its own least value and its own range, so that
    Hounsfield units and standardised images are varied as they are.
    """
    axes = tuple(range(2, image.ndim))
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    other, width = (low < -0.1) | (high > 1.1), high - low
    return torch.where(other, low, 0), torch.where(other & (width > 0), width, 1)
