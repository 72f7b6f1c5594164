"""How films come in: framed, zoomed, turned, occluded, over-exposed, photographed; each film always in the same way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from docs.experiments.film_data import DEFORMATIONS, Films, deform, generator_of
from monai_diffeo.augmentation import random_homography
from monai_diffeo.flow import warp
from monai_diffeo.flow.grid import centered_grid

Shown = tuple[Tensor, Tensor]  # an image and its mask, each (1, 1, H, W)
Condition = Callable[[Tensor, Tensor, torch.Generator], Shown]


def _between(low: float, high: float, draw: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=draw).item()


def _framed(image: Tensor, label: Tensor, scale: tuple[float, float], shift: tuple[float, float]) -> Shown:
    """The film seen through a frame that is ``scale`` as large along each axis, moved by ``shift`` of half its size."""
    size = image.shape[2:]
    half = torch.tensor([(n - 1) / 2 for n in size]).view(1, 2, 1, 1)
    wide, moved = (torch.tensor(values).view(1, 2, 1, 1) for values in (scale, shift))
    grid = centered_grid(size)
    shown = torch.cat([image, label], 1)
    if max(scale) > 1:  # as many voxels are averaged as become one
        radius = [max(round(max(s, 1) / 2 - 0.01), 0) for s in scale]
        shown = F.avg_pool2d(shown, [2 * r + 1 for r in radius], 1, radius, count_include_pad=False)
    shown = warp(shown, (wide - 1) * grid + moved * half, padding_mode="zeros")
    return shown[:, :1], (shown[:, 1:] > 0.5).float()


def _letter_box(image: Tensor, label: Tensor, draw: torch.Generator) -> Shown:
    scale, axis = _between(1.4, 2.0, draw), int(torch.randint(2, (), generator=draw))
    return _framed(image, label, (scale, 1.0) if axis else (1.0, scale), (0.0, 0.0))


def _small(image: Tensor, label: Tensor, draw: torch.Generator) -> Shown:
    scale = _between(1.9, 2.8, draw)
    return _framed(image, label, (scale, scale), (_between(1 - scale, scale - 1, draw), _between(1 - scale, scale - 1, draw)))


def _zoomed(image: Tensor, label: Tensor, draw: torch.Generator) -> Shown:
    scale = _between(0.65, 0.8, draw)
    return _framed(image, label, (scale, scale), (_between(-0.1, 0.1, draw), _between(-0.1, 0.1, draw)))


def _white_lung(image: Tensor, label: Tensor, draw: torch.Generator) -> Shown:
    """One hemithorax white, its edge soft; the mask stays that of both lungs."""
    columns = torch.arange(image.shape[3], dtype=torch.float32)
    middle = (label * columns).sum() / label.sum().clamp(min=1)
    right = bool(torch.rand((), generator=draw) < 0.5)
    lung = label * (columns < middle if right else columns >= middle)
    reach = round(0.05 * image.shape[3])
    for _ in range(3):
        lung = F.avg_pool2d(lung, 2 * reach + 1, 1, reach)
    cover = (3 * lung).clamp(max=1) * _between(0.85, 0.97, draw)
    return image * (1 - cover) + cover * _between(0.8, 0.95, draw), label


def _half_black(image: Tensor, label: Tensor, draw: torch.Generator) -> Shown:
    """One half is black; the mask is what can be seen of it."""
    seen = torch.zeros_like(image)
    half, side = image.shape[3] // 2, int(torch.randint(2, (), generator=draw))
    seen[..., side * half : side * half + half] = 1
    return image * seen, label * seen


def _left_half(image: Tensor, label: Tensor, draw: torch.Generator) -> Shown:
    half = [values[..., : values.shape[3] // 2] for values in (image, label)]
    wide = [F.interpolate(values, image.shape[2:], mode="bilinear") for values in half]
    return wide[0], (wide[1] > 0.5).float()


def _photographed(image: Tensor, label: Tensor, draw: torch.Generator) -> Shown:
    """A film on a light box, photographed obliquely: perspective, a grey surround, uneven light, some noise."""
    image, label = _framed(image, label, (1.15, 1.15), (0.0, 0.0))
    ddf = random_homography(1, tuple(image.shape[2:]), draw, shift=0.18)
    image, label, film = (warp(values, ddf, padding_mode="zeros") for values in (image, label, torch.ones_like(image)))
    angle, (y, x) = _between(0, 2 * math.pi, draw), centered_grid(image.shape[2:]) / image.shape[2]
    light = 1 + 0.5 * (math.cos(angle) * y + math.sin(angle) * x)
    noise = 0.02 * torch.randn(image.shape, generator=draw)
    return ((image * film + 0.6 * (1 - film)) * light + noise).clamp(0, 1), (label > 0.5).float()


def _over_exposed(image: Tensor, label: Tensor, draw: torch.Generator) -> Shown:
    """The dark end is cut off: all that is darker than a part of the range is black."""
    low = _between(0.25, 0.45, draw)
    return ((image - low) / (1 - low)).clamp(min=0), label


def _blurred(image: Tensor, label: Tensor, draw: torch.Generator) -> Shown:
    reach = round(_between(0.01, 0.02, draw) * image.shape[3])
    for _ in range(3):
        image = F.avg_pool2d(F.pad(image, (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)
    return image, label


def _noisy(image: Tensor, label: Tensor, draw: torch.Generator) -> Shown:
    return (image + _between(0.1, 0.2, draw) * torch.randn(image.shape, generator=draw)).clamp(0, 1), label


FRAMES: Mapping[str, Condition] = {"letter box": _letter_box, "small in black": _small, "zoomed": _zoomed}
FAULTS: Mapping[str, Condition] = {
    "one lung white": _white_lung,
    "half black": _half_black,
    "left half": _left_half,
    "photographed obliquely": _photographed,
    "over-exposed": _over_exposed,
    "negative": lambda image, label, draw: (1 - image, label),
    "blurred": _blurred,
    "noisy": _noisy,
}


def show(films: Films, condition: str, seed: int = 0) -> Films:
    """Films as a condition shows them: a deformation of :func:`~docs.experiments.film_data.deform`, a frame or a fault."""
    if condition in DEFORMATIONS:
        return deform(films, condition, seed)[0]
    change = {**FRAMES, **FAULTS}[condition]
    rows = zip(films.images.split(1), films.labels.split(1), films.ids)
    images, labels = zip(*(change(image, label, generator_of(f"{seed}/{condition}/{name}")) for image, label, name in rows))
    return Films(torch.cat(images), torch.cat(labels), films.ids)
