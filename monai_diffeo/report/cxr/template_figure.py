"""One picture a film that a template transformer segmented: the template, its way to the lungs, and the deformation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from monai.utils import convert_to_numpy
from torch import Tensor

from monai_diffeo.canonicalize.result import resize_ddf
from monai_diffeo.files import write_atomically
from monai_diffeo.flow import exp_sequence
from monai_diffeo.networks import TemplateTransformer, WarpedTemplate
from monai_diffeo.report import figure, panels
from monai_diffeo.report.anatomy import Anatomy
from monai_diffeo.report.cxr.lungs import LungAnatomy
from monai_diffeo.report.sides import PatientSides

__all__ = ["template_figure"]


def template_figure(
    path: str | PathLike[str],
    network: TemplateTransformer,
    result: WarpedTemplate,
    film: Any,
    mask: Any,
    title: str,
    numbers: Mapping[str, Any],
    *,
    anatomy: Anatomy | None = None,
    sides: PatientSides | None = None,
) -> None:
    """Write a PNG of 1500 x 1000 pixels; errors, and all arguments that are not listed, are as for :func:`film_figure`.

    Args:
        network: that gave ``result``.
        result: of one film.
        numbers: a :func:`film_record` with the field ``template``.
        anatomy: :class:`LungAnatomy` by default.
    """
    film, mask = convert_to_numpy(film), convert_to_numpy(mask) > 0.5
    size, anatomy = tuple(film.shape), LungAnatomy() if anatomy is None else anatomy
    with torch.no_grad():
        stages = [template_stage(network, result.velocity[:1, :t], size) for t in range(result.velocity.shape[1] + 1)]
        to_film = convert_to_numpy(resize_ddf(exp_sequence(-result.velocity[:1].flip(1), network.steps), size)[0])
        local = panels.determinant(convert_to_numpy(resize_ddf(result.ddf[:1], size)[0]))
    told = numbers.get("template") or {}
    sheet = figure.paper(title, panels.decision_colour(numbers), sides)
    place = partial(figure.panel, sheet, film.shape)
    final = place(0, 0, "Film and mask", anatomy.caption(mask, sides))
    template = place(0, 1, "Template", "the same on every film")
    way = place(0, 2, "From template to lungs", "template dashed, then flow after flow")
    grid = place(1, 0, "Deformation", "the template's straight grid, laid on this film")
    area = place(1, 1, "Local area, template : film", figure.area_caption(False, local), beside=figure.BAR)
    panels.film(final, film, anatomy.parts(mask, sides))
    panels.film(template, film, anatomy.parts(stages[0], sides))
    panels.stages(way, film, stages)
    panels.grid(grid, film, to_film)
    panels.colour_bar(figure.bar(area), panels.area(area, local, mask))
    rows = _rows(numbers, told, anatomy.rows(numbers.get("areas") or {}))
    panels.verdict(figure.table_place(sheet), numbers, _meaning(told), rows)
    if sides is not None:
        for image in (final, template, way, grid, area):
            panels.sides(image, sides.film)
    write_atomically(Path(path), sheet.png())


def template_stage(network: TemplateTransformer, velocity: Tensor, size: tuple[int, ...]):
    """Where the template lies after the first flows ``(1, t, D, *S')``, as one mask; t = 0 gives the template itself."""
    if velocity.shape[1] == 0:
        return (network.prior(size)[0] > 0.5).any(0).cpu().numpy()
    return (network.warp_prior(exp_sequence(velocity, network.steps), size)[0] > 0).any(0).cpu().numpy()


def _meaning(told: Mapping[str, Any]) -> str:
    count = told.get("components")
    said = "" if count is None else f"{count} part{'' if count == 1 else 's'}, {told.get('holes', 0)} holes. "
    said += "The mask is the template, moved by a map without folds"
    if told.get("factor", 1) != 1:
        return f"{said}. The guard weakened the map"
    return f"{said}. The guard read another level of the edge" if told.get("level") else said


def _rows(numbers: Mapping[str, Any], told: Mapping[str, Any], areas: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [
        ("Folded area", panels.number(told.get("folding_fraction"), "{:.2%}")),
        ("Cells that may fold", panels.number(told.get("nonpositive_cell_fraction"), "{:.2%}")),
        ("Deformation kept by the guard", panels.number(told.get("factor"), "{:.0%}")),
        ("Level of the edge, log-odds", panels.number(told.get("level"), "{:g}")),
        ("Agreement with the direct mask", panels.number(told.get("agreement"), "{:.0%}")),
        *areas,
        ("Time", panels.number(numbers.get("seconds"), "{:.2f} s")),
    ]
