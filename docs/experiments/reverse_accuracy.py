"""Reverse classification accuracy: how well a film's predicted mask, as the only atlas, segments films with known masks.

Written from Valindria et al. (2017), https://doi.org/10.1109/TMI.2017.2665165. The best Dice over films with known masks is
the expected Dice of the prediction. Here canonical coordinates register the films: the mask goes from its film to the canonical
film, and from there to each film with a known mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from docs.experiments.measures import dice_of
from monai_diffeo.flow import warp


def reverse_accuracy(film: Mapping[str, Any], atlases: Sequence[Mapping[str, Any]]) -> float:
    """The best Dice of the carried mask over films with known masks; rows of :func:`docs.experiments.trust_films.row_of`."""
    mask = warp((film["prediction"][None] > 0).float(), film["ddf"][None].float(), centered=True)
    carried = [warp(mask, row["inverse_ddf"][None].float(), centered=True) > 0.5 for row in atlases]
    return max(dice_of(own.float(), (row["label"][None] > 0.5).float()).item() for own, row in zip(carried, atlases))
