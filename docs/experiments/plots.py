"""The figures of the result pages."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

COLOURS = {
    "baseline": "#d1495b",
    "augmented baseline": "#8d99ae",
    "DiffeoNN faithful": "#c77d0a",
    "DiffeoNN refine": "#2a9d8f",
    "DiffeoNN single pass": "#1d6fb8",
    "augmented baseline + DiffeoNN": "#5b3f9e",
}
Lines = Mapping[str, Mapping[float, tuple[float, float, float]]]  # by name and x: a value, and the ends of its interval


def _plot(path: Path, panels: Mapping, draw: Callable, y_label: str, legend_inside: bool = True, **labels: str) -> None:
    """Write a figure with a panel a name: ``draw(axes, content)`` draws each, ``labels`` are set on all."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(5 * len(panels) if legend_inside else 10, 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, content) in zip(axes, panels.items()):
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set(title=title, **labels)
        draw(ax, content)
        if legend_inside:
            ax.legend(frameon=False, fontsize=8)
    if not legend_inside:
        figure.legend(loc="outside right center", frameon=False, fontsize=8)
    axes[0].set_ylabel(y_label)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def line_plot(path: Path, panels: Mapping[str, Lines], x_label: str, y_label: str = "mean Dice", log_x: bool = False) -> None:
    """A panel a set; a line a method, its interval as a band."""

    def draw(ax, lines: Lines) -> None:
        for name, points in lines.items():
            xs = sorted(points)
            value, low, high = zip(*(points[x] for x in xs))
            (line,) = ax.plot(xs, value, "o-", color=COLOURS.get(name), label=name, linewidth=1.8, markersize=4)
            ax.fill_between(xs, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        if log_x:
            ticks = sorted({x for points in lines.values() for x in points})
            ax.set_xscale("log")
            ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
            ax.minorticks_off()

    _plot(path, panels, draw, y_label, xlabel=x_label)


def scatter_plot(path: Path, groups: Mapping[str, Mapping], x_label: str, y_label: str, named: Sequence[str]) -> None:
    """Points by group and name, over a logarithmic first axis; those ``named`` carry their name."""

    def draw(ax, content: Mapping) -> None:
        arrow = {"arrowstyle": "-", "color": "#888888", "linewidth": 0.6}
        for i, (group, points) in enumerate(content.items()):
            ax.plot(*zip(*points.values()), "o", color=f"C{i % 10}", marker="os^"[i // 10], alpha=0.8, label=group)
            for name in set(named) & set(points):
                ax.annotate(name, points[name], (12, 12), textcoords="offset points", fontsize=9, arrowprops=arrow)
        ax.margins(x=0.1, y=0.1)

    _plot(path, {"": groups}, draw, y_label, False, xlabel=x_label, xscale="log")


def paired_histogram(path: Path, panels: Mapping[str, Mapping[str, Tensor]], x_label: str) -> None:
    """A panel a mode; a histogram a named sample of positive numbers, over a logarithmic axis."""

    def draw(ax, samples: Mapping[str, Tensor]) -> None:
        values = {name: sample.clamp(min=1e-3).numpy() for name, sample in samples.items()}  # a logarithmic axis has no 0
        edges = np.geomspace(min(v.min() for v in values.values()), max(v.max() for v in values.values()), 40)
        for (name, sample), colour in zip(samples.items(), ("#d1495b", "#1d6fb8")):
            ax.hist(values[name], edges, color=colour, alpha=0.6, label=f"{name}, median {sample.quantile(0.5):.3g}")

    _plot(path, panels, draw, "pairs", xlabel=x_label, xscale="log")
