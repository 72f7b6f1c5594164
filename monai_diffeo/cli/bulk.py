"""``monai-diffeo bulk``: many films on many processes, of this machine or of a cluster."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from monai_diffeo.cli.options import option
from monai_diffeo.cli.segment import ENDS, FILM_OPTIONS, opened_bundle

__all__ = ["PATIENCE", "bulk"]

PATIENCE = 300  # seconds
_PATHS = ("dataset_dir", "output_dir", "network_weights", "trust_model")


@click.command(
    epilog="""\b
Exit status:
  0    every film has a mask
  1    nothing was run; the last line on stderr says why
  3    some films have no mask, and report.jsonl says which and why; or the run had to end, and the last line says why
  4    every film failed, or there was none
  130  stopped by Ctrl-C; the same command goes on
  143  stopped by SIGTERM; the same command goes on"""
)
@option("dataset_dir", "A folder of films, which all workers see under this name.", metavar="DIR")
@option("output_dir", "Folder of the results, which all workers see under this name.", metavar="DIR")
@option("scheduler", "Address of a scheduler of Dask, such as tcp://node7:8786, or its file. Without it, this machine.", str)
@option("workers", "Processes on this machine. Without it, one a core, or one with --device cuda.", click.IntRange(min=1), "N")
@option("patience", f"Seconds without workers that end a run. Without it, {PATIENCE}.", click.FloatRange(0, min_open=True), "N")
def bulk(bundle_root: str | None, trust_bundle: bool | None, **options: Any) -> int:
    """Segment many films with many processes, of this machine or of a cluster.

    The results are those of 'segment'. A second run does what is missing.
    """
    given = {name: value for name, value in options.items() if value is not None}
    scheduler, workers, patience = (given.pop(name, None) for name in ("scheduler", "workers", "patience"))
    if not {"dataset_dir", "output_dir"} <= set(given) or (scheduler and workers):
        raise click.UsageError("Give --dataset_dir, --output_dir, and at most one of --scheduler and --workers.")
    if patience is not None and math.isnan(patience):
        raise click.UsageError("--patience must be a number of seconds, got nan. Leave it out, or give 86400 for a day.")
    if find_spec("distributed") is None:
        raise click.ClickException('bulk: Dask is not installed. It comes with: pip install "monai-diffeo[bulk]"')
    with opened_bundle("bulk", bundle_root, given) as root, ExitStack() as stack:
        from monai_diffeo import bulk as room  # imports torch
        from monai_diffeo.cli.bundle import film_parser

        given |= {name: os.path.abspath(given[name]) for name in _PATHS if name in given}
        parser = film_parser(root, {**given, "resume": True}, bool(trust_bundle))
        films, reporter = parser.get_parsed_content("films"), parser.get_parsed_content("reporter")
        if missing := [item["image"] for item in reporter.missing(films.items)]:
            if scheduler is None and str(given.get("device")).startswith("cuda"):
                workers = workers or 1
            folder = stack.enter_context(room.staging(reporter.output_dir))
            client = stack.enter_context(room.connected(scheduler, workers))
            click.echo(f"Dashboard: {client.dashboard_link}", err=True)
        reporter.begin(len(films.items))
        if missing:
            arguments = (root.absolute(), tuple(given.items()), Path(films.root), bool(trust_bundle))
            folder.mkdir(parents=True, exist_ok=True)  # after the run has the output folder for itself
            task = room.Task(_segmenter, arguments, str(folder), reporter.settings_sha256, str(films.root))
            room.run_films(client, task, missing, reporter, patience or PATIENCE)
        status = reporter.end()
    if status in ENDS and reporter.stopped is None:
        click.echo(ENDS[status], err=True)
    return status


bulk.params += FILM_OPTIONS


def _segmenter(root: Path, given: tuple[tuple[str, Any], ...], films: Path, trusted: bool, output: Path) -> Any:
    """On a worker: what segments one film after another."""
    from monai_diffeo.cli.bundle import FilmByFilm

    return FilmByFilm(root, {**dict(given), "output_dir": str(output)}, films, trusted, share=True)
