"""Nested shapes: segmentation of deformed shapes, and how invariant the energy of the canonical shape is.

``python -m docs.experiments.shapes`` trains everything on a CPU in minutes and writes the page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from docs.experiments.films import Films
from docs.experiments.lungs import table
from docs.experiments.measures import plain, wrapped
from docs.experiments.nested_shapes import nested_shapes
from docs.experiments.plots import paired_histogram
from docs.experiments.tables import command_text, markdown_table, write_page
from docs.experiments.training import fit_canonicalizers, fit_published, trained
from monai_diffeo.augmentation.deformations import tps_protocol
from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.flow import warp
from monai_diffeo.training import SegmentationStep

__all__ = ["invariance"]

SIZE = 64
NOTE = """400 training images of a bright ellipse with a dark rounded box and a disc in it, in almost one pose (X_E); the box is segmented. X_TE are
others of the same kind under the TPS protocol. Everything is trained here: `augmented` twice as long as `baseline`, on shapes under the protocol;
the energies of single pass and refine see the images and the baseline network's own answers. `error` is 1 - Dice(f(g x), g f(x)); differences are
paired over shapes, brackets are 95 % bootstrap intervals of the mean. `faithful` takes the published settings."""
INVARIANCE = """The energies of refine are hinged: they count above the training shapes' mean only. Its search stops there, so that for many pairs both
energies are 0 and differ by nothing; the figure puts differences below 0.001 at 0.001."""


def _unet() -> nn.Module:
    return UNet(2, 1, 1, (16, 32, 64, 128), (2, 2, 2), num_res_units=1)


def invariance(canonicalizer: Canonicalizer, images: Tensor, count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Energies of ``x``, of ``g x`` and of both in canonical pose, for ``count`` deformations ``g`` of each image.

    Returns:
        ``|E(g x) - E(x)|`` and ``|E(can(g x)) - E(can(x))|`` of every pair.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        still = canonicalizer(images)
        energy = canonicalizer.energy(images)
        before, after = [], []
        for _ in range(count):
            moved = warp(images, tps_protocol(len(images), (SIZE, SIZE), draw), padding_mode="border")
            before.append((canonicalizer.energy(moved) - energy).abs())
            after.append((canonicalizer(moved).energy_after - still.energy_after).abs())
    return torch.cat(before), torch.cat(after)


def main(argv: list[str] | None = None) -> None:
    """Train, measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--iterations", type=int, default=4000, help="of the predictor; VAE a half, networks a fifth and two fifths"
    )
    parser.add_argument(
        "--shapes", type=int, default=100, help="test shapes; 16 of them for the slow rows, 20 for the invariance"
    )
    parser.add_argument("--deformations", type=int, default=10, help="of each shape, for the invariance")
    parser.add_argument("--weights_dir", default=None, help="keep the weights here, and take up those that are here")
    parser.add_argument("--output", default="docs/results/shapes.md")
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    draw = torch.Generator().manual_seed(options.seed)
    images, labels = nested_shapes(400, SIZE, draw)
    test = Films(*nested_shapes(options.shapes, SIZE, draw), tuple(f"shape{i}" for i in range(options.shapes)))
    data, fifth = {"image": images, "label": labels}, max(options.iterations // 5, 1)
    keep = options.weights_dir and f"{options.weights_dir}/shapes_{options.iterations}_seed{options.seed}"
    baseline = trained(keep and f"{keep}_naive.pt", _unet, SegmentationStep(), data, fifth, options.seed)
    augmented = trained(
        keep and f"{keep}_augmented.pt", _unet, SegmentationStep(1.0, options.seed), data, 2 * fifth, options.seed
    )
    with torch.no_grad():
        answers = torch.sigmoid(baseline(images))
    fitted = fit_canonicalizers(images, answers, options.iterations, (SIZE, SIZE), seed=options.seed, keep=keep)
    fitted["faithful"] = fit_published(images, options.iterations // 2, options.seed, keep)
    rows = {
        "baseline": plain(baseline),
        "augmented": plain(augmented),
        "DiffeoNN faithful": wrapped(baseline, fitted["faithful"]),
        "DiffeoNN refine": wrapped(baseline, fitted["refine"]),
        "DiffeoNN single pass": wrapped(baseline, fitted["single pass"]),
        "augmented + DiffeoNN": wrapped(augmented, fitted["single pass"]),
    }
    quick = {name: row for name, row in rows.items() if name != "DiffeoNN faithful"}
    parts = [NOTE]
    for shapes, methods, remark in ((test, quick, ""), (test.spread(16), rows, ", with the slow published method")):
        undeformed: dict[str, Tensor] = {}
        for name in ("plain", "TPS/2", "TPS"):
            title = f"## X_{'E' if name == 'plain' else 'TE'}: {name}, {len(shapes.ids)} shapes{remark}"
            parts.append(f"{title}\n\n" + markdown_table(table(shapes, name, methods, undeformed)))
            print(parts[-1], flush=True)
    parts.append(
        _invariance_part(
            {mode: fitted[mode] for mode in ("single pass", "refine")},
            test.images[:20],
            options.deformations,
            Path(options.output),
        )
    )
    print(parts[-1])
    write_page(options.output, "Nested shapes", command_text("shapes", parser, options), parts, options.seed)


def _invariance_part(modes: dict[str, Canonicalizer], images: Tensor, count: int, page: Path) -> str:
    """Table and figure of the energy's invariance."""
    lines, panels = [], {}
    for mode, canonicalizer in modes.items():
        before, after = invariance(canonicalizer, images, count)
        lines.append(
            {
                "mode": mode,
                "median of abs(E(g x) - E(x))": f"{before.quantile(0.5):.2f}",
                "median of abs(E(can(g x)) - E(can(x)))": f"{after.quantile(0.5):.2f}",
                "ratio of the medians": f"{after.quantile(0.5) / before.quantile(0.5):.3f}",
                "median ratio": f"{(after / before).quantile(0.5):.3f}",
            }
        )
        panels[mode] = {"E(g x) - E(x)": before, "E(can(g x)) - E(can(x))": after}
    figure = page.with_name(f"{page.stem}_invariance.png")
    paired_histogram(figure, panels, "absolute difference of energies, in spreads of the training shapes")
    return (
        f"## Invariance of the energy, {len(images)} shapes, {count} deformations each\n\n{INVARIANCE}\n\n{markdown_table(lines)}\n\n"
        f"![Differences of energies before and after canonicalisation]({figure.name})"
    )


if __name__ == "__main__":
    main()
