"""Grey scale of a DICOM film: stored values -> modality -> window or table -> one flip.

The flip is ``low + high - value`` where low and high are the ends of the scale that the header declares, never the
extremes found in the pixels: padding, markers or a lost corner cannot move it, and a MONOCHROME1 film gives exactly the
values of its MONOCHROME2 twin. This is also what ITK does, but ITK looks at the photometric interpretation only.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from monai_diffeo.radiograph.dicom_groups import macro
from monai_diffeo.radiograph.film import Detail, middle_ninth
from monai_diffeo.radiograph.voi import MAX_LOST, VOI_TAGS, Scale, attempt, look_up, share_without_plateau, windowed

__all__ = ["GREY_TAGS", "displayed"]

_MODALITY_TAGS = ["RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"]
GREY_TAGS = ["PresentationLUTShape", "PixelPaddingValue", "PixelPaddingRangeLimit", *_MODALITY_TAGS, *VOI_TAGS]

_CONTRADICTIONS = {
    ("MONOCHROME2", "INVERSE"): "PresentationLUTShape INVERSE contradicts MONOCHROME2 and was applied",
    ("MONOCHROME1", "IDENTITY"): "PresentationLUTShape IDENTITY contradicts MONOCHROME1, which was applied",
}
"""The standard (PS3.3, DX image module) allows INVERSE with MONOCHROME1 only and IDENTITY with MONOCHROME2 only."""


def displayed(dataset, raw: np.ndarray) -> tuple[np.ndarray, dict[str, Detail], list[str]]:
    """Stored values ``(H, W)`` as they are to be shown: float32, larger is whiter, padding as dark as the darkest other pixel.

    Of the pydicom dataset only the grey scale is used. The details ``inverted``, ``voi``, ``voi_refused`` and
    ``padding_pixels`` come with the pixels, and notes: which window was not used and why, and what inverts the grey scale.
    """
    padding, doubts = _padding(dataset, raw)
    values, scale, notes = _modality(dataset, raw, ~padding)
    values, scale, voi, refused, remarks = windowed(dataset, values, scale, ~padding)
    photometric, shape = dataset.PhotometricInterpretation, str(dataset.get("PresentationLUTShape") or "").strip().upper()
    notes += [*doubts, *remarks, _CONTRADICTIONS.get((photometric, shape), "")]
    inverted = photometric == "MONOCHROME1" or shape == "INVERSE"  # one fact stated twice is one flip
    if inverted:
        values = scale[0] + scale[1] - values
    pixels = values.astype(np.float32)
    if padding.any() and not padding.all():
        pixels[padding] = pixels[~padding].min()
    grey: dict[str, Detail] = {"inverted": inverted, "voi": voi, "voi_refused": refused, "padding_pixels": int(padding.sum())}
    return pixels, grey, notes


def _padding(dataset, raw: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Pixels that the header calls padding, and a note if it names grey values of much of the film's middle: these are none."""
    value, none = _integer(dataset, "PixelPaddingValue"), np.zeros(raw.shape, bool)
    if value is None:
        return none, []
    limit = _integer(dataset, "PixelPaddingRangeLimit")
    ends = [_as_stored(end, dataset) for end in (value, value if limit is None else limit)]
    padding = (raw >= min(ends)) & (raw <= max(ends))
    middle = middle_ninth(raw.shape)
    share = share_without_plateau(raw[middle].ravel(), padding[middle].ravel())
    note = f"padding covers {round(100 * share)} % of the film's middle and was not used"
    return (none, [note]) if share > MAX_LOST else (padding, [])


def _integer(dataset, keyword: str) -> int | None:
    try:
        return int(dataset[keyword].value)
    except (KeyError, TypeError, ValueError):
        return None


def _as_stored(value: int, dataset) -> int:
    """Padding may be written with the wrong sign (US for SS or the reverse): read it with the sign of the pixels."""
    span = 2 ** int(dataset.BitsAllocated)
    value %= span
    return value - span if dataset.PixelRepresentation == 1 and value >= span // 2 else value


def _modality(dataset, raw: np.ndarray, film: np.ndarray) -> tuple[np.ndarray, Scale, list[str]]:
    """Values after rescale or table, of the functional groups where the top level has neither, and notes.

    A table that is not sound, as `attempt` says of windows, is not used: the rescale or the stored values are.
    """
    groups = macro(dataset, "PixelValueTransformationSequence")
    source = dataset if groups is None or any(keyword in dataset for keyword in _MODALITY_TAGS) else groups
    notes: list[str] = []
    if source.get("ModalityLUTSequence"):
        table = partial(look_up, source.ModalityLUTSequence[0], dataset=dataset)
        values, scale, why, falls = attempt(table, raw, film)
        if not why:
            return values, scale, ["modality table inverts the grey scale"] * falls
        notes = [f"modality table {why} and was not used"]
    slope, intercept = _number(source, "RescaleSlope") or 1.0, _number(source, "RescaleIntercept") or 0.0
    span = 2.0 ** int(dataset.BitsStored)
    low = -span / 2 if dataset.PixelRepresentation == 1 else 0.0
    ends = slope * low + intercept, slope * (low + span - 1) + intercept
    notes += ["negative RescaleSlope inverts the grey scale"] * (slope < 0)
    values = raw if (slope, intercept) == (1, 0) else raw * slope + intercept  # four times the bytes
    return values, (min(ends), max(ends)), notes


def _number(dataset, keyword: str) -> float | None:
    """First value of an element, or None when it is absent, no number or not finite."""
    try:
        value = dataset[keyword].value
        number = float(value if isinstance(value, (str, int, float)) else value[0])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
