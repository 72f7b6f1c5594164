"""The lung tables: every row on every set, with intervals and paired differences.

``python -m docs.experiments.lungs --dataset_dir DIR`` takes the bundle's weights; those that are missing it trains first, by the
bundle's own training configs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from docs.experiments.figures import segmentation_network
from docs.experiments.films import DEFORMATIONS, Films, deform, load_films
from docs.experiments.measures import Method, bootstrap_interval, evaluate, plain, views_only, wrapped
from docs.experiments.plots import line_plot
from docs.experiments.tables import command_text, markdown_table, write_page
from docs.experiments.weights import train_missing
from monai_diffeo.canonicalize import load_canonicalizer

__all__ = ["Table", "asked", "interval_points", "methods", "table", "table_rows"]

SOURCES = ("shenzhen", "montgomery", "paediatric_gz", "covid_gb")
GROWING = {
    "plain": 0.0,
    "TPS 15°/0.06": 15.0,
    "TPS": 30.0,
    "TPS 45°/0.18": 45.0,
    "TPS 60°/0.25": 60.0,
}  # largest rotation, degrees
ROWS = ("baseline", "baseline, 8 views", "augmented", "augmented, 8 views", "DiffeoNN single pass", "augmented + DiffeoNN")
NOTE = (
    "Masks of paediatric_gz include the lung behind heart and diaphragm, many of covid_gb too, those of shenzhen and montgomery do not; every "
    "row's Dice is bounded by that gap. `8 views` asks the network in the poses that a DiffeoInferer asks in, around the film as it came: what "
    "averaging gives without moving. `error` is 1 - Dice(f(g x), g f(x)); differences are paired over films, brackets are 95 % bootstrap intervals "
    "of the mean; s/film is processor time of one thread. Networks, augmented baseline and wrapped rows never saw SVF, elastic or perspective "
    "deformations; the predictor's training drew smooth flows and perspectives of other strengths, so that only elastic is new to it."
)

FAITHFUL_NOTE = (
    "DiffeoNN faithful is the published method: SIREN 3x256, Adam 0.0039, energies 0.01 VAE + 0.001 critic on grey values as they are, smoothness "
    "1, no view but the canonical pose. What the paper leaves open and is set here: 100 steps without early stopping, weight 1 of the "
    "orientation term, the inverse from the same SIREN with seven squarings, VAE 120 epochs of AdamW at 0.001, critic 8 epochs at "
    "0.0001, one generator of fakes (TPS, smooth flows, perspectives); no film is rejected for its energy, the best step counts, and a field that folds is "
    "halved up to four times."
)


def methods(bundle: str | Path, rows: Sequence[str]) -> dict[str, Method]:
    """The methods that a table compares, by the name of its row."""
    models = Path(bundle) / "models"
    baseline = segmentation_network(models / "model.pt")
    augmented = segmentation_network(models / "baselines" / "augmented.pt")
    known = {
        "baseline": lambda: plain(baseline),
        "augmented": lambda: plain(augmented),
        "baseline, 8 views": lambda: views_only(baseline),
        "augmented, 8 views": lambda: views_only(augmented),
        "DiffeoNN faithful": lambda: wrapped(baseline, load_canonicalizer(models / "energy", "faithful")),
        "DiffeoNN refine": lambda: wrapped(baseline, load_canonicalizer(models / "energy", "refine")),
        "DiffeoNN single pass": lambda: wrapped(baseline, load_canonicalizer(models / "energy", "single_pass")),
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


def table(
    films: Films, protocol: str, rows: Mapping[str, Method], undeformed: dict[str, Tensor], seed: int = 0
) -> list[dict[str, str]]:
    """The text of :func:`table_rows`."""
    return table_rows(films, protocol, rows, undeformed, seed).text


def interval_points(measured: Table) -> dict[str, tuple[float, float, float]]:
    """Mean Dice of each row with the ends of its interval."""
    return {name: (row["dice"].mean().item(), *bootstrap_interval(row["dice"])) for name, row in measured.values.items()}


def _row(name: str, row: Mapping, measured: Mapping[str, Mapping]) -> dict[str, str]:
    low, high = bootstrap_interval(row["dice"])
    out = {
        "method": name,
        "Dice": f"{row['dice'].mean():.4f} [{low:.3f}, {high:.3f}]",
        "p10": f"{row['dice'].quantile(0.1):.3f}",
        "IoU": f"{row['iou'].mean():.4f}",
    }
    for baseline in ("baseline", "augmented"):
        out[f"- {baseline}"] = ""
        if baseline in measured and baseline != name:
            difference = row["dice"] - measured[baseline]["dice"]
            low, high = bootstrap_interval(difference)
            out[f"- {baseline}"] = f"{difference.mean():+.4f} [{low:+.3f}, {high:+.3f}]"
    out["error"] = f"{row['error'].mean():.3f}" if "error" in row else ""
    out.update({"folded": f"{row['folding_fraction']:.4f}", "moved": f"{row['moved']:.0%}", "s/film": f"{row['seconds']:.3f}"})
    return out


def asked(dice: Mapping[tuple[str, str], Mapping[str, Tensor]]) -> list[dict[str, str]]:
    """The figures that were asked for beside those that were measured, as far as sets and rows were.

    Args:
        dice: of each film, by (source, protocol) and row.
    """
    single, both, rows = "DiffeoNN single pass", "augmented + DiffeoNN", []

    def line(where: tuple[str, str], row: str, words: str, least: float, met: bool = True) -> None:
        ours = dice[where][row].mean().item()
        rows.append(
            {
                "what": f"{row}, {where[0]}, {where[1]}",
                "asked": f"{words} = {least:.4f} or better",
                "measured": f"{ours:.4f}",
                "met": "yes" if met and ours >= least else "**no**",
            }
        )

    for where, found in dice.items():
        if not {"baseline", "augmented", single, both} <= set(found):
            continue
        source, protocol = where
        baseline, augmented = found["baseline"].mean().item(), found["augmented"].mean().item()
        if source in ("shenzhen", "montgomery"):
            for name, words, least in (
                ("plain", "baseline - 0.003", baseline - 0.003),
                (
                    "TPS/2",
                    *(
                        ("augmented - 0.005", augmented - 0.005)
                        if source == "shenzhen"
                        else ("augmented + 0.015", augmented + 0.015)
                    ),
                ),
                (
                    "TPS",
                    *(
                        ("baseline + 0.85 (augmented - baseline)", baseline + 0.85 * (augmented - baseline))
                        if source == "shenzhen"
                        else ("augmented", augmented)
                    ),
                ),
            ):
                if name == protocol:
                    line(where, single, words, least)
        elif protocol == "plain":
            line(
                where,
                single,
                "the better of baseline and augmented, interval above baseline",
                max(baseline, augmented),
                bootstrap_interval(found[single] - found["baseline"])[0] > 0,
            )
        above = protocol == "TPS" or (protocol == "plain" and source in ("paediatric_gz", "covid_gb"))
        line(where, both, "augmented" if above else "augmented - 0.002", augmented - (0 if above else 0.002))
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure the tables and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_dir", required=True, help="folder with manifest.csv")
    parser.add_argument("--bundle", default="bundles/cxr_lung_segmentation")
    parser.add_argument("--split", default="test")
    parser.add_argument("--sources", nargs="+", default=SOURCES)
    parser.add_argument("--protocols", nargs="+", default=["plain", "TPS/2", "TPS"], choices=list(DEFORMATIONS))
    parser.add_argument("--rows", nargs="+", default=ROWS)
    parser.add_argument("--films", type=int, default=None, help="so many films of each source, evenly spaced")
    parser.add_argument("--title", default="Lungs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="docs/results/lungs.md")
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    train_missing(options.bundle, options.dataset_dir)
    rows = methods(options.bundle, options.rows)
    parts, curves, dice = [NOTE, *([FAITHFUL_NOTE] if "DiffeoNN faithful" in rows else [])], {}, {}
    for source in options.sources:
        films, undeformed = load_films(options.dataset_dir, source, options.split, limit=options.films), {}
        for protocol in options.protocols:
            measured = table_rows(films, protocol, rows, undeformed, options.seed)
            parts.append(
                f"## {source} `{options.split}`, {protocol}, {len(films.ids)} films\n\n{markdown_table(measured.text)}"
            )
            print(parts[-1], flush=True)
            dice[source, protocol] = {name: row["dice"] for name, row in measured.values.items()}
            for name, point in interval_points(measured).items() if protocol in GROWING else ():
                curves.setdefault(source, {}).setdefault(name, {})[GROWING[protocol]] = point
    if goals := asked(dice):
        parts.append(f"## Asked and measured\n\n{markdown_table(goals)}")
    if set(GROWING) <= set(options.protocols):
        figure = Path(options.output).with_suffix(".png")
        line_plot(figure, curves, "largest rotation of the TPS protocol, degrees (jitter grows with it, 0 to 0.25)")
        parts.insert(1, f"![Dice under growing deformation]({figure.name})")
    write_page(options.output, options.title, command_text("lungs", parser, options), parts, options.seed)


if __name__ == "__main__":
    main()
