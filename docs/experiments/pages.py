"""An experiment's options, and the page of results that it writes: tables and figures under the command that made them."""

import argparse
import datetime
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import monai
import numpy as np
import torch
from torch import Tensor

PLACES = {"dataset_dir": "DIR", "films_dir": "DIR", "films_512": "DIR512", "weights_dir": "KEEP", "whole_20": "FILE"}
PLACES |= {"seeds": "SEEDS"}


class Experiment:
    """The options of an experiment, read from ``argv`` (None: the command line), and its page in docs/results.

    Of the ``defaults``, a type says that there is no value, a list that there are many, False that the option is a switch.
    """

    def __init__(self, name: str, description: str | None, argv: Sequence[str] | None = None, **defaults: object) -> None:
        self.name, self.defaults = name, {}
        parser = argparse.ArgumentParser(description=description)
        for option, default in {**defaults, "output": defaults.get("output", f"docs/results/{name}.md")}.items():
            many = "+" if isinstance(default, (list, tuple)) else None
            first = default[0] if many else default
            self.defaults[option] = None if isinstance(first, type) else default
            kind = first if isinstance(first, type) else type(first)
            settings = {"action": "store_true"} if first is False else {"type": kind, "nargs": many}
            parser.add_argument(f"--{option}", default=self.defaults[option], required=option == "dataset_dir", **settings)
        self.options = parser.parse_args(argv)

    def command(self, **changes: object) -> str:
        """The command of these options, or of ``changes`` of them: folders as DIR and KEEP, and what is not the default."""
        words = [f"python -m docs.experiments.{self.name}"]
        for option, value in {**vars(self.options), **changes}.items():
            values = value if isinstance(value, (list, tuple)) else [value]
            if option in PLACES:
                words += [f"--{option} {PLACES[option]}"] if value is not None else []
            elif value != self.defaults[option]:
                words.append(f"--{option}" if value is True else f"--{option} {shlex.join(map(str, values))}")
        return " ".join(words)

    def write(self, title: str, parts: Sequence[str], seed: int | None = None, **changes: object) -> None:
        """Write the whole page at once: title, command with ``changes`` of its options, seed, versions, date, parts."""
        versions = [f"{package.__name__} {package.__version__}" for package in (monai, torch, np)]
        versions = ", ".join([*versions, f"Python {platform.python_version()}"])
        date = f"{torch.get_num_threads()} threads; {datetime.date.today().isoformat()}."
        head = [f"# {title}", "Written by", f"```\n{self.command(**changes)}\n```"]
        path = Path(self.options.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join([*head, f"{'' if seed is None else f'Seed {seed}; '}{versions}; {date}", *parts]) + "\n")


def note(name: str, **values: object) -> list[str]:
    """The parts of ``notes/name.txt``, which lines of three dashes divide, with ``values`` in the places of their names."""
    text = (Path(__file__).parent / "notes" / f"{name}.txt").read_text()
    return [part.strip() for part in text.format(**values).split("\n---\n")]


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a Markdown table; columns are the keys of all rows in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    head, *body = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(columns), *body])


def section(heading: str, rows: Sequence[Mapping[str, object]]) -> str:
    """A heading, or text, and a table; printed too."""
    print(f"{heading}\n\n{markdown_table(rows)}", flush=True)
    return f"{heading}\n\n{markdown_table(rows)}"


def judged(what: str, asked: str, measured: str, met: bool) -> dict[str, str]:
    """A row of a table that sets what was asked beside what was measured."""
    return {"what": what, "asked": asked, "measured": measured, "met": "yes" if met else "**no**"}


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
            ax.plot(*zip(*points.values()), linestyle="", color=f"C{i % 10}", marker="os^"[i // 10], alpha=0.8, label=group)
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
