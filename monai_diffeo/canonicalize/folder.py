"""A trained canonicaliser in a folder: ``canonicalizer.json``, ``statistics.json`` and one file of weights a network."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffeo.canonicalize.canonicalizer import Canonicalizer
from monai_diffeo.energies import (
    CriticEnergy,
    DeformationRegularizer,
    Energy,
    ResidualDeformationEnergy,
    StandardizedEnergy,
    VAEEnergy,
    WeightedEnergy,
)
from monai_diffeo.errors import WeightsError
from monai_diffeo.families import ControlGrid, Siren, VelocityFamily
from monai_diffeo.networks import DeformationPredictor, EnergyCritic, EnergyVAE, FilmOrientation, load_weights

__all__ = ["fit_statistics", "load_canonicalizer"]

NETWORKS = {"vae": EnergyVAE, "critic": EnergyCritic, "predictor": DeformationPredictor, "orientation": FilmOrientation}
FAMILIES = {"control_grid": ControlGrid, "siren": Siren}


def load_canonicalizer(
    folder: str | Path, mode: str | None = None, device: str | torch.device = "cpu", **changes: Any
) -> Canonicalizer:
    """Build the canonicaliser of a folder; networks are loaded strictly, weights only, once for each file.

    Args:
        folder: with ``canonicalizer.json``, ``statistics.json`` and the weights they name.
        mode: one of the file's modes (``"single_pass"``, ``"refine"``, ``"faithful"``); None takes its default.
        device: where the networks go.
        changes: settings of :class:`Canonicalizer` to use in place of the file's, such as ``steps`` or ``progress``.

    Raises:
        WeightsError: if a file is missing or does not fit.
        ValueError: if there is no such mode.
    """
    folder = Path(folder)
    settings = _read(folder / "canonicalizer.json")
    mode = settings["default_mode"] if mode is None else str(mode)
    if mode not in settings["modes"]:
        raise ValueError(f"load_canonicalizer(): no mode {mode!r} in {folder.name}; it has {sorted(settings['modes'])}.")
    chosen = {**settings["modes"][mode], **changes}
    families = {name: _family(arguments) for name, arguments in settings["families"].items()}
    predictor_name = chosen.pop("predictor", None)
    predictor = None if predictor_name is None else _network(folder, settings, predictor_name, families)
    orientation = chosen.pop("orientation", None)
    if orientation is not None:
        chosen["orientation"] = _network(folder, settings, orientation, families)
    statistics = _read(folder / "statistics.json") if chosen.pop("standardize", True) else {}
    weights = chosen.pop("energies")
    energies = {name: _energy(folder, settings, name, families, statistics) for name in weights}
    search_family = families[chosen.pop("search_family", chosen["family"])]
    regularizer = DeformationRegularizer(**chosen.pop("regularizer", {}))
    canonicalizer = Canonicalizer(
        energy=WeightedEnergy(energies, weights, level=chosen.pop("level", None)),
        family=families[chosen.pop("family")],
        search_family=search_family,
        regularizer=regularizer,
        predictor=predictor,
        **chosen,
    )
    return canonicalizer.to(device)


def fit_statistics(folder: str | Path, images: Iterable[Tensor]) -> dict[str, dict[str, float]]:
    """Measure every energy that a mode of a folder standardises on training images, and write its mean and
    spread to ``statistics.json``.

    Mean and spread are the median and 1.4826 times the median absolute deviation, which a few odd films do not move.

    Args:
        folder: as for :func:`load_canonicalizer`.
        images: batches ``(B, C, *S)`` of training images, undeformed.
    """
    folder = Path(folder)
    settings = _read(folder / "canonicalizer.json")
    families = {name: _family(arguments) for name, arguments in settings["families"].items()}
    standardized = [mode for mode in settings["modes"].values() if mode.get("standardize", True)]
    names = [name for name in settings["energies"] if any(name in mode["energies"] for mode in standardized)]
    energies = {name: _energy(folder, settings, name, families, {}) for name in names}
    values: dict[str, list[Tensor]] = {name: [] for name in energies}
    with torch.no_grad():
        for batch in images:
            for name, energy in energies.items():
                values[name].append(energy(batch))
    statistics = {}
    for name, parts in values.items():
        sample = torch.cat(parts)
        median = sample.median()
        spread = 1.4826 * (sample - median).abs().median()
        statistics[name] = {"mean": median.item(), "std": spread.item(), "films": len(sample)}
    (folder / "statistics.json").write_text(json.dumps(statistics, indent=2) + "\n")
    return statistics


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"load_canonicalizer(): cannot read {path.name} in {path.parent}: {error}. A canonicaliser's folder "
            "holds canonicalizer.json, statistics.json and weights."
        ) from error


def _family(arguments: Mapping[str, Any]) -> VelocityFamily:
    arguments = dict(arguments)
    return FAMILIES[arguments.pop("kind")](**arguments)


def _network(folder: Path, settings: Mapping[str, Any], name: str, families: Mapping[str, VelocityFamily]) -> nn.Module:
    entry = settings["networks"][name]
    arguments = dict(entry["arguments"])
    if entry["kind"] == "predictor":
        arguments["num_parameters"] = families[entry["family"]].num_parameters
    path = folder / entry["file"]
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    return copy.deepcopy(_loaded(str(path), stamp, entry["kind"], json.dumps(arguments, sort_keys=True)))


@lru_cache(maxsize=32)
def _loaded(path: str, stamp: int, kind: str, arguments: str) -> nn.Module:
    network = load_weights(NETWORKS[kind](**json.loads(arguments)), path).requires_grad_(False)
    return network.double() if kind == "predictor" else network  # see DeformationPredictor.forward


def _energy(
    folder: Path, settings: Mapping[str, Any], name: str, families: Mapping[str, VelocityFamily], statistics: Mapping[str, Any]
) -> Energy:
    entry = settings["energies"][name]
    network = _network(folder, settings, entry["network"], families)
    kind = settings["networks"][entry["network"]]["kind"]
    options = entry.get("arguments", {})
    if kind == "predictor":
        energy: Energy = ResidualDeformationEnergy(network, families[settings["networks"][entry["network"]]["family"]])
    else:
        energy = {"vae": VAEEnergy, "critic": CriticEnergy}[kind](network, **options)
    if not statistics:
        return energy
    if name not in statistics:
        raise WeightsError(f"load_canonicalizer(): statistics.json lacks {name!r}; it has {sorted(statistics)}. Fit it anew.")
    return StandardizedEnergy(energy, statistics[name]["mean"], statistics[name]["std"])
