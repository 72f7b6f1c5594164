"""What the header of a DICOM file says: whether it can be a film, and the details that hold no patient data."""

from __future__ import annotations

import math

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.dicom_kind import stated_modality, stated_orientation
from monai_diffeo.radiograph.film import EXPORT, Detail, check_size

__all__ = ["HEADER_TAGS", "check_header", "stated_details"]

_REQUIRED = ["Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored"]
_REQUIRED += ["PixelRepresentation"]
_STATED = ["PatientPosition", "Laterality", "ImageLaterality"]
_STATED += ["EstimatedRadiographicMagnificationFactor", "NumberOfFrames", "HighBit", "PlanarConfiguration"]
HEADER_TAGS = [*_REQUIRED, *_STATED]

_PALETTE = "RedPaletteColorLookupTableDescriptor"

_VIEWS = {"AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO"}
_SAMPLES = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3}
_SAMPLES |= {"YBR_ICT": 3, "YBR_RCT": 3}


def check_header(dataset) -> None:
    """Refuse, before a pixel is decoded, what the header says is no film; errors as `read_film`."""
    for keyword in _REQUIRED:
        if dataset.get(keyword) is None:
            raise FilmError("MissingElement", f"The DICOM element {keyword} is missing or empty. {EXPORT}")
    for keyword in [*_REQUIRED, "NumberOfFrames", "HighBit"]:
        if keyword != "PhotometricInterpretation" and not _is_integer(dataset, keyword):
            raise FilmError("DamagedFile", f"The DICOM element {keyword} is not one whole number. {EXPORT}")
    if (dataset.get("NumberOfFrames") or 1) != 1:
        raise FilmError("MultiFrame", f"A film has one frame, got {int(dataset.NumberOfFrames)}. Export one frame.")
    if _SAMPLES.get(dataset.PhotometricInterpretation) != dataset.SamplesPerPixel:
        came = f"PhotometricInterpretation is another or contradicts its {int(dataset.SamplesPerPixel)} samples a pixel"
        raise FilmError("UnsupportedFile", f"A film is grey, or has equal channels of RGB or YBR_FULL; {came}. {EXPORT}")
    if dataset.PhotometricInterpretation == "PALETTE COLOR" and _PALETTE not in dataset:
        raise FilmError("MissingElement", f"The DICOM element {_PALETTE} is missing. {EXPORT}")
    check_size(dataset.Rows, dataset.Columns)
    if "PixelData" not in dataset:
        raise FilmError("UnsupportedFile", f"A film has integer pixels, this file has pixels of floating point. {EXPORT}")
    if dataset.BitsAllocated not in (8, 16, 32):
        raise FilmError("UnsupportedFile", f"A film has 8, 16 or 32 bits allocated, got {int(dataset.BitsAllocated)}. {EXPORT}")
    if dataset.PixelRepresentation not in (0, 1):
        raise FilmError("DamagedFile", f"PixelRepresentation must be 0 or 1. {EXPORT}")
    if not 1 <= dataset.BitsStored <= dataset.BitsAllocated:
        raise FilmError("DamagedFile", f"BitsStored must lie between 1 and BitsAllocated. {EXPORT}")
    if dataset.get("HighBit", dataset.BitsStored - 1) != dataset.BitsStored - 1:
        raise FilmError("DamagedFile", f"HighBit must be BitsStored - 1. {EXPORT}")


def _is_integer(dataset, keyword: str) -> bool:
    try:
        return isinstance(dataset.get(keyword) or 0, int)
    except Exception:
        return False


def stated_details(dataset) -> dict[str, Detail]:
    """Details of a film that its header states, in defined terms."""
    syntax = dataset.file_meta.TransferSyntaxUID
    return {
        "photometric": str(dataset.PhotometricInterpretation),
        "bits_stored": int(dataset.BitsStored),
        "transfer_syntax": str(syntax) if syntax.is_transfer_syntax and not syntax.is_private else "",
        "modality": stated_modality(dataset),
        "view": _stated(dataset, ("ViewPosition",), _VIEWS) or _stated(dataset, ("PatientPosition",), {"AP", "PA"}),
        "laterality": _stated(dataset, ("ImageLaterality", "Laterality"), {"L", "R", "U", "B"}),
        "patient_orientation": stated_orientation(dataset),
        "burned_in_annotation": _stated(dataset, ("BurnedInAnnotation",), {"YES", "NO"}),
        "magnification": _magnification(dataset),
    }


def _stated(dataset, keywords: tuple[str, ...], allowed: set[str]) -> str:
    """First of the elements that holds a defined term; free text could hold a name and is left out."""
    values = (str(dataset.get(keyword, "")).strip().upper() for keyword in keywords)
    return next((value for value in values if value in allowed), "")


def _magnification(dataset) -> float:
    try:
        value = float(dataset.EstimatedRadiographicMagnificationFactor)
    except (AttributeError, TypeError, ValueError):
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0
