"""``monai-diffeo export``: canonicaliser and network as one graph, for torch.export and for ONNX."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import click

from monai_diffeo.bundles import canonicalizer_folder, find_bundle
from monai_diffeo.cli.options import SWITCH, option, sizes
from monai_diffeo.errors import ConfigError
from monai_diffeo.files import bundle_of, sha256_below

__all__ = ["export"]

_COMPARED = 4  # images, at most


@click.command()
@click.argument("folder", metavar="FOLDER")
@option("output_dir", "Folder of model.onnx, model.pt2 and export.json; it is made.", metavar="DIR")
@option("bundle_root", "Bundle of the network, by folder or name. Without it, the one that FOLDER lies in.", metavar="BUNDLE")
@option("network_weights", "Weights of the network. Without it, models/model.pt of its bundle.", metavar="FILE")
@option("mode", "A mode without optimisation. Without it, the default one.", metavar="MODE")
@option("tta_samples", "Number of poses of the test-time augmentation. Without it, the mode's.", click.IntRange(min=1), "N")
@option("size", "Size of the images, such as 128,128. Without it, the canonicaliser's working size.", sizes, "SIZE")
@option("dataset_dir", "Images for the comparison with PyTorch. Without it, docs/sample or made-up ones.", metavar="DIR")
@option("trust_bundle", "Run any code of the bundle, with your rights. Only for a bundle whose makers you trust.", SWITCH)
def export(folder: str, output_dir: str | None, mode: str | None, tta_samples: int | None, **options: Any) -> None:
    """Write a canonicaliser and its network as one graph for ONNX and torch.export.

    FOLDER is a canonicaliser's folder, as 'fit' writes it, a bundle, or the name of one of the package, such as cxr.

    The graph takes upright images of one size, preprocessed as the bundle does. docs/how-to/export.md says what it leaves out.
    """
    if output_dir is None:
        raise click.UsageError("--output_dir is needed.")
    given = options["bundle_root"]
    found = canonicalizer_folder(folder, "export")
    root = bundle_of(found.absolute()) if given is None else find_bundle(given, "export")
    if root is None:
        raise click.UsageError(f"--bundle_root is needed: {folder} lies in no bundle, and the network has to come from one.")
    import torch  # imports torch

    from monai_diffeo.canonicalize import load_canonicalizer
    from monai_diffeo.cli.bundle import bundle_parser
    from monai_diffeo.cli.fit_network import network_of_bundle
    from monai_diffeo.export import DiffeoGraph, export_graph, smooth_images
    from monai_diffeo.fit.images import ImagesReader, find_images
    from monai_diffeo.networks.predictor import resample_image

    file, trusted = options["network_weights"], bool(options["trust_bundle"])
    network, preprocessing = network_of_bundle(root, None if file is None else Path(file), None, trusted, "export")
    limits = bundle_parser(root, {}, trusted).get("motion_limits") if given is None else None  # of its own canonicaliser
    canonicalizer = load_canonicalizer(found, mode, orientation=None, polarity=None)
    graph = DiffeoGraph(canonicalizer, network.whole_image("export"), options["size"], tta_samples, limits)
    torch.manual_seed(0)
    images = smooth_images(_COMPARED, graph)
    sample = root / "docs" / "sample"
    if options["dataset_dir"] is not None or sample.is_dir():
        reader = ImagesReader(preprocessing, len(graph.size), click.echo)
        films = list(islice(reader.usable(find_images(options["dataset_dir"] or sample)), _COMPARED))
        if not films:
            raise ConfigError("export: --dataset_dir must have images that the bundle reads, got none that can be used.")
        images = torch.cat([resample_image(film.as_subclass(torch.Tensor)[None], graph.size) for _, film in films])
    about = {"folder": str(found.absolute()), "sha256": sha256_below(found), "network": network.source, "mode": mode}
    told = export_graph(graph, images, output_dir, about)
    largest = max(value for kind in told["differences"].values() for value in kind.values())
    if warning := told["compared"].get("warning"):
        click.echo(f"Warning: {warning}", err=True)
    on = "{deformed} of {images} images deformed".format(**told["compared"])
    click.echo(f"Written to {output_dir}: model.onnx, model.pt2, export.json; they equal PyTorch within {largest:.0e}, {on}.")
