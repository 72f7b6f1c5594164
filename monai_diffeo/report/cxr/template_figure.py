"""One picture a film that a template transformer segmented: the template, its way to the lungs, and the map that took it there."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_diffeo.canonicalize.result import resize_ddf
from monai_diffeo.flow import exp_sequence
from monai_diffeo.networks import TemplateTransformer, WarpedTemplate
from monai_diffeo.report import figure as sheet
from monai_diffeo.report import panels

__all__ = ["template_figure"]


def template_figure(
    path: str | PathLike[str],
    network: TemplateTransformer,
    result: WarpedTemplate,
    film: Tensor,
    mask: Tensor,
    title: str,
    numbers: Mapping[str, Any],
) -> None:
    """Write a PNG of 1500 x 1000 pixels.

    Args:
        path: of the PNG.
        network: that gave ``result``.
        result: of one film.
        film: as given, shape ``(H, W)``, best of about 512 voxels a side.
        mask: that is handed on, shape ``(H, W)``, above 0.5 inside.
        title: top line, without patient data.
        numbers: a :func:`film_record` with the field ``template``.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    size = tuple(film.shape)
    film, mask = film.numpy(), mask.numpy() > 0.5
    with torch.no_grad():
        stages = [template_stage(network, result.velocity[:1, :t], size) for t in range(result.velocity.shape[1] + 1)]
        there = resize_ddf(exp_sequence(-result.velocity[:1].flip(1), network.steps), size)[0].cpu().numpy()
        ddf = resize_ddf(result.ddf[:1], size)[0].cpu().numpy()
    told = numbers.get("template") or {}
    page = sheet._paper(title, _colour(told))
    panels.film(sheet._panel(page, 0, 0, "Film and mask", sheet._sides_caption(mask)), film, mask)
    panels.film(sheet._panel(page, 0, 1, "Template", "the same on every film"), film, stages[0])
    panels.stages(sheet._panel(page, 0, 2, "From template to lungs", "template dashed, then flow after flow"), film, stages)
    panels.grid(sheet._panel(page, 1, 0, "Deformation", "the template's straight grid, laid on this film"), film, there)
    local = panels.determinant(ddf)
    axes = sheet._panel(page, 1, 1, "Local area, template : film", sheet._area_caption(False, int((~(local > 0)).sum())))
    panels.colour_bar(sheet._beside(page, axes), panels.area(axes, local, mask))
    axes = sheet._at(page, sheet._COLUMNS[2], sheet._ROWS[1] - 44, sheet._PANEL_W - 8, sheet._PANEL_H + 44)
    panels.verdict(axes, _headline(told), _colour(told), _meaning(told), _rows(numbers, told))
    for axes in page.axes:
        if axes.images:
            panels.sides(axes)
    sheet._write(page, Path(path))


def template_stage(network: TemplateTransformer, velocity: Tensor, size: tuple[int, ...]):
    """Where the template lies after the first flows ``(1, t, D, *S')``, as one mask; t = 0 gives the template itself."""
    if velocity.shape[1] == 0:
        return (network.prior(size)[0] > 0.5).any(0).cpu().numpy()
    return (network.warp_prior(exp_sequence(velocity, network.steps), size)[0] > 0).any(0).cpu().numpy()


def _calm(told: Mapping[str, Any]) -> bool:
    return told.get("factor") == 1 and told.get("level") == 0


def _colour(told: Mapping[str, Any]) -> str:
    return panels.ADDED if _calm(told) else panels.LEFT


def _headline(told: Mapping[str, Any]) -> str:
    count = told.get("components")
    return "Segmented" if count is None else f"{count} part{'' if count == 1 else 's'}, {told.get('holes', 0)} holes"


def _meaning(told: Mapping[str, Any]) -> str:
    said = "The mask is the template, moved by a map without folds: it has the template's parts, wherever they came to lie."
    if told.get("factor", 1) != 1:
        said += " The guard had to calm the map: look at this film."
    elif told.get("level"):
        said += " The guard read another level of the edge."
    return said


def _rows(numbers: Mapping[str, Any], told: Mapping[str, Any]) -> list[tuple[str, str]]:
    def value(number: Any, pattern: str) -> str:
        return "–" if number is None else pattern.format(number)

    areas = numbers.get("areas") or {}
    right, left = areas.get("right"), areas.get("left")
    return [
        ("Folded area", value(told.get("folding_fraction"), "{:.2%}")),
        ("Cells that may fold", value(told.get("nonpositive_cell_fraction"), "{:.2%}")),
        ("Velocities kept by the guard", value(told.get("factor"), "{:.0%}")),
        ("Level of the edge, log-odds", value(told.get("level"), "{:g}")),
        ("Agreement with the direct answer", value(told.get("agreement"), "{:.0%}")),
        ("Lung area, right / left", f"{right:.1%} / {left:.1%} of film" if right and left else "–"),
        ("Time", value(numbers.get("seconds"), "{:.2f} s")),
    ]
