"""``monai-diffeo report``: a page and a table of a run."""

from __future__ import annotations

import click

from monai_diffeo.cli.options import SWITCH, option

__all__ = ["report"]


@click.command()
@click.argument("folder", metavar="DIR")
@option("embed_pictures", "'true' holds all pictures in the page, 'false' links them. Without it, up to 500 are held.", SWITCH)
def report(folder: str, embed_pictures: bool | None) -> None:
    """Write report.html and report.csv into DIR, the output folder of a run.

    The page is opened from the file, alone or with its folder, and loads nothing from a network.
    """
    from monai_diffeo.report.page import report_page  # imports torch

    for path in report_page(folder, embed_pictures):
        click.echo(path)
