"""A small plot as inline SVG: rows of dots, one dot a film."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["strip_plot"]

_WIDTH, _LETTER, _RIGHT, _ROW, _AXIS = 420, 7, 14, 44, 22  # px


def strip_plot(
    title: str,
    unit: str,
    rows: Mapping[str, Sequence[float | None]],
    colours: Sequence[str],
    names: Sequence[str],
    pattern: str,
) -> str:
    """A figure of HTML; nothing if no value is known.

    Args:
        title, unit: of the figure.
        rows: values of all films by the name of the row, escaped.
        colours, names: of the films; names are escaped. A dot of film i is a link to ``#fi``.
        pattern: of numbers, such as ``"{:.0%}"``.
    """
    known = [value for values in rows.values() for value in values if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    step = _step((high - low) or abs(high) or 1.0)
    low, high = np.floor(low / step) * step, np.ceil(high / step + 1e-9) * step
    high = high if high > low else low + step
    height, left = _ROW * len(rows) + _AXIS, 14 + _LETTER * max(map(len, rows))

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (_WIDTH - left - _RIGHT)

    parts = []
    for tick in np.arange(low, high + step / 2, step):
        x, text = f"{place(tick):.1f}", pattern.format(tick + 0.0)
        parts.append(f'<line x1="{x}" x2="{x}" y1="0" y2="{height - _AXIS}" stroke="#2a2f36"/>')
        parts.append(f'<text x="{x}" y="{height - 6}" text-anchor="middle">{text}</text>')
    for number, (row, values) in enumerate(rows.items()):
        middle = _ROW * (number + 0.5)
        parts.append(f'<text x="0" y="{middle + 4:.0f}">{row}</text>')
        for i, value in enumerate(values):
            if value is not None:
                y = middle + _ROW * 0.36 * (2 * ((i * 0.618034 + 0.5) % 1) - 1)  # spread evenly, the same each time
                dot = f'<circle cx="{place(value):.1f}" cy="{y:.1f}" r="4" fill="{colours[i]}"/>'
                tip = f"<title>{names[i]}: {row} {pattern.format(value)}</title>"
                parts.append(f'<a href="#f{i}">{tip}{dot}</a>')
    svg = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{title}<span>{unit}</span></figcaption>{svg}</figure>"


def _step(span: float) -> float:
    """Distance of ticks: about four of them over a span, at 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(span / 4))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= span / 4 * 0.999))
