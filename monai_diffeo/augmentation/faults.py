"""Faults of films: over-exposure, a white lung, blur, noise, a part that is black."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffeo.augmentation.common import check_films_and_masks, uniform

__all__ = ["random_faults"]


def random_faults(
    films: Tensor, masks: Tensor, generator: torch.Generator | None = None, share: float = 0.3
) -> tuple[Tensor, Tensor]:
    """Films of which some have one fault, and their masks; each fault is equally likely.

    A film is over-exposed (its bright or its dark end is cut off); one of its lungs is white; it is blurred, or noisy; up to
    0.55 of it is black, from one side. The mask of a white lung stays, for its outline can be inferred from the other lung
    and the ribs. What is black is not in a mask.

    Args:
        films: shape ``(B, C, H, W)``, values in [0, 1].
        masks: lungs of the films, shape ``(B, K, H, W)``, 0 or 1.
        generator: source of all random numbers.
        share: probability of a fault; 0 leaves films and masks as they are.

    Returns:
        Films and masks of the same shapes.

    Raises:
        ShapeError: if films or masks have another shape.
    """
    check_films_and_masks("random_faults()", films, masks)
    if not share:
        return films, masks
    faulty = torch.rand(len(films), generator=generator) < share
    kind = torch.randint(len(_FAULTS), (len(films),), generator=generator)
    films, masks = films.clone(), masks.clone()
    for number, fault in enumerate(_FAULTS):
        rows = (faulty & (kind == number)).nonzero().flatten().to(films.device)
        films[rows], masks[rows] = fault(films[rows], masks[rows], generator)
    return films, masks


Fault = Callable[[Tensor, Tensor, torch.Generator | None], tuple[Tensor, Tensor]]


def _drawn(low: float, high: float, films: Tensor, generator: torch.Generator | None) -> Tensor:
    """One number for each film, ``(B, 1, 1, 1)``."""
    return uniform(low, high, (len(films), 1, 1, 1), generator).to(films)


def _over_exposed(films: Tensor, masks: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    width = _drawn(0.4, 0.8, films, generator)
    low = torch.where(_drawn(0, 1, films, generator) < 0.5, 0.0, 1 - width)
    return ((films - low) / width).clamp(0, 1), masks


def _white_lung(films: Tensor, masks: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Masks on one side of their middle column whitened with all that lies around, so that no edge is left."""
    lungs = (masks > 0.5).any(1, keepdim=True).to(films)
    columns = torch.arange(films.shape[3], dtype=films.dtype, device=films.device)
    middle = (lungs * columns).sum((2, 3), keepdim=True) / lungs.sum((2, 3), keepdim=True).clamp(min=1)
    right = _drawn(0, 1, films, generator) < 0.5
    side = lungs * torch.where(right, columns < middle, columns >= middle)
    soft = (_smoothed(side, 0.2) * 4).clamp(max=1) * _drawn(0.7, 1, films, generator)
    return films * (1 - soft) + soft * _drawn(0.7, 1, films, generator), masks


def _blurred(films: Tensor, masks: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    share = _drawn(0, 1, films, generator)
    return (1 - share) * _smoothed(films, 0.02) + share * _smoothed(films, 0.045), masks


def _noisy(films: Tensor, masks: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    noise = torch.randn(films.shape, generator=generator).to(films)
    return (films + noise * _drawn(0.05, 0.2, films, generator)).clamp(0, 1), masks


def _part_black(films: Tensor, masks: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """From one of the four sides."""
    share, side = _drawn(0.2, 0.55, films, generator), torch.randint(4, (len(films), 1, 1, 1), generator=generator)
    rows, columns = (torch.linspace(0, 1, n, device=films.device) for n in films.shape[2:])
    place = torch.where(side.to(films.device) < 2, rows[:, None], columns)
    seen = torch.where(side.to(films.device) % 2 == 0, place, 1 - place) > share
    return films * seen, masks * seen


_FAULTS: tuple[Fault, ...] = (_over_exposed, _white_lung, _blurred, _noisy, _part_black)


def _smoothed(films: Tensor, width: float) -> Tensor:
    """Three moving means, each over about ``width`` of the shorter side, in rows and columns."""
    reach = max(1, round(width * min(films.shape[2:]) / 2))
    for _ in range(3):
        films = F.avg_pool2d(F.pad(films, (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)
    return films
