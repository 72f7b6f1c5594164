"""The pixels of a DICOM file, as stored: whether they are there, and their decoding."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.codestream import JPEG_LS, Codestream, codestream, rle_is_short, with_noise
from monai_diffeo.radiograph.film import EXPORT, PASSED

__all__ = ["CUT", "PIXEL_TAGS", "check_pixel_data", "check_pixels_exist", "stored_values"]

PIXEL_TAGS = ["PixelData", "FloatPixelData", "DoubleFloatPixelData"]
_PIXEL_DATA_TAG, _ITEM_TAG = b"\xe0\x7f\x10\x00", b"\xfe\xff\x00\xe0"
_MAX_FRAGMENTS = 10_000
CUT = "The DICOM file ends before its last pixel. Copy it again."
_FRAME_CUT = "The compressed frame inside the DICOM file ends before its last pixel, or is damaged. Export the film again."
_UNPACKED = f"The compressed pixels are not packed as their transfer syntax demands. {EXPORT}"

_RLE = "1.2.840.10008.1.2.5"
_LOSSY = {f"1.2.840.10008.1.2.4.{end}" for end in ("50", "51", "81", "91", "203")}
_OVERSHOOT = 1 / 8  # of the range: what a lossy codec may exceed it by


def check_pixels_exist(dataset, path: Path) -> None:
    """pydicom drops compressed pixels without their end, as if they had never been there."""
    if any(keyword in dataset for keyword in PIXEL_TAGS):
        return
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated and content.find(_PIXEL_DATA_TAG) >= 0:
            raise FilmError("TruncatedPixels", CUT)
    sop_class = dataset.get("SOPClassUID")
    name = f" ({sop_class.name})" if getattr(sop_class, "keyword", "") else ""
    raise FilmError("NoPixelData", f"The DICOM file{name} holds no pixels: it is no image, or it was cut before them.")


def check_pixel_data(pydicom, dataset) -> None:
    """Compare what is declared with what is there, before anything is decoded."""
    data, syntax = dataset.PixelData, dataset.file_meta.TransferSyntaxUID
    if not data:
        raise FilmError("NoPixelData", f"The DICOM file has an empty PixelData element. {EXPORT}")
    samples = 2 if dataset.PhotometricInterpretation == "YBR_FULL_422" else dataset.SamplesPerPixel
    expected = samples * dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    if not syntax.is_encapsulated:
        if dataset["PixelData"].is_undefined_length:
            raise FilmError("DamagedFile", f"The pixels are compressed, the transfer syntax says the contrary. {EXPORT}")
        if len(data) < expected:
            raise FilmError("TruncatedPixels", f"Expected {expected} bytes of pixels, got {len(data)}. Copy it again.")
    else:
        _check_frame(dataset, _frame(pydicom, data))


def _frame(pydicom, data: bytes) -> bytes:
    """The compressed frame; tables and fragments without end are refused before pydicom makes lists of them."""
    if not data.startswith(_ITEM_TAG):
        raise FilmError("UnreadablePixels", _UNPACKED)
    if int.from_bytes(data[4:8], "little") > 8 * _MAX_FRAGMENTS or data.count(_ITEM_TAG) > _MAX_FRAGMENTS:
        raise FilmError("TooLarge", f"The compressed frame has more than {_MAX_FRAGMENTS} fragments. {EXPORT}")
    try:
        return pydicom.encaps.get_frame(data, 0, number_of_frames=1)
    except PASSED:
        raise
    except Exception:
        raise FilmError("UnreadablePixels", _UNPACKED) from None


def _check_frame(dataset, frame: bytes) -> None:
    stream = codestream(frame)
    if stream is None:
        if dataset.file_meta.TransferSyntaxUID == _RLE:
            return
        raise FilmError("UnreadablePixels", f"The compressed frame is of another kind than its transfer syntax. {EXPORT}")
    if not stream.whole:
        raise FilmError("TruncatedPixels", _FRAME_CUT)
    came = (stream.rows, stream.columns, stream.components)
    expected = (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    if came != expected or not 1 <= stream.precision <= dataset.BitsAllocated:
        shapes = f"{' x '.join(map(str, came))} of {stream.precision} bits, the header {' x '.join(map(str, expected))}"
        raise FilmError("DamagedFile", f"The compressed frame declares {shapes} of up to {dataset.BitsAllocated}. {EXPORT}")


def stored_values(pydicom, dataset) -> tuple[np.ndarray, str]:
    """Values, ``(H, W)`` as stored or ``(H, W, 3)`` in RGB, and a note on bits above BitsStored; errors as `read_film`."""
    decoder = pydicom.pixels.get_decoder(dataset.file_meta.TransferSyntaxUID)
    if not decoder.is_available:
        needed = pydicom.pixels.decoders.pylibjpeg.DECODER_DEPENDENCIES[decoder.UID]
        remedy = "pip install " + " ".join(f"'{package}'" for package in needed)
        raise FilmError("UnreadablePixels", f"The pixels are compressed and their decoder is not installed: {remedy}.")
    frame = _frame(pydicom, dataset.PixelData) if decoder.is_encapsulated else b""
    stream = codestream(frame)
    raw = _decoded(decoder, dataset, stream)
    segments, pixels = dataset.SamplesPerPixel * dataset.BitsAllocated // 8, dataset.Rows * dataset.Columns
    if raw is None and (decoder.UID != _RLE or not rle_is_short(frame, segments, pixels)):
        raise FilmError("UnreadablePixels", f"The compressed pixels cannot be decoded. {EXPORT}")
    if frame.startswith(b"\xff\xd8"):  # what was cut off is filled up without a word: does noise fill it up otherwise?
        dataset.PixelData = pydicom.encaps.encapsulate([with_noise(frame)])
        again = _decoded(decoder, dataset, stream)
        raw = raw if raw is not None and again is not None and np.array_equal(raw, again) else None
    if raw is None:
        raise FilmError("TruncatedPixels", _FRAME_CUT)
    if raw.shape != (dataset.Rows, dataset.Columns) + (3,) * (dataset.SamplesPerPixel == 3):
        raise FilmError("UnreadablePixels", f"The decoded pixels do not have the size of the header. {EXPORT}")
    values, note = _without_high_bits(raw, dataset)
    if _has_other_sign(stream, values, dataset):
        raise FilmError("DamagedFile", f"The compressed frame contradicts the sign of PixelRepresentation. {EXPORT}")
    return values, note


def _decoded(decoder, dataset, stream: Codestream | None) -> np.ndarray | None:
    """Values as the decoder gives them, None if it fails; a JPEG of 8 bits may lie in 16 bits allocated."""
    narrow = stream is not None and stream.kind not in (0, JPEG_LS) and stream.precision <= 8
    options = {"bits_allocated": 8, "bits_stored": min(8, dataset.BitsStored)} if narrow else {}
    try:
        return decoder.as_array(dataset, raw=dataset.SamplesPerPixel == 1, correct_unused_bits=False, **options)[0]
    except PASSED:
        raise
    except BaseException:  # the decoder of RLE panics with an exception that is no Exception
        return None


def _without_high_bits(raw: np.ndarray, dataset) -> tuple[np.ndarray, str]:
    """Values and a note. Bits above BitsStored, such as overlays, are no grey values; decoders leave them in.

    A lossy codec may exceed the range a little, which is clipped: without its highest bit white would be black. A picture that
    is smoother with the bits than without is refused: they belong to its grey values.
    """
    bits = int(dataset.BitsStored)
    low = -(2 ** (bits - 1)) if dataset.PixelRepresentation == 1 else 0
    high, margin = low + 2**bits - 1, 2**bits * _OVERSHOOT
    if low <= raw.min() and raw.max() <= high:
        return raw, ""
    if dataset.file_meta.TransferSyntaxUID in _LOSSY and low - margin <= raw.min() and raw.max() <= high + margin:
        return raw.clip(low, high), ""
    shift = 8 * raw.dtype.itemsize - bits
    values = raw << shift >> shift
    if low == 0 and _roughness(raw) < _roughness(values):
        raise FilmError("DamagedFile", f"The grey values use more bits than BitsStored declares. {EXPORT}")
    return values, f"bits above BitsStored were taken off {np.mean(values != raw):.1%} of the pixels"


def _has_other_sign(stream: Codestream | None, values: np.ndarray, dataset) -> bool:
    """Whether the frame contradicts PixelRepresentation where it matters: with the wrong sign, white is black."""
    signed = None if stream is None else stream.signed
    same = values.min() >= 0 and values.max() < 2 ** (int(dataset.BitsStored) - 1)  # with both signs
    return signed is not None and signed != bool(dataset.PixelRepresentation) and not same


def _roughness(pixels: np.ndarray) -> float:
    """Mean difference of neighbours."""
    return sum(float(np.abs(np.diff(pixels.astype(np.int64), axis=axis)).mean()) for axis in (0, 1))
