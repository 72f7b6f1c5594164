"""Nested shapes: segmentation of deformed shapes, and how invariant the energy of the canonical shape is.

``python -m monai_diffeo.experiments.shapes`` trains everything on a CPU in minutes and writes the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.data.deformations import tps_protocol
from monai_diffeo.data.shapes import nested_shapes
from monai_diffeo.energies import DeformationRegularizer, MotionEnergy, StandardizedEnergy, VAEEnergy, WeightedEnergy
from monai_diffeo.experiments.films import Films
from monai_diffeo.experiments.lungs import table
from monai_diffeo.experiments.measures import plain, wrapped
from monai_diffeo.experiments.tables import markdown_table, write_page
from monai_diffeo.families import ControlGrid
from monai_diffeo.flow import warp
from monai_diffeo.networks import DeformationPredictor, EnergyVAE
from monai_diffeo.training import PredictorStep, SegmentationStep, VAEStep

__all__ = ["invariance", "train"]

SIZE = 64


def train(
    network: nn.Module, step: Callable, data: Mapping[str, Tensor], iterations: int, seed: int = 0, batch_size: int = 16, rate: float = 2e-3
) -> nn.Module:
    """Minimise a step's losses on random batches of tensors; one-cycle AdamW; gives the network back in eval mode."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, iterations)
    network.train()
    for _ in range(iterations):
        rows = torch.randint(len(data["image"]), (batch_size,), generator=draw)
        optimizer.zero_grad()
        sum(step(network, {name: values[rows] for name, values in data.items()}).values()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def _unet() -> nn.Module:
    return UNet(2, 1, 1, (8, 16, 32), (2, 2), num_res_units=1)


def _standardized(energy, images: Tensor) -> StandardizedEnergy:
    with torch.no_grad():
        values = energy(images)
    return StandardizedEnergy(energy, values.mean().item(), values.std().item())


def invariance(canonicalizer: Canonicalizer, images: Tensor, count: int, seed: int = 1) -> dict[str, float]:
    """Energies of ``x``, of ``g x`` and of both in canonical pose, for ``count`` deformations ``g`` of each image.

    Returns:
        Medians over all pairs of ``|E(g x) - E(x)|``, of ``|E(can(g x)) - E(can(x))|``, and of their ratio.
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
    before, after = torch.cat(before), torch.cat(after)
    return {"deformed": before.median().item(), "canonical": after.median().item(), "ratio": (after / before).median().item()}


def main(argv: list[str] | None = None) -> None:
    """Train, measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=2500, help="of the predictor; the networks take a fifth")
    parser.add_argument("--output", default="docs/results/shapes.md")
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    draw = torch.Generator().manual_seed(options.seed)
    images, labels = nested_shapes(400, SIZE, draw)
    data, fifth = {"image": images, "label": labels}, max(options.iterations // 5, 1)
    naive = train(_unet(), SegmentationStep(), data, fifth, options.seed)
    augmented = train(_unet(), SegmentationStep(1.0, options.seed), data, 2 * fifth, options.seed)
    with torch.no_grad():
        data["answer"] = torch.sigmoid(naive(images))
    family = ControlGrid(controls=8, steps=5)
    predictor = DeformationPredictor(family.num_parameters, image_size=(SIZE, SIZE), channels=(16, 32, 64), hidden=256)
    train(predictor, PredictorStep(family, seed=options.seed), data, options.iterations, options.seed)
    vae = train(EnergyVAE(image_size=(SIZE, SIZE), channels=(16, 32, 64, 64), latent=32), VAEStep(seed=options.seed), data, fifth, options.seed)
    energies = {"vae": _standardized(VAEEnergy(vae), images), "motion": _standardized(MotionEnergy(predictor, family), images)}
    energy = WeightedEnergy(energies)
    single = Canonicalizer(energy, family, predictor=predictor.double(), passes=3, max_rise=2.0)
    refine = Canonicalizer(WeightedEnergy(energies, level=0.0), family, DeformationRegularizer(100.0, 10.0), predictor, steps=30, passes=3,
                           max_rise=2.0)
    test = Films(*nested_shapes(100, SIZE, draw), tuple(f"shape{i}" for i in range(100)))
    rows = {"naive": plain(naive), "augmented": plain(augmented), "DiffeoNN refine": wrapped(naive, refine, 8),
            "DiffeoNN single pass": wrapped(naive, single, 8), "augmented + DiffeoNN": wrapped(augmented, single, 8)}
    parts, undeformed = [], {}
    for name in ("plain", "TPS/2", "TPS"):
        parts.append(f"## X_{'E' if name == 'plain' else 'TE'}: {name}, 100 shapes\n\n" + markdown_table(table(test, name, rows, undeformed)))
        print(parts[-1], flush=True)
    found = {mode: invariance(c, test.images[:20], 10) for mode, c in (("single pass", single), ("refine", refine))}
    lines = [{"mode": mode, "median of abs(E(g x) - E(x))": f"{f['deformed']:.2f}",
              "median of abs(E(can(g x)) - E(can(x)))": f"{f['canonical']:.2f}", "median ratio": f"{f['ratio']:.3f}"} for mode, f in found.items()]
    parts.append("## Invariance of the energy, 20 shapes, 10 deformations each\n\n" + markdown_table(lines))
    print(parts[-1])
    write_page(options.output, "Nested shapes", f"python -m monai_diffeo.experiments.shapes --seed {options.seed} --iterations "
               f"{options.iterations}", parts, options.seed)


if __name__ == "__main__":
    main()
