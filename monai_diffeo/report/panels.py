"""The panels of a film's figure; each draws one answer on the axes it is given, in the colours of a reading room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from monai_diffeo.canonicalize.acceptance import AT_REST
from monai_diffeo.canonicalize.result import CANONICALIZED, LEFT_ALONE, REJECTED
from monai_diffeo.flow.jacobian import jacobian_determinant
from monai_diffeo.report.anatomy import MASK_COLOUR, Part
from monai_diffeo.report.decision import ACTIONS, DECISION_COLOURS, decision, outcome, remarks
from monai_diffeo.report.sides import Step
from monai_diffeo.trust import ANSWERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__: list[str] = []

BACKGROUND, INK, QUIET = "#0c0e11", "#e8eaed", "#9aa3ad"
ADDED, REMOVED, PLAIN = MASK_COLOUR, "#ff5d73", "#ffffff"
GRID, FOLDED, DOUBT = "#7fd4ff", "#ff2bd6", "#c77dff"
AREA = ["#8fd3ff", "#2b7fd4", "#16324f", "#16181c", "#553018", "#d9701f", "#ffd08a"]  # dark where nothing changes

_GRID_LINES = 17  # along the longer side
_HALO = 0.55  # opacity of the dark rim that keeps an outline legible on white bone


def film(axes: Axes, image: np.ndarray, parts: Sequence[Part]) -> None:
    """A film with the outlines of the parts of its mask."""
    background(axes, image)
    for part in parts:
        outline(axes, part.mask, part.colour, 1.8)


def shade(axes: Axes, uncertainty: np.ndarray) -> None:
    """Where a mask is uncertain: from clear at 0 to opaque at 1."""
    from matplotlib.colors import to_rgba

    tint = np.broadcast_to(np.array(to_rgba(DOUBT), np.float32), (*uncertainty.shape, 4)).copy()
    tint[..., 3] = 0.8 * uncertainty.clip(0, 1)
    axes.imshow(tint, interpolation="nearest", origin="upper", zorder=2)


def masks(axes: Axes, image: np.ndarray, plain: np.ndarray | None, final: np.ndarray) -> None:
    """What canonicalisation changed: the final mask bold, the plain network's thin, gained and lost area tinted."""
    background(axes, image, 0.8)
    if plain is not None:
        from matplotlib.colors import to_rgba

        for part, colour in ((final & ~plain, ADDED), (plain & ~final, REMOVED)):
            tint = np.where(part[..., None], np.array(to_rgba(colour, 0.55), np.float32), 0)
            axes.imshow(tint, interpolation="nearest", origin="upper", zorder=2)
    outline(axes, final, ADDED, 2.0)
    if plain is not None:
        outline(axes, plain, PLAIN, 0.9, dashed=True)


def stages(axes: Axes, image: np.ndarray, shapes: Sequence[np.ndarray]) -> None:
    """Outlines of a shape on its way, from the first, dashed, to the last, bold."""
    from matplotlib.colors import to_rgb

    background(axes, image, 0.6)
    colours = np.linspace(to_rgb(QUIET), to_rgb(ADDED), len(shapes))
    for i, (shape, colour) in enumerate(zip(shapes, colours)):
        outline(axes, shape, tuple(colour), 2.0 if i == len(shapes) - 1 else 1.1, dashed=i == 0)


def grid(axes: Axes, image: np.ndarray, ddf: np.ndarray, colour: str = GRID) -> None:
    """Where the lines of a regular grid on the canonical film lie on the film as given: x + ddf(x)."""
    from matplotlib.collections import LineCollection

    background(axes, image, 0.6)
    height, width = image.shape
    y, x = np.mgrid[:height, :width] + ddf
    step = (max(height, width) - 1) / (_GRID_LINES - 1)
    rows, columns = (_inner_lines(n, step) for n in (height, width))
    fine = max(1, max(height, width) // 128)  # a line needs no more than 128 corners
    along_x, along_y = (np.unique([*range(0, n, fine), n - 1]) for n in (width, height))
    lines = [np.stack([x[r, along_x], y[r, along_x]], 1) for r in rows]
    lines += [np.stack([x[along_y, c], y[along_y, c]], 1) for c in columns]
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=1.0, alpha=0.85, zorder=3), autolim=False)
    edges = ((np.s_[0, :], 1), (np.s_[:, -1], 1), (np.s_[-1, :], -1), (np.s_[:, 0], -1))
    frame = np.concatenate([np.stack([x[edge], y[edge]], -1)[::way] for edge, way in edges])
    axes.plot(*frame.T, color=colour, linewidth=1.8, zorder=4, scalex=False, scaley=False)


def area(axes: Axes, determinant: np.ndarray, mask: np.ndarray | None) -> Any:
    """Jacobian determinant on a logarithmic scale about 1, folded voxels loud; gives the mappable for a colour bar."""
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("area", AREA).with_extremes(bad=FOLDED)
    folded = ~(determinant > 0)  # NaN is as bad
    logarithm = np.ma.masked_array(np.log2(np.where(folded, 1, determinant)), folded)
    reach = 1.0 if folded.all() else float(np.clip(np.quantile(np.abs(logarithm.compressed()), 0.998), 0.55, 3.0))
    shown = axes.imshow(logarithm, cmap=colours, norm=Normalize(-reach, reach), interpolation="nearest", origin="upper")
    axes.set_axis_off()
    if folded.any():
        outline(axes, folded, FOLDED, 2.0)
    if mask is not None:
        outline(axes, mask, INK, 0.9)
    return shown


def colour_bar(axes: Axes, shown: Any) -> None:
    """Names the colours of :func:`area` by factors of area."""
    reach = shown.norm.vmax
    choice = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0) if reach <= 1.2 else (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    factors = [f for f in choice if abs(np.log2(f)) <= reach + 1e-9]
    bar = axes.figure.colorbar(shown, cax=axes, ticks=[np.log2(f) for f in factors], extend="both")
    bar.minorticks_off()
    bar.set_ticklabels([f"×{f:g}" for f in factors])
    bar.outline.set_visible(False)
    axes.tick_params(colors=QUIET, labelsize=9, length=2, pad=2)
    for label in axes.get_yticklabels():
        label.set_fontfamily("DejaVu Sans")


def table(axes: Axes, numbers: Mapping[str, Any], dice: float | None, areas: list[tuple[str, str]]) -> None:
    """What to do about the film and what happened to it, then the numbers; ``areas`` are lines of the anatomy."""
    other = AT_REST in str(numbers.get("notes")) or numbers.get("answer") in ANSWERS[1:]
    meaning = "" if other else _MEANING.get(outcome(numbers)[0], "")
    verdict(axes, numbers, meaning, _rows(numbers, dice, areas))


def verdict(axes: Axes, numbers: Mapping[str, Any], meaning: str, rows: Sequence[tuple[str, str]]) -> None:
    """What to do, in the colour of the decision; at most four lines on what happened; rows of a name and a value."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    told = (*outcome(numbers), meaning, remarks(numbers))
    head = ACTIONS.get(decision(numbers) or "", "status not given")
    words(axes, 0, 0.985, _sentence(head).rstrip("."), decision_colour(numbers), 19, weight="bold", va="top")
    for i, line in enumerate(wrap(" ".join(filter(None, map(_sentence, told))), 56)[:4]):
        words(axes, 0, 0.86 - 0.055 * i, line, INK, 10.5, va="top")
    step = 0.077
    for i, (label, value) in enumerate(rows):
        y = 0.615 - step * i
        axes.axhline(y + step / 2, color="#2a2f36", linewidth=0.8)
        words(axes, 0, y, label, QUIET, 11, va="center")
        words(axes, 1, y, value, INK, 12, va="center", ha="right")


def decision_colour(numbers: Mapping[str, Any]) -> str:
    """Green where nothing is to be done, amber to look at the film, red without a result; ink where no status is known."""
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


def background(axes: Axes, image: np.ndarray, brightness: float = 1.0) -> None:
    """The film between its half-percent and 99.5-percent greys."""
    finite = image[np.isfinite(image)]
    low, high = np.quantile(finite, (0.005, 0.995)) if finite.size else (0.0, 1.0)
    image = np.nan_to_num(image, nan=low, posinf=high, neginf=low)
    white = low + max(high - low, 1e-12) / brightness
    axes.imshow(image, cmap="gray", vmin=low, vmax=white, interpolation="bilinear", origin="upper")
    axes.set_axis_off()


def outline(axes: Axes, mask: np.ndarray, colour: Any, width: float, dashed: bool = False) -> None:
    """The border of a mask, closed where it meets the frame."""
    from contourpy import contour_generator
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import Normal, Stroke

    ys, xs = (np.arange(-1, n + 1) for n in mask.shape)
    lines: Any = contour_generator(xs, ys, np.pad(mask.astype(np.float32), 1)).lines(0.5)
    style: dict[str, Any] = {"linewidths": [width], "linestyles": [(0, (4, 2.5))] if dashed else ["solid"]}
    border = LineCollection(lines, colors=[colour], zorder=5, **style)
    border.set_path_effects([Stroke(linewidth=width + 1.4, foreground="black", alpha=_HALO), Normal()])
    axes.add_collection(border, autolim=False)


def sides(axes: Axes, left: Step) -> None:
    """R and L at the borders; ``left`` is the step along (rows, columns) to the patient's left."""
    for letter, (down, right) in (("L", left), ("R", (-left[0], -left[1]))):
        place = 0.5 + 0.475 * right, 0.5 - 0.475 * down
        ha, va = ("left", "center", "right")[right + 1], ("top", "center", "bottom")[down + 1]
        words(axes, *place, letter, INK, 12, weight="bold", va=va, ha=ha, frame=True)


def words(axes: Axes, x: float, y: float, text: str, colour: str, size: float, frame: bool = False, **style: Any) -> None:
    """Text at a place in the axes, letters as they are (a ``$`` is a ``$``)."""
    from matplotlib.patheffects import Normal, Stroke

    style |= {"color": colour, "fontsize": size, "fontfamily": "DejaVu Sans", "parse_math": False, "usetex": False}
    item = axes.text(x, y, text, transform=axes.transAxes, zorder=9, **style)
    if frame:
        item.set_path_effects([Stroke(linewidth=2.5, foreground="black", alpha=0.8), Normal()])


def determinant(ddf: np.ndarray) -> np.ndarray:
    """Jacobian determinant of ``(2, H, W)``, shape ``(H, W)``."""
    return jacobian_determinant(torch.from_numpy(ddf)[None])[0].numpy()


def _inner_lines(n: int, step: float) -> list[int]:
    """Grid lines strictly inside an axis of ``n`` voxels, about ``step`` apart, evenly."""
    pieces = max(round((n - 1) / step), 2)
    return sorted({round(i * (n - 1) / pieces) for i in range(1, pieces)})
