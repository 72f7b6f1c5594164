"""The panels of a film's figure; each shows one answer on its part of a sheet, in the colours of a reading room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
import torch

from monai_diffeo.canonicalize.acceptance import AT_REST
from monai_diffeo.canonicalize.result import CANONICALIZED, LEFT_ALONE, REJECTED
from monai_diffeo.flow.jacobian import jacobian_determinant
from monai_diffeo.report.anatomy import MASK_COLOUR, Part
from monai_diffeo.report.decision import ACTIONS, DECISION_COLOURS, decision, outcome, remarks
from monai_diffeo.report.sheet import Panel, rgb
from monai_diffeo.report.sides import Step
from monai_diffeo.trust import ANSWERS

__all__: list[str] = []

BACKGROUND, INK, QUIET, RULE = "#0c0e11", "#e8eaed", "#9aa3ad", "#2a2f36"
ADDED, REMOVED, PLAIN = MASK_COLOUR, "#ff5d73", "#ffffff"
GRID, FOLDED, DOUBT = "#7fd4ff", "#ff2bd6", "#c77dff"
AREA = ["#8fd3ff", "#2b7fd4", "#16324f", "#16181c", "#553018", "#d9701f", "#ffd08a"]  # dark where nothing changes

_GRID_LINES = 17  # along the longer side


def film(panel: Panel, image: np.ndarray, parts: Sequence[Part]) -> None:
    """A film with the outlines of the parts of its mask."""
    background(panel, image)
    for part in parts:
        outline(panel, part.mask, part.colour, 1.8)


def shade(panel: Panel, uncertainty: np.ndarray) -> None:
    """Where a mask is uncertain: from clear at 0 to nearly opaque at 1."""
    panel.tint(DOUBT, 0.8 * uncertainty.clip(0, 1))


def masks(panel: Panel, image: np.ndarray, plain: np.ndarray | None, final: np.ndarray) -> None:
    """What canonicalisation changed: the final mask bold, the plain network's thin, gained and lost area tinted."""
    background(panel, image, 0.8)
    if plain is not None:
        for part, colour in ((final & ~plain, ADDED), (plain & ~final, REMOVED)):
            panel.tint(colour, 0.55 * part)
    outline(panel, final, ADDED, 2.0)
    if plain is not None:
        outline(panel, plain, PLAIN, 0.9, dashed=True)


def stages(panel: Panel, image: np.ndarray, shapes: Sequence[np.ndarray]) -> None:
    """Outlines of a shape on its way, from the first, dashed, to the last, bold."""
    background(panel, image, 0.6)
    colours = np.linspace(rgb(QUIET), rgb(ADDED), len(shapes))
    for i, (shape, colour) in enumerate(zip(shapes, colours)):
        outline(panel, shape, tuple(colour), 2.0 if i == len(shapes) - 1 else 1.1, dashed=i == 0)


def grid(panel: Panel, image: np.ndarray, ddf: np.ndarray, colour: str = GRID) -> None:
    """Where the lines of a regular grid on the canonical film lie on the film as given: x + ddf(x)."""
    background(panel, image, 0.6)
    height, width = image.shape
    y, x = np.mgrid[:height, :width] + ddf
    step = (max(height, width) - 1) / (_GRID_LINES - 1)
    rows, columns = (_inner_lines(n, step) for n in (height, width))
    fine = max(1, max(height, width) // 128)  # a line needs no more than 128 corners
    along_x, along_y = (np.unique([*range(0, n, fine), n - 1]) for n in (width, height))
    lines = [np.stack([x[r, along_x], y[r, along_x]], 1) for r in rows]
    lines += [np.stack([x[along_y, c], y[along_y, c]], 1) for c in columns]
    panel.lines(lines, colour, 1.0, alpha=0.85)
    edges = ((np.s_[0, :], 1), (np.s_[:, -1], 1), (np.s_[-1, :], -1), (np.s_[:, 0], -1))
    frame = np.concatenate([np.stack([x[edge], y[edge]], -1)[::way] for edge, way in edges])
    panel.lines([frame], colour, 1.8)


def area(panel: Panel, determinant: np.ndarray, mask: np.ndarray | None) -> float:
    """Jacobian determinant on a logarithmic scale about 1, folded voxels loud; gives the logarithm at the scale's ends."""
    folded = ~(determinant > 0)  # NaN is as bad
    logarithm = np.log2(np.where(folded, 1, determinant))
    known = np.abs(logarithm[~folded])
    reach = float(np.clip(np.quantile(known, 0.998), 0.55, 3.0)) if known.size else 1.0
    panel.paint(np.where(panel.nearest(folded)[..., None], rgb(FOLDED), _factor_colours(panel.nearest(logarithm) / reach)))
    if folded.any():
        outline(panel, folded, FOLDED, 2.0)
    if mask is not None:
        outline(panel, mask, INK, 0.9)
    return reach


def colour_bar(panel: Panel, reach: float) -> None:
    """Names the colours of :func:`area` by factors of area."""
    panel.paint(_factor_colours(np.linspace(1, -1, panel.height))[:, None])
    choice = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0) if reach <= 1.2 else (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    for factor in choice:
        place = (np.log2(factor) / reach + 1) / 2
        if 0 <= place <= 1:
            panel.words(1.3, place, f"×{factor:g}", QUIET, 9)


def _factor_colours(share: np.ndarray) -> np.ndarray:
    """Colours of a logarithm, by its share of the scale's end, -1 to 1."""
    places = np.linspace(-1, 1, len(AREA))
    return np.stack([np.interp(share, places, channel) for channel in zip(*map(rgb, AREA))], -1)


def table(panel: Panel, numbers: Mapping[str, Any], dice: float | None, areas: list[tuple[str, str]]) -> None:
    """What to do about the film and what happened to it, then the numbers; ``areas`` are lines of the anatomy."""
    other = AT_REST in str(numbers.get("notes")) or numbers.get("answer") in ANSWERS[1:]
    meaning = "" if other else _MEANING.get(outcome(numbers)[0], "")
    verdict(panel, numbers, meaning, _rows(numbers, dice, areas))


def verdict(panel: Panel, numbers: Mapping[str, Any], meaning: str, rows: Sequence[tuple[str, str]]) -> None:
    """What to do, in the colour of the decision; at most four lines on what happened; rows of a name and a value."""
    told = (*outcome(numbers), meaning, remarks(numbers))
    head = ACTIONS.get(decision(numbers) or "", "status not given")
    panel.words(0, 0.985, _sentence(head).rstrip("."), decision_colour(numbers), 19, bold=True, anchor="la")
    for i, line in enumerate(wrap(" ".join(filter(None, map(_sentence, told))), 56, max_lines=4, placeholder=" …")):
        panel.words(0, 0.875 - 0.055 * i, line, INK, 10.5, anchor="la")
    step = 0.077
    for i, (label, value) in enumerate(rows):
        y = 0.615 - step * i
        panel.lines([np.array([(-0.5, 0.5 - y - step / 2), (0.5, 0.5 - y - step / 2)])], RULE, 0.8)
        panel.words(0, y, label, QUIET, 11)
        panel.words(1, y, value, INK, 12, anchor="rm")


def decision_colour(numbers: Mapping[str, Any]) -> str:
    """Green where nothing is to be done, grey if nobody judged, amber to look, red without a result; ink without a status."""
    return DECISION_COLOURS.get(decision(numbers) or "", INK)


_MEANING = {CANONICALIZED: "The network saw the canonical film; its mask was mapped back to this film."}
_MEANING |= dict.fromkeys((LEFT_ALONE, REJECTED), "The network saw the film as it is.")


def number(value: float | None, pattern: str) -> str:
    """A number by a pattern such as ``"{:.1%}"``, a dash where it is unknown."""
    return "–" if value is None or not np.isfinite(value) else pattern.format(value)


def motion(numbers: Mapping[str, Any]) -> str:
    """The largest displacement, in millimetres of the film where its spacing is known, and as a share of the frame."""
    share, length = (numbers.get(name) for name in ("displacement_share", "largest_displacement_mm"))
    return " · ".join(
        number(*part) for part in ((length, "{:.0f} mm of film"), (share, "{:.0%} of frame")) if part[0] is not None
    )


def _rows(numbers: Mapping[str, Any], dice: float | None, areas: list[tuple[str, str]]) -> list[tuple[str, str]]:
    before, after, folded = (numbers.get(name) for name in ("energy_before", "energy_after", "folding_fraction"))
    error, frame = numbers.get("inverse_error"), numbers.get("frame")
    agreement = numbers.get("agreement")
    return [
        ("Distance from training images", f"{number(before, '{:.3g}')}  →  {number(after, '{:.3g}')}"),
        ("Largest displacement", motion(numbers) or "–"),
        ("Folded area", _share(folded)),
        ("Inverse error, share of frame", _share(error / max(min(frame) - 1, 1) if error is not None and frame else None)),
        ("Overlap with mask of film as it is (Dice)", number(dice, "{:.3f}")),
        *areas,
        *([] if agreement is None else [("Agreement, test-time augmentation", number(agreement, "{:.1%}"))]),
        ("Time", number(numbers.get("seconds"), "{:.2f} s")),
    ]


def _share(value: float | None) -> str:
    return "< 0.01%" if value is not None and 0 < value < 1e-4 else number(value, "{:.2%}")


def _sentence(text: str) -> str:
    return text and text[0].upper() + text[1:].rstrip(".") + "."


def background(panel: Panel, image: np.ndarray, brightness: float = 1.0) -> None:
    """The film between its half-percent and 99.5-percent greys."""
    finite = image[np.isfinite(image)]
    low, high = np.quantile(finite, (0.005, 0.995)) if finite.size else (0.0, 1.0)
    image = np.nan_to_num(image, nan=low, posinf=high, neginf=low)
    panel.grey(((image - low) * (brightness / max(high - low, 1e-12))).clip(0, 1))


def outline(panel: Panel, mask: np.ndarray, colour: Any, width: float, dashed: bool = False) -> None:
    """The border of a mask, closed where it meets the frame."""
    from contourpy import contour_generator

    if mask.any():
        (top, bottom), (left, right) = (np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0))
        inside = np.pad(mask[top : bottom + 1, left : right + 1].astype(np.float32), 1)
        lines: Any = contour_generator(np.arange(left - 1, right + 2), np.arange(top - 1, bottom + 2), inside).lines(0.5)
        panel.lines(lines, colour, width, dashed, rim=True)


def sides(panel: Panel, left: Step) -> None:
    """R and L at the borders; ``left`` is the step along (rows, columns) to the patient's left."""
    for letter, (down, right) in (("L", left), ("R", (-left[0], -left[1]))):
        place = 0.5 + 0.475 * right, 0.5 - 0.475 * down
        panel.words(*place, letter, INK, 12, bold=True, anchor="lmr"[right + 1] + "amb"[down + 1], rim=True)


def determinant(ddf: np.ndarray) -> np.ndarray:
    """Jacobian determinant of ``(2, H, W)``, shape ``(H, W)``."""
    return jacobian_determinant(torch.from_numpy(ddf)[None])[0].numpy()


def _inner_lines(n: int, step: float) -> list[int]:
    """Grid lines strictly inside an axis of ``n`` voxels, about ``step`` apart, evenly."""
    pieces = max(round((n - 1) / step), 2)
    return sorted({round(i * (n - 1) / pieces) for i in range(1, pieces)})
