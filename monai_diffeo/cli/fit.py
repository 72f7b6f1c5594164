"""``monai-diffeo fit``: fit a canonicaliser to a folder of unlabelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from monai_diffeo.cli.options import SWITCH, option, sizes

__all__ = ["fit"]


@click.command(
    epilog="""\b
Exit status:
  0    fitted; README.md in --output_dir says whether it worked
  1    nothing was done; the last line on stderr says why
  130  interrupted by Ctrl-C; --resume goes on
  143  stopped by SIGTERM; --resume goes on"""
)
@option("dataset_dir", "A folder of images, a datalist.json or a manifest.csv. Labels are not needed.", metavar="DIR")
@option("output_dir", "Folder of the canonicaliser; a fit that is in it is never overwritten.", metavar="FOLDER")
@option("bundle_root", "A bundle, whose preprocessing and network are used. Without it, images alone.", metavar="BUNDLE")
@option("network_weights", "Weights of the bundle's network. Without it, models/model.pt.", metavar="FILE")
@option("activation", "Without it, by the bundle's postprocessing.", click.Choice(["sigmoid", "softmax"]))
@option("dims", "Without it, that of the first image.", click.Choice(["2", "3"]))
@option("size", "Working size, such as 128,112: multiples of 16, from 32. Without it, chosen from the images.", sizes, "SIZE")
@option("minutes", "Time for everything. Without it, 20.", click.FloatRange(min=0, min_open=True), "N")
@option("device", "'cpu' or 'cuda'.", metavar="DEVICE")
@option("seed", "Of all random numbers. Without it, 0.", int, "N")
@option("progress", "Show a progress bar. Without it, on a terminal only.", SWITCH)
@option("resume", "Go on with the fit in --output_dir, which began with the same options.", SWITCH)
@option("trust_bundle", "Run any code of the bundle, with your rights. Only for a bundle whose makers you trust.", SWITCH)
def fit(dataset_dir: str | None, output_dir: str | None, bundle_root: str | None, **options: Any) -> None:
    """Fit a canonicaliser to images, for any network, any size, 2D or 3D.

    A plan is printed first. At the end, README.md in the output folder shows what the canonicaliser does to images that it was
    not fitted to.
    """
    if dataset_dir is None or output_dir is None:
        raise click.UsageError(f"--{'dataset_dir' if dataset_dir is None else 'output_dir'} is needed.")
    network_weights, activation, trusted = (options.pop(name) for name in ("network_weights", "activation", "trust_bundle"))
    if bundle_root is None and (network_weights or activation):
        raise click.UsageError(f"--{'network_weights' if network_weights else 'activation'} needs a --bundle_root.")
    settings = {name: value for name, value in options.items() if value is not None}
    if "dims" in settings:
        settings["dims"] = int(settings["dims"])
    from monai_diffeo.bundles import find_bundle
    from monai_diffeo.fit import fit_canonicalizer  # imports torch

    if bundle_root is not None:
        from monai_diffeo.cli.fit_network import network_of_bundle

        file = None if network_weights is None else Path(network_weights)
        settings["network"], settings["transform"] = network_of_bundle(
            find_bundle(bundle_root, "fit"), file, activation, bool(trusted)
        )
    fit_canonicalizer(dataset_dir, output_dir, say=click.echo, **settings)
