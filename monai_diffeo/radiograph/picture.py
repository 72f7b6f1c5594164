"""Films as PNG or JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.colour import CHANNELS_NOTE, LOSSY_TOLERANCE, PALETTE_NOTE, grey_channel
from monai_diffeo.radiograph.film import DETAILS, Film, check_size, check_values, in_plane_affine, library

__all__ = ["read_picture"]

_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
_COLOUR_MODES = ("RGB", "RGBA", "P", "PA")
_BITS = {"1": 1, **dict.fromkeys(("L", "LA", *_COLOUR_MODES), 8)}
_EXIF_ORIENTATION = 274
_CONVERT = "Convert it on purpose, e.g. PIL.Image.open(path).convert('L').save(...)."


def read_picture(path: Path, file_format: str) -> Film:
    """Read a PNG or JPEG, as ``file_format`` says, that is grey or has equal channels; the spacing is unknown.

    EXIF rotation is recorded in ``details["exif_orientation"]`` and not applied. Errors are those of
    `monai_diffeo.radiograph.reader.read_film`.
    """
    image_module = library("PIL.Image", "Reading PNG and JPEG needs Pillow: pip install pillow.")
    try:
        return _read(image_module, path, file_format)
    except FilmError:
        raise
    except image_module.DecompressionBombError:
        raise FilmError("TooLarge", "The picture declares more pixels than a film has.") from None
    except Exception as error:
        if isinstance(error, EOFError) or "truncated" in str(error).lower():
            raise FilmError("TruncatedPixels", "The picture file ends before its last pixel. Copy it again.") from None
        if isinstance(error, SyntaxError) or type(error).__name__ == "UnidentifiedImageError":
            raise FilmError("DamagedFile", "The picture file is damaged. Copy or export it again.") from None
        raise FilmError("UnreadablePixels", "The pixels of the picture cannot be decoded. Export it again.") from None


def _read(image_module, path: Path, file_format: str) -> Film:
    with image_module.open(path, formats=["PNG", "JPEG"]) as picture:
        check_size(picture.height, picture.width)
        if getattr(picture, "n_frames", 1) > 1:
            raise FilmError("MultiFrame", "A film has one frame, the picture file holds several. Export one of them.")
        if picture.mode not in _GREY_MODES + _COLOUR_MODES:
            raise FilmError("ColourImage", f"A film is grey, the picture has colour mode {picture.mode}. {_CONVERT}")
        details = DETAILS | {"photometric": picture.mode, "bits_stored": _BITS.get(picture.mode, 16)}
        details["exif_orientation"] = int(picture.getexif().get(_EXIF_ORIENTATION, 0))
        if picture.mode in _COLOUR_MODES:
            details["notes"] = PALETTE_NOTE if picture.mode in ("P", "PA") else CHANNELS_NOTE
        values = np.asarray(picture.convert("RGBA") if picture.mode in _COLOUR_MODES else picture)
    if values.ndim == 3:
        if values[..., -1].min() != values[..., -1].max():
            raise FilmError("ColourImage", f"A film is grey, the picture has a transparency that varies. {_CONVERT}")
        tolerance = LOSSY_TOLERANCE if file_format == "jpeg" else 0
        values = grey_channel(values[..., :3], tolerance) if values.shape[-1] == 4 else values[..., 0]
    pixels = values.astype(np.float32)
    check_values(pixels)
    return Film(pixels, in_plane_affine((1.0, 1.0)), (1.0, 1.0), "unknown", file_format, details)
