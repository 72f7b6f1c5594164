"""Which files are films, by name; the content is checked by `read_film`."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from monai_diffeo.errors import FilmError

__all__ = ["format_of_name", "list_films", "split_name"]

logger = logging.getLogger(__name__)

SUFFIXES = {".nii.gz": "nifti", ".nii": "nifti", ".png": "png", ".jpeg": "jpeg", ".jpg": "jpeg"}
SUFFIXES |= {".dicom": "dicom", ".dcm": "dicom"}
_NUMERIC_SUFFIX = re.compile(r"\.\d+$")


def split_name(name: str) -> tuple[str, str]:
    """Stem and suffix of a file name, as written; ``.nii.gz`` is one suffix, and the end of a UID is none (``""``).

    Example:
        >>> split_name("a.b.nii.gz"), split_name("1.2.840.123"), split_name("film.DCM")
        (('a.b', '.nii.gz'), ('1.2.840.123', ''), ('film', '.DCM'))
    """
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], name[-len(suffix) :]
    return (name, "") if _NUMERIC_SUFFIX.search(name) else os.path.splitext(name)


def format_of_name(name: str) -> str | None:
    """Format that a file name (without folders) promises: ``"dicom"``, ``"nifti"``, ``"png"`` or ``"jpeg"``.

    A name without suffix, such as a UID, promises DICOM; a suffix that is not ours gives None.
    """
    suffix = split_name(name)[1].lower()
    return SUFFIXES.get(suffix) if suffix else "dicom"


def list_films(folder: str | os.PathLike, exclude: Iterable[str | os.PathLike] = ()) -> list[Path]:
    """Every file below a folder, sorted; nothing is left out for its suffix or kind, `read_film` refuses by name and content.

    Links are followed, unless they lead back to a folder above them. Pipes, sockets and devices are listed, and so is a folder
    below `folder` that cannot be read: `read_film` refuses them, so that each is a line of a report. Hidden files and folders
    (a dot first) are left out, and a warning says how many. `folder` itself may be hidden or a link.

    Args:
        folder: a folder, or one file; all paths start with it, also those of links that lead nowhere.
        exclude: folders to leave out.

    Raises:
        FilmError: ``FileNotReadable`` if `folder` cannot be read.
    """
    root = Path(folder)
    if os.path.lexists(root) and not root.is_dir():
        return [root]
    shut = {os.path.realpath(path) for path in exclude}
    films: list[Path] = []
    hidden = 0
    places: list[tuple[Path, tuple[str, ...]]] = [(root, ())]  # each with the true paths of the folders above it
    while places:
        place, above = places.pop()
        real = os.path.realpath(place)
        if real in shut or real in above:
            continue
        try:
            found = _by_kind(place)
        except FilmError:
            if not above:
                raise
            films.append(place)
            continue
        films += found["film"]
        places += [(folder, (*above, real)) for folder in found["folder"]]
        hidden += len(found["hidden"])
    if hidden:
        logger.warning("list_films(): %d hidden files and folders are left out.", hidden)
    return sorted(films)


def film_names(folder: Path) -> list[str]:
    """Names in one folder that `list_films` would list."""
    return [path.name for path in _by_kind(folder)["film"]]


def _by_kind(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {"film": [], "folder": [], "hidden": []}
    try:
        names = os.listdir(folder)
    except OSError:
        raise FilmError("FileNotReadable", "A folder is missing or may not be opened. Check path and rights.") from None
    for name in names:
        path = folder / name
        found["hidden" if name.startswith(".") else "folder" if path.is_dir() else "film"].append(path)
    return found
