"""The pixels of a DICOM file, as stored: whether they are there, and their decoding."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.codestream import declared_pixels
from monai_diffeo.radiograph.film import EXPORT

__all__ = ["CUT", "PIXEL_TAGS", "check_pixel_data", "check_pixels_exist", "stored_values"]

PIXEL_TAGS = ["PixelData", "FloatPixelData", "DoubleFloatPixelData"]
_PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"
CUT = "The DICOM file ends before its last pixel. Copy it again."


def check_pixels_exist(dataset, path: Path) -> None:
    """pydicom drops compressed pixels without their end, as if they had never been there."""
    if any(keyword in dataset for keyword in PIXEL_TAGS):
        return
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated and content.find(_PIXEL_DATA_TAG) >= 0:
            raise FilmError("TruncatedPixels", CUT)
    raise FilmError("NoPixelData", "The DICOM file holds no pixels: it is no image, or it was cut before them.")


def check_pixel_data(pydicom, dataset) -> None:
    """Compare what is declared with what is there."""
    data = dataset.PixelData
    if not data:
        raise FilmError("NoPixelData", f"The DICOM file has an empty PixelData element. {EXPORT}")
    pixels = dataset.Rows * dataset.Columns
    samples = 2 if dataset.PhotometricInterpretation == "YBR_FULL_422" else dataset.SamplesPerPixel
    expected = samples * pixels * dataset.BitsAllocated // 8
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        if (declared_pixels(pydicom.encaps.get_frame(data, 0, number_of_frames=1)) or 0) > 2 * pixels:
            raise FilmError("DamagedFile", f"The compressed frame is larger than Rows x Columns. {EXPORT}")
    elif len(data) < expected:
        raise FilmError("TruncatedPixels", f"Expected {expected} bytes of pixels, got {len(data)}. Copy it again.")


def stored_values(pydicom, dataset) -> np.ndarray:
    """Decoded values, shape ``(H, W)`` as stored, or ``(H, W, 3)`` in RGB; errors as `read_film`."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError:
        raise FilmError("UnreadablePixels", "No decoder is known for the transfer syntax of this file.") from None
    if not decoder.is_available:
        remedy = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg pylibjpeg-rle."
        raise FilmError("UnreadablePixels", f"The pixels are compressed and their decoder is not installed: {remedy}")
    try:
        raw = dataset.pixel_array
    except Exception:
        raise FilmError("UnreadablePixels", f"The compressed pixels cannot be decoded. {EXPORT}") from None
    if raw.shape != (dataset.Rows, dataset.Columns) + (3,) * (dataset.SamplesPerPixel == 3):
        raise FilmError("UnreadablePixels", f"The decoded pixels do not have the size of the header. {EXPORT}")
    return raw
