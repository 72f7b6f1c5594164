"""Nested shapes: segmentation of deformed shapes, and how invariant the energy of the canonical shape is."""

from pathlib import Path

import torch
from monai.networks.nets import UNet
from torch import Tensor

from docs.experiments.film_data import Films
from docs.experiments.measures import measure_set, table_rows
from docs.experiments.pages import Experiment, note, paired_histogram, section
from docs.experiments.training import fit_methods
from monai_diffeo.augmentation import tps_protocol
from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.flow import warp

SIZE = 64


def nested_shapes(count: int, size: int, generator: torch.Generator, spread: float = 0.04) -> tuple[Tensor, Tensor]:
    """Images ``(N, 1, size, size)`` in [0, 1] of a bright ellipse with a dark box and a bright disc in it, and the box.

    ``spread``: of every centre and radius, as share of the frame; where it is small, the poses are nearly one.
    """
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    d = (torch.randn(count, 9, 1, 1, generator=generator) * 2 * spread).unbind(1)

    def soft(radius: Tensor) -> Tensor:
        return torch.sigmoid((1 - radius) * size / 2)

    outer = soft((((x - d[0]) / (0.62 + d[1])) ** 2 + ((y - d[2]) / (0.8 + d[3])) ** 2).sqrt())
    box = soft((((x - d[4] - 0.12) / (0.28 + d[5] / 2)) ** 4 + ((y - d[6] - 0.2) / (0.3 + d[7] / 2)) ** 4) ** 0.25)
    disc = soft((((x - d[0] + 0.15) / 0.2) ** 2 + ((y - d[2] + 0.4) / (0.2 + d[8] / 4)) ** 2).sqrt())
    images = 0.15 + 0.45 * outer - 0.3 * box * outer + 0.35 * disc * outer
    noise = 0.02 * torch.randn(count, size, size, generator=generator)
    return (images + noise).clamp(0, 1)[:, None], (box * outer > 0.5).float()[:, None]


def invariance(canonicalizer: Canonicalizer, images: Tensor, count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """``|E(g x) - E(x)|``, and the same in canonical pose, of ``count`` deformations ``g`` of each image."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        still, energy, before, after = canonicalizer(images), canonicalizer.energy(images), [], []
        for _ in range(count):
            moved = warp(images, tps_protocol(len(images), images.shape[2:], draw), padding_mode="border")
            before.append((canonicalizer.energy(moved) - energy).abs())
            after.append((canonicalizer(moved).energy_after - still.energy_after).abs())
    return torch.cat(before), torch.cat(after)


def main(argv: list[str] | None = None) -> None:
    """Train, measure and write the page."""
    defaults = {"seed": 0, "iterations": 4000, "shapes": 100, "deformations": 10}
    experiment = Experiment("shapes", __doc__, argv, weights_dir=str, **defaults)
    options = experiment.options
    torch.manual_seed(options.seed)
    draw = torch.Generator().manual_seed(options.seed)
    train = dict(zip(("image", "label"), nested_shapes(400, SIZE, draw)))
    test = Films(*nested_shapes(options.shapes, SIZE, draw), tuple(f"shape{i}" for i in range(options.shapes)))
    keep = options.weights_dir and f"{options.weights_dir}/shapes_{options.iterations}_seed{options.seed}"
    iterations = options.iterations, max(options.iterations // 5, 1)

    def build() -> UNet:
        return UNet(2, 1, 1, (16, 32, 64, 128), (2, 2, 2), num_res_units=1)

    rows, modes = fit_methods(train, build, iterations, options.seed, keep, faithful=True, batch_size=400)
    quick = {name: row for name, row in rows.items() if name != "DiffeoNN faithful"}
    text, invariant = note("shapes", options=options, count=len(test.ids[:20]))
    parts = [text]
    for shapes, methods, remark in ((test, quick, ""), (test.spread(16), rows, ", with the slow published method")):
        undeformed: dict[str, Tensor] = {}
        for name in ("plain", "TPS/2", "TPS"):
            heading = f"## X_{'E' if name == 'plain' else 'TE'}: {name}, {len(shapes.ids)} shapes{remark}"
            parts.append(section(heading, table_rows(measure_set(shapes, name, methods, undeformed))))
    lines, panels = [], {}
    for mode in ("single pass", "refine"):
        before, after = invariance(modes[mode], test.images[:20], options.deformations)
        middle = {"median of abs(E(g x) - E(x))": before, "median of abs(E(can(g x)) - E(can(x)))": after}
        line = {"mode": mode, **{name: f"{values.quantile(0.5):.2f}" for name, values in middle.items()}}
        line["ratio of the medians"] = f"{after.quantile(0.5) / before.quantile(0.5):.3f}"
        lines.append(line | {"median ratio": f"{(after / before).quantile(0.5):.3f}"})
        panels[mode] = {"E(g x) - E(x)": before, "E(can(g x)) - E(can(x))": after}
    figure = Path(options.output).with_name(f"{Path(options.output).stem}_invariance.png")
    paired_histogram(figure, panels, "absolute difference of energies, in spreads of the training shapes")
    picture = f"![Differences of energies before and after canonicalisation]({figure.name})"
    experiment.write("Nested shapes", [*parts, section(invariant, lines), picture], options.seed)


if __name__ == "__main__":
    main()
