"""Where a DICOM film lies: the spacing of its pixels and the affine of its plane."""

from __future__ import annotations

import math

__all__ = ["GEOMETRY_TAGS", "pixel_spacing"]

GEOMETRY_TAGS = ["PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"]


def pixel_spacing(dataset) -> tuple[tuple[float, float], str]:
    """Spacing of rows and of columns in millimetres, and the element that gave it; ``(1.0, 1.0)`` and ``"unknown"`` without."""
    for keyword in GEOMETRY_TAGS:
        try:
            row, column = (float(value) for value in dataset[keyword].value)
        except (KeyError, TypeError, ValueError):
            continue
        if all(math.isfinite(value) and value > 0 for value in (row, column)):
            return (row, column), keyword
    return (1.0, 1.0), "unknown"
