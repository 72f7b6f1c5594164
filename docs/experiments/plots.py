"""The figures of the result pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

__all__ = ["line_plot", "paired_histogram", "scatter_plot"]

COLOURS = {
    "baseline": "#d1495b",
    "augmented": "#8d99ae",
    "DiffeoNN faithful": "#c77d0a",
    "DiffeoNN refine": "#2a9d8f",
    "DiffeoNN single pass": "#1d6fb8",
    "augmented + DiffeoNN": "#5b3f9e",
}


def _axes(count: int, width: float = 5.0, share_y: bool = True):
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(width * count, 4.2), layout="constrained")
    axes = figure.subplots(1, count, sharey=share_y, squeeze=False)[0]
    for ax in axes:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def line_plot(
    path: str | Path,
    panels: Mapping[str, Mapping[str, Mapping[float, tuple[float, float, float]]]],
    x_label: str,
    y_label: str = "mean Dice",
    log_x: bool = False,
) -> None:
    """A panel a set; a line a method: ``panels[set][method][x] = (value, low, high)``, the interval as a band."""
    figure, axes = _axes(len(panels))
    for ax, (title, lines) in zip(axes, panels.items()):
        for name, points in lines.items():
            xs = sorted(points)
            value, low, high = zip(*(points[x] for x in xs))
            (line,) = ax.plot(xs, value, "o-", color=COLOURS.get(name), label=name, linewidth=1.8, markersize=4)
            ax.fill_between(xs, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        ax.set(title=title, xlabel=x_label)
        if log_x:
            ax.set_xscale("log")
            ticks = sorted({x for points in lines.values() for x in points})
            ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
            ax.minorticks_off()
    axes[0].set_ylabel(y_label)
    axes[-1].legend(frameon=False, fontsize=8)
    _save(figure, path)


def scatter_plot(
    path: str | Path,
    groups: Mapping[str, Mapping[str, tuple[float, float]]],
    x_label: str,
    y_label: str,
    named: Mapping[str, tuple[int, int]],
) -> None:
    """Points over a logarithmic first axis, a colour a group; those ``named`` carry their name, so many points right of and above them."""
    figure, (ax,) = _axes(1, 10.0)
    for i, (group, points) in enumerate(groups.items()):
        ax.plot(*zip(*points.values()), "o", color=f"C{i % 10}", marker="os^"[i // 10], markersize=6, alpha=0.8, label=group)
        for name in named.keys() & points.keys():
            ax.annotate(
                name,
                points[name],
                xytext=named[name],
                textcoords="offset points",
                fontsize=9,
                arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.6},
            )
    ax.set(xscale="log", xlabel=x_label, ylabel=y_label)
    ax.margins(x=0.1, y=0.1)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    _save(figure, path)


def paired_histogram(path: str | Path, panels: Mapping[str, Mapping[str, Tensor]], x_label: str) -> None:
    """A panel a mode; a histogram a named sample of positive numbers, over a logarithmic axis."""
    import numpy as np

    figure, axes = _axes(len(panels))
    for ax, (title, samples) in zip(axes, panels.items()):
        values = {name: sample.clamp(min=1e-3).numpy() for name, sample in samples.items()}  # a logarithmic axis has no 0
        edges = np.geomspace(min(v.min() for v in values.values()), max(v.max() for v in values.values()), 40)
        for (name, sample), colour in zip(samples.items(), ("#d1495b", "#1d6fb8")):
            ax.hist(values[name], edges, color=colour, alpha=0.6, label=f"{name}, median {sample.quantile(0.5):.3g}")
        ax.set(title=title, xlabel=x_label, xscale="log")
        ax.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("pairs")
    _save(figure, path)
