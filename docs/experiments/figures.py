"""The figures that the package promises, each measured anew: ``python -m docs.experiments.figures``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from monai.networks.nets import UNet
from torch import Tensor

from docs.experiments.films import Films, deform, load_films
from docs.experiments.measures import answer as run
from docs.experiments.measures import dice_of, plain, wrapped
from docs.experiments.tables import markdown_table, write_page
from monai_diffeo.augmentation.deformations import random_svf, tps_protocol
from monai_diffeo.canonicalize import Canonicalizer, load_canonicalizer
from monai_diffeo.flow import exp, folding_fraction, inverse_error, warp
from monai_diffeo.flow.grid import centered_grid
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.networks import load_weights

__all__ = ["lung_unet", "segmentation_network"]

ELSEWHERE = """Checked elsewhere, each run of `.ci/run`:

* README's main command in a fresh clone and environment (exit 0, mask of 1955x1841, two lungs, report, picture): `.ci/check_output.py`;
* MONAI networks wrapped without a line of change (eight in 2D, two in 3D, one classifier): `tests/inferers/test_diffeo_inferer.py`;
* bad files beside good ones, exit statuses: `tests/bundles/test_cxr_bundle.py`, `tests/data/test_films.py`."""

Row = dict[str, object]


def lung_unet() -> UNet:
    """The bundle's UNet without weights."""
    return UNet(2, 1, 1, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2)


def segmentation_network(weights: str | Path) -> torch.nn.Module:
    """The bundle's UNet with weights, in eval mode."""
    return load_weights(lung_unet(), weights)


def _row(what: str, asked: str, measured: str, met: bool) -> Row:
    return {"what": what, "asked": asked, "measured": measured, "met": "yes" if met else "**no**"}


def affine_exponential() -> Row:
    """exp of an affine velocity against the matrix exponential, interior, and how the error falls with the steps."""
    matrix = torch.tensor([[0.05, -0.1], [0.1, -0.03]], dtype=torch.float64)
    grid = centered_grid((128, 128), dtype=torch.float64)
    v = torch.einsum("ij,jhw->ihw", matrix, grid)[None]
    exact = torch.einsum("ij,jhw->ihw", torch.linalg.matrix_exp(matrix) - torch.eye(2, dtype=torch.float64), grid)[None]
    errors = [(exp(v, n) - exact)[..., 24:-24, 24:-24].norm(dim=1).max().item() for n in range(4, 9)]
    ratios = [a / b for a, b in zip(errors, errors[1:])]
    met = errors[3] <= 2e-3 and all(1.8 < r < 2.2 for r in ratios)
    return _row(
        "exp of an affine velocity against the matrix exponential, 7 steps, interior",
        "<= 2e-3 voxel; error halves per step",
        f"{errors[3]:.2e} voxel; ratios {', '.join(f'{r:.2f}' for r in ratios)}",
        met,
    )


def inverse_consistency() -> Row:
    """exp(v) then exp(-v) for smooth fields of 12 voxels at 128²."""
    v = random_svf(50, (128, 128), torch.Generator().manual_seed(0), amplitude=12 / 128, sigma=0.08)
    error = inverse_error(exp(v), exp(-v))
    mean, largest = error.mean().item(), error.max().item()
    return _row(
        "exp(v) then exp(-v), 50 smooth fields of 12 voxels at 128², smoothed over 10 voxels",
        "mean <= 0.02, max <= 0.25 voxel",
        f"mean {mean:.4f}, max {largest:.3f} voxel",
        mean <= 0.02 and largest <= 0.25,
    )


def nothing_folds(canonicalizer: Canonicalizer, films: Tensor) -> Row:
    """Folded voxels over 1000 canonicalisations of wildly deformed films, and 1000 random fields of each kind."""
    draw = torch.Generator().manual_seed(0)
    folded, count = 0.0, 0
    for batch in films[torch.randint(len(films), (1000,), generator=draw)].split(50):
        ddf = tps_protocol(len(batch), tuple(batch.shape[2:]), draw, angle=60.0, jitter=0.25)
        result = canonicalizer(warp(batch, ddf, padding_mode="zeros"))
        folded += folding_fraction(result.ddf).sum().item()
        count += int(result.moved.sum())
    fields = sum(folding_fraction(tps_protocol(50, (128, 128), draw, fold_free=True)).sum().item() for _ in range(20))
    fields += sum(folding_fraction(exp(random_svf(50, (128, 128), draw, amplitude=0.12))).sum().item() for _ in range(20))
    return _row(
        "folded voxels over 1000 canonicalisations (TPS, 60 degrees, jitter 0.25) and 2000 random fields",
        "0",
        f"{folded + fields:g} ({count} of the 1000 moved)",
        folded + fields == 0 and count > 0,
    )


def batch_equals_loop(canonicalizer: Canonicalizer, films: Tensor) -> Row:
    """A batch of eight against eight single runs."""
    batch, alone = canonicalizer(films[:8]), [canonicalizer(film[None]) for film in films[:8]]
    difference = max((batch.ddf[i] - a.ddf[0]).abs().max().item() for i, a in enumerate(alone))
    same = all(batch.status[i] == a.status[0] for i, a in enumerate(alone))
    return _row(
        "batch of 8 against 8 single runs",
        "same status, fields within 1e-4 voxel",
        f"{'same' if same else 'other'} status, {difference:.1e} voxel",
        same and difference <= 1e-4,
    )


def same_bits(canonicalizer: Canonicalizer, films: Tensor, network: torch.nn.Module) -> list[Row]:
    """Two runs of the same batch; and the switched-off inferer against the plain network."""
    first, second = canonicalizer(films[:8]), canonicalizer(films[:8])
    same = torch.equal(first.ddf, second.ddf) and torch.equal(first.image, second.image)
    with torch.no_grad():
        off = torch.equal(DiffeoInferer(canonicalizer, enabled="false")(films[:8], network), network(films[:8]))
    return [
        _row("two runs, same seed, same batch", "identical bits", "identical" if same else "different", same),
        _row("`enabled false` against the plain network", "identical bits", "identical" if off else "different", off),
    ]


def dice_gains(canonicalizer: Canonicalizer, network: torch.nn.Module, films: Films, name: str) -> list[Row]:
    """Mean Dice of the baseline network and of the wrapped one, under the TPS protocol and undeformed."""
    rows = []
    for protocol, asked, least in (("TPS", "baseline + 0.06 or more", 0.06), ("plain", "baseline - 0.003 or better", -0.003)):
        shown, _ = deform(films, protocol)
        baseline, ours = (run(m, shown.images) for m in (plain(network), wrapped(network, canonicalizer)))
        a, b = (dice_of(x.masks, shown.labels).mean().item() for x in (baseline, ours))
        rows.append(
            _row(
                f"{name}, {'TPS protocol' if protocol == 'TPS' else 'undeformed'}, mean Dice of {len(films.ids)} films",
                asked,
                f"baseline {a:.4f}, wrapped {b:.4f}: {b - a:+.4f}; {ours.seconds:.3f} s a film",
                b - a >= least,
            )
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measure everything, print the table and write it; 0 if every figure is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_dir", required=True, help="folder with manifest.csv")
    parser.add_argument("--bundle", default="bundles/cxr_lung_segmentation")
    parser.add_argument("--split", default="test")
    parser.add_argument("--source", default="shenzhen")
    parser.add_argument("--mode", default=None, help="mode of the canonicaliser; its default if not given")
    parser.add_argument("--output", default="docs/results/figures.md")
    options = parser.parse_args(argv)
    canonicalizer = load_canonicalizer(Path(options.bundle) / "models" / "energy", options.mode)
    network = segmentation_network(Path(options.bundle) / "models" / "model.pt")
    films = load_films(options.dataset_dir, options.source, options.split)
    deformed, _ = deform(films, "TPS")
    rows = [
        *same_bits(canonicalizer, deformed.images, network),
        affine_exponential(),
        inverse_consistency(),
        nothing_folds(canonicalizer, films.images),
        batch_equals_loop(canonicalizer, deformed.images),
        *dice_gains(canonicalizer, network, films, f"{options.source} `{options.split}`"),
    ]
    table = markdown_table(rows)
    print(table)
    write_page(
        options.output,
        "Figures",
        f"python -m docs.experiments.figures --dataset_dir DIR --split {options.split}"
        f" --source {options.source}" + (f" --mode {options.mode}" if options.mode else ""),
        [table, ELSEWHERE],
        seed=0,
    )
    return 0 if all(row["met"] == "yes" for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
