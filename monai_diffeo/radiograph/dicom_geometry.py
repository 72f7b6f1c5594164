"""Where a DICOM film lies: the plane in which viewers draw it, and the spacing that its header states.

The two are not the same. Viewers that read with ITK (SimpleITK, ITK-SNAP, 3D Slicer) take the spacing from one element, which
the kind of the file decides, and read damaged numbers in their own way. The affine follows them: a mask must lie on its film.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from monai_diffeo.radiograph.dicom_groups import functional_groups
from monai_diffeo.radiograph.film import UNKNOWN, joined_notes, size_doubt

__all__ = ["GEOMETRY_TAGS", "FilmGeometry", "calibrated_spacing", "film_geometry", "sound_spacing"]

_PIXEL, _DETECTOR, _SCANNED = _SPACINGS = "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"
_POSITION, _ORIENTATION, _DEPTH = _PLACES = "ImagePositionPatient", "ImageOrientationPatient", "SpacingBetweenSlices"
_RATIO, _WAY, _FACTOR = _REMARKS = "PixelAspectRatio", "PixelSpacingCalibrationType", "EstimatedRadiographicMagnificationFactor"
_WAYS = "geometry", "fiducial"  # of calibration
_OF_FRAMES = "PerFrameFunctionalGroupsSequence"
_MACROS = "PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence", "FramePixelDataPropertiesSequence"
GEOMETRY_TAGS = ["SOPClassUID", "Modality", *_SPACINGS, *_PLACES, *_REMARKS]

_CLASSES = "1.2.840.10008.5.1.4.1.1."  # what follows names the kind of file
_PROJECTIONS = {"1", "1.1", "1.1.1", "12.1", "12.2", "12.3"}  # CR, DX, XA, RF
_PROJECTION_MODALITIES = {"CR", "DX", "XA", "RF"}
_ENHANCED_XA, _ENHANCED_XRF, _WITH_GROUPS = "12.1.1", "12.2.1", "7."

_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_COMMA = re.compile(r"\s*\d+,\d+\s*")
_RANGE = 1e-4, 1e4  # mm; beyond, a number is no size of a pixel, even if ITK takes it
_SQUARE = 1e-3  # cosine up to which GDCM takes two directions for a right angle
_SAME = 1e-3  # relative difference of two spacings that say the same

Pair = tuple[float, float]


class FilmGeometry(NamedTuple):
    """Affine ``(row, column, 0, 1)`` to RAS as ITK draws the film and its unit; spacing of the header, its source and doubt."""

    affine: np.ndarray
    unit: str
    spacing: Pair
    source: str
    doubt: str


def film_geometry(dataset) -> FilmGeometry:
    """Geometry of a film of one frame.

    The spacing is the first usable one of the element that ITK takes, PixelSpacing, ImagerPixelSpacing and
    NominalScannedPixelSpacing, in the data set and then in its functional groups; ``(1.0, 1.0)`` and
    ``"unknown"`` without. The unit is ``"mm"`` where the affine has this spacing, else ``"unknown"``.
    """
    kind, macros = _kind(dataset), _macros(dataset)
    grouped, keyword = kind.startswith(_WITH_GROUPS), _itk_keyword(dataset, kind)
    spacing, source, doubts = _stated([dataset, *macros], dict.fromkeys([keyword, *_SPACINGS]))
    holders = macros if grouped else [dataset]
    drawn = _itk_pair("" if grouped and _OF_FRAMES not in dataset else _text(holders, keyword))
    drawn = spacing if kind == _ENHANCED_XRF else drawn  # which ITK does not read
    agree = source != UNKNOWN and np.allclose(np.abs(drawn), spacing, rtol=_SAME)
    if source != UNKNOWN:
        doubts += [] if agree else [f"viewers that read with ITK and the mask take {_size(drawn)} mm"]
        doubts.append(size_doubt((dataset.Rows, dataset.Columns), spacing))
    affine = _affine(holders, [*macros, dataset] if grouped else holders, drawn)
    return FilmGeometry(affine, "mm" if agree else UNKNOWN, spacing, source, joined_notes(*doubts))


def calibrated_spacing(dataset) -> Pair | None:
    """Spacing of rows and columns in the body, millimetres; None where the header states none, or that of the detector alone.

    It is PixelSpacing, where the header says how it was calibrated or gives another spacing for the detector.
    """
    pair, detector = sound_spacing(dataset, _PIXEL), sound_spacing(dataset, _DETECTOR)
    stated = _text([dataset], _WAY).strip().lower() in _WAYS
    if pair is None or size_doubt((dataset.Rows, dataset.Columns), pair):
        return None
    return pair if stated or (detector is not None and not np.allclose(detector, pair, rtol=_SAME)) else None


def sound_spacing(dataset, keyword: str) -> Pair | None:
    """Spacing of rows and columns of one element, millimetres; None if it is missing or not two lengths."""
    pair, remark = _pair(_text([dataset], keyword))
    return None if remark else pair


def _stated(holders: list, keywords: dict[str, None]) -> tuple[Pair, str, list[str]]:
    """Spacing of the header, the element that gave it and doubts about it."""
    read = {keyword: _pair(text) for keyword in keywords if (text := _text(holders, keyword))}
    found = {keyword: pair for keyword, (pair, _) in read.items() if pair}
    source = next(iter(found), UNKNOWN)
    doubts = [f"{k} {remark}" for k, (pair, remark) in read.items() if remark and (k == source or not pair)]
    if source == UNKNOWN:
        ratio = _itk_numbers(_text(holders, _RATIO), 2)
        shape = f"only the shape of a pixel is stated, {ratio[0]:g} to {ratio[1]:g}, not its size"
        return (1.0, 1.0), UNKNOWN, [*doubts, shape] if min(ratio) > 0 else doubts or ["no element states the spacing"]
    other = _DETECTOR if source == _PIXEL else _PIXEL
    if other in found and not np.allclose(found[other], found[source], rtol=_SAME):
        way = _text(holders, _WAY).strip().lower()
        way = " on the detector" if other == _DETECTOR else f", calibrated by {way}" if way in _WAYS else ""
        doubts.append(f"{other} states {_size(found[other])} mm{way}")
    (factor,) = _itk_numbers(_text(holders, _FACTOR), 1)
    if source == _DETECTOR and factor > 0 and factor != 1:
        doubts.append(f"the size on the detector, {factor:g} times that in the patient")
    return found[source], source, doubts


def _pair(text: str) -> tuple[Pair | None, str]:
    """Spacing of rows and columns that a text states, None without, and what is wrong with the text."""
    parts = text.split("\\")
    remark = "" if len(parts) == 2 else f"has {len(parts)} value{'s' * (len(parts) > 1)} instead of 2"
    if all(map(_COMMA.fullmatch, parts)):
        parts, remark = text.replace(",", ".").split("\\"), "is written with decimal commas"
    try:
        row, column = (float(part) for part in (parts * 2)[:2])
    except ValueError:
        return None, "is not two lengths"
    usable = all(_RANGE[0] <= value <= _RANGE[1] for value in (row, column))
    return ((row, column), remark) if usable else (None, "is not two lengths")


def _size(pair: Pair) -> str:
    return " x ".join(f"{abs(value):.4g}" for value in pair)


def _kind(dataset) -> str:
    """Last numbers of the SOP class; without a class, what ITK makes of the modality."""
    uid = str(dataset.get("SOPClassUID") or getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID") or "")
    return uid.removeprefix(_CLASSES) if uid else "1.1" if dataset.get("Modality") in _PROJECTION_MODALITIES else ""


def _itk_keyword(dataset, kind: str) -> str:
    """The element from which ITK takes the spacing of a kind of file, empty for none."""
    known = dict.fromkeys(_PROJECTIONS, _DETECTOR) | {_ENHANCED_XA: ""}
    return known.get(kind, _SCANNED if _PIXEL not in dataset and _SCANNED in dataset else _PIXEL)


def _itk_numbers(text: str, count: int) -> list[float]:
    """Numbers as GDCM reads them, one character apart; 0 from the first place on where there is none."""
    numbers, at = list[float](), 0
    while len(numbers) < count and (match := _NUMBER.match(text, at)):
        numbers.append(float(match[1]))
        at = match.end() + 1
    return numbers + [0.0] * (count - len(numbers))


def _itk_pair(text: str) -> Pair:
    numbers = _itk_numbers(text, 2) if "\\" in text else _itk_numbers(text, 1) * 2
    row, column = (value if _RANGE[0] <= abs(value) <= _RANGE[1] else 1.0 for value in numbers)
    return row, column


def _affine(holders: list, orientation_holders: list, spacing: Pair) -> np.ndarray:
    """Affine in RAS from position and orientation in LPS; where they are missing, the origin and the plane of x and y."""
    row, column = np.reshape(_itk_numbers(_text(orientation_holders, _ORIENTATION), 6), (2, 3))
    lengths = np.linalg.norm(row) * np.linalg.norm(column)
    if not lengths or abs(row @ column) > _SQUARE * lengths:
        row, column = np.eye(3)[:2]
    normal, column = np.cross(row, column), column / np.linalg.norm(column)
    normal /= np.linalg.norm(normal)
    edges = spacing[0], spacing[1], _itk_pair(_text(holders, _DEPTH))[0]
    affine = np.eye(4)
    affine[:3, :3] = np.stack([column, np.cross(column, normal), normal], axis=1) * edges
    affine[:3, 3] = _itk_numbers(_text(holders, _POSITION), 3)
    affine[:2] *= -1
    return affine + 0.0  # no negative zeros


def _macros(dataset) -> list[Any]:
    """Macros of the functional groups that tell of geometry, those of all frames first."""
    groups = reversed(functional_groups(dataset))
    return [group[name].value[0] for group in groups for name in _MACROS if group.get(name)]


def _text(holders: list, keyword: str) -> str:
    """Text of the first such element as it stands in the file, empty without; pydicom refuses numbers that are none."""
    for value in (holder.get_item(keyword).value for holder in holders if keyword and keyword in holder):
        text = value.decode("ascii", "ignore") if isinstance(value, bytes) else value
        text = text if isinstance(text, str) else "\\".join(map(str, np.atleast_1d(text))) if text is not None else ""
        if text := text.strip("\0 "):
            return text
    return ""
