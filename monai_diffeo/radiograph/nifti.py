"""Films as NIfTI. The array in the file is indexed [x, y]; the film is its transpose, never mirrored."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.film import DETAILS, PASSED, Film, check_size, check_values, in_plane_affine, library

__all__ = ["affine_of_text", "read_nifti", "shape_of_text"]

_MAX_OFFSET = 2**24  # bytes before the pixels: header and extensions
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
_SINGULAR = 1e-6  # volume of the unit cell over the product of its edges


def read_nifti(path: Path) -> Film:
    """Read a 2D NIfTI file, plain or gzipped; further axes must have length 1.

    The film's affine is the file's with its first two columns swapped; a singular one gives unknown spacing. Errors are those
    of `monai_diffeo.radiograph.reader.read_film`.
    """
    nibabel = library("nibabel", "Reading NIfTI needs nibabel: pip install nibabel.")
    try:
        return _read(nibabel, path)
    except PASSED:
        raise
    except (EOFError, OSError) as error:
        code = "DamagedFile" if isinstance(error, gzip.BadGzipFile) else "TruncatedPixels"
        raise FilmError(code, "The NIfTI file is damaged or ends before its last pixel. Copy it again.") from None
    except (zlib.error, nibabel.spatialimages.HeaderDataError, KeyError, ValueError, OverflowError):
        raise FilmError("DamagedFile", "The NIfTI header or its gzip stream is damaged. Copy it again.") from None
    except Exception:
        raise FilmError("UnreadablePixels", "The pixels of the NIfTI file cannot be read. Export it again.") from None


def _read(nibabel, path: Path) -> Film:
    with open(path, "rb") as raw:
        opener = gzip.open if raw.read(2) == b"\x1f\x8b" else open
    with opener(path, "rb") as stream:
        image_class = nibabel.Nifti2Image if stream.read(8)[4:7] == b"n+2" else nibabel.Nifti1Image
        stream.seek(0)
        _check_header(image_class.header_class, stream)
        image = image_class.from_stream(stream)
        values = image.get_fdata(dtype=np.float32, caching="unchanged")
        stream.read(1)  # past the last pixel, so that gzip compares its checksum
    pixels = np.ascontiguousarray(values.reshape(values.shape[:2]).T)
    check_values(pixels)
    return _film(pixels, np.asarray(image.affine, np.float64), values.shape, image.header.get_xyzt_units()[0])


def _check_header(header_class, stream) -> None:
    """Everything that bounds the memory is looked at before a pixel is inflated."""
    header = header_class(stream.read(header_class.template_dtype.itemsize), check=False)
    shape = tuple(int(n) for n in header.get_data_shape())
    if min(shape, default=-1) < 0:
        raise FilmError("DamagedFile", "The NIfTI header declares a negative size. Export the film again.")
    if len(shape) < 2 or any(n != 1 for n in shape[2:]):
        came = f"the file has shape {shape}. Cut out one slice."
        raise FilmError("VolumeNotFilm", f"A film has two axes and then only axes of length 1, {came}")
    check_size(shape[1], shape[0])
    if not 0 <= float(header["vox_offset"]) <= _MAX_OFFSET:
        raise FilmError("DamagedFile", "The NIfTI header puts the pixels at an impossible place. Export it again.")
    _check_extensions(header, stream)
    stream.seek(0)
    dtype = header.get_data_dtype()
    if dtype.fields:
        raise FilmError("ColourImage", "A film is grey, the NIfTI file holds RGB pixels. Convert it on purpose.")
    if dtype.kind not in "iuf":
        raise FilmError("UnsupportedFile", "A film holds real numbers, the NIfTI file does not. Export its magnitude.")


def _check_extensions(header, stream) -> None:
    """nibabel reads an extension of any size, also of gigabytes that a small gzip file unpacks to."""
    if stream.read(4)[:1] in (b"", b"\0"):
        return
    left = int(header["vox_offset"]) - stream.tell()
    while left >= 16 or left < 0:
        size = int.from_bytes(stream.read(8)[:4], "little" if header.endianness == "<" else "big")
        if not 8 <= size <= left:
            raise FilmError("DamagedFile", "The extensions of the NIfTI header do not fit into it. Export it again.")
        stream.seek(size - 8, 1)
        left -= size


def _film(pixels: np.ndarray, file_affine: np.ndarray, file_shape: tuple[int, ...], unit: str) -> Film:
    file_affine = file_affine.copy()
    file_affine[:3] *= _MILLIMETRES.get(unit, 1.0)
    shape, numbers = " ".join(map(str, file_shape)), " ".join(repr(float(value)) for value in file_affine.ravel())
    details = DETAILS | {"file_axes": "x,y", "file_shape": shape, "file_affine": numbers}
    if _is_singular(file_affine[:3, :3]):
        return Film(pixels, in_plane_affine((1.0, 1.0)), (1.0, 1.0), "unknown", "nifti", details)
    affine = file_affine[:, [1, 0, 2, 3]]
    row, column = np.linalg.norm(affine[:3, :2], axis=0)
    return Film(pixels, affine, (float(row), float(column)), "NIfTI", "nifti", details)


def _is_singular(matrix: np.ndarray) -> bool:
    finite = np.isfinite(matrix).all()
    return not finite or abs(np.linalg.det(matrix)) <= _SINGULAR * np.linalg.norm(matrix, axis=0).prod()


def shape_of_text(text: str) -> tuple[int, ...]:
    """Read ``details["file_shape"]`` back."""
    return tuple(int(word) for word in text.split())


def affine_of_text(text: str) -> np.ndarray:
    """Read ``details["file_affine"]`` back, 4x4 float64, to the last bit."""
    return np.array([float(word) for word in text.split()], np.float64).reshape(4, 4)
