"""What a report says of films that a template transformer segmented."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import convert_to_numpy
from torch import Tensor

from monai_diffeo.inferers import DiffeoResult
from monai_diffeo.metrics import betti_numbers
from monai_diffeo.networks import TemplateTransformer
from monai_diffeo.report.cxr.lungs import LungReporter
from monai_diffeo.report.cxr.template_figure import template_figure
from monai_diffeo.report.record import json_safe
from monai_diffeo.report.sides import PatientSides

__all__ = ["TemplateReporter"]


class TemplateReporter(LungReporter):
    """A :class:`LungReporter` whose lines also hold ``template``: what the guard did, and the topology of the mask.

    ``template`` has the fields ``factor`` and ``level`` of :class:`WarpedTemplate`, 1 and 0 where the guard had nothing to do.
    It has the ``folding_fraction`` and ``nonpositive_cell_fraction``, and the ``agreement`` with the backbone's
    direct prediction, None without one; of several poses the worst. ``native_level`` is the level at which the mask was read on
    the film's own frame, None where only the largest parts were kept. ``components`` and ``holes`` are the mask's.

    Args:
        args, kwargs: of :class:`LungReporter`.
        network: whose template the pictures show, on films that were not canonicalised; None draws a film's usual picture.
    """

    def __init__(self, *args: Any, network: TemplateTransformer | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.network = network

    def more(self, output: Mapping[str, Any], result: DiffeoResult) -> dict[str, Any]:
        seen = result.templates
        if not seen:
            return {}
        components, holes = betti_numbers(np.squeeze(convert_to_numpy(output["pred"])) > 0.5)
        fields = {
            "factor": min(template.factor[0].item() for template in seen),
            "level": max((template.level[0].item() for template in seen), key=abs),
            "folding_fraction": max(template.folding_fraction[0].item() for template in seen),
            "nonpositive_cell_fraction": max(template.nonpositive_cell_fraction[0].item() for template in seen),
            "agreement": min((t.agreement[0].item() for t in seen if t.agreement is not None), default=None),
            "native_level": output.get("pred_level"),
            "components": components,
            "holes": holes,
        }
        return {"template": json_safe(fields)}

    def foreground(self, scores: Tensor) -> Tensor:
        """Mask of the log-odds of shapes, which have no channel for the background."""
        return (scores > 0).any(1)

    def draw(
        self, path: Path, film: Tensor, mask: Tensor, result: DiffeoResult, record: dict[str, Any], sides: PatientSides | None
    ) -> None:
        if self.network is None or not result.templates or result.canonicalization is not None:
            return super().draw(path, film, mask, result, record, sides)
        args = (result.templates[-1], film[0, 0], mask[0, 0], record["input"], record)
        template_figure(path, self.network, *args, anatomy=self.anatomy, sides=sides)
