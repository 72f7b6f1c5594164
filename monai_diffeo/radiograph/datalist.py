"""The films of a folder, or the packaged sample film."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_diffeo.radiograph.outputs import AUDIT_NAME, LOG_NAME, REPORT_NAME, recorded_outputs
from monai_diffeo.radiograph.packaged import packaged_film
from monai_diffeo.radiograph.paths import list_films

__all__ = ["FilmList", "film_datalist"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FilmList:
    """Films as MONAI datalist items ``{"image": path}``, and the folder below which they are named."""

    items: list[dict[str, str]]
    root: Path

    @property
    def paths(self) -> list[str]:
        """Paths of the films."""
        return [item["image"] for item in self.items]


def film_datalist(
    dataset_dir: str | os.PathLike[str] | None = None, exclude: Sequence[str | os.PathLike[str]] = ()
) -> FilmList:
    """All files below a folder, one file, or, without either, the sample film of ``pydicom-data``.

    Left out are an earlier run's report, audit and log, the files that it records, and hidden files (`list_films`); how many is
    logged. Any other file in an output folder is a film.

    Args:
        dataset_dir: folder or file; None for the sample film.
        exclude: output folders of this run; they may lie below ``dataset_dir``, and none may be that folder.

    Raises:
        FileNotFoundError: if ``dataset_dir`` does not exist.
        ValueError: if it is empty, no path, or the output folder of this run.
    """
    if dataset_dir is None:
        film = packaged_film()
        return FilmList([{"image": str(film)}], film.parent)
    if dataset_dir == "" or not isinstance(dataset_dir, (str, os.PathLike)):
        remedy = "A shell variable may be unset; leave --dataset_dir out to run on the packaged film."
        raise ValueError(f"film_datalist(): 'dataset_dir' must be a folder or a file, got {dataset_dir!r}. {remedy}")
    path = Path(dataset_dir)
    if not path.exists():
        raise FileNotFoundError(f"film_datalist(): no folder or file at {path}. Give --dataset_dir a folder of films.")
    root = path if path.is_dir() else path.parent
    if any(Path(folder).resolve() == root.resolve() for folder in exclude):
        raise ValueError(f"film_datalist(): films and results would share the folder {path}. Give --output_dir another folder.")
    films = list_films(path)
    own: set[Path] = set()
    for report in films if path.is_dir() else ():
        if report.name == REPORT_NAME and report.is_file() and (recorded := recorded_outputs(report)):
            own.update([report, *map(report.with_name, (AUDIT_NAME, LOG_NAME))], *recorded.values())
    own &= set(films)
    if own:
        logger.warning("film_datalist(): %d files that earlier runs wrote and recorded are no films.", len(own))
    return FilmList([{"image": str(film)} for film in films if film not in own], root)
