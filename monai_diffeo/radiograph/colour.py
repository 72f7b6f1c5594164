"""Grey films that were stored in colour: three equal channels, or a palette of greys."""

from __future__ import annotations

import numpy as np

from monai_diffeo.errors import FilmError

__all__ = ["CHANNELS_NOTE", "COLOUR_TAGS", "LOSSY_TOLERANCE", "PALETTE_NOTE", "grey_channel", "grey_of_colour"]

COLOUR_TAGS = [f"{c}PaletteColorLookupTable{part}" for c in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")]
COLOUR_TAGS += [f"Segmented{c}PaletteColorLookupTableData" for c in ("Red", "Green", "Blue")]

LOSSY_TOLERANCE = 3
"""Grey levels of 256. A chroma that is wrong by one, by a lossy codec or by conversion to YBR, parts equal channels so far."""

PALETTE_NOTE, CHANNELS_NOTE = "stored with a palette of greys", "stored in colour with equal channels"
_EXACT = {"1.2.840.10008.1.2.5", *(f"1.2.840.10008.1.2.4.{number}" for number in (57, 70, 80, 90, 201, 202))}


def grey_channel(pixels: np.ndarray, tolerance: float) -> np.ndarray:
    """Grey values ``(H, W)`` of an image ``(H, W, 3)`` whose channels differ by at most ``tolerance`` at every pixel.

    Raises:
        FilmError: ``ColourImage`` where a single pixel has colour; it may be burnt-in text.
    """
    if np.subtract(pixels.max(axis=-1), pixels.min(axis=-1), dtype=np.int64).max() > tolerance:
        remedy = "Convert it on purpose; colour may carry burnt-in text."
        raise FilmError("ColourImage", f"A film is grey, this image has pixels in colour. {remedy}")
    return pixels[..., 1]


def grey_of_colour(dataset, raw: np.ndarray) -> tuple[np.ndarray, dict, list[str]]:
    """As `displayed` of the grey scale, for DICOM pixels in RGB, ``(H, W, 3)``, or with a palette, ``(H, W)``.

    Windows and rescaling are defined for one grey sample only and are not applied.
    """
    if raw.ndim == 2:
        from pydicom.pixels import apply_color_lut

        return grey_channel(apply_color_lut(raw, dataset)[..., :3], 0).astype(np.float32), {}, [PALETTE_NOTE]
    syntax = dataset.file_meta.TransferSyntaxUID
    exact = dataset.PhotometricInterpretation in ("RGB", "YBR_RCT") and (not syntax.is_compressed or syntax in _EXACT)
    tolerance = 0 if exact else LOSSY_TOLERANCE * 2 ** max(0, int(dataset.BitsStored) - 8)
    return grey_channel(raw, tolerance).astype(np.float32), {}, [CHANNELS_NOTE]
