"""What reports and figures say of a mask; subclass :class:`Anatomy` for organs with names, sides or colours of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from monai_diffeo.dicom_output import Segment
from monai_diffeo.report.sides import PatientSides

__all__ = ["Anatomy", "Part"]

MASK_COLOUR = "#3ddc97"


class Part(NamedTuple):
    """A part of a mask, ``(H, W)`` bool, and the colour of its outline."""

    mask: np.ndarray
    colour: str


class Anatomy:
    """Any structure: one outline, one area.

    ``name`` heads the series of DICOM results. In all methods ``mask`` has shape ``(H, W)``, bool, and ``sides`` says where the
    patient's left is, None if that is unknown.
    """

    name = "Mask"

    def parts(self, mask: np.ndarray, sides: PatientSides | None) -> list[Part]:
        """The parts of a mask, each outlined in its colour."""
        return [Part(mask, MASK_COLOUR)]

    def segments(self, mask: np.ndarray, sides: PatientSides | None) -> list[Segment]:
        """The parts of a mask for DICOM results; together they are the mask."""
        return [Segment("Mask", mask)]

    def caption(self, mask: np.ndarray, sides: PatientSides | None) -> str:
        """One line below the heading of the film's panel."""
        return "the mask is outlined" if mask.any() else "the mask is empty"

    def areas(self, mask: np.ndarray, sides: PatientSides | None) -> dict[str, float | None]:
        """Shares of the film for the field ``areas`` of the report; None for what is unknown."""
        return {"total": float(np.count_nonzero(mask) / mask.size)}

    def rows(self, areas: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Lines of the figure's table, from what :meth:`areas` gave."""
        total = areas.get("total")
        return [("Area", "–" if total is None else f"{total:.1%} of film")]
