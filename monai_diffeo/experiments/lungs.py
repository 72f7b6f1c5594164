"""The lung tables: every row on every set, with intervals and paired differences.

``python -m monai_diffeo.experiments.lungs --dataset_dir DIR`` takes the bundle's weights; those that are missing it trains first, by the
bundle's own training configs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from monai_diffeo.canonicalize import load_canonicalizer
from monai_diffeo.experiments.figures import segmentation_network
from monai_diffeo.experiments.films import DEFORMATIONS, Films, deform, load_films
from monai_diffeo.experiments.measures import Method, bootstrap_interval, evaluate, plain, wrapped
from monai_diffeo.experiments.plots import line_plot
from monai_diffeo.experiments.tables import markdown_table, write_page
from monai_diffeo.experiments.weights import train_missing

__all__ = ["Table", "interval_points", "methods", "table", "table_rows"]

SOURCES = ("shenzhen", "montgomery", "paediatric_gz", "covid_gb")
GROWING = {"plain": 0.0, "TPS 15°/0.06": 15.0, "TPS": 30.0, "TPS 45°/0.18": 45.0, "TPS 60°/0.25": 60.0}  # largest rotation, degrees
NOTE = ("Masks of paediatric_gz include the lung behind heart and diaphragm, those of shenzhen and montgomery do not; every row's Dice "
        "is bounded by that gap. `error` is 1 - Dice(f(g x), g f(x)); differences are paired over films, brackets are 95 % bootstrap "
        "intervals of the mean.")

FAITHFUL_NOTE = ("DiffeoNN faithful is the published method: SIREN 3x256, Adam 0.0039, energies 0.01 VAE + 0.001 critic on grey values as they are, smoothness "
                 "1, no view but the canonical pose. What the paper leaves open and is set here: 100 steps without early stopping, weight 1 of the "
                 "orientation term, the inverse from the same SIREN with seven squarings, VAE 120 epochs of AdamW at 0.001, critic 8 epochs at "
                 "0.0001, one generator of fakes (TPS, smooth flows, perspectives), nothing rejected.")


def methods(bundle: str | Path, rows: Sequence[str]) -> dict[str, Method]:
    """The methods that a table compares, by the name of its row."""
    models = Path(bundle) / "models"
    naive = segmentation_network(models / "model.pt")
    augmented = segmentation_network(models / "rivals" / "augmented.pt")
    known = {
        "naive": lambda: plain(naive),
        "augmented": lambda: plain(augmented),
        "DiffeoNN faithful": lambda: wrapped(naive, load_canonicalizer(models / "energy", "faithful")),
        "DiffeoNN refine": lambda: wrapped(naive, load_canonicalizer(models / "energy", "refine")),
        "DiffeoNN single pass": lambda: wrapped(naive, load_canonicalizer(models / "energy", "single_pass")),
        "augmented + DiffeoNN": lambda: wrapped(augmented, load_canonicalizer(models / "energy", "single_pass")),
    }
    return {name: known[name]() for name in rows}


class Table(NamedTuple):
    """What was measured: ``values`` by row and column as numbers, ``text`` as shown."""

    values: dict[str, dict]
    text: list[dict[str, str]]


def table_rows(films: Films, protocol: str, rows: Mapping[str, Method], undeformed: dict[str, Tensor], seed: int = 0) -> Table:
    """One set under one protocol, a row a method; ``undeformed`` keeps the masks of the plain films between calls."""
    shown, ddf = deform(films, protocol, seed)
    measured = {}
    for name, method in rows.items():
        measured[name] = evaluate(method, shown, ddf, undeformed.get(name))
        if protocol == "plain":
            undeformed[name] = measured[name]["masks"]
    return Table(measured, [_row(name, row, measured) for name, row in measured.items()])


def table(films: Films, protocol: str, rows: Mapping[str, Method], undeformed: dict[str, Tensor], seed: int = 0) -> list[dict[str, str]]:
    """The text of :func:`table_rows`."""
    return table_rows(films, protocol, rows, undeformed, seed).text


def interval_points(measured: Table) -> dict[str, tuple[float, float, float]]:
    """Mean Dice of each row with the ends of its interval."""
    return {name: (row["dice"].mean().item(), *bootstrap_interval(row["dice"])) for name, row in measured.values.items()}


def _row(name: str, row: Mapping, measured: Mapping[str, Mapping]) -> dict[str, str]:
    low, high = bootstrap_interval(row["dice"])
    out = {
        "method": name, "Dice": f"{row['dice'].mean():.4f} [{low:.3f}, {high:.3f}]", "p10": f"{row['dice'].quantile(0.1):.3f}",
        "IoU": f"{row['iou'].mean():.4f}",
    }
    for rival in ("naive", "augmented"):
        out[f"- {rival}"] = ""
        if rival in measured and rival != name:
            difference = row["dice"] - measured[rival]["dice"]
            low, high = bootstrap_interval(difference)
            out[f"- {rival}"] = f"{difference.mean():+.4f} [{low:+.3f}, {high:+.3f}]"
    out["error"] = f"{row['error'].mean():.3f}" if "error" in row else ""
    out.update({"folded": f"{row['folding']:.4f}", "moved": f"{row['moved']:.0%}", "s/film": f"{row['seconds']:.3f}"})
    return out


def main(argv: list[str] | None = None) -> None:
    """Measure the tables and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_dir", required=True, help="folder with manifest.csv")
    parser.add_argument("--bundle", default="bundles/cxr_lung_segmentation")
    parser.add_argument("--split", default="test")
    parser.add_argument("--sources", nargs="+", default=SOURCES)
    parser.add_argument("--protocols", nargs="+", default=["plain", "TPS/2", "TPS"], choices=list(DEFORMATIONS))
    parser.add_argument("--rows", nargs="+", default=["naive", "augmented", "DiffeoNN refine", "DiffeoNN single pass", "augmented + DiffeoNN"])
    parser.add_argument("--films", type=int, default=None, help="the first so many films of each source")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="docs/results/lungs.md")
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    train_missing(options.bundle, options.dataset_dir)
    rows = methods(options.bundle, options.rows)
    parts, curves = [NOTE, *([FAITHFUL_NOTE] if "DiffeoNN faithful" in rows else [])], {}
    for source in options.sources:
        films, undeformed = load_films(options.dataset_dir, source, options.split, limit=options.films), {}
        for protocol in options.protocols:
            measured = table_rows(films, protocol, rows, undeformed, options.seed)
            parts.append(f"## {source} `{options.split}`, {protocol}, {len(films.ids)} films\n\n{markdown_table(measured.text)}")
            print(parts[-1], flush=True)
            for name, point in interval_points(measured).items() if protocol in GROWING else ():
                curves.setdefault(source, {}).setdefault(name, {})[GROWING[protocol]] = point
    if set(GROWING) <= set(options.protocols):
        figure = Path(options.output).with_suffix(".png")
        line_plot(figure, curves, "largest rotation of the TPS protocol, degrees")
        parts.insert(1, f"![Dice under growing deformation]({figure.name})")
    command = "python -m monai_diffeo.experiments.lungs --dataset_dir DIR" + "".join(
        f" --{name} {' '.join(repr(v) if ' ' in str(v) else str(v) for v in (value if isinstance(value, (list, tuple)) else [value]))}"
        for name, value in vars(options).items() if value != parser.get_default(name) and name not in ("dataset_dir",))
    write_page(options.output, "Lungs", command, parts, options.seed)


if __name__ == "__main__":
    main()
