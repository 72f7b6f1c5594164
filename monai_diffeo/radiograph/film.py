"""What every film format shares: the film itself, its limits and details, and readers that print nothing."""

from __future__ import annotations

import importlib
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monai_diffeo.errors import FilmError

__all__ = ["Film", "MAX_FILE_BYTES", "MAX_PIXELS", "MAX_SIDE", "in_plane_affine"]

MAX_FILE_BYTES = 2**30
MAX_SIDE = 20_000
MAX_PIXELS = 2**26  # 256 MiB as float32
MIN_SIDE = 2
_SMALLEST, _LARGEST = 20.0, 1000.0  # mm, sides of a film that is plausible

EXPORT = "Export the film again."
PASSED = (FilmError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit)
"""A reader turns every error of its libraries into a `FilmError`, but passes these on."""

Detail = str | int | float | bool

_TEXTS = ("photometric", "transfer_syntax", "modality", "view", "laterality", "patient_orientation", "burned_in_annotation")
UNKNOWN = "unknown"
"""Source of a spacing that nothing states, and unit of lengths that are none."""

DETAILS: dict[str, Detail] = {**dict.fromkeys(_TEXTS, ""), "file_axes": "rows,columns", "file_frame": ""}
DETAILS |= {"spacing_doubt": "", "affine_unit": UNKNOWN}
DETAILS |= {"inverted": False, "voi": "none", "voi_refused": False, "padding_pixels": 0, "bits_stored": 0}
DETAILS |= {"magnification": 0.0, "exif_orientation": 0, "notes": ""}
"""Every film has all of these, so that films of several formats collate in one batch. Empty or 0 means "not stated"."""

_READERS = {"PIL", "highdicom", "libjpeg", "nibabel", "openjpeg", "pydicom", "pylibjpeg", "rle"}


@dataclass(frozen=True)
class Film:
    """One single-frame grey radiograph, bone white.

    Args:
        pixels: float32, shape ``(H, W)`` = rows x columns of the film as displayed, larger is whiter.
        affine: 4x4 float64, index ``(row, column, 0, 1)`` to RAS millimetres, where viewers that read with ITK draw the film.
        spacing: row and column spacing in millimetres; ``(1.0, 1.0)`` when the source is ``"unknown"``.
        spacing_source: the DICOM element that states it, such as ``"ImagerPixelSpacing"``; ``"NIfTI"`` or ``"unknown"``.
        format: ``"dicom"``, ``"nifti"``, ``"png"`` or ``"jpeg"``.
        details: strings, numbers and booleans without patient data; the same keys for every format. ``inverted`` says
            whether the grey scale was flipped, ``voi`` is ``"none"``, ``"lut"`` or ``"window"``, ``voi_refused`` that
            a window or table was there but unusable, ``magnification`` the estimated radiographic magnification
            (recorded, never applied). ``spacing_doubt`` says what speaks against the spacing, ``affine_unit`` is ``"mm"``
            where the affine has it, else ``"unknown"``. ``file_axes`` are the axes of a NIfTI file along columns and rows,
            ``-`` where the film runs against them; ``file_frame`` is what its mask needs, for `write_mask`.
            ``notes`` are remarks for the report, joined by `joined_notes`.
    """

    pixels: np.ndarray
    affine: np.ndarray
    spacing: tuple[float, float]
    spacing_source: str
    format: str
    details: dict[str, Detail] = field(default_factory=lambda: dict(DETAILS))


def in_plane_affine(spacing: tuple[float, float]) -> np.ndarray:
    """Affine of a film that lies in the plane: what ITK gives for the identity direction, turned from LPS to RAS.

    ``spacing`` is that of rows and of columns, millimetres. The affine is 4x4 float64; rows run along -y and columns along -x.

    Example:
        >>> (in_plane_affine((2.0, 3.0)) @ [1, 0, 0, 1]).tolist()
        [0.0, -2.0, 0.0, 1.0]
    """
    affine = np.diag([0.0, 0.0, 1.0, 1.0])
    affine[1, 0], affine[0, 1] = -spacing[0], -spacing[1]
    return affine


def size_doubt(shape: tuple[int, ...], spacing: tuple[float, float]) -> str:
    """What to say of a spacing, millimetres, that makes a film larger or smaller than films are; else empty."""
    sides = shape[0] * spacing[0], shape[1] * spacing[1]
    if _SMALLEST <= min(sides) and max(sides) <= _LARGEST:
        return ""
    return f"a film of {sides[0]:.4g} x {sides[1]:.4g} mm is implausible"


def middle_ninth(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The middle third of each axis: what of a picture ``(H, W)`` is film, whatever lies around it."""
    return tuple(slice(n // 3, n - n // 3) for n in shape)


def joined_notes(*notes: str) -> str:
    """Remarks as the one text of ``details["notes"]``; empty ones are left out.

    Example:
        >>> joined_notes("window 1 was not used", "", "spacing unknown")
        'window 1 was not used; spacing unknown'
    """
    return "; ".join(filter(None, notes))


def library(module: str, remedy: str) -> Any:
    """An optional module; FilmError ``UnsupportedFile`` with the remedy where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise FilmError("UnsupportedFile", remedy) from None


def on_size(rows: int, columns: int) -> object:
    """Told of the size that a file declares, before anything is decoded; a process that reads one film may replace it."""


def check_size(rows: int, columns: int) -> None:
    """Refuse sizes that cannot be a film, before anything is decoded: FilmError ``TooSmall`` or ``TooLarge``."""
    if min(rows, columns) < MIN_SIDE:
        raise FilmError("TooSmall", f"A film has at least {MIN_SIDE} rows and columns, the file declares {rows} x {columns}.")
    if max(rows, columns) > MAX_SIDE or rows * columns > MAX_PIXELS:
        limit = f"A film may have up to {MAX_SIDE} rows and columns and {MAX_PIXELS} pixels"
        raise FilmError("TooLarge", f"{limit}, the file declares {rows} x {columns}. Export it at a lower resolution.")
    on_size(rows, columns)


def check_values(pixels: np.ndarray) -> None:
    """Refuse pixels that carry no picture: FilmError ``NotFinite`` or ``ConstantImage``."""
    bad = 0 if pixels.dtype.kind in "iu" else pixels.size - int(np.count_nonzero(np.isfinite(pixels)))
    if bad:
        raise FilmError("NotFinite", f"{bad} pixels are NaN or infinite. Repair or export the film again.")
    if pixels.min() == pixels.max():
        raise FilmError("ConstantImage", "All pixels have the same value: there is no picture. Check the export.")


class _Reading(threading.local):
    depth = 0


_reading = _Reading()


class _WhileReading(type):
    def __subclasscheck__(cls, category: type) -> bool:
        return _reading.depth > 0


class ReaderWarning(Warning, metaclass=_WhileReading):
    """Every warning of a thread that reads a film, and no other: a category for filters, never raised."""


def _is_of_reader(name: str) -> bool:
    return name.partition(".")[0] in _READERS


def _is_heard(record: logging.LogRecord) -> bool:
    return not (_reading.depth and _is_of_reader(record.name))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep this thread's warnings and the readers' log records from the terminal: they print tag values, which is patient data.

    Other threads, and records of other libraries, are heard as before. One filter stays in ``warnings.filters`` and one on the
    handlers; they act while a thread reads.
    """
    if not (warnings.filters and warnings.filters[0][2] is ReaderWarning):
        warnings.simplefilter("ignore", ReaderWarning)
    named = [logger for name, logger in list(logging.Logger.manager.loggerDict.items()) if _is_of_reader(name)]
    for logger in (logging.getLogger(), *named):  # all whose handlers a record of a reader may reach
        for handler in getattr(logger, "handlers", ()):
            handler.addFilter(_is_heard)
    if logging.lastResort:
        logging.lastResort.addFilter(_is_heard)
    _reading.depth += 1
    try:
        yield
    finally:
        _reading.depth -= 1
