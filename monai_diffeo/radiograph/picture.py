"""Films as PNG or JPEG."""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.codestream import codestream, with_noise
from monai_diffeo.radiograph.colour import CHANNELS_NOTE, LOSSY_TOLERANCE, PALETTE_NOTE, grey_channel
from monai_diffeo.radiograph.film import DETAILS, PASSED, Film, check_size, check_values, in_plane_affine, library

__all__ = ["read_picture"]

_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
_COLOUR_MODES = ("RGB", "RGBA", "P", "PA")
_BITS = {"1": 1, **dict.fromkeys(("L", "LA", *_COLOUR_MODES), 8)}
_EXIF_ORIENTATION = 274
_CONVERT = "Convert it on purpose, e.g. PIL.Image.open(path).convert('L').save(...)."
_CUT = "The picture file ends before its last pixel. Copy it again."
_JPEG_KINDS = (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA)  # all but JPEG-LS, differential and arithmetic lossless
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def read_picture(path: Path, file_format: str) -> Film:
    """Read a PNG or JPEG, as ``file_format`` says, that is grey or has equal channels; the spacing is unknown.

    EXIF rotation is recorded in ``details["exif_orientation"]`` and not applied. Errors are those of
    `monai_diffeo.radiograph.reader.read_film`.
    """
    image_module = library("PIL.Image", "Reading PNG and JPEG needs Pillow: pip install pillow.")
    try:
        return _read(image_module, path, file_format)
    except PASSED:
        raise
    except image_module.DecompressionBombError:
        raise FilmError("TooLarge", "The picture declares more pixels than a film has.") from None
    except Exception as error:
        if isinstance(error, EOFError) or "truncated" in str(error).lower():
            raise FilmError("TruncatedPixels", _CUT) from None
        if isinstance(error, (SyntaxError, zlib.error)) or type(error).__name__ == "UnidentifiedImageError":
            raise FilmError("DamagedFile", "The picture file is damaged. Copy or export it again.") from None
        raise FilmError("UnreadablePixels", "The pixels of the picture cannot be decoded. Export it again.") from None


def _read(image_module, path: Path, file_format: str) -> Film:
    content = path.read_bytes()
    if file_format == "jpeg":
        _check_jpeg(content)
    with image_module.open(io.BytesIO(content), formats=["PNG", "JPEG"]) as picture:
        check_size(picture.height, picture.width)
        if getattr(picture, "n_frames", 1) > 1:
            raise FilmError("MultiFrame", "A film has one frame, the picture file holds several. Export one of them.")
        if picture.mode not in _GREY_MODES + _COLOUR_MODES:
            raise FilmError("ColourImage", f"A film is grey, the picture has colour mode {picture.mode}. {_CONVERT}")
        details = DETAILS | {"photometric": picture.mode, "bits_stored": _BITS.get(picture.mode, 16)}
        details["exif_orientation"] = int(picture.getexif().get(_EXIF_ORIENTATION, 0))
        if picture.mode in _COLOUR_MODES:
            details["notes"] = PALETTE_NOTE if picture.mode in ("P", "PA") else CHANNELS_NOTE
        if picture.mode == "1":
            details["notes"] = "the picture has 2 grey values"
        stored = np.asarray(picture)
        values = np.asarray(picture.convert("RGBA")) if picture.mode in _COLOUR_MODES else stored
    if not (_is_whole_jpeg(image_module, content, stored) if file_format == "jpeg" else _is_whole_png(content)):
        raise FilmError("TruncatedPixels", _CUT)
    if values.ndim == 3:
        if values[..., -1].min() != values[..., -1].max():
            raise FilmError("ColourImage", f"A film is grey, the picture has a transparency that varies. {_CONVERT}")
        tolerance = LOSSY_TOLERANCE if file_format == "jpeg" else 0
        values = grey_channel(values[..., :3], tolerance) if values.shape[-1] == 4 else values[..., 0]
    pixels = values.astype(np.float32)
    check_values(pixels)
    return Film(pixels, in_plane_affine((1.0, 1.0)), (1.0, 1.0), "unknown", file_format, details)


def _check_jpeg(content: bytes) -> None:
    """Before Pillow decodes: it calls damaged what is of another kind, and fills up what is cut."""
    header = codestream(content)
    if header is None or not header.kind:
        return  # it has no picture: Pillow says so
    if header.kind not in _JPEG_KINDS or header.precision != 8:
        came = f"is of a rare kind ({header.kind:X}) or has more than 8 bits (here {header.precision})"
        raise FilmError("UnsupportedFile", f"The JPEG file {came}, which Pillow cannot read. Export the film as DICOM or PNG.")
    check_size(header.rows, header.columns)
    if not header.whole:
        raise FilmError("TruncatedPixels", _CUT)


def _is_whole_jpeg(image_module, content: bytes, values: np.ndarray) -> bool:
    """Pillow fills up what was cut off before the end marker; see `with_noise`."""
    try:
        with image_module.open(io.BytesIO(with_noise(content)), formats=["JPEG"]) as picture:
            return np.array_equal(values, np.asarray(picture))
    except PASSED:
        raise
    except Exception:
        return False


def _is_whole_png(content: bytes) -> bool:
    """Whether all compressed rows are there, with their checksum, and the end of the file: Pillow looks at neither."""
    inflate, size, at, kind = zlib.decompressobj(), 0, 8, b""
    width, height, bits, colour = struct.unpack(">IIBB", content[16:26])
    row = width * bits * _PNG_CHANNELS[colour] / 8
    rows = height * (math.floor(row) if content[28] else 1 + math.ceil(row))  # interlaced rows are shorter and more
    while kind != b"IEND" and at < len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        piece = content[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        while piece and size <= 2 * rows:
            size += len(inflate.decompress(piece, 2**22))
            piece = inflate.unconsumed_tail
        at += 12 + length
    return kind == b"IEND" and size >= rows and (inflate.eof or size > 2 * rows)
