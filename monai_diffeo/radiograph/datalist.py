"""The films of a folder, or the packaged sample film."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_diffeo.radiograph.packaged import packaged_film
from monai_diffeo.radiograph.reader import list_films

__all__ = ["FilmList", "film_datalist"]


@dataclass(frozen=True)
class FilmList:
    """Films as MONAI datalist items ``{"image": path}``, and the folder below which they are named."""

    items: list[dict[str, str]]
    root: Path


def film_datalist(dataset_dir: str | Path | None = None, exclude: Sequence[str | Path] = ()) -> FilmList:
    """All files below a folder, one file, or, without either, the sample film of ``pydicom-data``.

    Args:
        dataset_dir: folder or file; None for the sample film.
        exclude: folders to leave out, such as the output folder; folders with the report of an earlier run are left out too.

    Raises:
        FileNotFoundError: if ``dataset_dir`` does not exist.
        ValueError: if it is the output folder of this run or of an earlier one.
    """
    if dataset_dir in (None, "", "None"):
        film = packaged_film()
        return FilmList([{"image": str(film)}], film.parent)
    path = Path(dataset_dir)
    if not path.exists():
        raise FileNotFoundError(f"film_datalist(): no folder or file at {path}. Give --dataset_dir a folder of films.")
    root = path if path.is_dir() else path.parent
    if any(Path(folder).resolve() == root.resolve() for folder in exclude):
        raise ValueError(f"film_datalist(): films and results would share the folder {path}. Give --output_dir another folder.")
    results = [report.parent for report in root.rglob("report.jsonl")] if path.is_dir() else []
    if root in results:
        raise ValueError(
            f"film_datalist(): {path} holds the report.jsonl of an earlier run; give --dataset_dir the folder of the films."
        )
    exclude = [*exclude, *results]
    return FilmList([{"image": str(film)} for film in list_films(path, exclude)], root)
