"""A search of an energy and on a frame of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from monai_diffeo.canonicalize.checks import check_number
from monai_diffeo.canonicalize.search import SearchObjective, minimize
from monai_diffeo.energies import Energy
from monai_diffeo.energies.base import as_energy
from monai_diffeo.errors import ShapeError
from monai_diffeo.networks.predictor import resample_image

__all__ = ["EnergySearch"]


class EnergySearch(nn.Module):
    """Adam on another energy than the canonicaliser's, on a coarser frame: a cheap energy goes far in little time.

    It is a ``search`` of a :class:`Canonicalizer`, whose ``energy`` still judges what was found.

    Args:
        energy: of images of ``image_size``, a function too, of which a frozen copy is kept.
        image_size: frame of the search, one number an axis.
        steps, learning_rate, patience: as for :class:`Canonicalizer`, whose own do not count then.

    Raises:
        ValueError: for a setting without a meaning.
    """

    def __init__(
        self,
        energy: Energy | Callable[[Tensor], Tensor],
        image_size: Sequence[int],
        steps: int = 30,
        learning_rate: float = 0.02,
        patience: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("steps", steps, 1), ("patience", patience, 1), ("learning_rate", learning_rate, 0.0)):
            check_number("EnergySearch", name, value, least, isinstance(least, int), name == "patience")
        self.energy, self.image_size = copy.deepcopy(as_energy("EnergySearch", "energy", energy)).freeze(), tuple(image_size)
        self.steps, self.learning_rate, self.patience = steps, learning_rate, patience

    def forward(self, objective: SearchObjective) -> Tensor:
        """The best parameters ``(B, P)`` of the objective's family."""
        return self.lower(objective)[0]

    def lower(self, objective: SearchObjective, progress: Callable[[int, Tensor], None] | None = None) -> tuple[Tensor, Tensor]:
        """The best parameters, and the steps of each image, see :func:`minimize`.

        Raises:
            ShapeError: if the frame of the search has another number of axes than the images.
        """
        if len(self.image_size) != objective.image.ndim - 2:
            remedy = "Give one number an axis."
            raise ShapeError("EnergySearch", "image_size", f"({objective.image.ndim - 2},)", (len(self.image_size),), remedy)
        image, start, seed = resample_image(objective.image, self.image_size), objective.start, objective.seed
        start = start and start.resized(objective.image.shape[2:], self.image_size)
        searched, limits = (objective.family, objective.regularizer, start), (self.steps, self.learning_rate, self.patience)
        return minimize(image, self.energy, *searched, *limits, seed=seed, progress=progress)
