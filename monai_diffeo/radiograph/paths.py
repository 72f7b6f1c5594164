"""Which files are films, by name; the content is checked by `read_film`."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from monai_diffeo.errors import FilmError

__all__ = ["format_of_name", "list_films", "split_name"]

SUFFIXES = {
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".png": "png",
    ".jpeg": "jpeg",
    ".jpg": "jpeg",
    ".dicom": "dicom",
    ".dcm": "dicom",
}
_NUMERIC_SUFFIX = re.compile(r"\.\d+$")


def split_name(name: str) -> tuple[str, str]:
    """Split a file name into stem and suffix; ``.nii.gz`` is one suffix and the end of a UID is none.

    Args:
        name: file name without folders.

    Returns:
        Stem and suffix (as written, ``""`` when there is none).

    Example:
        >>> split_name("a.b.nii.gz"), split_name("1.2.840.123"), split_name("film.DCM")
        (('a.b', '.nii.gz'), ('1.2.840.123', ''), ('film', '.DCM'))
    """
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], name[-len(suffix) :]
    if _NUMERIC_SUFFIX.search(name):
        return name, ""
    stem, suffix = os.path.splitext(name)
    return stem, suffix


def format_of_name(name: str) -> str | None:
    """Format that a file name promises.

    Args:
        name: file name without folders.

    Returns:
        ``"dicom"`` (also without a suffix or with a UID as name), ``"nifti"``, ``"png"``, ``"jpeg"``, or None for a
        suffix that is not ours.
    """
    suffix = split_name(name)[1].lower()
    return SUFFIXES.get(suffix) if suffix else "dicom"


def list_films(folder: str | os.PathLike, exclude: Iterable[str | os.PathLike] = ()) -> list[Path]:
    """Every regular file below a folder, sorted; nothing is left out for its suffix, `read_film` refuses by name.

    Hidden files and hidden folders below `folder` are left out, and linked folders are not entered; links to files are
    followed. `folder` itself may be a link.

    Args:
        folder: a folder, or one file.
        exclude: folders to leave out, e.g. the output folder.

    Returns:
        Paths that start with `folder`.

    Raises:
        FilmError: ``FileNotReadable`` if `folder` or a folder below it cannot be read.
    """
    root = Path(folder)
    if root.is_file():
        return [root]
    shut = {os.path.realpath(path) for path in exclude}
    films: list[Path] = []
    for place, folders, files in os.walk(root, onerror=_refuse_folder):
        if os.path.realpath(place) in shut:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        films += [Path(place, name) for name in files if is_plain(place, name)]
    return sorted(films)


def is_plain(folder: str | os.PathLike, name: str) -> bool:
    """Whether `name` in `folder` is a regular file, a link to one or a link that leads nowhere, and not hidden."""
    path = os.path.join(folder, name)
    mode = os.lstat(path).st_mode
    return not name.startswith(".") and (
        stat.S_ISREG(mode) or (stat.S_ISLNK(mode) and (os.path.isfile(path) or not os.path.exists(path)))
    )


def _refuse_folder(error: OSError) -> None:
    raise FilmError("FileNotReadable", "A folder is missing or may not be opened. Check the path and its rights.")
