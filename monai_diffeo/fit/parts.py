"""What a canonicaliser consists of: for each part its network, its training step, and its place in ``canonicalizer.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from monai.bundle import ConfigParser

from monai_diffeo.augmentation import random_training_deformation
from monai_diffeo.training import CriticStep, OrientationStep, PredictorStep, VAEStep

__all__ = [
    "ATLAS", "REFINE", "SINGLE_PASS", "FitPart", "atlas_settings", "built", "folder_settings", "parts_of", "predictor_size",
    "working_size_of",
]  # fmt: skip

SINGLE_PASS, REFINE = "single_pass", "refine"
ATLAS = "atlas"
_LONGEST = {2: 128, 3: 64}  # voxels of the working size


def working_size_of(frame: Sequence[int]) -> tuple[int, ...]:
    """Working size of images of a frame: its proportions, the longest side 128 (2D) or 64 (3D), multiples of 16."""
    longest = min(_LONGEST[len(frame)], max(frame))
    return tuple(max(16 * round(n * longest / max(frame) / 16), 32) for n in frame)


def predictor_size(working_size: Sequence[int]) -> tuple[int, ...]:
    """At which the predictor learns: half of the working size, in space about a third. There many steps teach more than fine
    images do."""
    plane = len(working_size) == 2
    return tuple(n // 2 if plane else max(8 * round(n / 24), 16) for n in working_size)


@dataclass(frozen=True)
class FitPart:
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

    def build(self) -> Any:
        """The network, untrained."""
        return built(self.config)


def built(config: Mapping[str, Any]) -> Any:
    """What a configuration describes."""
    return ConfigParser({"object": dict(config)}).get_parsed_content("object")


def _family(dims: int, steps: int) -> dict[str, Any]:
    controls = {2: 10, 3: 4}[dims]  # 6 in space: energies fall as far, answers gain less
    return {"_target_": "monai_diffeo.families.ControlGrid", "spatial_dims": dims, "controls": controls, "steps": steps}


def parts_of(dims: int, channels: int, size: tuple[int, ...]) -> list[FitPart]:
    """The parts for images of a number of axes and channels, at a working size."""
    family, plane = built(_family(dims, 5)), dims == 2
    looks = 2 if plane else 1  # in space there is time for few steps, and twice as many of these teach more
    quick = family if plane else built({**_family(dims, 5), "spacing": 2})  # so do coarse maps: a step takes half of its time
    drawn = partial(random_training_deformation, points=None if plane else 12)
    shares = (0.6, 0.15, 0.15, 0.1) if plane else (0.75, 0.12, 0.08, 0.05)
    seen, cube, batch = predictor_size(size), (64, 64) if plane else (32, 32, 32), 16 if plane else 4

    def config(network: str, **settings: Any) -> dict[str, Any]:
        return {"_target_": f"monai_diffeo.networks.{network}", "spatial_dims": dims, "in_channels": channels, **settings}

    rate, copies = (1e-3, 1) if plane else (3e-3, 12)  # 24 rotations need more than 4
    orientation = rate, lambda seed: OrientationStep(cube, 1.5, seed, copies)
    count, shape = {"num_parameters": family.num_parameters}, {"image_size": list(seen)}
    predictor = config("DeformationPredictor", **count, **shape, channels=[32, 64, 128])
    vae = config("EnergyVAE", image_size=list(size), channels=[16, 32, 64, 64])
    critic = config("EnergyCritic", **({"stride": 2} if plane else {"stride": 4, "layers": 4}))

    def moving(seed: int) -> PredictorStep:
        return PredictorStep(quick, seed=seed, iterations=looks, deformation=drawn)

    return [
        FitPart("predictor", shares[0], predictor, seen, batch, 2e-3, moving),
        FitPart("orientation", shares[1], config("ImageOrientation"), cube, batch, *orientation),
        FitPart("vae", shares[2], vae, size, batch, 1e-3, lambda seed: VAEStep(seed=seed)),
        FitPart("critic", shares[3], critic, size, batch // 2, 1e-3, lambda seed: CriticStep(seed=seed)),
    ]


def folder_settings(dims: int, size: Sequence[int], parts: Sequence[FitPart]) -> dict[str, Any]:
    """The content of ``canonicalizer.json``, with the mode ``single_pass``; :func:`atlas_settings` adds ``refine``."""
    names, kinds = [part.name for part in parts], {"vae": "VAEEnergy", "critic": "CriticEnergy"}
    used: dict[str, Any] = {name: f"@networks::{name}" for name in ("predictor", "orientation") if name in names}
    motion = {"predictor": used["predictor"], "family": "@families::control_grid"}
    energies = {name: {"_target_": f"monai_diffeo.energies.{kind}", name: f"@networks::{name}"} for name, kind in kinds.items()}
    energies["motion"] = {"_target_": "monai_diffeo.energies.ResidualDeformationEnergy", **motion}
    single: dict[str, Any] = {
        "family": motion["family"],
        **used,
        "working_size": list(size),
        "iterations": 3 if dims == 2 else 2,
        "tta_samples": 8 if dims == 2 else 1,  # small parts of volumes blur, and networks are slow
        "steps": 0,
    }
    single |= {"energies": dict.fromkeys(energies, 1.0), "max_energy_increase": 2.0, "ood_threshold": 50.0}
    return {
        "default_mode": SINGLE_PASS,
        "families": {"control_grid": _family(dims, 7)},
        "networks": {part.name: dict(part.config) for part in parts},
        "weights": {name: f"{name}.pt" for name in names},
        "energies": energies,
        "modes": {SINGLE_PASS: single},
    }


def atlas_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``canonicalizer.json`` with an atlas of half the working size, towards which the mode ``refine`` moves.

    Chosen on images of no test. In space fewer steps or a weaker cost gain less, finer control points or other windows nothing.
    In the plane images differ more from their mean: a higher cost keeps them from what the network does not know.
    """
    family, single = settings["families"]["control_grid"], settings["modes"][SINGLE_PASS]
    plane = family["spatial_dims"] == 2
    fine, window, steps, smooth = ({"steps": 4}, 9, 10, 3.0) if plane else ({"controls": 6, "steps": 5}, 5, 40, 0.3)
    shape: dict[str, Any] = {"image_size": [n // 2 for n in single["working_size"]]}
    network = {"_target_": "monai_diffeo.networks.ImageAtlas", **shape}
    network["in_channels"] = settings["networks"]["predictor"].get("in_channels", 1)
    energy = {"_target_": "monai_diffeo.energies.AtlasEnergy", "atlas": f"@networks::{ATLAS}", "window": window}
    search = {"_target_": "monai_diffeo.canonicalize.EnergySearch", "energy": f"@energies::{ATLAS}", **shape}
    search |= {"steps": steps, "learning_rate": 0.02}
    cost = {"smooth": smooth, "orientation": 0.0}
    refine = {**single, "search_family": "@families::search_grid", "search": search, "regularizer": cost}
    return {
        **settings,
        "families": {**settings["families"], "search_grid": {**family, **fine}},
        "networks": {**settings["networks"], ATLAS: network},
        "weights": {**settings["weights"], ATLAS: f"{ATLAS}.pt"},
        "energies": {**settings["energies"], ATLAS: energy},
        "modes": {**settings["modes"], REFINE: refine},
    }
