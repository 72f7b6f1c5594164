"""One picture a film, for the person who signs: what the network saw, what came of it, and how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_numpy

from monai_diffeo.errors import ShapeError
from monai_diffeo.files import printable, write_atomically
from monai_diffeo.inferers.aggregation import mask_dice
from monai_diffeo.report import panels
from monai_diffeo.report.anatomy import Anatomy
from monai_diffeo.report.sheet import Panel, Sheet, rgb
from monai_diffeo.report.sides import PatientSides

__all__ = ["DISCLAIMER", "film_figure"]

_WIDTH, _HEIGHT = 1500, 1000  # px
_PANEL_W, _PANEL_H = 460, 384  # px
BAR = 66  # px for a colour bar and its numbers
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
    sheet = paper(title, panels.decision_colour(numbers), sides)
    still, local = not ddf.any(), panels.determinant(ddf)
    looks = "the film as given" if still else "the canonical film"
    lines = "not moved: the grid is straight" if still else "the canonical film's straight grid, laid on this film"

    shaded = "" if uncertainty is None else "; uncertain: violet"
    place = partial(panel, sheet, film.shape)
    final = place(0, 0, "Film and final mask", anatomy.caption(mask, sides) + shaded)
    seen = place(0, 1, "What the network saw", looks + ("" if canonical_mask is None else ", with the mask there"))
    change = place(0, 2, "What changed", _change_caption(still, plain_mask, mask))
    grid = place(1, 0, "Deformation", lines)
    area = place(1, 1, "Local area, film : canonical", area_caption(still, local), beside=BAR)
    panels.film(final, film, anatomy.parts(mask, sides))
    if uncertainty is not None:
        panels.shade(final, convert_to_numpy(uncertainty))
    along = None if sides is None else sides.along(sides.canonical)
    panels.film(seen, canonical, [] if canonical_mask is None else anatomy.parts(canonical_mask, along))
    panels.masks(change, film, plain_mask, mask)
    panels.grid(grid, film, ddf)
    panels.colour_bar(bar(area), panels.area(area, local, canonical_mask))
    overlap = None if plain_mask is None else float(mask_dice(torch.from_numpy(plain_mask), torch.from_numpy(mask), 0))
    panels.table(table_place(sheet), numbers, overlap, anatomy.rows(numbers.get("areas") or {}))
    if sides is not None:
        for image in (final, change, grid, seen, area):
            panels.sides(image, sides.canonical if image in (seen, area) else sides.film)
    write_atomically(Path(path), sheet.png())


def paper(title: str, colour: str, sides: PatientSides | None) -> Sheet:
    """An empty sheet with its title, a stripe in the colour of the decision, and its footer."""
    sheet = Sheet(_WIDTH, _HEIGHT, panels.BACKGROUND)
    title = printable(title)
    title = title if len(title) <= _LONGEST_TITLE else "…" + title[1 - _LONGEST_TITLE :]
    Panel(sheet, 0, 0, _WIDTH, 5).paint(rgb(colour))
    x, y = _COLUMNS[0] / _WIDTH, 24 / _HEIGHT
    sheet.whole.words(x, 1 - 36 / _HEIGHT, title, panels.INK, 16, bold=True)
    sheet.whole.words(x, y, DISCLAIMER, panels.QUIET, 9)
    sheet.whole.words(1 - x, y, _SIDES[sides is not None], panels.QUIET, 9, anchor="rm")
    return sheet


def panel(sheet: Sheet, shape: tuple[int, int], row: int, column: int, heading: str, caption: str, beside: int = 0) -> Panel:
    """A panel for an image ``(H, W)`` in row 0 or 1 and column 0, 1 or 2, below a heading and a caption; ``beside`` it there
    are pixels left."""
    left, top = _COLUMNS[column], _ROWS[row]
    head = Panel(sheet, left, top - 50, _PANEL_W, 50)
    head.words(0, 34 / 50, heading, panels.INK, 12.5, bold=True)
    head.words(0, 13 / 50, caption, panels.QUIET, 10)
    return Panel(sheet, left, top, _PANEL_W - beside, _PANEL_H).fitted(shape)


def table_place(sheet: Sheet) -> Panel:
    """The place of the table at the lower right."""
    return Panel(sheet, _COLUMNS[2], _ROWS[1] - 44, _PANEL_W - 8, _PANEL_H + 44)


def bar(panel: Panel) -> Panel:
    """The place of a colour bar, a narrow strip to the right of a panel of the lower row."""
    return Panel(panel.sheet, panel.left + panel.width + 12, _ROWS[1] + 24, 13, _PANEL_H - 48)


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
