"""How far the learning rate may be off: affine maps and thin-plate splines against diffeomorphic affine maps and CPAB.

``python -m docs.experiments.learning_rates --dataset_dir DIR --weights_dir KEEP`` trains every network on a CPU core,
keeps what each run found in ``KEEP``, and takes up the runs that are there.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bundles.mnist_genus.scripts.digits import read_digits
from docs.experiments.digits import DigitStep, cnn, compared, fit, run_options
from docs.experiments.distortions import distort
from docs.experiments.plots import line_plot
from docs.experiments.tables import command_text, markdown_table, write_page
from docs.experiments.training import kept
from monai_diffeo.errors import NumericalError
from monai_diffeo.families import CPAB, AffineMatrix, CoarseSampling, DiffeomorphicAffine, Family, ThinPlateSpline, Whitened
from monai_diffeo.networks import SpatialTransformerLayer, zero_init_last_layer_

__all__ = ["rate_network"]

SIDE, BATCH = 28, 64
VERSION = 1  # of what a run is, so that those kept from another are not taken up
NOTE = """Digits of 28 x 28 voxels, turned by up to 90 degrees either way; {0} iterations of 64 with Adam at a constant rate for the whole
network, gradients as they are. Share of right answers on the {3} digits of `{2}`, mean over seeds ({1}); with several, the least and the
largest in parentheses and as bands. Classifier and localisers are the same small CNN in all rows. "Mean" is the mean over the rates. A
training that ends in numbers out of bounds (not finite, or CPAB more than 100 deviations of its prior from the identity) counts as chance
(0.1), under "failed"; the bound was set after a run of CPAB at rate 0.1, winding through thousands of cells, had not ended in two
minutes. "Folded samples": of the first 1000 digits of each run, those with a Jacobian determinant of at most 0 at some voxel. CPAB is
computed on every second voxel and interpolated, on every one for this.

The paper's figure has affine maps and splines more sensitive than diffeomorphic families. Whether that holds here is for "differences" to say: means
over the rates, seed by seed, against each row without diffeomorphisms. Rows differ where single trainings collapse, mostly at one rate, so that few
seeds decide little."""
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
ROWS: dict[str, Callable[[], Family] | None] = {
    "no transformer": None,
    "affine": AffineMatrix,
    "TPS, 16 points": lambda: ThinPlateSpline(2, 4),
    "diffeomorphic affine": DiffeomorphicAffine,
    "CPAB, 4 x 4": lambda: CoarseSampling(Whitened(CPAB((4, 4))), 2),
}
CHANCE = 0.1


def rate_network(row: str, seed: int = 0) -> nn.Module:
    """A small classifier, with a transformer of the row's family in front."""
    torch.manual_seed(seed)
    classifier = _cnn(10)
    if ROWS[row] is None:
        return classifier
    family = ROWS[row]()
    return nn.Sequential(
        SpatialTransformerLayer(zero_init_last_layer_(_cnn(family.num_parameters)), family, padding_mode="zeros"), classifier
    )


def _cnn(outputs: int) -> nn.Module:
    return cnn(outputs, 32, SIDE, (8, 16), (5, 5), pool_first=False)


def run(
    row: str, seed: int, rate: float, data: Mapping[str, Tensor], shown: Mapping[str, Tensor], iterations: int
) -> dict[str, float | str]:
    """Train at a constant rate and measure; a training that ends in numbers out of bounds counts as chance, and says so."""
    network = rate_network(row, seed)
    try:
        found = fit(network, DigitStep(), data, shown, iterations, seed, BATCH, rate, cycle=False, unfolded=1000)
    except NumericalError as error:
        return {"accuracy": CHANCE, "failed": str(error)}
    finite = all(p.isfinite().all() for p in network.parameters())
    return found if finite else {"accuracy": CHANCE, "failed": "parameters are not finite"}


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ({min(values):.3f}, {max(values):.3f})"


def _page(command: str, options: argparse.Namespace, found: Mapping[str, Mapping[float, list[dict]]], shown: int) -> None:
    """Write figure and table of the runs that there are."""
    lines, curves = [], {}
    for row, by in found.items():
        accuracy = {rate: [r["accuracy"] for r in runs] for rate, runs in by.items()}
        curves[row] = {rate: (statistics.fmean(values), min(values), max(values)) for rate, values in accuracy.items()}
        runs = [r for some in by.values() for r in some]
        folded = [sum(r.get(key, 0) for r in runs) for key in ("folded_samples", "samples")]
        lines.append(
            {
                "network": row,
                **{f"{rate:g}": _spread(values) for rate, values in accuracy.items()},
                "mean": f"{statistics.fmean(value for value, _, _ in curves[row].values()):.3f}",
                "failed": f"{sum('failed' in r for r in runs)} of {len(runs)}",
                "folded samples": f"{folded[0]} of {folded[1]}" if ROWS[row] else "",
            }
        )
    figure = Path(options.output).with_suffix(".png")
    title = f"rotated digits, {options.iterations} iterations"
    line_plot(figure, {title: curves}, "learning rate (Adam, constant)", "accuracy", log_x=True)
    count = min(len(runs) for by in found.values() for runs in by.values())
    note = NOTE.format(options.iterations, count, options.split, shown)
    seeds = {
        row: [statistics.fmean(run["accuracy"] for run in runs) for runs in zip(*by.values())] for row, by in found.items()
    }
    asked = [
        compared(f"{ours}, before {other}", seeds[ours], seeds[other])
        for ours in ("diffeomorphic affine", "CPAB, 4 x 4")
        for other in ("affine", "TPS, 16 points")
        if {ours, other} <= set(seeds)
    ]
    parts = [note, f"![Accuracy against learning rate]({figure.name})", markdown_table(lines)]
    parts += ["## Differences\n\nOf the mean over the rates, seed by seed.\n\n" + markdown_table(asked)] if asked else []
    write_page(options.output, "Learning rates", command, parts)


def main(argv: list[str] | None = None) -> None:
    parser = run_options("learning_rates", __doc__, list(ROWS), seeds=3, iterations=200, digits=50000)
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    data = distort(read_digits(options.dataset_dir, "train").spread(options.digits), "rotated", SIDE, 1)
    shown = distort(read_digits(options.dataset_dir, options.split), "rotated", SIDE, 2)
    found: dict[str, dict[float, list[dict]]] = {row: {rate: [] for rate in options.rates} for row in options.rows}
    for seed in range(options.seeds):
        for row in options.rows:
            for rate in options.rates:
                settings = {
                    "experiment": "learning_rates",
                    "row": row,
                    "rate": rate,
                    "seed": seed,
                    "iterations": options.iterations,
                    "digits": options.digits,
                    "split": options.split,
                    "version": VERSION,
                }
                got = kept(options.weights_dir, settings, lambda: run(row, seed, rate, data, shown, options.iterations))
                found[row][rate].append(got)
                print(row, rate, seed, got, flush=True)
        so_far = argparse.Namespace(**vars(options) | {"seeds": seed + 1})
        _page(command_text("learning_rates", parser, so_far), options, found, len(shown["label"]))


if __name__ == "__main__":
    main()
