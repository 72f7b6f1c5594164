"""``monai-diffeo fit``: fit a canonicaliser to a folder of unlabelled images."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import click

from monai_diffeo.bundles import find_bundle
from monai_diffeo.cli.options import SWITCH, option, sentence

__all__ = ["fit"]


@click.command(
    epilog="""\b
Exit status:
  0    fitted; README.md in --output_dir says whether it worked
  1    nothing was done; the last line on stderr says why
  130  interrupted; --resume goes on"""
)
@option("dataset_dir", "A folder of images, a datalist.json or a manifest.csv. Labels are not needed.", metavar="DIR")
@option("output_dir", "Folder of the canonicaliser; a fit that is in it is never overwritten.", metavar="FOLDER")
@option("bundle_root", "A bundle, whose preprocessing and network are used. Without it, images alone.", metavar="BUNDLE")
@option("network_weights", "Weights of the bundle's network. Without it, models/model.pt.", metavar="FILE")
@option(
    "activation",
    "'sigmoid' or 'softmax'. Without it, that of the bundle's postprocessing.",
    click.Choice(["sigmoid", "softmax"]),
)
@option("dims", "2 or 3. Without it, that of the first image.", click.Choice(["2", "3"]))
@option("size", "Working size, such as 128,112: multiples of 16. Without it, chosen from the images.", metavar="SIZE")
@option("minutes", "Time for everything. Without it, 20.", click.FloatRange(min=0, min_open=True), "N")
@option("device", "'cpu' or 'cuda'.", metavar="DEVICE")
@option("seed", "Of all random numbers. Without it, 0.", int, "N")
@option("progress", "Show a progress bar. Without it, on a terminal only.", SWITCH)
@option("resume", "Go on with the fit in --output_dir, which began with the same options.", SWITCH)
@option("debug", "Print the traceback of what fails.", SWITCH)
@option("trust_bundle", "Run any code of the bundle, with your rights. Only for a bundle whose makers you trust.", SWITCH)
def fit(dataset_dir: str | None, output_dir: str | None, **options: Any) -> int:
    """Fit a canonicaliser to images, for any network, any size, 2D or 3D.

    A plan is printed first. At the end, README.md in the output folder shows what the canonicaliser does to images that it was
    not fitted to.
    """
    if missing := [name for name, value in (("dataset_dir", dataset_dir), ("output_dir", output_dir)) if value is None]:
        raise click.UsageError(f"--{missing[0]} is needed.")
    debug, root = options.pop("debug"), options.pop("bundle_root")
    weights, activation, trusted = (options.pop(name) for name in ("network_weights", "activation", "trust_bundle"))
    if root is None and (weights or activation):
        raise click.UsageError(f"--{'network_weights' if weights else 'activation'} needs a --bundle_root.")
    try:
        settings = {name: value for name, value in options.items() if value is not None}
        if "size" in settings:
            settings["size"] = _size(settings["size"])
        if "dims" in settings:
            settings["dims"] = int(settings["dims"])
        from monai_diffeo.fit import fit_canonicalizer  # imports torch

        network = transform = None
        if root is not None:
            from monai_diffeo.cli.fit_network import network_of_bundle

            file = None if weights is None else Path(weights)
            network, transform = network_of_bundle(find_bundle(root, "fit"), file, activation, bool(trusted))
        fit_canonicalizer(dataset_dir, str(output_dir), network, transform=transform, say=click.echo, **settings)
    except KeyboardInterrupt:
        click.echo("Interrupted. --resume goes on with the fit.", err=True)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        raise click.ClickException(sentence(error, "fit")) from error
    return 0


def _size(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise click.UsageError(f"--size must be numbers with commas, such as 128,112, got {text!r}.") from None
