"""Grey scale of a DICOM film: stored values -> modality -> window or table -> one flip.

The flip is ``low + high - value`` where low and high are the ends of the scale that the header declares, never the
extremes found in the pixels: padding, markers or a lost corner cannot move it, and a MONOCHROME1 film gives exactly the
values of its MONOCHROME2 twin. This is also what ITK does, but ITK looks at the photometric interpretation only.
"""

from __future__ import annotations

import math

import numpy as np

from monai_diffeo.radiograph.film import Detail

__all__ = ["GREY_TAGS", "displayed"]

GREY_TAGS = ["PresentationLUTShape", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept"]
GREY_TAGS += ["ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth"]

Scale = tuple[float, float]


def displayed(dataset, raw: np.ndarray) -> tuple[np.ndarray, dict[str, Detail]]:
    """Stored values ``(H, W)`` as they are to be shown: float32, larger is whiter, padding as dark as the darkest other pixel.

    Of the pydicom dataset only the grey scale is used. The details ``inverted``, ``voi``, ``voi_refused`` and
    ``padding_pixels`` come with the pixels.
    """
    padding = _padding(dataset, raw)
    values, scale = _modality(dataset, raw)
    values, scale, voi, refused = _voi(dataset, values, scale, ~padding)
    shape = str(dataset.get("PresentationLUTShape") or "").strip().upper()
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1" or shape == "INVERSE"  # one fact stated twice is one flip
    if inverted:
        values = scale[0] + scale[1] - values
    pixels = values.astype(np.float32)
    if padding.any() and not padding.all():
        pixels[padding] = pixels[~padding].min()
    grey: dict[str, Detail] = {"inverted": inverted, "voi": voi, "voi_refused": refused, "padding_pixels": int(padding.sum())}
    return pixels, grey


def _padding(dataset, raw: np.ndarray) -> np.ndarray:
    value = _integer(dataset, "PixelPaddingValue")
    if value is None:
        return np.zeros(raw.shape, bool)
    limit = _integer(dataset, "PixelPaddingRangeLimit")
    ends = [_as_stored(end, dataset) for end in (value, value if limit is None else limit)]
    return (raw >= min(ends)) & (raw <= max(ends))


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


def _modality(dataset, raw: np.ndarray) -> tuple[np.ndarray, Scale]:
    if dataset.get("ModalityLUTSequence"):
        return _look_up(dataset.ModalityLUTSequence[0], raw, dataset)
    slope, intercept = _number(dataset, "RescaleSlope") or 1.0, _number(dataset, "RescaleIntercept") or 0.0
    span = 2.0 ** int(dataset.BitsStored)
    low = -span / 2 if dataset.PixelRepresentation == 1 else 0.0
    ends = slope * low + intercept, slope * (low + span - 1) + intercept
    return raw * slope + intercept, (min(ends), max(ends))


def _number(dataset, keyword: str) -> float | None:
    """First value of an element, or None when it is absent, no number or not finite."""
    try:
        value = dataset[keyword].value
        number = float(value if isinstance(value, (str, int, float)) else value[0])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _voi(dataset, values: np.ndarray, scale: Scale, film: np.ndarray) -> tuple[np.ndarray, Scale, str, bool]:
    """First of table and window that works and leaves a picture; otherwise the values as they are."""
    refused = False
    for name, apply in (("lut", _voi_table), ("window", _window)):
        try:
            shown, shown_scale = apply(dataset, values)
        except KeyError:
            continue
        except Exception:
            refused = True
            continue
        if np.isfinite(shown).all() and film.any() and np.ptp(shown[film]) > 0:
            return shown, shown_scale, name, refused
        refused = True
    return values, scale, "none", refused


def _voi_table(dataset, values: np.ndarray) -> tuple[np.ndarray, Scale]:
    return _look_up(dataset["VOILUTSequence"].value[0], values, dataset)


def _look_up(item, values: np.ndarray, dataset) -> tuple[np.ndarray, Scale]:
    """Apply a table of the DICOM standard; what lies outside takes the first or last entry.

    Not pydicom's `apply_voi`: it keeps the index in the type of the table, so a 4096-entry 8-bit table wraps at 256.
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 2**16
    if first >= 2**15 and (values.min() < 0 or dataset.PixelRepresentation == 1):
        first -= 2**16
    table = _table(item.LUTData, count, not dataset.file_meta.TransferSyntaxUID.is_little_endian)
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)
    return table[index].astype(np.float64), (0.0, 2.0**bits - 1)


def _table(data, count: int, big_endian: bool) -> np.ndarray:
    if isinstance(data, bytes):
        packed = np.uint8 if len(data) < 2 * count else np.dtype(">u2" if big_endian else "<u2")
        data = np.frombuffer(data, packed)
    table = np.asarray(data)
    if table.ndim != 1 or len(table) < count:
        raise ValueError("the table is shorter than it declares")
    return table[:count]


def _window(dataset, values: np.ndarray) -> tuple[np.ndarray, Scale]:
    """First window of the file, through pydicom, onto 0 .. 2**bits - 1.

    pydicom sees neither the slope (a negative one would flip the film) nor the other windows.
    """
    from pydicom.dataset import Dataset
    from pydicom.pixels import apply_windowing

    window = Dataset()
    window.WindowCenter, window.WindowWidth = _required(dataset, "WindowCenter"), _required(dataset, "WindowWidth")
    window.VOILUTFunction = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.PixelRepresentation, window.BitsStored = 0, dataset.BitsStored
    return apply_windowing(values, window), (0.0, 2.0 ** int(dataset.BitsStored) - 1)


def _required(dataset, keyword: str) -> float:
    """Like `_number`, but a value that is there and unusable raises ValueError and an absent one KeyError."""
    dataset[keyword]
    number = _number(dataset, keyword)
    if number is None:
        raise ValueError(f"{keyword} is no number")
    return number
