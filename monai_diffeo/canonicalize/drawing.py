"""A canonicalisation in a few lines of text, and as a picture in a notebook."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from typing import Any

from torch import Tensor, nn

from monai_diffeo.flow.grid import voxel_grid

__all__ = ["describe_canonicalizer", "describe_result", "html_of_result"]

_MAX_IMAGES, _WIDTH = 4, 110


def describe_result(found: Any) -> str:
    """At most twelve lines about a :class:`Canonicalization`, without its tensors."""
    there = tuple(found.inverse_ddf.shape[2:])
    rows = {
        "images": f"{len(found.image)} of shape {tuple(found.image.shape[1:])}, {found.image.dtype}, {found.image.device}"
        + (f", the input on {there}" if there != tuple(found.image.shape[2:]) else ""),
        "status": "; ".join(f"{n} {status}" for status, n in Counter(found.status).items()),
        "energy before": _range(found.energy_before),
        "energy after": _range(found.energy_after),
        "folding": _range(found.folding_fraction, "of the voxels"),
        "inverse error": _range(found.inverse_error, "voxel"),
        "largest displacement": _range(found.largest_displacement, "voxel"),
        "agreement": "" if found.agreement is None else _range(found.agreement),
        "steps": _range(found.steps) if bool((found.steps > 0).any()) else "",
        "seconds": f"{found.seconds:.3g}",
        "notes": "; ".join(f"{n} x {note}" for note, n in Counter(filter(None, found.notes)).items()),
    }
    return _lines("Canonicalization", rows)


def describe_canonicalizer(canonicalizer: Any) -> str:
    """What a :class:`Canonicalizer` consists of, in a few lines."""
    parts = {
        name: getattr(canonicalizer, name) for name in ("energy", "family", "predictor", "orientation", "search", "polarity")
    }
    rows = {name: _part(part) for name, part in parts.items() if part is not None}
    if isinstance(terms := getattr(canonicalizer.energy, "weights", None), dict):
        rows["energy"] += f" of {', '.join(f'{weight:g} {name}' for name, weight in terms.items())}"
    names = "iterations min_motion steps working_size skip_below max_energy_increase tta_samples sampling".split()
    rows["settings"] = ", ".join(f"{name}={getattr(canonicalizer, name)!r}" for name in names)
    return _lines("Canonicalizer", rows)


def html_of_result(found: Any) -> str:
    """The text, and a picture of up to four images if matplotlib is installed."""
    text = f"<pre>{html.escape(describe_result(found))}</pre>"
    try:
        data = base64.b64encode(_picture(found)).decode()
    except ImportError:  # matplotlib is an extra
        return text
    return f'{text}<img alt="canonical images over their inputs" src="data:image/png;base64,{data}"/>'


def _picture(found: Any) -> bytes:
    """A PNG: above, each input as mapped back with the canonical image's lines; below, the canonical image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = min(len(found.image), _MAX_IMAGES)
    figure = Figure(figsize=(2.4 * count, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, count, squeeze=False)
    inputs = found.warp_back(found.image, outputs="map")
    shift = [(n - m) / 2 for n, m in zip(found.inverse_ddf.shape[2:], found.ddf.shape[2:])]
    for i in range(count):
        for axis, picture in zip(axes[:, i], (inputs[i], found.image[i])):
            axis.imshow(_plane(picture[0]).float().cpu(), cmap="gray")
            axis.set_axis_off()
        lines = [_plane(part) for part in (found.ddf[i] + voxel_grid(found.ddf.shape[2:], found.ddf.device))[:2]]
        rows, columns = (part.cpu() + move for part, move in zip(lines, shift))
        step = max(max(rows.shape) // 12, 1)
        axes[0, i].plot(columns[::step].T, rows[::step].T, "C1", linewidth=0.6)
        axes[0, i].plot(columns[:, ::step], rows[:, ::step], "C1", linewidth=0.6)
        axes[0, i].set_title("input", fontsize=8)
        axes[1, i].set_title(found.status[i].partition(":")[0], fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _plane(part: Tensor) -> Tensor:
    """An image or one component of a field ``(*S)``; of a volume its middle plane."""
    return part.detach() if part.ndim == 2 else part.detach()[..., part.shape[-1] // 2]


def _range(values: Tensor, unit: str = "") -> str:
    known = values.detach().double()
    known = known[known.isfinite()]
    if not len(known):
        return "not finite"
    low, middle, high = (f"{value:.3g}" for value in (known.min().item(), known.median().item(), known.max().item()))
    text = low if low == high else f"{low} to {high}" + (f", median {middle}" if len(known) > 2 else "")
    return f"{text} {unit}".rstrip() + (f", {len(values) - len(known)} not finite" if len(known) < len(values) else "")


def _part(part: Any) -> str:
    weights = sum(p.numel() for p in part.parameters()) if isinstance(part, nn.Module) else 0
    return getattr(part, "__name__", type(part).__name__) + (f" ({weights:,} weights)" if weights else "")


def _lines(title: str, rows: dict[str, str]) -> str:
    rows = {name: text for name, text in rows.items() if text}
    width = max(map(len, rows))
    lines = [f"  {name:<{width}}  {text}" for name, text in rows.items()]
    return "\n".join([title, *(line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…" for line in lines)])
