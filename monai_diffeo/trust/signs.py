"""What can be measured on a film and its answers without knowing the right one. In every sign, more is worse; 0 is the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffeo.canonicalize.limits import LIMITED_SIGNS
from monai_diffeo.flow.grid import axis_numbers, centered_grid
from monai_diffeo.inferers import DiffeoResult
from monai_diffeo.inferers.aggregation import mask_dice
from monai_diffeo.trust.shapes import shape_numbers

__all__ = ["SIGNS", "References", "film_signs"]

SIGNS: Mapping[str, str] = {
    "energy": "the canonical film is unlike the training films",
    "energy_before": "the film as it came is unlike the training films",
    "likeness": "the canonical film does not look like a chest film",
    "outlier": "to the outlier detector, the film looks less like a chest film than others do",
    "disagreement": LIMITED_SIGNS["disagreement"],
    "search_disagreement": "the answers from poses around the canonical one disagree",
    "search_change": "the answers on the deformed and on the given film differ",
    "change": LIMITED_SIGNS["change"],
    "second": "another kind of network gives another answer",
    "whole": "much of the lungs is hidden: answers for the visible and for the whole lungs differ",
    "blur": "the edges of the answer are uncertain",
    "shape": "the mask is not shaped like lungs of the training films, neither in the canonical pose nor as it came",
    "parts": "the mask has parts beside two lungs",
    "displacement": "the film had to be moved far",
    "lost": "a part of the film left the frame",
    "inverse_error": "the way back is inexact",
}
"""Every sign by its name, with the sentence that the report says of a film where it is high."""

_FLOOR = 1e-6  # variance that a number of a shape has at least


@dataclass(frozen=True)
class References:
    """What training films look like.

    Attributes:
        film: mean of the standardised films, shape ``(h, w)``.
        shape_mean, shape_precision: of :func:`shape_numbers` of their masks, ``(n,)`` and ``(n, n)``.
    """

    film: Tensor
    shape_mean: Tensor
    shape_precision: Tensor

    @classmethod
    def of(cls, films: Tensor, masks: Tensor, size: tuple[int, int] = (16, 16)) -> References:
        """References of training films and masks, both ``(N, 1, H, W)``, N more than the numbers of a shape."""
        numbers = shape_numbers(masks[:, 0])[0]
        numbers = numbers[numbers.isfinite().all(1)]
        spread = numbers.T.cov() + _FLOOR * torch.eye(numbers.shape[1]).double()
        return cls(_small(films, size).mean(0)[0], numbers.mean(0), torch.linalg.inv(spread))


def film_signs(
    result: DiffeoResult,
    references: References,
    second: Tensor | None = None,
    whole: Tensor | None = None,
    outlier: Tensor | None = None,
) -> dict[str, Tensor]:
    """The signs of films, each ``(B,)``, float64, at least 0; NaN for what is unknown of a film, absent what was not asked.

    Args:
        result: of the inferer, with the ``plain`` prediction; predictions are logits ``(B, 1, H, W)``.
        references: see :class:`References`.
        second: prediction of another kind of network, logits ``(B, 1, H, W)``.
        whole: prediction of the whole organs, where ``result`` is that of what can be seen of them, logits ``(B, 1, H, W)``.
        outlier: log-odds by an outlier detector, ``(B,)``.

    Raises:
        ValueError: if ``result`` has no canonicalisation.
    """
    found, given = result.searched, result.canonicalization
    if found is None or given is None:
        raise ValueError("film_signs(): 'result' must have a canonicalization, got None. Switch the inferer on.")
    logits = torch.as_tensor(result.prediction).double()
    mask = logits > 0
    signs = {"energy": found.energy_after, "energy_before": found.energy_before}
    signs["likeness"] = 1 - (_small(found.image, references.film.shape).cpu() * references.film).mean((1, 2, 3))
    for name, one in (("disagreement", given), ("search_disagreement", found)):
        if one.agreement is not None:
            signs[name] = 1 - one.agreement
    for name, other in (("change", result.plain), ("search_change", result.unchosen), ("second", second), ("whole", whole)):
        if other is not None:
            signs[name] = 1 - mask_dice(mask, torch.as_tensor(other) > 0)
    if outlier is not None:
        signs["outlier"] = F.softplus(outlier.double())
    spread = torch.sigmoid(logits)
    signs["blur"] = (4 * spread * (1 - spread)).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)
    poses = [_shape(one.warp_input(mask.float())[:, 0] > 0.5, references) for one in (found, given)]
    signs["shape"], signs["parts"] = (torch.minimum(*pair) for pair in zip(*poses))
    signs["displacement"] = found.largest_displacement / max(min(found.ddf.shape[2:]) - 1, 1)
    signs["lost"] = torch.maximum(_outside(found.ddf, found.inverse_ddf), _outside(found.inverse_ddf, found.ddf))
    signs["inverse_error"] = found.inverse_error
    return {name: value.detach().cpu().double().clamp(min=0) for name, value in signs.items()}


def _small(films: Tensor, size: tuple[int, ...]) -> Tensor:
    """Films ``(B, 1, H, W)`` on a small frame, each with mean 0 and spread 1."""
    films = F.interpolate(torch.as_tensor(films).float(), tuple(size), mode="bilinear", antialias=True).double()
    films = films - films.mean((1, 2, 3), keepdim=True)
    return films / films.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6)


def _shape(mask: Tensor, references: References) -> tuple[Tensor, Tensor]:
    """Distance of the shapes of masks ``(B, H, W)`` from the references, in spreads, and the share beside two parts."""
    numbers, rest = shape_numbers(mask)
    off = (numbers - references.shape_mean).nan_to_num(1e3)
    return torch.einsum("bi,ij,bj->b", off, references.shape_precision, off).clamp(min=0).sqrt(), rest


def _outside(ddf: Tensor, frame: Tensor) -> Tensor:
    """Share of the voxels whose place ``x + ddf(x)`` lies outside of the frame of another field, ``(B,)``."""
    where = (centered_grid(ddf.shape[2:], ddf.device, ddf.dtype) + ddf).abs()
    edge = axis_numbers(((n - 1) / 2 + 0.5 for n in frame.shape[2:]), ddf).view(-1, *[1] * (ddf.ndim - 2))
    return (where > edge).any(1).double().flatten(1).mean(1)
