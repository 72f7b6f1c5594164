"""What a report says of films that a template transformer segmented."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from monai_diffeo.metrics import betti_numbers
from monai_diffeo.networks import TemplateTransformer, WarpedTemplate
from monai_diffeo.report.cxr.template_figure import template_figure
from monai_diffeo.report.record import json_safe
from monai_diffeo.report.reporter import FilmReporter

__all__ = ["TemplateReporter"]


class TemplateReporter(FilmReporter):
    """A :class:`FilmReporter` whose lines also hold ``template``: what the guard did, and the topology of the mask that was written.

    ``template`` has the fields ``factor`` and ``level`` of :class:`WarpedTemplate` (1 and 0 where the guard had nothing to do), both the
    furthest of all views, ``folding_fraction`` and ``nonpositive_cell_fraction`` of the template's map, the least ``agreement`` with the direct answer (None without
    one), ``native_level`` at which the mask was read in the film's own frame (None: only by keeping the largest part), and ``components``
    and ``holes`` of the mask.

    Args:
        args, kwargs: of :class:`FilmReporter`.
        network: whose template the pictures show, on films that were not canonicalised; None draws a :class:`FilmReporter`'s picture.
    """

    def __init__(self, *args: Any, network: TemplateTransformer | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.network = network
        self._seen: list[WarpedTemplate] = []
        self._last: WarpedTemplate | None = None

    def remember(self, result: WarpedTemplate) -> None:
        """Told by a :class:`TemplateInferer` of each answer, once a view of the film that is next."""
        self._seen.append(result)

    def failed(self, path: str, error: BaseException) -> None:
        self._seen = []
        super().failed(path, error)

    def done(self, path: str, batch: Mapping[str, Any], output: Mapping[str, Any], result, plain, seconds: float) -> None:
        if plain is not None and self._seen:
            self._seen.pop()  # the plain answer is for the picture alone
        super().done(path, batch, output, result, plain, seconds)

    def more(self, output: Mapping[str, Any]) -> dict[str, Any]:
        seen, self._seen = self._seen, []
        self._last = seen[-1] if seen else None
        if not seen:
            return {}
        components, holes = betti_numbers(np.squeeze(np.asarray(output["pred"])) > 0.5)
        levels = [result.level[0].item() for result in seen]
        agreements = [result.agreement[0].item() for result in seen if result.agreement is not None]
        return {
            "template": json_safe(
                {
                    "factor": min(result.factor[0].item() for result in seen),
                    "level": max(levels, key=abs),
                    "folding_fraction": max(result.folding_fraction[0].item() for result in seen),
                    "nonpositive_cell_fraction": max(result.nonpositive_cell_fraction[0].item() for result in seen),
                    "agreement": min(agreements, default=None),
                    "native_level": output.get("pred_level"),
                    "components": components,
                    "holes": holes,
                }
            )
        }

    def _draw(self, figure: Path, batch: Mapping[str, Any], mask: np.ndarray, result, plain, record: dict) -> None:
        if self.network is None or self._last is None or result is not None:
            return super()._draw(figure, batch, mask, result, plain, record)
        film, small = self._shown(batch, mask)
        template_figure(figure, self.network, self._last, film[0, 0], small[0, 0], record["input"], record)
