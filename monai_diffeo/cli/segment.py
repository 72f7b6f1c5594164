"""``monai-diffeo segment``: run a bundle on a folder of films. Values are words, and code of others does not run."""

from __future__ import annotations

import json
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from monai_diffeo.bundles import bundles_folder, find_bundle
from monai_diffeo.cli.options import SWITCH, option, sentence

__all__ = ["ENDS", "FILM_OPTIONS", "opened_bundle", "segment"]

ENDS = {
    3: "Some films have no mask; report.jsonl says which and why.",
    4: "Every film failed, or there was none; report.jsonl says why.",
}
_EXTRAS = {"mlxtend": "genus", "nilearn": "experiments"}  # of a bundle that needs this package; the others need "demo"


@click.command(
    epilog="""\b
Exit status:
  0    every film has a mask
  1    nothing was run; the last line on stderr says why
  3    finished; some films have no mask, and report.jsonl says which and why
  4    every film failed, or there was none
  130  interrupted"""
)
@option("dataset_dir", "A folder of films, or one film. Without it, the packaged film.", metavar="DIR")
@option(
    "output_dir",
    "Folder of the results. Without it, 'output' in the bundle, or here for a bundle of the package.",
    metavar="DIR",
)
@option("bundle_root", "Folder of a bundle, or the name of one of the package. Without it, cxr.", metavar="BUNDLE")
@option("enabled", "'false' uses the plain network.", SWITCH)
@option("mode", "How the canonicaliser searches: single_pass, refine or faithful.", metavar="MODE")
@option("tta_samples", "Number of poses of the test-time augmentation.", click.IntRange(min=1), "N")
@option(
    "mask_threshold",
    "Probability above which a pixel is in the mask. Another than the bundle's leaves decisions uncalibrated.",
    click.FloatRange(0, 1, True, True),
    "P",
)
@option("convention", "What of a lung a mask holds: what is 'visible' beside the heart, or the 'whole' of it.", metavar="WHICH")
@option("device", "'cpu' or 'cuda'.", metavar="DEVICE")
@option("amp", "Run the networks in mixed precision, bfloat16; faster where the processor has instructions for it.", SWITCH)
@option("network_weights", "Weights of the network.", metavar="FILE")
@option("trust_model", "Decide on films by this file, which 'calibrate' wrote for the options of this run.", metavar="FILE")
@option(
    "fallback",
    "'identity' gives the plain answer for a film that is rejected, 'raise' none. 'best' also gives another answer where it "
    "looks better than one that is doubted.",
    click.Choice(["identity", "raise", "best"]),
)
@option("figures", "'false' draws no pictures.", SWITCH)
@option("uncertainty", "Write a map beside each mask, 0 where all answers agree and 1 where they say nothing.", SWITCH)
@option("dicom_output", "Write DICOM results beside the masks: SEG, report, picture.", SWITCH)
@option("progress", "Show a progress bar of the optimisation.", SWITCH)
@option("resume", "Do only the films that the results in --output_dir lack.", SWITCH)
@option("pseudonymize_names", "Name outputs by the content of the film, not by its file name.", SWITCH)
@option("accept_anything", "Write masks of images that are no chest films too; they are to be reviewed.", SWITCH)
@option("debug", "Print the traceback of what fails.", SWITCH)
@option("trust_bundle", "Run any code of the bundle, with your rights. Only for a bundle whose makers you trust.", SWITCH)
def segment(bundle_root: str | None, trust_bundle: bool | None, **options: Any) -> int:
    """Segment films with a bundle of MONAI.

    A value is taken as it is typed: a folder may be named 20240115, None or $x. A configuration that could run code which is
    not on an allow-list is refused before anything runs.
    """
    given = {name: value for name, value in options.items() if value is not None}
    with opened_bundle("segment", bundle_root, given) as root:
        from monai_diffeo.cli.bundle import run_bundle  # imports torch

        status = run_bundle(root, given, trusted=bool(trust_bundle))
    if status in ENDS:
        click.echo(ENDS[status], err=True)
    return status


_OF_A_RUN = {"dataset_dir", "output_dir", "progress", "resume", "pseudonymize_names"}
FILM_OPTIONS = [each for each in segment.params if each.name not in _OF_A_RUN]  # for commands with a run of their own kind


@contextmanager
def opened_bundle(who: str, bundle_root: str | None, given: dict[str, Any]) -> Iterator[Path]:
    """The folder of a bundle whose packages are there, after saying what it may be used for. What fails, here or in the body
    of ``with``, becomes one line; with ``debug`` in ``given`` its traceback comes first."""
    extra = "demo"
    try:
        root = find_bundle(bundles_folder() / "cxr_lung_segmentation" if bundle_root is None else bundle_root, who)
        about = _metadata(root)
        needed = about.get("required_packages_version", {})
        extra = next((_EXTRAS[name] for name in needed if name in _EXTRAS), extra)
        _check_packages(needed, extra)
        if bundles_folder().name == "_bundles" and root.resolve().is_relative_to(bundles_folder()):
            given.setdefault("output_dir", "output")  # among installed packages is no place for results
        if use := " ".join(str(about.get("intended_use", "")).split()):
            terms = root / "docs" / "data_license.txt"
            click.echo(f"{use} Terms: {terms}" if terms.is_file() else use, err=True)
        yield root
    except Exception as error:
        if given.get("debug"):
            traceback.print_exc()
        raise click.ClickException(sentence(error, who, extra)) from error


def _metadata(root: Path) -> dict[str, Any]:
    file = root / "configs" / "metadata.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _check_packages(needed: Collection[str], extra: str) -> None:
    """Refuse a bundle that needs packages which are not installed."""
    missing = [name for name in needed if name != "monai-diffeo" and not any(metadata.distributions(name=name))]
    if missing:
        raise click.ClickException(
            f"segment: the bundle needs packages that are not installed: {missing}. "
            f'Those of our bundles come with: pip install "monai-diffeo[{extra}]"'
        )
