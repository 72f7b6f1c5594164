"""How far the learning rate may be off: affine maps and thin-plate splines against diffeomorphic affine maps and CPAB.

``python -m monai_diffeo.experiments.learning_rates --dataset_dir DIR --weights_dir KEEP`` trains every network on a CPU core, keeps what each
run found in ``KEEP``, and takes up the runs that are there.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_diffeo.data.genus import read_digits
from monai_diffeo.errors import NumericalError
from monai_diffeo.experiments.digits import Coarse, DigitStep, cnn, distort, fit, kept
from monai_diffeo.experiments.plots import line_plot
from monai_diffeo.experiments.tables import markdown_table, write_page
from monai_diffeo.families import CPAB, AffineMatrix, DiffeomorphicAffine, Family, ThinPlateSpline
from monai_diffeo.networks import SpatialTransformerLayer, start_at_identity

__all__ = ["ROWS", "build", "usable"]

SIDE, BATCH = 28, 64
VERSION = 1  # of what a run is, so that those kept from another are not taken up
NOTE = """NOTE {0} {1} {2}"""
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
ROWS: dict[str, Callable[[], Family] | None] = {
    "no transformer": None, "affine": AffineMatrix, "TPS, 16 points": lambda: ThinPlateSpline(2, 4), "diffeomorphic affine": DiffeomorphicAffine,
    "CPAB, 4 x 4": lambda: Coarse(CPAB((4, 4)), 2),
}
CHANCE = 0.1


def build(row: str, seed: int = 0) -> nn.Module:
    """A small classifier, with a transformer of the row's family in front."""
    torch.manual_seed(seed)
    classifier = _cnn(10)
    if ROWS[row] is None:
        return classifier
    family = ROWS[row]()
    return nn.Sequential(SpatialTransformerLayer(start_at_identity(_cnn(family.num_parameters)), family, padding_mode="zeros"), classifier)


def _cnn(outputs: int) -> nn.Module:
    return cnn(outputs, 32, SIDE, (8, 16), (5, 5), pool_first=False)


def run(
    row: str, seed: int, rate: float, data: Mapping[str, Tensor], shown: Mapping[str, Tensor], iterations: int
) -> dict[str, float | str]:
    """Train at a constant rate and measure; a training that ends in numbers out of bounds counts as chance, and says so."""
    network = build(row, seed)
    try:
        found = fit(network, DigitStep(), data, shown, iterations, seed, BATCH, rate, cycle=False)
    except NumericalError as error:
        return {"accuracy": CHANCE, "failed": str(error)}
    finite = all(p.isfinite().all() for p in network.parameters())
    return found if finite else {"accuracy": CHANCE, "failed": "parameters are not finite"}


def usable(accuracy: Mapping[float, float], share: float = 0.98) -> tuple[list[float], float]:
    """The rates at which an accuracy is within ``share`` of its best, and the decades that they span, first to last."""
    best = max(accuracy.values())
    rates = sorted(rate for rate, value in accuracy.items() if value >= share * best)
    return rates, math.log10(rates[-1] / rates[0])


def _page(options: argparse.Namespace, found: Mapping[str, Mapping[float, list[dict]]]) -> None:
    """Write figure and table of the runs that there are."""
    lines, curves = [], {}
    for row, by in found.items():
        accuracy = {rate: [r["accuracy"] for r in runs] for rate, runs in by.items()}
        curves[row] = {rate: (statistics.fmean(values), min(values), max(values)) for rate, values in accuracy.items()}
        mean = {rate: statistics.fmean(values) for rate, values in accuracy.items()}
        rates, decades = usable(mean)
        runs = [r for some in by.values() for r in some]
        lines.append({"network": row, **{f"{rate:g}": f"{mean[rate]:.3f} ({min(v):.3f} to {max(v):.3f})" for rate, v in accuracy.items()},
                      "within 2 % of its best": f"{rates[0]:g} to {rates[-1]:g}", "decades": f"{decades:.1f}",
                      "failed": f"{sum('failed' in r for r in runs)} of {len(runs)}",
                      "folded samples": f"{sum(r.get('folded_samples', 0) for r in runs)}" if ROWS[row] else ""})
    figure = Path(options.output).with_suffix(".png")
    line_plot(figure, {f"rotated digits, {options.iterations} iterations": curves}, "learning rate (Adam, constant)", "accuracy", log_x=True)
    count = min(len(runs) for by in found.values() for runs in by.values())
    parts = [NOTE.format(options.iterations, count, options.split), f"![Accuracy against learning rate]({figure.name})", markdown_table(lines)]
    write_page(options.output, "Learning rates", "python -m monai_diffeo.experiments.learning_rates --dataset_dir DIR --weights_dir KEEP "
               f"--seeds {options.seeds} --iterations {options.iterations} --split {options.split}", parts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_dir", required=True, help="folder of mnist.npz")
    parser.add_argument("--weights_dir", default=None, help="keep what each run found here, and take up what is here")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--digits", type=int, default=None, help="train on, and show, the first so many digits of each split; all by default")
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--output", default="docs/results/learning_rates.md")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    data, shown = (distort(read_digits(options.dataset_dir, split).first(options.digits), "rotated", SIDE, seed)
                   for seed, split in enumerate(("train", options.split), 1))
    found: dict[str, dict[float, list[dict]]] = {row: {rate: [] for rate in options.rates} for row in options.rows}
    for seed in range(options.seeds):
        for row in options.rows:
            for rate in options.rates:
                settings = {"experiment": "learning_rates", "row": row, "rate": rate, "seed": seed, "iterations": options.iterations,
                            "digits": options.digits, "split": options.split, "version": VERSION}
                got = kept(options.weights_dir, settings, lambda: run(row, seed, rate, data, shown, options.iterations))
                found[row][rate].append(got)
                print(row, rate, seed, got, flush=True)
        _page(options, found)


if __name__ == "__main__":
    main()
