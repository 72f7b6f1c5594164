"""Rotated digits: thin-plate splines against dense fields, with and without integration: table 1 of the template transformer paper.

``python -m docs.experiments.rotated_mnist --dataset_dir DIR --weights_dir KEEP`` trains every network on a CPU core,
keeps what each run found in ``KEEP``, and takes up the runs that are there.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundles.mnist_genus.scripts.digits import read_digits
from docs.experiments.digits import DigitStep, cnn, compared, fit, run_options
from docs.experiments.distortions import distort
from docs.experiments.measures import with_interval
from docs.experiments.tables import command_text, markdown_table, write_page
from docs.experiments.training import kept
from monai_diffeo.families import Family, ThinPlateSpline
from monai_diffeo.families.base import half_frame
from monai_diffeo.flow import Deformation, exp
from monai_diffeo.networks import SpatialTransformerLayer, zero_init_last_layer_

__all__ = ["DenseField", "DenseLocalizer", "rotated_network"]

SIDE, BATCH, RATES, CHOOSING = 28, 64, (1e-3, 3e-3, 8e-3), 1000
VERSION = 1  # of what a run is, so that those kept from another are not taken up
PAPER = {
    "CNN": ("0.9621 ± 0.0039", ""),
    "TPS-STN, 2 x 2": ("0.9660 ± 0.0046", "0.03"),
    "TPS-STN, 3 x 3": ("0.9592 ± 0.0040", "0.03"),
    "TPS-STN, 5 x 5": ("0.9663 ± 0.0032", "0.04"),
    "TPS-STN, 12 x 12": ("0.9649 ± 0.0029", "0.05"),
    "TPS-STN, 16 x 16": ("0.9612 ± 0.0043", "0.07"),
    "dense field, not diffeomorphic": ("0.9730 ± 0.0052", "0.28"),
    "dense field, diffeomorphic": ("0.9734 ± 0.0055", "0.22"),
    "dense field, diffeomorphic, gradient penalty": ("0.9645 ± 0.0048", "0.11"),
}
NOTE = """Digits of 28 x 28 voxels, turned by up to 90 degrees either way. Share of right answers on the {4} digits of `{3}`, mean over
seeds ({2}); in brackets the 95 % interval of that mean by Student's t (the paper: standard deviation over 20 runs). Classifier and
localisers have the paper's numbers of parameters: 27 100, and 26 998 to 52 702 for the splines; the dense fields' localiser has 29 549
(29 552). "Negative Jacobians": share of voxels whose determinant is at most 0, by central differences of the displacement, over all test
digits; beside it the share of digits with such a voxel. The paper's shares carry a per cent sign in the column's head.

Cut against the paper: {0} iterations of 64 digits, one cycle of learning rates (9 400 iterations at 0.001), each digit turned once, fewer
seeds (20); first convolutions in steps of 2 voxels in place of a maximum. Free choices where the paper is silent: the field's localiser is
the spline's of 5 x 5 points, interpolated, plus two small convolutions at half the resolution; 6 squarings; the penalty is 10 times the
mean squared difference of the displacement between neighbours, in voxels. All transformers begin with the identity, splines too. "Rate" is
the cycle's highest, each row's own: the one of {1} with the most right answers on `val`, after as long a training with seed {5}, which no
row of the table has."""


def _cnn(outputs: int) -> nn.Module:
    """Classifier and localisers alike; these widths alone give the paper's numbers of parameters."""
    return cnn(outputs, 50, SIDE, (20, 20), (5, 5), pool_first=False)


class DenseField(Family):
    """A vector at every voxel: the velocity of a flow, or itself the displacement, which nothing then keeps from folding.

    ``theta``: ``D prod(spatial_size)`` numbers in halves of the frame, a component after the other.

    Args:
        spatial_size: of the images.
        steps: squarings of the exponential; 0 takes the field as displacement.
    """

    def __init__(self, spatial_size: Sequence[int], steps: int = 6) -> None:
        super().__init__()
        self.spatial_size, self.steps, self.spatial_dims = tuple(spatial_size), steps, len(spatial_size)
        self.num_parameters = self.spatial_dims * torch.Size(spatial_size).numel()

    def forward(self, theta: Tensor, spatial_size: Sequence[int]) -> Deformation:
        half = half_frame(spatial_size, theta)
        field = theta.view(-1, self.spatial_dims, *spatial_size) * half.view(-1, *[1] * len(half))
        unit = torch.eye(self.spatial_dims, self.spatial_dims + 1).to(field)
        return Deformation(unit.repeat(len(field), 1, 1), exp(field, self.steps))


class DenseLocalizer(nn.Module):
    """The localiser of the 5 x 5 spline, whose control values are interpolated, corrected by two convolutions at half the resolution, and
    interpolated again: a field.

    Args:
        side: of the images.
        width: between the convolutions.
    """

    def __init__(self, side: int, width: int = 11) -> None:
        super().__init__()
        self.side = side
        self.coarse = zero_init_last_layer_(_cnn(50))
        self.fine = zero_init_last_layer_(
            nn.Sequential(nn.Conv2d(2, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2, 3, padding=1))
        )

    def forward(self, image: Tensor) -> Tensor:
        """Fields ``(B, 2 side^2)`` of images ``(B, 1, side, side)``."""
        field = F.interpolate(self.coarse(image).view(-1, 2, 5, 5), (self.side // 2,) * 2, mode="bicubic", align_corners=True)
        return F.interpolate(field + self.fine(field), (self.side,) * 2, mode="bilinear", align_corners=True).flatten(1)


def _spline(controls: int) -> Callable[[], nn.Module]:
    def transformer() -> nn.Module:
        family = ThinPlateSpline(2, controls)
        return SpatialTransformerLayer(zero_init_last_layer_(_cnn(family.num_parameters)), family, padding_mode="zeros")

    return transformer


def _dense(steps: int) -> Callable[[], nn.Module]:
    return lambda: SpatialTransformerLayer(DenseLocalizer(SIDE), DenseField((SIDE, SIDE), steps), padding_mode="zeros")


ROWS: dict[str, tuple[Callable[[], nn.Module | None], float]] = {
    "CNN": (lambda: None, 0.0),
    **{f"TPS-STN, {k} x {k}": (_spline(k), 0.0) for k in (2, 3, 5, 12, 16)},
    "dense field, not diffeomorphic": (_dense(0), 0.0),
    "dense field, diffeomorphic": (_dense(6), 0.0),
    "dense field, diffeomorphic, gradient penalty": (_dense(6), 10.0),
}


def rotated_network(row: str, seed: int = 0) -> nn.Module:
    """The network of a row; the classifier is the same in all."""
    torch.manual_seed(seed)
    classifier, transformer = _cnn(10), ROWS[row][0]()
    return classifier if transformer is None else nn.Sequential(transformer, classifier)


def _page(
    command: str, options: argparse.Namespace, found: Mapping[str, list[dict]], rates: Mapping[str, float], shown: int
) -> None:
    """Write table and comparisons of the runs that there are."""
    lines, accuracy = [], {row: [r["accuracy"] for r in runs] for row, runs in found.items()}
    for row, runs in found.items():
        line: dict[str, object] = {
            "network": row,
            "parameters": runs[0]["parameters"],
            "rate": f"{rates[row]:g}",
            "accuracy": with_interval(accuracy[row]),
        }
        line["paper"] = PAPER[row][0]
        if "folded" in runs[0]:
            line["negative Jacobians"] = f"{100 * statistics.fmean(r['folded'] for r in runs):.4f} %"
            line["paper "] = PAPER[row][1]
            line["digits with one"] = f"{100 * sum(r['folded_samples'] for r in runs) / sum(r['samples'] for r in runs):.2f} %"
        lines.append({**line, "ms an iteration": f"{1e3 * statistics.median(r['seconds'] for r in runs):.0f}"})
    ours = "dense field, diffeomorphic"
    asked = [compared(f"{ours}, before {row}", accuracy[ours], accuracy[row]) for row in found if row != ours and ours in found]
    given = ", ".join(f"{rate:g}" for rate in options.rates)
    parts = [
        NOTE.format(options.iterations, given, min(map(len, found.values())), options.split, shown, CHOOSING),
        markdown_table(lines),
        "## The order of ranks\n\nDifferences of accuracy, seed by seed.\n\n" + markdown_table(asked),
    ]
    write_page(options.output, "Rotated MNIST", command, parts)


def main(argv: list[str] | None = None) -> None:
    parser = run_options("rotated_mnist", __doc__, list(ROWS), seeds=5, iterations=400, digits=50000)
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES), help="of which each row gets the best on val")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    data = distort(read_digits(options.dataset_dir, "train").spread(options.digits), "rotated", SIDE, 1)
    sets = {split: distort(read_digits(options.dataset_dir, split), "rotated", SIDE, 2) for split in {"val", options.split}}

    def run(row: str, seed: int, rate: float, split: str) -> dict:
        settings = {
            "experiment": "rotated_mnist",
            "row": row,
            "seed": seed,
            "iterations": options.iterations,
            "rate": rate,
            "digits": options.digits,
            "split": split,
            "version": VERSION,
        }
        got = kept(
            options.weights_dir,
            settings,
            lambda: fit(
                rotated_network(row, seed), DigitStep(ROWS[row][1]), data, sets[split], options.iterations, seed, BATCH, rate
            ),
        )
        print(row, seed, f"{rate:g}", split, got, flush=True)
        return got

    rates = {row: max(options.rates, key=lambda rate: run(row, CHOOSING, rate, "val")["accuracy"]) for row in options.rows}
    found: dict[str, list[dict]] = {row: [] for row in options.rows}
    for seed in range(options.seeds):
        for row in options.rows:
            found[row].append(run(row, seed, rates[row], options.split))
        so_far = argparse.Namespace(**vars(options) | {"seeds": seed + 1})
        _page(command_text("rotated_mnist", parser, so_far), options, found, rates, len(sets[options.split]["label"]))


if __name__ == "__main__":
    main()
