"""Films: reading one X-ray picture from DICOM, NIfTI, PNG or JPEG, strictly.

The libraries disagree about grey scale, axes and spacing (a MONOCHROME1 film comes out black or white depending on the
reader), so pixels are read here and nowhere else: rows x columns as displayed, bone white, spacing with its source.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from pathlib import Path

import numpy as np

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.dicom import read_dicom
from monai_diffeo.radiograph.film import MAX_FILE_BYTES, Film, in_plane_affine, quiet
from monai_diffeo.radiograph.nifti import read_nifti
from monai_diffeo.radiograph.paths import format_of_name, list_films, split_name
from monai_diffeo.radiograph.picture import read_picture

__all__ = ["Film", "film_meta", "format_of_name", "in_plane_affine", "list_films", "read_film", "split_name"]

_HEAD = 352  # bytes: a NIfTI-1 header and its extension flag


def read_film(path: str | os.PathLike) -> Film:
    """Read one film, or say in one sentence why the file is none. Nothing is printed and no patient data is kept.

    Args:
        path: a DICOM (also without suffix or named by a UID), NIfTI, PNG or JPEG file; the content must fit the name.

    Returns:
        The film: float32 rows x columns, bone white.

    Raises:
        FilmError: with the code ``FileNotReadable``, ``EmptyFile``, ``NotAFilm``, ``UnsupportedFile``,
            ``DamagedFile``, ``TruncatedPixels``, ``NoPixelData``, ``MissingElement``, ``MultiFrame``,
            ``VolumeNotFilm``, ``NotARadiograph``, ``ColourImage``, ``NotFinite``, ``ConstantImage``, ``TooSmall``,
            ``TooLarge`` or ``UnreadablePixels``.
    """
    path = Path(path)
    found, promised = _format_of_content(path), format_of_name(path.name)
    if promised is None:
        raise FilmError("UnsupportedFile", "The suffix is not .dcm, .dicom, .nii, .nii.gz, .png, .jpg or .jpeg.")
    if found is None:
        remedy = "DICOM without its 128-byte preamble must be exported again."
        raise FilmError("NotAFilm", f"The content is no DICOM, NIfTI, PNG or JPEG. {remedy}")
    if found != promised:
        raise FilmError("UnsupportedFile", f"The name promises {promised}, the content is {found}. Rename the file.")
    with quiet():
        readers = {"dicom": read_dicom, "nifti": read_nifti}
        return readers[found](path) if found in readers else read_picture(path, found)


def _format_of_content(path: Path) -> str | None:
    """Format by the first bytes."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise FilmError(
                "FileNotReadable", "A film is a regular file; this is a pipe, a device, or a folder that may not be opened."
            )
        with open(path, "rb") as stream:
            head = stream.read(_HEAD)
    except OSError:
        raise FilmError("FileNotReadable", "The file is missing or may not be opened. Check path and rights.") from None
    if not head:
        raise FilmError("EmptyFile", "The file is empty. Copy it again.")
    if state.st_size > MAX_FILE_BYTES:
        raise FilmError("TooLarge", f"A film file may have up to {MAX_FILE_BYTES} bytes, this one has {state.st_size}.")
    zipped = head.startswith(b"\x1f\x8b")
    if zipped:
        try:
            with gzip.open(path, "rb") as stream:
                head = stream.read(_HEAD)
        except (EOFError, OSError, zlib.error):
            raise FilmError("DamagedFile", "The gzip file is damaged or was cut. Copy it again.") from None
    kinds = {
        "dicom": head[128:132] == b"DICM",
        "png": head.startswith(b"\x89PNG\r\n\x1a\n"),
        "jpeg": head.startswith(b"\xff\xd8\xff"),
        "nifti": head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0",
    }
    return next((kind for kind, found in kinds.items() if found and (kind == "nifti" or not zipped)), None)


def film_meta(film: Film, path: str | os.PathLike = "") -> dict:
    """Metadata of a film that was read at ``path``, in MONAI's words.

    Beside MONAI's own keys, everything has one flat key (string, number or boolean), so that batches collate. They are
    ``film_format``, ``film_rows``, ``film_columns``, ``film_spacing_source``, ``film_spacing_row``, ``film_spacing_column``
    and ``film_<detail>`` for each of ``film.details``.
    """
    from monai.utils import MetaKeys, SpaceKeys  # here, because a process that only reads is there in half a second without

    return {
        MetaKeys.AFFINE.value: film.affine.copy(),
        MetaKeys.ORIGINAL_AFFINE.value: film.affine.copy(),
        MetaKeys.SPATIAL_SHAPE.value: np.array(film.pixels.shape),
        MetaKeys.ORIGINAL_CHANNEL_DIM.value: float("nan"),
        MetaKeys.SPACE.value: SpaceKeys.RAS.value,
        "filename_or_obj": str(path),
        "film_format": film.format,
        "film_rows": film.pixels.shape[0],
        "film_columns": film.pixels.shape[1],
        "film_spacing_source": film.spacing_source,
        "film_spacing_row": film.spacing[0],
        "film_spacing_column": film.spacing[1],
        **{f"film_{name}": value for name, value in film.details.items()},
    }
