"""Reverse classification accuracy: how well a film's predicted mask, as the only atlas, segments films with known masks.

Written from Valindria et al. (2017), https://doi.org/10.1109/TMI.2017.2665165: the best Dice over many films with known
masks is the expected Dice of the prediction. Here both films are canonicalised and then registered by SimpleITK's demons. The
mask goes from film to canonical film, to canonical reference, to reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from docs.experiments.measures import dice_of
from monai_diffeo.flow import warp

_ITERATIONS, _SMOOTHING = 20, 1.5  # of demons, at 128 x 128


def demons(fixed: Tensor, moving: Tensor) -> Tensor:
    """Displacements ``(1, 2, H, W)`` that take points of ``fixed`` to those of ``moving``, both images ``(1, 1, H, W)``."""
    import SimpleITK as sitk

    one, other = (sitk.GetImageFromArray(image[0, 0].float().numpy()) for image in (fixed, moving))
    other = sitk.HistogramMatching(other, one, 256, 15)
    search = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    search.SetNumberOfIterations(_ITERATIONS)
    search.SetStandardDeviations(_SMOOTHING)
    field = sitk.GetArrayFromImage(search.Execute(one, other))  # (H, W, 2), x before y
    return torch.from_numpy(field).flip(-1).movedim(-1, 0)[None].float()


def reverse_accuracy(film: Mapping[str, Any], references: Sequence[Mapping[str, Any]], registered: bool = True) -> float:
    """The best Dice of the carried mask over references; rows of :func:`docs.experiments.trust_films.row_of`."""
    read = lambda row, name: row[name][None].float()  # noqa: E731
    mask = warp((read(film, "prediction") > 0).float(), read(film, "ddf"), centered=True)
    found = []
    for row in references:
        moved = warp(mask, demons(read(row, "canonical"), read(film, "canonical"))) if registered else mask
        answer = warp(moved, read(row, "inverse_ddf"), centered=True) > 0.5
        found.append(dice_of(answer.float(), (read(row, "label") > 0.5).float()).item())
    return max(found)
