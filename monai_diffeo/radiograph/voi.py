"""Which window or table of a DICOM film is used: the first that leaves most of the picture as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, zip_longest

import numpy as np

from monai_diffeo.radiograph.dicom_groups import macro

__all__ = ["MAX_LOST", "VOI_TAGS", "Scale", "attempt", "look_up", "share_without_plateau", "windowed"]

VOI_TAGS = ["VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth"]

MAX_LOST = 0.15
"""Largest share of a film that one end may clip, plateaus not counted. Up to here the mask kept a Dice of 0.98 with that of the
full range on the packaged film, and of 0.92 on the worst of 40 others. At a share of 0.4 these are 0.88 and 0.44."""

MIN_LEVELS = 16
_MOST = 8  # windows and tables that are tried, each
_SAMPLE = 2**18  # pixels that are looked at

Scale = tuple[float, float]
Shows = Callable[[np.ndarray], tuple[np.ndarray, Scale]]


def windowed(dataset, values: np.ndarray, scale: Scale, film: np.ndarray) -> tuple[np.ndarray, Scale, str, bool, list[str]]:
    """Values through the first table or window of the header that is sound, tables first; without one the values as they are.

    Args:
        dataset: the pydicom dataset; an enhanced object may keep windows in its functional groups.
        values: shape ``(H, W)``, after the modality transform.
        scale: lowest and highest value that the header allows.
        film: boolean, shape ``(H, W)``, without padding.

    Returns:
        Values, ends of their scale, kind (``"none"``, ``"lut"``, ``"window"``), whether one was refused, and notes.
    """
    groups = macro(dataset, "FrameVOILUTSequence")
    source = dataset if groups is None or any(_values(dataset, keyword) for keyword in VOI_TAGS) else groups
    notes: list[str] = []
    for kind, name, apply in _candidates(source, dataset):
        shown, ends, why, falls = attempt(apply, values, film)
        if not why:
            refused = bool(notes)
            notes += [f"{name} inverts the grey scale"] * falls + [f"{name} was used"] * refused
            return shown, ends, kind, refused, notes
        notes.append(f"{name} {why} and was not used")
    return values, scale, "none", bool(notes), [*notes, "the full range was used"] if notes else []


def attempt(apply: Shows, values: np.ndarray, film: np.ndarray) -> tuple[np.ndarray, Scale, str, bool]:
    """Values and ends of a table or window, why it must not be used (empty if it may), and whether dark and bright change."""
    try:
        shown, ends = apply(values)
        return shown, ends, *fault(values[film], shown[film])
    except Exception:
        return values, (0.0, 0.0), "is unusable", False


def _candidates(source, dataset) -> Iterator[tuple[str, str, Shows]]:
    """Kind, name for the notes and function of each table, then of each window."""
    for number, item in enumerate(islice(_values(source, "VOILUTSequence"), _MOST), 1):
        yield "lut", f"table {number}", partial(look_up, item, dataset=dataset)
    function = str(source.get("VOILUTFunction") or "LINEAR").strip().upper()
    windows = zip_longest(_values(source, "WindowCenter"), _values(source, "WindowWidth"))
    for number, (centre, width) in enumerate(islice(windows, _MOST), 1):
        window = partial(_window, centre=centre, width=width, function=function, bits=dataset.BitsStored)
        yield "window", f"window {number}", window


def _values(source, keyword: str) -> list:
    """All values of an element; one None where they are there and no numbers."""
    try:
        value = source[keyword].value
    except KeyError:
        return []
    except Exception:
        return [None]
    if value is None or value == "":
        return []
    return [value] if isinstance(value, (str, int, float)) else list(value)


def look_up(item, values: np.ndarray, dataset) -> tuple[np.ndarray, Scale]:
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


def _window(values: np.ndarray, centre, width, function: str, bits: int) -> tuple[np.ndarray, Scale]:
    """One window, through pydicom, onto 0 .. 2**bits - 1; pydicom does not see the slope (a negative one would flip it)."""
    from pydicom.dataset import Dataset
    from pydicom.pixels import apply_windowing

    window = Dataset()
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = float(centre), float(width), function
    window.PhotometricInterpretation = "MONOCHROME2"
    window.PixelRepresentation, window.BitsStored = 0, bits
    return apply_windowing(values, window), (0.0, 2.0 ** int(bits) - 1)


def fault(full: np.ndarray, shown: np.ndarray) -> tuple[str, bool]:
    """Why the film, shape ``(N,)``, must not be shown so (empty if it may), and whether dark and bright change places."""
    if not np.isfinite(shown).all():
        return "is unusable", False
    if full.size > _SAMPLE:
        chosen = np.random.default_rng(0).integers(0, full.size, _SAMPLE)
        full, shown = full[chosen], shown[chosen]
    count = len(np.unique(shown))
    if count == 1 or (count < MIN_LEVELS and 2 * count < len(np.unique(full))):
        return f"leaves {count} grey value{'s' * (count > 1)}", False
    lost = _lost(full, shown)
    if lost > MAX_LOST:
        return f"clips {round(100 * lost)} % of the film", False
    direction = _order(_levels(full), shown)
    return "" if abs(direction) > 0.9 else "changes the order of the grey values", direction < 0


def share_without_plateau(full: np.ndarray, inside: np.ndarray) -> float:
    """Share of the values ``full`` (N,) that are ``inside`` (booleans), without the largest plateau among them."""
    taken, plateau = _apart(_levels(full), inside)
    return taken / max(1, full.size - plateau)


def _levels(full: np.ndarray) -> np.ndarray:
    """Number of a level, 0 .. 255, between the percentiles 5 and 95; the extremes themselves where these are equal."""
    low, high = np.percentile(full, [5, 95])
    if low == high:
        low, high = np.float64(full.min()), np.float64(full.max())
    return np.clip((full - low) * (256 / (high - low)), 0, 255).astype(np.int64)


def _lost(full: np.ndarray, shown: np.ndarray) -> float:
    """Larger of the shares of the film that become black and white.

    A plateau (collimation, direct exposure: three of 256 levels in a row) at either end was one grey value before: it counts
    neither as lost nor as film. An end has 1/256 of the grey values shown.
    """
    levels, (low, high) = _levels(full), np.percentile(shown, [2, 98])
    margin, lost, plateaus = (high - low) / 256, [], 0
    black = shown <= low + margin
    for end in (black, (shown >= high - margin) & ~black):
        count, plateau = _apart(levels, end)
        lost.append(count)
        plateaus += plateau
    return max(lost) / max(1, full.size - plateaus)


def _apart(levels: np.ndarray, end: np.ndarray) -> tuple[int, int]:
    """How many of the marked values are no plateau, and how many are."""
    plateau = int(np.convolve(np.bincount(levels[end], minlength=256), [1, 1, 1]).max())
    return int(np.count_nonzero(end)) - plateau, plateau


def _order(before: np.ndarray, after: np.ndarray) -> float:
    """How far ``after`` rises with ``before`` (not negative integers): 1 always, -1 falls always, near 0 neither."""
    number = np.bincount(before)
    steps = np.diff(np.bincount(before, weights=after)[number > 0] / number[number > 0])
    return float(steps.sum() / max(np.abs(steps).sum(), 1e-30))
