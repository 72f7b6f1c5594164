"""What the header of a DICOM file says: whether it can be a film, and the details that hold no patient data."""

from __future__ import annotations

import math
import re

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.film import EXPORT, Detail, check_size

__all__ = ["HEADER_TAGS", "check_header", "stated_details"]

_REQUIRED = ["Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored"]
_REQUIRED += ["PixelRepresentation"]
_STATED = ["ViewPosition", "PatientPosition", "Laterality", "ImageLaterality", "PatientOrientation", "Modality"]
_STATED += ["BurnedInAnnotation", "EstimatedRadiographicMagnificationFactor", "NumberOfFrames", "HighBit"]
HEADER_TAGS = [*_REQUIRED, *_STATED]

_VIEWS = {"AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO"}
_MODALITIES = {"CR", "DX", "DR", "RF", "XA", "IO", "MG", "PX", "OT", "SC"}


def check_header(dataset) -> None:
    """Refuse, before a pixel is decoded, what the header says is no film; errors as `read_film`."""
    for keyword in _REQUIRED:
        if dataset.get(keyword) is None:
            raise FilmError("MissingElement", f"The DICOM element {keyword} is missing or empty. {EXPORT}")
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
        raise FilmError("DamagedFile", f"BitsStored and BitsAllocated contradict each other. {EXPORT}")
    if dataset.get("HighBit", dataset.BitsStored - 1) != dataset.BitsStored - 1:
        raise FilmError("DamagedFile", f"HighBit must be BitsStored - 1. {EXPORT}")


def stated_details(dataset) -> dict[str, Detail]:
    """Details of a film that its header states, in defined terms."""
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
