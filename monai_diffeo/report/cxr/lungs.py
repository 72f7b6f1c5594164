"""Lungs in reports: the patient's right and left one, their areas, colours and words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from monai_diffeo.dicom_output import LUNG, Segment
from monai_diffeo.radiograph.lungs import split_lungs
from monai_diffeo.report.anatomy import Anatomy, Part
from monai_diffeo.report.reporter import FilmReporter
from monai_diffeo.report.sides import PatientSides

__all__ = ["LungAnatomy", "LungReporter"]

RIGHT, LEFT, UNKNOWN, ISLAND = "#4cc9f0", "#ffc94d", "#3ddc97", "#ffffff"
_LONGEST = 512  # sides are told apart on at most this many rows or columns


class LungAnatomy(Anatomy):
    """Two lungs, as :func:`monai_diffeo.radiograph.lungs.split_lungs` parts a mask.

    Example:
        >>> mask = np.zeros((4, 8)) > 0; mask[:, 1:3] = mask[:, 5:6] = True
        >>> from monai_diffeo.report.sides import patient_sides
        >>> LungAnatomy().areas(mask, patient_sides(None, orientation="L\\\\F"))
        {'total': 0.375, 'right': 0.25, 'left': 0.125}
        >>> LungAnatomy().areas(mask, None)
        {'total': 0.375, 'right': None, 'left': None}
    """

    name = "Lungs"

    def parts(self, mask: np.ndarray, sides: PatientSides | None) -> list[Part]:
        *lungs, rest = split_lungs(mask)
        if sides is None or not lungs[0].any():
            return [Part(lung, UNKNOWN) for lung in lungs] + [Part(rest, ISLAND)]
        right, left = sorted(lungs, key=sides.leftness)
        return [Part(right, RIGHT), Part(left, LEFT), Part(rest, ISLAND)]

    def segments(self, mask: np.ndarray, sides: PatientSides | None) -> list[Segment]:
        """Right lung, left lung and, where there are any, parts that are none of the two; "Lungs" where sides are unknown."""
        right, left, rest = self.parts(mask, sides)
        if right.colour != RIGHT:
            return [Segment("Lungs", mask, LUNG, "both")]
        lungs = [Segment("Right lung", right.mask, LUNG, "right"), Segment("Left lung", left.mask, LUNG, "left")]
        return [*lungs, *([Segment("Lung, other parts", rest.mask, LUNG)] if rest.mask.any() else [])]

    def caption(self, mask: np.ndarray, sides: PatientSides | None) -> str:
        if not mask.any():
            return "the mask is empty"
        one, _, rest = split_lungs(mask)
        if not one.any():
            return "the mask does not part into two lungs"
        told = "the patient's sides are unknown" if sides is None else "right lung blue, left lung yellow"
        return told + (", islands white" if rest.any() else "")

    def areas(self, mask: np.ndarray, sides: PatientSides | None) -> dict[str, float | None]:
        """``total``; ``right`` and ``left`` where there are two lungs and the patient's sides are known."""
        step = -(-max(mask.shape) // _LONGEST)
        right, left, _ = self.parts(mask[::step, ::step], sides)
        known = right.colour == RIGHT
        shares = {name: float(part.mask.mean()) if known else None for name, part in (("right", right), ("left", left))}
        return super().areas(mask, sides) | shares

    def rows(self, areas: Mapping[str, Any]) -> list[tuple[str, str]]:
        right, left = areas.get("right"), areas.get("left")
        return [("Lung area, right / left", f"{right:.1%} / {left:.1%} of film" if right and left else "–")]


class LungReporter(FilmReporter):
    """A :class:`FilmReporter` of lungs on chest radiographs; arguments as there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"anatomy": LungAnatomy(), **kwargs})
