"""``monai-diffeo wrap``: a canonicaliser around the inferer of a bundle of others, by a command or in one configuration."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from monai_diffeo.bundles import canonicalizer_folder, find_bundle
from monai_diffeo.errors import ConfigError, WeightsError

__all__ = ["wrap", "wrapped_command", "write_wrapped"]

_ONE_FILE = (
    "Wrote {0}; no other file is changed. It stands alone, without the overlay:",
    "  ConfigWorkflow and services: ConfigWorkflow({1!r}, bundle_root={2!r}, workflow_type='infer').",
    "  MONAI Deploy: BundleConfigNames(config_names=['{3}']).",
    "  MONAI Label reads configs/inference.json only: put {0} there in a copy of the bundle.",
)


@click.command()
@click.argument("bundle", metavar="BUNDLE")
@click.option("--canonicalizer", metavar="FOLDER", help="Of the canonicaliser, or a name such as cxr; models/energy of BUNDLE.")
@click.option("--write", is_flag=True, help="Write configs/inference_diffeo.json into BUNDLE, for whoever reads one file.")
def wrap(bundle: str, canonicalizer: str | None, write: bool) -> None:
    """Print the command that runs BUNDLE with a canonicaliser around its inferer. Nothing is run, and no file is changed.

    The command is all of the standard output; add options of the bundle to it.
    """
    root = find_bundle(bundle, "wrap").absolute()
    written = write_wrapped(root, canonicalizer) if write else None
    command, notes = wrapped_command(root, canonicalizer, written)
    if written:
        place = written.relative_to(root)
        notes = [line.format(place, str(written), str(root), written.stem) for line in _ONE_FILE] + notes
    for note in notes:
        click.echo(note, err=True)
    click.echo(command)


def wrapped_command(bundle: Path, canonicalizer: str | None = None, written: Path | None = None) -> tuple[str, list[str]]:
    """The command for bash, and sentences about it.

    The bundle's ``inference`` configuration says where its inferer is and who takes it. Where their ids are not those of the
    overlay, options are added to the command.

    Args:
        bundle: its folder.
        canonicalizer: its folder or name; None for ``models/energy`` of the bundle.
        written: what :func:`write_wrapped` wrote, in place of the overlay.

    Raises:
        ConfigError: if the bundle has no configuration or no inferer, or several; if the canonicaliser is for other axes.
        WeightsError: if there is no canonicaliser.
    """
    from monai_diffeo.inferers import overlay_path

    bundle = bundle.absolute()
    name, config, energy = _parts(bundle, canonicalizer)
    own, takers = _own_inferer(config, name)
    files, options = str([name, overlay_path()]), {"diffeo_folder": str(energy)}
    if (name, own) != ("configs/inference.json", "inferer"):
        options["diffeo_inner"] = f"%{name}::{own}"
    options |= {f"{taker}::inferer": "@inferer" for taker in takers if taker != "evaluator"}
    if written:
        files, options = str(written.relative_to(bundle)), {}
    run_id = "run" if "run" in config else next((k for k, entry in config.items() if ".run()" in str(entry)), "evaluating")
    words = [sys.executable, "-m", "monai.bundle", "run", *([] if run_id == "run" else [run_id]), "--config_file", files]
    options = {"bundle_root": ".", "workflow_type": "infer", **options}
    words += [word for option in options.items() for word in (f"--{option[0]}", option[1])]
    command = f"cd {_quoted(str(bundle))} && {' '.join(map(_quoted, words))}"
    lacking = [package for module, package in {"fire": "fire", "ignite": "pytorch-ignite"}.items() if find_spec(module) is None]
    notes = [f'MONAI lacks {lacking} to run a bundle: pip install "monai-diffeo[bundle]"'] if lacking else []
    return command, [*notes, "Compare with the plain network: add --diffeo_enabled false."]


def write_wrapped(bundle: Path, canonicalizer: str | None = None) -> Path:
    """Write ``configs/inference_diffeo`` beside the bundle's own configuration, in its format; give its path.

    Its ``inferer`` is the wrapped one, the bundle's own one is ``diffeo_inner``, and ``displayable_configs`` offers a user the
    switch and the mode. It holds the absolute folder of the canonicaliser, or the name that was given.

    Args:
        bundle, canonicalizer: as for :func:`wrapped_command`.

    Raises:
        ConfigError: as :func:`wrapped_command`, or if there is a file of this name that is not from here.
        WeightsError: if there is no canonicaliser.
        OutputError: if the file cannot be written.
    """
    from monai.bundle import ConfigParser
    from monai.utils import optional_import

    from monai_diffeo.files import write_atomically
    from monai_diffeo.inferers import overlay_path

    name, config, energy = _parts(bundle, canonicalizer)
    path = (bundle / name).with_stem("inference_diffeo")
    if path.is_file() and "diffeo_inner" not in ConfigParser.load_config_file(path):
        raise ConfigError(f"wrap: {path} must be a file that `wrap --write` wrote, got another one. Rename it.")
    own, takers = _own_inferer(config, name)
    parser, ours = ConfigParser(deepcopy(config)), ConfigParser.load_config_file(overlay_path())
    inner = parser[own]
    for taker in takers:
        parser[f"{taker}::inferer"] = "@inferer"
    inferer = {key: ours["inferer"][key] for key in ("canonicalizer", "inferer", "enabled", "tta_samples", "outputs", "images")}
    named = canonicalizer and not Path(canonicalizer).is_dir()
    ours = {key: ours[key] for key in ("diffeo_enabled", "diffeo_tta_samples", "diffeo_outputs", "diffeo_images")}
    ours |= {"diffeo_folder": canonicalizer if named else str(energy), "diffeo_inner": inner}
    ours["diffeo_mode"] = ConfigParser.load_config_file(energy / "canonicalizer.json")["default_mode"]
    if isinstance(shown := config.get("displayable_configs", {}), dict):  # what a user sets there counts
        ours["displayable_configs"] = {**shown, "diffeo_enabled": "@diffeo_enabled", "diffeo_mode": "@diffeo_mode"}
        inferer["enabled"] = "@displayable_configs::diffeo_enabled"
        inferer["canonicalizer"]["mode"] = "@displayable_configs::diffeo_mode"
    merged = {**parser[""], **ours, "inferer": {"_target_": "monai_diffeo.inferers.DiffeoInferer", **inferer}}
    if path.suffix == ".json":
        return write_atomically(path, (json.dumps(merged, indent=4) + "\n").encode())
    return write_atomically(path, optional_import("yaml")[0].safe_dump(merged, sort_keys=False).encode())


def _parts(bundle: Path, canonicalizer: str | None) -> tuple[str, dict[str, Any], Path]:
    """The bundle's configuration, by its name and what is in it, and the folder of the canonicaliser."""
    from monai.bundle import ConfigParser

    energy = canonicalizer_folder(canonicalizer or bundle, "wrap").absolute()
    if not (energy / "canonicalizer.json").is_file():
        remedy = "Give --canonicalizer FOLDER; `monai-diffeo fit` makes one, and `monai-diffeo show` lists what is in it."
        raise WeightsError(f"wrap: a canonicaliser's folder must have canonicalizer.json, {str(energy)!r} has not. {remedy}")
    names = [f"configs/inference.{kind}" for kind in ConfigParser.suffixes]
    name = next((name for name in names if (bundle / name).is_file()), None)
    if name is None:
        raise ConfigError(f"wrap: a bundle must have {' or '.join(names)}, {str(bundle)!r} has none. Check the path.")
    config = ConfigParser.load_config_file(bundle / name)
    families = ConfigParser.load_config_file(energy / "canonicalizer.json")["families"].values()
    network, has = config.get("network_def"), {family.get("spatial_dims", 2) for family in families}
    asked = network.get("spatial_dims") if isinstance(network, dict) else None
    if asked in (2, 3) and asked not in has and "SliceInferer" not in str(config):
        remedy = "Fit one with `monai-diffeo fit --bundle_root BUNDLE`."
        raise ConfigError(
            f"wrap: the canonicaliser must be for images with {asked} axes as {name} is, got {sorted(has)}. {remedy}"
        )
    return name, config, energy


def _own_inferer(config: Mapping[str, Any], name: str) -> tuple[str, list[str]]:
    """The id of the bundle's inferer, and of each entry that takes it under another id than ``inferer``."""
    from monai_diffeo.cli.allowed import entries

    taken = {
        id: entry["inferer"]
        for id, entry in entries(dict(config))
        if isinstance(entry, dict) and {"_target_", "inferer"} <= set(entry) and id.partition("::")[0] != "inferer"
    }
    values = [value for i, value in enumerate(taken.values()) if value not in [*taken.values()][:i]]
    if len(values) > 1:
        remedy = "Give it one inferer by its id in a copy of the bundle."
        raise ConfigError(f"wrap: all in {name} must take the same inferer, got {sorted(taken)} with different ones. {remedy}")
    by_name = values in ([], ["@inferer"])
    if by_name and "inferer" not in config:
        remedy = "Give the inferer this id in a copy of the bundle."
        raise ConfigError(
            f"wrap: {name} must have an entry 'inferer', or an evaluator with one, got {sorted(config)}. {remedy}"
        )
    own = config["inferer"] if by_name else values[0]
    if isinstance(own, dict) and str(own.get("_target_")).endswith("DiffeoInferer"):
        raise ConfigError(f"wrap: {name} must have a plain inferer, got a DiffeoInferer. Run the bundle as it is.")
    return ("inferer", []) if by_name else (f"{[*taken][0]}::inferer", [*taken])


def _quoted(word: str) -> str:
    """A word for bash, in double quotation marks where that is easier to read."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)
