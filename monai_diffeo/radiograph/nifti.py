"""Films as NIfTI. The array in the file is indexed [x, y]; the film is its transpose, turned where its affine was chosen.

A film is shown with the head up, or anterior where it lies in the axial plane, and the patient's left at the right. But many
writers store what they display, with an affine that nobody chose: codes of 0, the identity, nibabel's codes and no origin or
one that centres. These say nothing. Columns are reversed only by an affine with an origin: without, nobody placed the film.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import numpy as np

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.film import (
    DETAILS,
    PASSED,
    UNKNOWN,
    Detail,
    Film,
    check_size,
    check_values,
    in_plane_affine,
    joined_notes,
    library,
    size_doubt,
)

__all__ = ["file_of_film", "film_of_file", "index_matrix", "nifti_axes", "read_nifti"]

_MAX_OFFSET = 2**24  # bytes before the pixels: header and extensions
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
_SINGULAR = 1e-6  # volume of the unit cell over the product of its edges
_NEAR = 1e-3  # voxels
_NO_CODES, _CODES_OF_NIBABEL = (0, 0), (0, 2)  # qform, sform
_FRAME = ["qform_code", "sform_code", "pixdim", "xyzt_units", "quatern_b", "quatern_c", "quatern_d"]
_FRAME += ["qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"]


def read_nifti(path: Path) -> Film:
    """Read a 2D NIfTI file, plain or gzipped; further axes must have length 1.

    The film's affine maps its own rows and columns to where the file's affine has them; a singular one gives unknown spacing.
    Errors are those of `monai_diffeo.radiograph.reader.read_film`.
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
    affine, header = np.asarray(image.affine, np.float64), image.header
    axes, notes = nifti_axes(header, affine, values.shape)
    notes += ["negative scl_slope inverts the grey scale"] * (image.dataobj.slope < 0)
    pixels = np.ascontiguousarray(film_of_file(values.reshape(values.shape[:2]), axes))
    check_values(pixels)
    frame = {"version": 2 if image_class is nibabel.Nifti2Image else 1, "shape": values.shape, "axes": axes}
    frame |= {"header": {name: header[name].tolist() for name in _FRAME}}
    details = DETAILS | {"file_axes": axes, "file_frame": json.dumps(frame), "notes": joined_notes(*notes)}
    return _film(pixels, affine, header.get_xyzt_units()[0], details)


def _check_header(header_class, stream) -> None:
    """Everything that bounds the memory is looked at before a pixel is inflated."""
    header = header_class(stream.read(header_class.template_dtype.itemsize), check=False)
    shape = tuple(int(n) for n in header.get_data_shape())
    if min(shape, default=-1) < 0:
        raise FilmError("DamagedFile", "The NIfTI header declares a negative size. Export the film again.")
    if len(shape) < 2 or any(n != 1 for n in shape[2:]):
        came = f"the file has shape {shape}. Cut out one slice, and put its two axes first."
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


def _film(pixels: np.ndarray, file_affine: np.ndarray, unit: str, details: dict[str, Detail]) -> Film:
    if _is_singular(file_affine[:3, :3]):
        details |= {"spacing_doubt": "the affine is singular"}
        return Film(pixels, in_plane_affine((1.0, 1.0)), (1.0, 1.0), UNKNOWN, "nifti", details)
    affine = file_affine @ index_matrix(str(details["file_axes"]), pixels.shape)
    affine[:3] *= _MILLIMETRES.get(unit, 1.0)
    row, column = (float(edge) for edge in np.linalg.norm(affine[:3, :2], axis=0))
    if row == column == 1:
        details |= {"spacing_doubt": "1 x 1 mm is what writers give that know no spacing"}
        return Film(pixels, affine, (1.0, 1.0), UNKNOWN, "nifti", details)
    doubt = joined_notes(
        "no unit is stated, millimetres are assumed" * (unit == UNKNOWN), size_doubt(pixels.shape, (row, column))
    )
    return Film(pixels, affine, (row, column), "NIfTI", "nifti", details | {"affine_unit": "mm", "spacing_doubt": doubt})


def nifti_axes(header, affine: np.ndarray, shape: tuple[int, ...]) -> tuple[str, list[str]]:
    """Axes of the file along columns and rows of the film, and remarks about them."""
    codes, size = (int(header["qform_code"]), int(header["sform_code"])), np.array(shape[:2])
    if codes == _NO_CODES:  # dcm2niix reverses the rows of a film without position, and leaves only this trace
        step, start = (float(value) for value in header["srow_y"][[1, 3]])
        if not (step > 0 and abs(start / step + size[1] - 1) < _NEAR):
            return "x,y", []
        return "x,-y", ["rows were reversed, the file says that the last row is stored first"]
    if _is_singular(affine[:3, :3]):
        return "x,y", []
    edges, placed = np.linalg.norm(affine[:3, :2], axis=0), bool(affine[:3, 3].any())
    right, anterior, head = affine[:3, :2] / edges
    up = head if np.linalg.norm(head) > 0.5 else anterior
    row, column = (1, 0) if abs(up[1]) >= abs(up[0]) else (0, 1)
    rising, mirrored = up[row] > 0, placed and right[column] > 0.5
    centred = (np.abs(affine[:2] @ [*(size - 1) / 2, 0, 1]) < _NEAR * edges).all()
    unchosen = (codes == _CODES_OF_NIBABEL or (edges == 1).all()) and (centred or not placed)
    if unchosen and (rising or mirrored):
        return "x,y", []
    notes = ["rows and columns were exchanged, as the affine says"] * (row == 0)
    notes += ["rows were reversed, the affine says that they go up"] * bool(rising)
    notes += ["columns were reversed, the affine says that they lead to the patient's right"] * bool(mirrored)
    return f"{'-' * bool(mirrored)}{'xy'[column]},{'-' * bool(rising)}{'xy'[row]}", notes


def film_of_file(array: np.ndarray, axes: str) -> np.ndarray:
    """The film of a file's array ``[x, y]``; ``axes`` are those of the file along columns and rows, such as ``"x,-y"``.

    Example:
        >>> film_of_file(np.array([[1, 2], [3, 4]]), "x,-y").tolist()
        [[2, 4], [1, 3]]
    """
    column, row = axes.split(",")
    return _reversed(array if row[-1] == "x" else array.T, axes)


def file_of_film(film: np.ndarray, axes: str) -> np.ndarray:
    """The inverse of `film_of_file`: what of a film belongs into the file."""
    array = _reversed(film, axes)
    return array if axes[-1] == "x" else array.T


def _reversed(film: np.ndarray, axes: str) -> np.ndarray:
    columns, rows = (-1 if axis[0] == "-" else 1 for axis in axes.split(","))
    return film[::rows, ::columns]


def index_matrix(axes: str, shape: tuple[int, ...]) -> np.ndarray:
    """Matrix from indices of the film to indices of the file."""
    matrix = np.diag([0.0, 0.0, 1.0, 1.0])
    for film_axis, axis in zip((1, 0), axes.split(",")):
        back = axis[0] == "-"
        matrix["xy".index(axis[-1]), [film_axis, 3]] = (-1, shape[film_axis] - 1) if back else (1, 0)
    return matrix


def _is_singular(matrix: np.ndarray) -> bool:
    finite = np.isfinite(matrix).all()
    return not finite or abs(np.linalg.det(matrix)) <= _SINGULAR * np.linalg.norm(matrix, axis=0).prod()
