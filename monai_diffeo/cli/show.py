"""``monai-diffeo show``: what a canonicaliser consists of, in a screenful."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from monai_diffeo.bundles import canonicalizer_folder
from monai_diffeo.errors import WeightsError
from monai_diffeo.files import bundle_of, check_sha256, sha256_of

__all__ = ["describe", "show"]

_WIDTH = 120


@click.command()
@click.argument("folder", metavar="FOLDER")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, with whole hashes.")
def show(folder: str, as_json: bool) -> None:
    """Show what a canonicaliser consists of: networks, energies, modes, statistics, licences.

    FOLDER is a canonicaliser's folder, a bundle, or the name of one of the package, such as cxr.
    """
    found = describe(canonicalizer_folder(folder, "show"))
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(_page(found)))


def describe(folder: Path) -> dict[str, Any]:
    """The content of a canonicaliser's folder, whose files are checked first.

    Raises:
        WeightsError: if a file is missing, damaged, or not the one that its bundle names.
    """
    folder = folder.absolute()
    check_sha256(folder)
    settings, statistics = _read(folder / "canonicalizer.json"), _read(folder / "statistics.json")
    bundle = bundle_of(folder)
    about = _read(bundle / "configs" / "metadata.json") if bundle else {}
    files = {name: bundle / name for name in ("LICENSE", "docs/data_license.txt")} if bundle else {}
    networks = {name: _weights(folder, name, settings) for name in settings.get("networks", {})}
    return {
        "folder": str(folder),
        "bundle": f"{bundle.name} {about.get('version', '')}".strip() if bundle else None,
        "intended_use": about.get("intended_use"),
        "licences": [str(file) for file in files.values() if file.is_file()],
        "networks": networks,
        "statistics": statistics,
        **{section: settings.get(section, {}) for section in ("families", "energies", "modes")},
        "default_mode": settings.get("default_mode"),
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = "A canonicaliser's folder holds canonicalizer.json, statistics.json and weights."
        raise WeightsError(f"show: cannot read {file.name} in {file.parent}: {error}. {remedy}") from error


def _weights(folder: Path, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Class, arguments, file, number of parameters and hash of a network; its file is read, nothing is built."""
    import torch

    file = folder / settings.get("weights", {}).get(name, f"{name}.pt")
    try:
        state = torch.load(file, map_location="meta", weights_only=True)
        parameters = sum(value.numel() for value in state.values() if value.is_floating_point())
        return {**settings["networks"][name], "file": file.name, "parameters": parameters, "sha256": sha256_of(file)}
    except Exception as error:
        raise WeightsError(f"show: no weights of {name!r} in {file}: {error}. Copy the file again, or fit it anew.") from error


def _page(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"Canonicaliser in {found['folder']}" + (f", bundle {found['bundle']}" if found["bundle"] else "")
    yield from filter(None, [found["intended_use"]])
    yield f"Licences: {', '.join(found['licences']) or 'none in the folder'}"
    for section in ("families", "networks", "energies", "modes"):
        yield f"{section.capitalize()}:"
        width = max(map(len, found[section]), default=0)
        for name, entry in found[section].items():
            rest = dict(entry)
            parts = [str(rest.pop("_target_", "")).rpartition(".")[2]]
            if section == "networks":
                parts.append(f"{rest.pop('parameters'):,} parameters, {rest.pop('file')} {rest.pop('sha256')[:12]}")
            if section == "energies" and (level := found["statistics"].get(name)):
                parts.append(f"mean {level['mean']:.4g}, spread {level['std']:.3g} of {level.get('films', '?')} images")
            if section == "modes" and name == found["default_mode"]:
                parts.append("default")
            text = ", ".join(filter(None, [*parts, *(_setting(key, value) for key, value in rest.items())]))
            yield textwrap.fill(text, _WIDTH, initial_indent=f"  {name:{width}}  ", subsequent_indent=" " * (width + 4))


def _setting(key: str, value: Any) -> str:
    """A setting in few letters: a reference without its section, and once if it is named like the setting."""
    if isinstance(value, Mapping):
        return f"{key} ({', '.join(_setting(*item) for item in value.items())})"
    text = value if isinstance(value, str) else json.dumps(value)
    text = text.rpartition("::")[2] if text.startswith("@") else text
    return text if text == key else f"{key} {text}"
