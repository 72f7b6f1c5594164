"""Energies on one scale, and their weighted sum with names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from monai_diffeo.energies.base import Energy, as_energy

__all__ = ["StandardizedEnergy", "WeightedEnergy"]


class StandardizedEnergy(Energy):
    """An energy in units of the training films: 0 is their mean, 1 their spread, so that weights mean the same everywhere.

    Args:
        energy: any energy; it is shared with the caller, not copied. A function is one too, see :class:`FunctionEnergy`.
        mean: of the energy on the training films.
        std: its spread there, larger than 0.
    """

    computes_double = True

    def __init__(self, energy: Energy | Callable[[Tensor], Tensor], mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        if not (0 < std < float("inf") and abs(mean) < float("inf")):
            raise ValueError(
                f"StandardizedEnergy: 'std' must be larger than 0 and both numbers finite, got std={std}, mean={mean}. "
                "Measure them on the training films."
            )
        self.energy = as_energy("StandardizedEnergy", "energy", energy)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))
        self.train(False)

    def forward(self, image: Tensor) -> Tensor:
        return (self.energy(image) - self.mean) / self.std

    def unscaled(self, value: Tensor) -> Tensor:
        """What the energy itself gave where this one gave ``value``."""
        return value * self.std + self.mean


class WeightedEnergy(Energy):
    """Weighted sum of named energies; :meth:`terms` gives each by itself. The energies are shared with the caller, not copied.

    Args:
        energies: by name; functions too, see :class:`FunctionEnergy`.
        weights: by the same names; a missing name weighs 1, a weight of 0 leaves the term out.
        level: if given, every term counts only as far as it exceeds this level (in its own, standardised, unit). Training
            films themselves lie around 0; to minimise past their level eats the anatomy.

    Raises:
        ValueError: for a weight without an energy.
    """

    computes_double = True

    def __init__(
        self,
        energies: Mapping[str, Energy | Callable[[Tensor], Tensor]],
        weights: Mapping[str, float] | None = None,
        level: float | None = None,
    ) -> None:
        super().__init__()
        if unknown := set(weights or {}) - set(energies):
            raise ValueError(f"WeightedEnergy: weights name {sorted(unknown)}, but the energies are {sorted(energies)}.")
        self.energies = nn.ModuleDict({name: as_energy("WeightedEnergy", name, energy) for name, energy in energies.items()})
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in energies}
        self.level = level
        self.train(False)

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        """Each energy with weight, unweighted, shape ``(B,)``."""
        return {name: energy(image) for name, energy in self.energies.items() if self.weights[name]}

    def evaluate(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        total, terms = image.new_zeros(image.shape[0]), self.terms(image)
        for name, value in terms.items():
            total = total + self.weights[name] * (value if self.level is None else torch.relu(value - self.level))
        return total, terms

    def known_value(self, part: Energy, terms: Mapping[str, Tensor]) -> Tensor | None:
        for name, energy in self.energies.items():
            if name in terms and energy is part:
                return terms[name]
            if name in terms and isinstance(energy, StandardizedEnergy) and energy.energy is part:
                return energy.unscaled(terms[name])
        return None

    def forward(self, image: Tensor) -> Tensor:
        return self.evaluate(image)[0]
