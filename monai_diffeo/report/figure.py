"""One picture a film, for the person who signs: what the network saw, what came of it, and how far to trust it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.utils import convert_to_numpy

from monai_diffeo.errors import ShapeError
from monai_diffeo.files import printable, write_atomically
from monai_diffeo.inferers.aggregation import mask_dice
from monai_diffeo.report import panels
from monai_diffeo.report.anatomy import Anatomy
from monai_diffeo.report.sides import PatientSides

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DISCLAIMER", "film_figure"]

_WIDTH, _HEIGHT, _DPI = 1500, 1000, 100  # px, px, px per inch
_PANEL_W, _PANEL_H = 460, 384  # px
_COLUMNS, _ROWS = (34, 524, 1014), (112, 566)  # px from the left, from the top
_LONGEST_TITLE = 90  # letters
DISCLAIMER = "Research software. Not a medical device; not for diagnosis."
_SIDES = {True: "R, L: the patient's sides, by the canonical pose or the file", False: "The patient's sides are unknown"}


def film_figure(
    path: str | PathLike[str],
    film: Any,
    canonical: Any,
    ddf: Any,
    plain_mask: Any | None,
    mask: Any,
    canonical_mask: Any | None,
    title: str,
    numbers: Mapping[str, Any],
    *,
    anatomy: Anatomy | None = None,
    sides: PatientSides | None = None,
    uncertainty: Any | None = None,
) -> None:
    """Write a PNG of 1500 x 1000 pixels that shows what canonicalisation did to a film and to its mask.

    All images share one frame, best of about 512 voxels a side; tensors or arrays, masks with foreground > 0.5.

    Args:
        path: of the PNG; its folders are created, and it appears complete or not at all.
        film: as given, shape ``(H, W)``.
        canonical: film in canonical pose, shape ``(H, W)``.
        ddf: canonical = ``warp(film, ddf)``, shape ``(2, H, W)``, voxels.
        plain_mask: mask without canonicalisation, shape ``(H, W)``, or None.
        mask: mask that is handed on, on ``film``, shape ``(H, W)``.
        canonical_mask: mask on ``canonical``, shape ``(H, W)``, or None.
        title: top line, without patient data.
        numbers: a :func:`film_record`, or any part of it.
        anatomy: outlines, captions and areas; :class:`Anatomy` by default.
        sides: where the patient's left is; None draws no R and L.
        uncertainty: of the mask, 0 to 1, shape ``(H, W)``, or None.

    Raises:
        ShapeError: if the shapes differ.
        ImportError: if matplotlib is not installed.
    """
    film, canonical, ddf = (convert_to_numpy(x).astype(np.float32) for x in (film, canonical, ddf))
    given = (plain_mask, mask, canonical_mask)
    plain_mask, mask, canonical_mask = (None if x is None else convert_to_numpy(x) > 0.5 for x in given)
    _check(film, canonical=canonical, ddf=ddf, plain_mask=plain_mask, mask=mask, canonical_mask=canonical_mask)
    anatomy = Anatomy() if anatomy is None else anatomy
    figure = paper(title, panels.decision_colour(numbers), sides)
    still, local = not ddf.any(), panels.determinant(ddf)
    looks = "the film as given" if still else "the canonical film"
    lines = "not moved: the grid is straight" if still else "the canonical film's straight grid, laid on this film"

    shaded = "" if uncertainty is None else "; uncertain: violet"
    final = panel(figure, 0, 0, "Film and final mask", anatomy.caption(mask, sides) + shaded)
    seen = panel(figure, 0, 1, "What the network saw", looks + ("" if canonical_mask is None else ", with the mask there"))
    change = panel(figure, 0, 2, "What changed", _change_caption(still, plain_mask, mask))
    grid = panel(figure, 1, 0, "Deformation", lines)
    area = panel(figure, 1, 1, "Local area, film : canonical", area_caption(still, local))
    panels.film(final, film, anatomy.parts(mask, sides))
    if uncertainty is not None:
        panels.shade(final, convert_to_numpy(uncertainty))
    along = None if sides is None else sides.along(sides.canonical)
    panels.film(seen, canonical, [] if canonical_mask is None else anatomy.parts(canonical_mask, along))
    panels.masks(change, film, plain_mask, mask)
    panels.grid(grid, film, ddf)
    panels.colour_bar(beside(figure, area), panels.area(area, local, canonical_mask))
    overlap = None if plain_mask is None else float(mask_dice(*map(torch.from_numpy, (plain_mask, mask)), 0))
    panels.table(table_place(figure), numbers, overlap, anatomy.rows(numbers.get("areas") or {}))
    if sides is not None:
        for axes in (final, change, grid, seen, area):
            panels.sides(axes, sides.canonical if axes in (seen, area) else sides.film)
    write(figure, Path(path))


def paper(title: str, colour: str, sides: PatientSides | None) -> Figure:
    """An empty figure with its title, a stripe in the colour of the decision, and its footer."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("film_figure(): needs matplotlib. Install it: pip install 'monai-diffeo[report]'.") from error
    settings: dict[str, Any] = {"facecolor": panels.BACKGROUND, "layout": "none"}
    figure = Figure(figsize=(_WIDTH / _DPI, _HEIGHT / _DPI), dpi=_DPI, **settings)
    title = printable(title)
    title = title if len(title) <= _LONGEST_TITLE else "…" + title[1 - _LONGEST_TITLE :]
    page = _at(figure, 0, 0, _WIDTH, _HEIGHT)
    page.set_axis_off()
    page.axhspan(1 - 5 / _HEIGHT, 1, color=colour, linewidth=0)
    page.set(xlim=(0, 1), ylim=(0, 1), zorder=-1)
    x, y = _COLUMNS[0] / _WIDTH, 24 / _HEIGHT
    panels.words(page, x, 1 - 36 / _HEIGHT, title, panels.INK, 16, weight="bold", va="center")
    panels.words(page, x, y, DISCLAIMER, panels.QUIET, 9, va="center")
    panels.words(page, 1 - x, y, _SIDES[sides is not None], panels.QUIET, 9, va="center", ha="right")
    return figure


def _at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in pixels from the top left corner."""
    return figure.add_axes((left / _WIDTH, 1 - (top + height) / _HEIGHT, width / _WIDTH, height / _HEIGHT))


def panel(figure: Figure, row: int, column: int, heading: str, caption: str) -> Axes:
    """Axes in row 0 or 1 and column 0, 1 or 2, below a heading and a caption."""
    axes = _at(figure, _COLUMNS[column], _ROWS[row], _PANEL_W, _PANEL_H)
    axes.set_anchor("W")
    page, x = figure.axes[0], _COLUMNS[column] / _WIDTH
    panels.words(page, x, 1 - (_ROWS[row] - 34) / _HEIGHT, heading, panels.INK, 12.5, weight="bold", va="center")
    panels.words(page, x, 1 - (_ROWS[row] - 13) / _HEIGHT, caption, panels.QUIET, 10, va="center")
    return axes


def table_place(figure: Figure) -> Axes:
    """Axes for the table at the lower right."""
    return _at(figure, _COLUMNS[2], _ROWS[1] - 44, _PANEL_W - 8, _PANEL_H + 44)


def beside(figure: Figure, axes: Axes) -> Axes:
    """A narrow strip for a colour bar, to the right of the image inside ``axes``."""
    box = axes.get_position(original=True)
    axes.set_position((box.x0, box.y0, box.width - 66 / _WIDTH, box.height))
    axes.apply_aspect()
    return _at(figure, axes.get_position(original=False).x1 * _WIDTH + 12, _ROWS[1] + 24, 13, _PANEL_H - 48)


def write(figure: Figure, path: Path) -> None:
    """The figure as a PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    stream, quick = io.BytesIO(), {"compress_level": 1}
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": "monai_diffeo"}, pil_kwargs=quick)
    write_atomically(path, stream.getvalue())


def _check(film: np.ndarray, **others: np.ndarray | None) -> None:
    if film.ndim != 2 or min(film.shape) < 2:
        raise ShapeError("film_figure()", "film", "(H, W)", film.shape, "Take one slice and one channel: film[0, 0].")
    for name, value in others.items():
        expected = (2, *film.shape) if name == "ddf" else film.shape
        if value is not None and value.shape != expected:
            raise ShapeError("film_figure()", name, f"{expected}", value.shape, "Bring everything to the frame of 'film'.")


def _change_caption(still: bool, plain: np.ndarray | None, mask: np.ndarray) -> str:
    if plain is None and not still:
        return "unknown: the network did not see the film as it is"
    if plain is None or (plain == mask).all():
        return "nothing: the film was not moved" if still else "nothing: the film as it is gives the same mask"
    return "mask of the film as it is dashed; gained green, lost red"


def area_caption(still: bool, determinant: np.ndarray) -> str:
    """How many voxels of a deformation fold."""
    if still:
        return "not moved: ×1 everywhere"
    folded = int((~(determinant > 0)).sum())
    return f"{folded} voxel{'' if folded == 1 else 's'} folded, in magenta" if folded else "no voxel is folded"
