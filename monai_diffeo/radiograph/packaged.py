"""The radiograph that comes with the package `pydicom-data`, for demonstrations without a network."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from monai_diffeo.errors import FilmError

__all__ = ["packaged_film"]

_PACKAGE = "pydicom-data"
_NAMES = ("RG1_UNCR.dcm", "RG1_UNCI.dcm", "RG1_J2KR.dcm")


def packaged_film() -> Path:
    """Path of an adult posterior-anterior chest radiograph (CR, MONOCHROME1, 1955 x 1841, uncompressed if possible).

    Raises:
        FilmError: ``FileNotReadable`` if `pydicom-data` is not installed.
    """
    try:
        files = {file.name: file for file in metadata.files(_PACKAGE) or ()}
    except metadata.PackageNotFoundError:
        files = {}
    for name in _NAMES:
        if name in files and (path := Path(files[name].locate())).is_file():
            return path
    raise FilmError("FileNotReadable", "The sample film is not installed: pip install monai-diffeo[demo].")
