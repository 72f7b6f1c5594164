"""A trained canonicaliser in a folder: ``canonicalizer.json``, ``statistics.json`` and one file of weights a network."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from monai_diffeo.bundles import canonicalizer_folder
from monai_diffeo.canonicalize.canonicalizer import Canonicalizer, placed
from monai_diffeo.canonicalize.checks import check_device
from monai_diffeo.canonicalize.limits import load_limits
from monai_diffeo.energies import Energy, StandardizedEnergy, WeightedEnergy
from monai_diffeo.errors import ConfigError, DiffeoError, NumericalError, WeightsError
from monai_diffeo.files import check_sha256, record_sha256, write_atomically
from monai_diffeo.networks import load_weights

__all__ = ["REFERENCES", "fit_statistics", "load_canonicalizer"]

_SETTINGS = {*inspect.signature(Canonicalizer).parameters, "energies", "level", "standardize"} - {"energy"}
_SECTIONS = ("default_mode", "families", "networks", "weights", "energies", "modes")
REFERENCES = {"family": "families", "search_family": "families", "predictor": "networks", "orientation": "networks"}
REFERENCES |= {"polarity": "energies"}
_PUBLIC = re.compile(r"(monai_diffeo\.[a-z]+|monai\.networks\.(?:blocks|layers|nets)|torch\.nn)\.([A-Za-z]\w*)")


def load_canonicalizer(
    folder: str | Path, mode: str | None = None, device: str | torch.device = "cpu", *, trusted: bool = False, **changes: Any
) -> Canonicalizer:
    """Build the canonicaliser of a folder; networks are loaded strictly, weights only, once for each file.

    MONAI's ``ConfigParser`` reads ``canonicalizer.json``. It has ``families``, ``networks`` and ``energies`` by ``_target_``,
    the file of each network in ``weights``, and ``modes``: settings of :class:`Canonicalizer` with ``@references``. A mode's
    ``energies`` are weights by name, ``level`` is that of :class:`WeightedEnergy`, ``regularizer`` holds the arguments of
    :class:`DeformationRegularizer`, and ``"standardize": false`` takes the energies as they are. With ``limits.json``, which
    ``monai-diffeo fit`` writes for the default mode, a :class:`DiffeoInferer` gives each image a decision.

    Args:
        folder: with ``canonicalizer.json``, ``statistics.json`` and the weights they name; or a bundle, by its folder or by a
            name such as ``"cxr"``, see :func:`monai_diffeo.bundles.find_bundle`. An existing folder comes before a name.
        mode: one of the file's modes (``"single_pass"``, ``"refine"``, ``"faithful"``); None takes its default.
        device: where the networks go.
        trusted: let the file run any code. Without it, every ``_target_`` must be a public ``nn.Module`` of a room of
            monai_diffeo, of ``monai.networks.blocks``, ``layers`` or ``nets``, or of ``torch.nn``; expressions (``$``) are
            refused.
        changes: settings to use in place of the mode's, such as ``steps`` or ``progress``; families and networks by name.

    Raises:
        WeightsError: if there is no such folder or name, a file is missing or does not fit, or if any file of the folder is
            not the one that its bundle names, see :func:`monai_diffeo.files.check_sha256`.
        ConfigError: if a name is unknown or not allowed, or the folder is of an earlier version.
    """
    device = check_device("load_canonicalizer()", device)
    folder = canonicalizer_folder(folder, "load_canonicalizer()")
    check_sha256(folder)
    settings = read_settings(folder)
    mode = settings["default_mode"] if mode is None else str(mode)
    chosen = {**_named(settings, "modes", mode), **changes}
    unknown = sorted(set(chosen) - _SETTINGS)
    if unknown or not {"family", "energies"} <= set(chosen):
        raise ConfigError(
            f"load_canonicalizer(): mode {mode!r} must have 'family', 'energies' and any of {sorted(_SETTINGS)}; "
            f"got {sorted(chosen)}. Remove or rename {unknown}."
        )
    weights, level = chosen.pop("energies"), chosen.pop("level", None)
    statistics = _read(folder / "statistics.json") if chosen.pop("standardize", True) else None
    regularizer = chosen.get("regularizer", {})
    if isinstance(regularizer, Mapping):
        chosen["regularizer"] = {"_target_": "monai_diffeo.energies.DeformationRegularizer", **regularizer}
    for key, section in REFERENCES.items():
        if isinstance(chosen.get(key), str):
            name = chosen[key].removeprefix(f"@{section}::")
            _named(settings, section, name)
            chosen[key] = f"@{section}::{name}"
    parser = _parser(folder, {**settings, "chosen": chosen}, trusted)
    energies = {name: _energy(parser, name, statistics) for name in weights}
    canonicalizer = placed(Canonicalizer(WeightedEnergy(energies, weights, level), **_content(parser, "chosen")), device)
    canonicalizer.limits = None if set(changes) - {"progress", "seed"} else load_limits(folder, mode)
    return canonicalizer


def fit_statistics(folder: str | Path, images: Iterable[Tensor], trusted: bool = False) -> dict[str, dict[str, float]]:
    """Measure every energy that a mode of a folder standardises on training images, and write its mean and
    spread to ``statistics.json``. In a bundle, its SHA-256 goes into the metadata.

    Mean and spread are the median and 1.4826 times the median absolute deviation, which a few odd films do not move.

    Args:
        folder: as for :func:`load_canonicalizer`.
        images: batches ``(B, C, *S)`` of training images, undeformed.
        trusted: as for :func:`load_canonicalizer`.

    Raises:
        NumericalError: if an energy is not finite, or without images; the file stays as it was.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    parser = _parser(folder, settings, trusted)
    modes = [mode for mode in settings["modes"].values() if mode.get("standardize", True)]
    names = [name for name in settings["energies"] if any(name in mode.get("energies", ()) for mode in modes)]
    energies = {name: _energy(parser, name, None) for name in names}
    with torch.no_grad():
        values = [{name: energy(batch) for name, energy in energies.items()} for batch in images]
    statistics = {}
    for name in names:
        sample = torch.cat([torch.empty(0), *(row[name] for row in values)])
        median = sample.median()
        spread = 1.4826 * (sample - median).abs().median()
        if not spread.isfinite():  # or no image at all
            raise NumericalError(
                f"fit_statistics(): energies of training images must be finite, got a spread of {spread:g} for {name!r} over "
                f"{len(sample)} images. Give images with finite grey values."
            )
        statistics[name] = {"mean": median.item(), "std": spread.item(), "films": len(sample)}
    record_sha256(write_atomically(folder / "statistics.json", f"{json.dumps(statistics, indent=2)}\n".encode()))
    return statistics


def tta_samples_of(folder: str | Path, mode: str) -> int:
    """Poses of the test-time augmentation in a mode of a folder; errors are those of :func:`load_canonicalizer`."""
    return _named(read_settings(Path(folder)), "modes", mode).get("tta_samples", 1)


def _read(path: Path) -> dict[str, Any]:
    try:
        return ConfigParser.load_config_file(str(path))
    except (OSError, ValueError) as error:
        remedy = "A canonicaliser's folder holds canonicalizer.json, statistics.json and weights."
        message = f"load_canonicalizer(): cannot read {path.name} in {path.parent}: {error}. {remedy}"
        raise WeightsError(message) from error


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of ``canonicalizer.json``, with all its sections; errors are those of :func:`load_canonicalizer`."""
    settings = _read(folder / "canonicalizer.json")
    if any("kind" in part for section in ("families", "networks") for part in settings.get(section, {}).values()):
        raise ConfigError(
            f"load_canonicalizer(): canonicalizer.json in {folder} must have a '_target_' for each family and network, got the "
            "'kind' of version 0.1. Fit it anew."
        )
    if not set(_SECTIONS) <= set(settings):
        raise ConfigError(f"load_canonicalizer(): canonicalizer.json must have {_SECTIONS}, got {sorted(settings)}.")
    return settings


def _named(settings: Mapping[str, Any], section: str, name: str) -> Any:
    if name not in settings[section]:
        have = sorted(settings[section])
        raise ConfigError(
            f"load_canonicalizer(): no {name!r} among the {section}; there are {have}. Use one of these, or add it."
        )
    return settings[section][name]


def _allowed(config: Any) -> Any:
    """A copy of the configuration with each ``_target_`` as its class; what could run other code is refused."""
    if isinstance(config, dict):
        if hidden := hidden_keys(config, ("_target_", "_desc_")):
            raise ConfigError(f"load_canonicalizer(): keys {hidden} are not allowed. Load with trusted=True to allow them.")
        return {key: _public_class(item) if key == "_target_" else _allowed(item) for key, item in config.items()}
    if isinstance(config, str) and ("$" in config or config.startswith("%")):
        raise ConfigError(
            f"load_canonicalizer(): a setting must be a value or a reference (@), got the expression {config!r}. "
            "Write the value, or load with trusted=True if you trust the file."
        )
    return [_allowed(item) for item in config] if isinstance(config, list) else config


def _public_class(target: Any) -> type[nn.Module]:
    if found := public_module(target):
        return found
    raise ConfigError(
        "load_canonicalizer(): _target_ must be a public nn.Module of a room of monai_diffeo, of monai.networks.blocks, layers "
        f"or nets, or of torch.nn, by its full name, got {target!r}. Load with trusted=True if you trust the file."
    )


def public_module(target: Any) -> type[nn.Module] | None:
    """The network module that a full name means; None if it is not public, or not one that any configuration may create."""
    match = _PUBLIC.fullmatch(target) if isinstance(target, str) else None
    if match and importlib.util.find_spec(match[1]):
        room = importlib.import_module(match[1])
        found = getattr(room, match[2], None)
        public = match[2] in getattr(room, "__all__", () if match[1].startswith("monai_diffeo") else (match[2],))
        if public and inspect.isclass(found) and issubclass(found, nn.Module):
            return found
    return None


def hidden_keys(config: Mapping[str, Any], special: Collection[str]) -> list[str]:
    """Arguments that fetch weights, and MONAI's own keys, which start with ``_``, but for some that are special."""
    loads = [key for key, item in config.items() if str(key).startswith("pretrained") and item]  # files, or from the network
    return loads + [key for key in config if str(key).startswith("_") and key not in special]


def _parser(folder: Path, settings: Mapping[str, Any], trusted: bool) -> ConfigParser:
    """Builds each part when it is asked for, networks with their weights."""
    load = {name: {"_target_": partial(_network, folder, settings, name, trusted)} for name in settings["networks"]}
    return ConfigParser({**(settings if trusted else _allowed(settings)), "networks": load})


def _content(parser: ConfigParser, name: str) -> Any:
    """What the parser builds; its errors as ours."""
    try:
        return parser.get_parsed_content(name)
    except Exception as error:
        ours = error.__cause__
        while ours is not None and not isinstance(ours, DiffeoError):
            ours = ours.__cause__
        message = f"load_canonicalizer(): cannot build {name!r} of canonicalizer.json: {error}. Check its names and arguments."
        raise ours or ConfigError(message) from error


def _network(folder: Path, settings: Mapping[str, Any], name: str, trusted: bool) -> nn.Module:
    path = folder / _named(settings, "weights", name)
    if not (trusted or path.resolve().is_relative_to(folder.resolve())):
        raise ConfigError(
            f"load_canonicalizer(): weights must lie in the folder, got {path.name!r} outside it. Copy the file there."
        )
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    return copy.deepcopy(_loaded(str(path), stamp, json.dumps(settings["networks"][name], sort_keys=True), trusted))


@lru_cache(maxsize=32)
def _loaded(path: str, stamp: int, entry: str, trusted: bool) -> nn.Module:
    config = json.loads(entry)
    network = _content(ConfigParser({"network": config if trusted else _allowed(config)}), "network")
    return load_weights(network, path).requires_grad_(False)


def _energy(parser: ConfigParser, name: str, statistics: Mapping[str, Any] | None) -> Energy:
    _named(parser[""], "energies", name)
    energy = _content(parser, f"energies::{name}")
    if statistics is None:
        return energy
    if not {"mean", "std"} <= set(statistics.get(name, ())):
        raise WeightsError(f"load_canonicalizer(): statistics.json lacks {name!r}; it has {sorted(statistics)}. Fit it anew.")
    return StandardizedEnergy(energy, statistics[name]["mean"], statistics[name]["std"])
