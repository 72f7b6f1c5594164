"""What a canonicaliser consists of: for each part its network, its training step, and its place in ``canonicalizer.json``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from monai_diffeo.training import CriticStep, OrientationStep, PredictorStep, VAEStep

__all__ = ["Part", "folder_settings", "parts_of", "working_size_of"]

_LONGEST = {2: 128, 3: 64}  # voxels of the working size
_MULTIPLE = 16


def working_size_of(frame: Sequence[int]) -> tuple[int, ...]:
    """Working size of images of a frame: its proportions, the longest side 128 (2D) or 64 (3D), multiples of 16."""
    longest = min(_LONGEST[len(frame)], max(frame))
    return tuple(max(_MULTIPLE * round(n * longest / max(frame) / _MULTIPLE), 2 * _MULTIPLE) for n in frame)


@dataclass(frozen=True)
class Part:
    """One network and how it is trained.

    Attributes:
        name: of the part and of its file.
        share: of the time for training.
        config: of the network, as in ``canonicalizer.json``.
        size: to which the images are resampled before training.
        batch_size, rate: of the training; the rate is the largest of a cycle.
        step: ``seed -> (network, batch) -> losses``.
    """

    name: str
    share: float
    config: Mapping[str, Any]
    size: tuple[int, ...]
    batch_size: int
    rate: float
    step: Callable[[int], Any]

    def build(self) -> nn.Module:
        """The network, untrained."""
        return built(self.config)


def built(config: Mapping[str, Any]) -> Any:
    """What a configuration describes."""
    return ConfigParser({"object": dict(config)}).get_parsed_content("object")


def parts_of(dims: int, channels: int, size: tuple[int, ...]) -> list[Part]:
    """The parts for images of a number of axes and channels, at a working size."""
    family = built(_family(dims))
    half = tuple(max(n // 2, 16) for n in size)
    square = (64, 64) if dims == 2 else (32, 32, 32)
    batch, room = (16, "monai_diffeo.networks") if dims == 2 else (4, "monai_diffeo.networks")
    both = {"spatial_dims": dims, "in_channels": channels}
    predictor = {"_target_": f"{room}.DeformationPredictor", "num_parameters": family.num_parameters, **both}
    predictor |= {"image_size": list(half), "channels": [32, 64, 128]}
    depth = min(4, *(int(math.log2(n & -n)) for n in size))
    vae = {"_target_": f"{room}.EnergyVAE", **both, "image_size": list(size), "channels": [16, 32, 64, 64][:depth]}
    critic = {"_target_": f"{room}.EnergyCritic", **both, "stride": 2 if dims == 2 else 4, "layers": 6 if dims == 2 else 4}
    orientation = {"_target_": f"{room}.ImageOrientation", **both, "image_size": list(square)}
    return [
        Part("predictor", 0.6, predictor, half, batch, 2e-3, lambda seed: PredictorStep(family, seed=seed)),
        Part("orientation", 0.15, orientation, square, batch, 1e-3, lambda seed: OrientationStep(square, 1.5, seed)),
        Part("vae", 0.15, vae, size, batch, 1e-3, lambda seed: VAEStep(seed=seed)),
        Part("critic", 0.1, critic, size, batch // 2, 1e-3, lambda seed: CriticStep(seed=seed)),
    ]


def _family(dims: int) -> dict[str, Any]:
    return {"_target_": "monai_diffeo.families.ControlGrid", "spatial_dims": dims, "controls": {2: 10, 3: 6}[dims], "steps": 5}


def folder_settings(dims: int, size: Sequence[int], parts: Sequence[Part]) -> dict[str, Any]:
    """The content of ``canonicalizer.json``, with the modes ``single_pass`` and ``refine``."""
    names = [part.name for part in parts]
    energies: dict[str, Any] = {
        "vae": {"_target_": "monai_diffeo.energies.VAEEnergy", "vae": "@networks::vae"},
        "critic": {"_target_": "monai_diffeo.energies.CriticEnergy", "critic": "@networks::critic"},
        "motion": {
            "_target_": "monai_diffeo.energies.ResidualDeformationEnergy",
            "predictor": "@networks::predictor",
            "family": "@families::control_grid",
        },
    }
    single = {
        "family": "@families::control_grid",
        "predictor": "@networks::predictor",
        **({"orientation": "@networks::orientation"} if "orientation" in names else {}),
        "working_size": list(size),
        "iterations": 3,
        "tta_samples": 8,
        "steps": 0,
        "energies": dict.fromkeys(energies, 1.0),
        "max_energy_increase": 2.0,
        "ood_threshold": 50.0,
    }
    search = {"steps": 30, "learning_rate": 0.01, "patience": 10, "level": 0.0}
    return {
        "default_mode": "single_pass",
        "families": {"control_grid": {**_family(dims), "steps": 7}},
        "networks": {part.name: dict(part.config) for part in parts},
        "weights": {name: f"{name}.pt" for name in names},
        "energies": energies,
        "modes": {
            "single_pass": single,
            "refine": {**single, **search, "regularizer": {"smooth": 100.0, "orientation": 10.0}},
        },
    }
