"""``monai-diffeo wrap``: the command that runs a bundle of others with a canonicaliser around its inferer."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from monai_diffeo.bundles import canonicalizer_folder, find_bundle
from monai_diffeo.errors import ConfigError, WeightsError

__all__ = ["wrap", "wrapped_command"]


@click.command()
@click.argument("bundle", metavar="BUNDLE")
@click.option("--canonicalizer", metavar="FOLDER", help="Of the canonicaliser, or a name such as cxr; models/energy of BUNDLE.")
def wrap(bundle: str, canonicalizer: str | None) -> None:
    """Print the command that runs BUNDLE with a canonicaliser around its inferer. Nothing is run, and no file is changed.

    The command is all of the standard output; add options of the bundle to it.
    """
    command, notes = wrapped_command(find_bundle(bundle, "wrap"), canonicalizer)
    for note in notes:
        click.echo(note, err=True)
    click.echo(command)


def wrapped_command(bundle: Path, canonicalizer: str | None = None) -> tuple[str, list[str]]:
    """The command for bash, and sentences about it.

    The ids that the overlay refers to are looked for in the bundle's ``inference`` configuration. Where the device or the
    evaluator's inferer has another id or none, an option is added to the command.

    Args:
        bundle: its folder.
        canonicalizer: its folder or name; None for ``models/energy`` of the bundle.

    Raises:
        ConfigError: if the bundle has no configuration, or the overlay cannot reach its inferer.
        WeightsError: if there is no canonicaliser.
    """
    from monai.bundle import ConfigParser

    from monai_diffeo.inferers import overlay_path

    bundle = bundle.absolute()
    energy = canonicalizer_folder(canonicalizer or bundle, "wrap").absolute()
    if not (energy / "canonicalizer.json").is_file():
        remedy = "Give --canonicalizer FOLDER; `monai-diffeo fit` makes one, and `monai-diffeo show` lists what is in it."
        raise WeightsError(f"wrap: a canonicaliser's folder must have canonicalizer.json, {str(energy)!r} has not. {remedy}")
    names = [f"configs/inference.{kind}" for kind in ConfigParser.suffixes]
    name = next((name for name in names if (bundle / name).is_file()), None)
    if name is None:
        raise ConfigError(f"wrap: a bundle must have {' or '.join(names)}, {str(bundle)!r} has none. Check the path.")
    config = ConfigParser.load_config_file(bundle / name)
    options = {"bundle_root": ".", "workflow_type": "infer", "diffeo_folder": str(energy), **_missing(config, name)}
    run = [] if "run" in config else ["evaluating"]  # as MONAI's own template of a bundle names it
    words = [sys.executable, "-m", "monai.bundle", "run", *run, "--config_file", str([name, overlay_path()])]
    words += [word for option in options.items() for word in (f"--{option[0]}", option[1])]
    command = f"cd {_quoted(str(bundle))} && {' '.join(map(_quoted, words))}"
    lacking = [package for module, package in {"fire": "fire", "ignite": "pytorch-ignite"}.items() if find_spec(module) is None]
    notes = [f'MONAI lacks {lacking} to run a bundle: pip install "monai-diffeo[bundle]"'] if lacking else []
    return command, [*notes, "Compare with the plain network: add --diffeo_enabled false."]


def _quoted(word: str) -> str:
    """A word for bash, in double quotation marks where that is easier to read."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def _missing(config: Mapping[str, Any], name: str) -> dict[str, str]:
    """Options for what the overlay refers to (``device``, ``inferer``, ``evaluator``) and the configuration lacks."""
    from monai_diffeo.cli.allowed import entries
    from monai_diffeo.inferers import overlay_path

    if "evaluator" not in config:
        found = [id for id, entry in entries(dict(config)) if isinstance(entry, dict) and "evaluator" in id.split("::")[-1]]
        remedy = "Give it that id in a copy of the configuration"
        if found:
            remedy = f"Copy {overlay_path()}, write '{found[0]}::inferer' for 'evaluator::inferer' in it, and stack the copy"
        raise ConfigError(f"wrap: {name} must have an entry 'evaluator', got {found or sorted(config)}. {remedy}.")
    options = {} if "device" in config else {"device": "cpu"}
    used = config["evaluator"].get("inferer")
    if isinstance(used, str) and used.startswith("@") and used != "@inferer":
        options["diffeo_inferer::inferer"] = used
    elif "inferer" not in config:
        remedy = "Give it an id of its own in a copy of the configuration, and refer to it by '@inferer'."
        raise ConfigError(f"wrap: the evaluator of {name} must take its inferer by an id, got {used!r}. {remedy}")
    return options
