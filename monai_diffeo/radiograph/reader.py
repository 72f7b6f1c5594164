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
from monai_diffeo.radiograph.content import FILM_FORMATS, HEAD_BYTES, content_of_head
from monai_diffeo.radiograph.dicom import read_dicom
from monai_diffeo.radiograph.dicom_file import DIRECTORY
from monai_diffeo.radiograph.film import MAX_FILE_BYTES, PASSED, Film, in_plane_affine, quiet
from monai_diffeo.radiograph.nifti import read_nifti
from monai_diffeo.radiograph.paths import format_of_name, list_films, split_name
from monai_diffeo.radiograph.picture import read_picture

__all__ = ["Film", "film_meta", "format_of_name", "in_plane_affine", "list_films", "read_film", "split_name"]


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
            ``TooLarge``, ``UnreadablePixels`` or ``DicomDirectory``.
    """
    path = Path(path)
    found, promised = _content(path), format_of_name(path.name)
    if promised == "dicom" and path.stem.upper() == "DICOMDIR":
        raise FilmError("DicomDirectory", DIRECTORY)
    if found.endswith("archive"):
        raise FilmError("UnsupportedFile", f"The content is {found}. Unpack it first.")
    if promised is None:
        raise FilmError("UnsupportedFile", "The suffix is not .dcm, .dicom, .nii, .nii.gz, .png, .jpg or .jpeg.")
    if found not in FILM_FORMATS:
        raise FilmError("NotAFilm", f"The content is {found or 'of an unknown kind'}, no DICOM, NIfTI, PNG or JPEG.")
    if found != promised:
        raise FilmError("UnsupportedFile", f"The name promises {promised}, the content is {found}. Rename the file.")
    readers = {"dicom": read_dicom, "nifti": read_nifti}
    try:
        with quiet():
            return readers[found](path) if found in readers else read_picture(path, found)
    except PASSED:
        raise
    except BaseException:  # decoders raise what is no Exception
        raise FilmError("UnreadablePixels", "The decoder of the pixels failed. Export the film again.") from None


def _content(path: Path) -> str:
    """What the file is by its first bytes, as `content_of_head` says; what is gzipped counts as NIfTI or as an archive."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise FilmError(
                "FileNotReadable", "A film is a regular file; this is a pipe, a device, or a folder that may not be opened."
            )
        with open(path, "rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError:
        raise FilmError("FileNotReadable", "The file is missing or may not be opened. Check path and rights.") from None
    if not head:
        raise FilmError("EmptyFile", "The file is empty. Copy it again.")
    if state.st_size > MAX_FILE_BYTES:
        raise FilmError("TooLarge", f"A film file may have up to {MAX_FILE_BYTES} bytes, this one has {state.st_size}.")
    if not head.startswith(b"\x1f\x8b"):
        return content_of_head(head)
    try:
        with gzip.open(path, "rb") as stream:
            inside = content_of_head(stream.read(HEAD_BYTES))
    except (EOFError, OSError, zlib.error):
        raise FilmError("DamagedFile", "The gzip file is damaged or was cut. Copy it again.") from None
    packed = inside in FILM_FORMATS or inside.endswith("archive")
    return inside if inside == "nifti" else "a gzip archive" if packed else f"gzip of {inside or 'an unknown kind'}"


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
