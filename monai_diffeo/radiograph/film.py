"""What every film format shares: the film itself, its limits, its details and the silence around the libraries."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from monai_diffeo.errors import FilmError

__all__ = ["Film", "MAX_FILE_BYTES", "MAX_PIXELS", "MAX_SIDE", "in_plane_affine"]

MAX_FILE_BYTES = 2**30
MAX_SIDE = 20_000
MAX_PIXELS = 2**27  # 512 MiB as float32
MIN_SIDE = 2

DETAILS = {
    "photometric": "",
    "inverted": False,
    "voi": "none",
    "voi_refused": False,
    "padding_pixels": 0,
    "bits_stored": 0,
    "transfer_syntax": "",
    "modality": "",
    "view": "",
    "laterality": "",
    "patient_orientation": "",
    "burned_in_annotation": "",
    "magnification": 0.0,
    "exif_orientation": 0,
    "file_axes": "rows,columns",
    "file_shape": "",
    "file_affine": "",
}
"""Every film has all of these, so that films of several formats collate in one batch. Empty or 0 means "not stated"."""

_QUIET_LOGGERS = ("pydicom", "nibabel.global", "nibabel.batteryrunners")
_quiet_lock = threading.RLock()


@dataclass(frozen=True)
class Film:
    """One single-frame grey radiograph, bone white.

    Args:
        pixels: float32, shape ``(H, W)`` = rows x columns of the film as displayed, larger is whiter.
        affine: 4x4 float64, index ``(row, column, 0, 1)`` to RAS millimetres.
        spacing: row and column spacing in millimetres; ``(1.0, 1.0)`` when the source is ``"unknown"``.
        spacing_source: ``"PixelSpacing"``, ``"ImagerPixelSpacing"``, ``"NominalScannedPixelSpacing"``, ``"NIfTI"`` or
            ``"unknown"``.
        format: ``"dicom"``, ``"nifti"``, ``"png"`` or ``"jpeg"``.
        details: strings, numbers and booleans without patient data; the same keys for every format. ``inverted`` says
            whether the grey scale was flipped, ``voi`` is ``"none"``, ``"lut"`` or ``"window"``, ``voi_refused`` that
            a window or table was there but unusable, ``magnification`` the estimated radiographic magnification
            (recorded, never applied), ``file_shape`` and ``file_affine`` the NIfTI file's own shape and affine
            (in millimetres) as text.
    """

    pixels: np.ndarray
    affine: np.ndarray
    spacing: tuple[float, float]
    spacing_source: str
    format: str
    details: dict[str, str | int | float | bool] = field(default_factory=lambda: dict(DETAILS))


def in_plane_affine(spacing: tuple[float, float]) -> np.ndarray:
    """Affine of a film that lies in the plane: what ITK gives for the identity direction, turned from LPS to RAS.

    Args:
        spacing: row and column spacing, millimetres.

    Returns:
        4x4 float64; the row index runs along -y and the column index along -x.

    Example:
        >>> (in_plane_affine((2.0, 3.0)) @ [1, 0, 0, 1]).tolist()
        [0.0, -2.0, 0.0, 1.0]
    """
    affine = np.diag([0.0, 0.0, 1.0, 1.0])
    affine[1, 0], affine[0, 1] = -spacing[0], -spacing[1]
    return affine


def check_size(rows: int, columns: int) -> None:
    """Refuse sizes that cannot be a film, before anything is decoded.

    Raises:
        FilmError: ``TooSmall`` or ``TooLarge``.
    """
    if min(rows, columns) < MIN_SIDE:
        raise FilmError("TooSmall", f"A film has at least {MIN_SIDE} rows and columns, the file declares {rows} x {columns}.")
    if max(rows, columns) > MAX_SIDE or rows * columns > MAX_PIXELS:
        raise FilmError(
            "TooLarge",
            f"A film may have up to {MAX_SIDE} rows and columns and {MAX_PIXELS} pixels, "
            f"the file declares {rows} x {columns}. Export it at a lower resolution.",
        )


def check_values(pixels: np.ndarray) -> None:
    """Refuse pixels that carry no picture.

    Raises:
        FilmError: ``NotFinite`` or ``ConstantImage``.
    """
    bad = pixels.size - int(np.count_nonzero(np.isfinite(pixels)))
    if bad:
        raise FilmError("NotFinite", f"{bad} pixels are NaN or infinite. Repair or export the film again.")
    if pixels.min() == pixels.max():
        raise FilmError("ConstantImage", "All pixels have the same value: there is no picture. Check the export.")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and log lines of the readers away from the terminal: they print tag values, which is patient data.

    Warning filters belong to the whole process, so films are read one at a time in each process.
    """
    loggers = [logging.getLogger(name) for name in _QUIET_LOGGERS]
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = [logger.disabled for logger in loggers]
        for logger in loggers:
            logger.disabled = True
        try:
            yield
        finally:
            for logger, disabled in zip(loggers, before, strict=True):
                logger.disabled = disabled
