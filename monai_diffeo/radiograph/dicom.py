"""Films as DICOM: one frame, one grey sample a pixel. The grey scale is the business of `film_grey`."""

from __future__ import annotations

import math
import mmap
import re
import zlib
from pathlib import Path

import numpy as np

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.codestream import declared_pixels
from monai_diffeo.radiograph.film import (
    DETAILS,
    MAX_FILE_BYTES,
    Detail,
    Film,
    check_size,
    check_values,
    in_plane_affine,
    library,
)
from monai_diffeo.radiograph.grayscale import displayed

__all__ = ["read_dicom"]

_DEFLATED = "1.2.840.10008.1.2.1.99"
_REQUIRED = ["Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored"]
_REQUIRED += ["PixelRepresentation"]
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_GREY = ["PresentationLUTShape", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept"]
_GREY += ["ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth"]
_STATED = ["ViewPosition", "PatientPosition", "Laterality", "ImageLaterality", "PatientOrientation", "Modality"]
_STATED += ["BurnedInAnnotation", "EstimatedRadiographicMagnificationFactor", "NumberOfFrames", "HighBit"]
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"
_TAGS = [*_REQUIRED, *_SPACINGS, *_GREY, *_STATED, *_PIXELS]
"""Only these are read: no element about the patient is ever parsed."""

_VIEWS = {"AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO"}
_MODALITIES = {"CR", "DX", "DR", "RF", "XA", "IO", "MG", "PX", "OT", "SC"}
_EXPORT = "Export the film again."
_CUT = "The DICOM file ends before its last pixel. Copy it again."


def read_dicom(path: Path) -> Film:
    """Read a DICOM radiograph as displayed: rescale, window or table, then one flip where the file asks for it.

    The file is DICOM part 10 with preamble. Its spacing is the first usable one of PixelSpacing, ImagerPixelSpacing and
    NominalScannedPixelSpacing. Errors are those of `monai_diffeo.radiograph.reader.read_film`.
    """
    pydicom = library("pydicom", "Reading DICOM needs pydicom: pip install 'pydicom>=3.0.2'.")
    try:
        dataset = _dataset(pydicom, path)
        _check_pixels_exist(dataset, path)
        _check_header(dataset)
        _check_pixel_data(pydicom, dataset)
    except FilmError:
        raise
    except EOFError:
        raise FilmError("TruncatedPixels", _CUT) from None
    except Exception:
        raise FilmError("DamagedFile", f"The DICOM header is damaged or was cut. {_EXPORT}") from None
    try:
        raw = _decode(pydicom, dataset)
        check_values(raw)
        pixels, grey = displayed(dataset, raw)
        check_values(pixels)
        spacing, source = _spacing(dataset)
        return Film(pixels, in_plane_affine(spacing), spacing, source, "dicom", DETAILS | grey | _details(dataset))
    except FilmError:
        raise
    except Exception:
        raise FilmError("UnreadablePixels", f"The pixels do not fit their DICOM header. {_EXPORT}") from None


def _dataset(pydicom, path: Path):
    meta = pydicom.filereader.read_file_meta_info(path)
    if "TransferSyntaxUID" not in meta:
        raise FilmError("MissingElement", f"The DICOM element TransferSyntaxUID is missing. {_EXPORT}")
    if meta.TransferSyntaxUID == _DEFLATED:
        _check_deflated(path, 144 + int(meta.FileMetaInformationGroupLength))
    return pydicom.dcmread(path, specific_tags=_TAGS)


def _check_deflated(path: Path, start: int) -> None:
    """Inflate in pieces that are thrown away: pydicom would inflate a bomb whole."""
    inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with open(path, "rb") as stream:
        stream.seek(start)
        piece = stream.read(2**20)
        while piece and not inflate.eof:
            size += len(inflate.decompress(piece, 2**22))
            if size > MAX_FILE_BYTES:
                raise FilmError("TooLarge", f"The deflated DICOM file grows over {MAX_FILE_BYTES} bytes.")
            piece = inflate.unconsumed_tail or stream.read(2**20)


def _check_pixels_exist(dataset, path: Path) -> None:
    """pydicom drops compressed pixels without their end, as if they had never been there."""
    if any(keyword in dataset for keyword in _PIXELS):
        return
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated and content.find(_PIXEL_DATA_TAG) >= 0:
            raise FilmError("TruncatedPixels", _CUT)
    raise FilmError("NoPixelData", "The DICOM file holds no pixels: it is no image, or it was cut before them.")


def _check_header(dataset) -> None:
    for keyword in _REQUIRED:
        if dataset.get(keyword) is None:
            raise FilmError("MissingElement", f"The DICOM element {keyword} is missing or empty. {_EXPORT}")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise FilmError("MultiFrame", f"A film has one frame, got {int(dataset.NumberOfFrames)}. Export one frame.")
    if dataset.SamplesPerPixel != 1 or dataset.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        came = f"this file has {dataset.SamplesPerPixel} samples or another photometric interpretation"
        remedy = "Convert it on purpose; colour may carry burnt-in text."
        raise FilmError("ColourImage", f"A film is MONOCHROME1 or MONOCHROME2 with one sample a pixel, {came}. {remedy}")
    check_size(dataset.Rows, dataset.Columns)
    if "PixelData" not in dataset or dataset.BitsAllocated not in (8, 16, 32):
        raise FilmError("UnsupportedFile", "A film has integer pixels of 8, 16 or 32 bits allocated.")
    if not 1 <= dataset.BitsStored <= dataset.BitsAllocated:
        raise FilmError("DamagedFile", f"BitsStored and BitsAllocated contradict each other. {_EXPORT}")
    if dataset.get("HighBit", dataset.BitsStored - 1) != dataset.BitsStored - 1:
        raise FilmError("DamagedFile", f"HighBit must be BitsStored - 1. {_EXPORT}")


def _check_pixel_data(pydicom, dataset) -> None:
    """Compare what is declared with what is there."""
    data = dataset.PixelData
    if not data:
        raise FilmError("NoPixelData", f"The DICOM file has an empty PixelData element. {_EXPORT}")
    pixels = dataset.Rows * dataset.Columns
    expected = pixels * dataset.BitsAllocated // 8
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        if (declared_pixels(pydicom.encaps.get_frame(data, 0, number_of_frames=1)) or 0) > 2 * pixels:
            raise FilmError("DamagedFile", f"The compressed frame is larger than Rows x Columns. {_EXPORT}")
    elif len(data) < expected:
        raise FilmError("TruncatedPixels", f"Expected {expected} bytes of pixels, got {len(data)}. Copy it again.")


def _decode(pydicom, dataset) -> np.ndarray:
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
        raise FilmError("UnreadablePixels", f"The compressed pixels cannot be decoded. {_EXPORT}") from None
    if raw.shape != (dataset.Rows, dataset.Columns):
        raise FilmError("UnreadablePixels", f"The decoded pixels do not have the size of the header. {_EXPORT}")
    return raw


def _spacing(dataset) -> tuple[tuple[float, float], str]:
    for keyword in _SPACINGS:
        try:
            row, column = (float(value) for value in dataset[keyword].value)
        except (KeyError, TypeError, ValueError):
            continue
        if all(math.isfinite(value) and value > 0 for value in (row, column)):
            return (row, column), keyword
    return (1.0, 1.0), "unknown"


def _details(dataset) -> dict[str, Detail]:
    syntax = dataset.file_meta.TransferSyntaxUID
    return {
        "photometric": str(dataset.PhotometricInterpretation),
        "bits_stored": int(dataset.BitsStored),
        "transfer_syntax": str(syntax) if syntax.is_transfer_syntax and not syntax.is_private else "",
        "modality": _stated(dataset, ("Modality",), _MODALITIES),
        "view": _stated(dataset, ("ViewPosition",), _VIEWS) or _stated(dataset, ("PatientPosition",), {"AP", "PA"}),
        "laterality": _stated(dataset, ("ImageLaterality", "Laterality"), {"L", "R", "U", "B"}),
        "patient_orientation": _orientation(dataset),
        "burned_in_annotation": _stated(dataset, ("BurnedInAnnotation",), {"YES", "NO"}),
        "magnification": _magnification(dataset),
    }


def _stated(dataset, keywords: tuple[str, ...], allowed: set[str]) -> str:
    """First of the elements that holds a defined term; free text could hold a name and is left out."""
    values = (str(dataset.get(keyword, "")).strip().upper() for keyword in keywords)
    return next((value for value in values if value in allowed), "")


def _orientation(dataset) -> str:
    value = dataset.get("PatientOrientation") or ()
    text = value if isinstance(value, str) else "\\".join(map(str, value))
    return text if re.fullmatch(r"[APRLHF]{1,3}\\[APRLHF]{1,3}", text) else ""


def _magnification(dataset) -> float:
    try:
        value = float(dataset.EstimatedRadiographicMagnificationFactor)
    except (AttributeError, TypeError, ValueError):
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0
