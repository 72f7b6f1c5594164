"""Convert a canonicaliser's folder of an earlier version: ``python -m monai_diffeo.canonicalize.convert FOLDER``."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_diffeo.canonicalize.folder import REFERENCES
from monai_diffeo.errors import ConfigError
from monai_diffeo.families import ControlGrid, Siren
from monai_diffeo.files import write_atomically
from monai_diffeo.renamed import RENAMED_SETTINGS

__all__ = ["convert_settings", "main"]

_FAMILIES = {"control_grid": ControlGrid, "siren": Siren}
_NETWORKS = {"predictor": "DeformationPredictor", "vae": "EnergyVAE", "critic": "EnergyCritic"}
_NETWORKS["orientation"] = "ImageOrientation"
_ENERGIES = {"predictor": "ResidualDeformationEnergy", "vae": "VAEEnergy", "critic": "CriticEnergy"}


def convert_settings(old: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``canonicalizer.json`` as :func:`load_canonicalizer` reads it, from that of an earlier version.

    Raises:
        ConfigError: if the content is of no earlier version, or has a kind that no earlier version had.
    """
    try:
        new: dict[str, Any] = {"default_mode": old["default_mode"], "families": {}, "networks": {}, "weights": {}}
        built = {}
        for name, entry in old["families"].items():
            arguments = {key: value for key, value in entry.items() if key != "kind"}
            built[name] = _FAMILIES[entry["kind"]](**arguments)
            new["families"][name] = {"_target_": f"monai_diffeo.families.{type(built[name]).__name__}", **arguments}
        for name, entry in old["networks"].items():
            size = {"num_parameters": built[entry["family"]].num_parameters} if entry["kind"] == "predictor" else {}
            target = f"monai_diffeo.networks.{_NETWORKS[entry['kind']]}"
            new["networks"][name] = {"_target_": target, **size, **entry["arguments"]}
            new["weights"][name] = entry["file"]
        new["energies"] = {}
        for name, entry in old["energies"].items():
            kind, reference = old["networks"][entry["network"]]["kind"], f"@networks::{entry['network']}"
            new["energies"][name] = {"_target_": f"monai_diffeo.energies.{_ENERGIES[kind]}", kind: reference}
            if kind == "predictor":
                new["energies"][name]["family"] = f"@families::{old['networks'][entry['network']]['family']}"
            new["energies"][name].update(entry.get("arguments", {}))
        new["modes"] = {name: _mode(mode) for name, mode in old["modes"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"convert: canonicalizer.json must be of an earlier version, with a known 'kind' for each family and network, got "
            f"{error!r}. A file that load_canonicalizer() reads needs no conversion."
        ) from error
    return new


def _mode(old: Mapping[str, Any]) -> dict[str, Any]:
    mode = {RENAMED_SETTINGS.get(key, key): value for key, value in old.items()}
    return {key: f"@{REFERENCES[key]}::{value}" if value and key in REFERENCES else value for key, value in mode.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Rewrite ``canonicalizer.json`` of the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m monai_diffeo.canonicalize.convert", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="with canonicalizer.json and its weights")
    path = parser.parse_args(argv).folder / "canonicalizer.json"
    try:
        text = json.dumps(convert_settings(json.loads(path.read_text())), indent=4)
        short = r"[\[{][^\[\]{}]{1,160}[\]}]"
        text = re.sub(short, lambda part: part[0][0] + " ".join(part[0][1:-1].split()) + part[0][-1], text)
        write_atomically(path, f"{text}\n".encode())
    except (OSError, ValueError) as error:
        parser.error(f"{path}: {error}")


if __name__ == "__main__":
    main()
