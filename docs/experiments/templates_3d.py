"""Template transformers on a real volume: ``python -m docs.experiments.templates_3d`` (needs ``nilearn`` installed).

Semi-synthetic: there is one brain, the MNI152 T1 template with its maps of grey and white matter, and every image is that brain under
another random diffeomorphism, with other grey values.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from monai.utils import optional_import
from torch import Tensor

from docs.experiments.films import Films
from docs.experiments.measures import dice_of
from docs.experiments.tables import command_text, markdown_table, write_page
from docs.experiments.template_recipes import Recipe, trained_template
from docs.experiments.templates import plain_masks, run_method, template_masks, timing
from docs.experiments.training import trained
from monai_diffeo.augmentation.deformations import random_svf
from monai_diffeo.flow import affine_deformation, compose, exp, folding_fraction, warp
from monai_diffeo.metrics import betti_numbers
from monai_diffeo.networks import ShapePrior, TemplateTransformer
from monai_diffeo.training import SegmentationStep

__all__ = ["brain", "deformed_brains", "mni_volumes"]

SIZE = (48, 56, 48)
SPACE: Mapping[str, Any] = {
    "pieces": 4,
    "control_size": (3, 4, 6, 8),
    "limit": (0.8, 0.6, 0.4, 0.3),
    "flow_size": 24,
    "steps": 5,
    "unshuffle": 2,
    "gain": 0.3,
}
CHANNELS = (16, 32, 64)


def mni_volumes() -> tuple[Tensor, Tensor]:
    """T1 and the sum of grey and white matter of the MNI152 template that ``nilearn`` ships, each ``(1, 1, 197, 233, 189)``, in [0, 1].

    Only the files are used; the package is not imported.

    Raises:
        FileNotFoundError: if nilearn is not installed.
    """
    nibabel, _ = optional_import("nibabel")
    try:
        files = {file.name: file for file in metadata.files("nilearn") or ()}
    except metadata.PackageNotFoundError:
        raise FileNotFoundError(
            "mni_volumes(): the volumes come with nilearn: pip install 'monai-diffeo[experiments]'."
        ) from None
    volumes = []
    for kind in ("t1", "gm", "wm"):
        path = files[f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"].locate()
        volumes.append(torch.from_numpy(np.asarray(nibabel.load(str(path)).dataobj).astype(np.float32))[None, None] / 255)
    return volumes[0], (volumes[1] + volumes[2]).clamp(max=1)


def brain(size: Sequence[int] = SIZE) -> tuple[Tensor, Tensor]:
    """T1 and a smooth brain map, above one half inside, each ``(1, 1, *size)``; the brain is one part without tunnels or cavities.

    The sum of the tissue maps is averaged onto the lattice, smoothed, and its ventricles and sulci are closed, so that a ball is the
    right template; what is left of the real brain is its outline.
    """
    ndimage, _ = optional_import("scipy.ndimage")
    t1, tissue = (F.interpolate(volume, tuple(size), mode="area") for volume in mni_volumes())
    solid = ndimage.gaussian_filter(tissue[0, 0].numpy(), 1.0) > 0.35
    solid = ndimage.binary_fill_holes(
        ndimage.binary_closing(np.pad(solid, 4), ndimage.generate_binary_structure(3, 1), iterations=3)
    )
    solid = solid[4:-4, 4:-4, 4:-4]
    soft = ndimage.gaussian_filter(solid.astype(np.float32), 0.7)
    return t1, torch.from_numpy(soft)[None, None]


def deformed_brains(
    count: int, generator: torch.Generator, strength: float = 1.0, size: Sequence[int] = SIZE
) -> dict[str, Tensor]:
    """The brain under random affine maps and smooth flows, none of which folds, with random contrast, shading and noise: ``image`` and
    ``label``, each (N, 1, *size)."""
    t1, soft = brain(size)
    images, labels = [], []
    for _ in range(count):
        matrix = torch.randn(1, 3, 4, generator=generator) * 0.08 * strength
        matrix[..., -1] = torch.randn(1, 3, generator=generator) * 2.0 * strength
        pose = affine_deformation(matrix, size).ddf()
        flow = exp(random_svf(1, size, generator, amplitude=0.1 * strength, sigma=0.1))
        ddf = compose(flow, pose)
        if folding_fraction(ddf) > 0:
            raise RuntimeError("deformed_brains(): a deformation folds; lower 'strength'.")
        image = warp(t1, ddf, padding_mode="zeros") ** math.exp(0.4 * torch.randn((), generator=generator).item())
        shading = F.interpolate(
            torch.randn(1, 1, 3, 3, 3, generator=generator), tuple(size), mode="trilinear", align_corners=True
        )
        noise = 0.05 * torch.randn(image.shape, generator=generator)
        images.append((image * (1 + 0.15 * shading) + noise).clamp(0, 1))
        labels.append((warp(soft, ddf, padding_mode="zeros") > 0.5).float())
    return {"image": torch.cat(images), "label": torch.cat(labels)}


def ball(trained: Sequence[str] = ()) -> ShapePrior:
    """A centred ellipsoid with half-axes of half the frame, as in the paper."""
    return ShapePrior([[0.0, 0.0, 0.0]], [[0.5, 0.5, 0.5]], 1.0, "diagonal", trained)


def recipes(epochs: int) -> dict[str, Recipe]:
    """The template transformers of the table."""
    shared = {"epochs": epochs, "channels": CHANNELS, "batch_size": 2}
    alone = {"folding_fraction": 0.0}
    everything = ("mean", "covariance", "beta")
    return {
        "template, no diffeomorphism (Lee et al.)": Recipe(
            lambda _: ball(),
            {**SPACE, "diffeomorphic": False, "control_size": None, "flow_size": 24, "limit": 0.5},
            alone,
            **shared,
        ),
        "the same fields as ours, added and not integrated": Recipe(
            lambda _: ball(everything), {**SPACE, "diffeomorphic": False}, alone, **shared
        ),
        "diffeomorphic template, fixed prior": Recipe(lambda _: ball(), SPACE, **shared),
        "diffeomorphic template, trained prior": Recipe(lambda _: ball(everything), SPACE, **shared),
        "diffeomorphic template, prior fitted to the masks, then trained": Recipe(
            lambda labels: ShapePrior.from_masks(labels, "diagonal", everything, 1.0), SPACE, **shared
        ),
    }


def direct_network() -> UNet:
    """The U-Net that answers directly, of the templates' width."""
    return UNet(3, 1, 1, CHANNELS, (2, 2), num_res_units=2)


def _row(name: str, row: Mapping[str, Tensor], spacing: float) -> dict[str, str]:
    out = {
        "method": name,
        "Dice": f"{row['dice'].mean():.4f} ± {row['dice'].std():.4f}",
        "Hausdorff, mm": f"{spacing * row['hausdorff'].mean():.1f} ± {spacing * row['hausdorff'].std():.1f}",
        "components": f"{row['components'].mean():.2f}",
        "exactly 1": f"{row['exact'].mean():.0%}",
        "tunnels": f"{row['holes'].mean():.2f}",
        "cavities": f"{row['cavities'].mean():.2f}",
        "folds": "",
        "guard": "",
    }
    if "folding_fraction" in row:
        out |= {
            "folds": f"{100 * row['folding_fraction'].mean():.3f} %",
            "not proved fold-free": f"{row['broken'].mean():.0%} of volumes",
            "guard": f"{row['acted'].mean():.0%}" if "acted" in row else "",
        }
    return out


def fit(network: TemplateTransformer, data: Mapping[str, Tensor]) -> dict[str, str]:
    """How a template fits volumes that it was trained on, and whether its limits hold it back."""
    with torch.no_grad():
        result = network.segment(data["image"])
    masks = (result.log_odds > 0).float()
    largest = result.velocity.abs().amax(dim=(0, *range(2, result.velocity.ndim))) / ((network.flow_size - 1) / 2)
    used = ", ".join(f"{share / limit:.0%}" for share, limit in zip(largest.tolist(), network.limit))
    return {
        "Dice": f"{dice_of(masks, data['label']).mean():.4f}",
        "volume of the answers to the labels'": f"{masks.sum() / data['label'].sum():.2f}",
        "largest velocity of each piece, of its limit": used,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=24, help="deformed brains to train on")
    parser.add_argument("--test", type=int, default=24, help="deformed brains to test on, the same at both strengths")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--weights_dir", default="runs/templates_3d", help="folder of weights that this experiment trains")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="docs/results/templates_3d.md")
    options = parser.parse_args(argv)
    data = deformed_brains(options.train, torch.Generator().manual_seed(options.seed))
    # the same random numbers for both strengths
    tests = {
        name: deformed_brains(options.test, torch.Generator().manual_seed(options.seed + 1), strength)
        for name, strength in (("as in training", 1.0), ("1.5 times as strong", 1.5))
    }
    numbers = betti_numbers(brain()[1][0, 0].numpy() > 0.5)
    truths = [betti_numbers(label[0].numpy()) for test in tests.values() for label in test["label"]]
    weights = Path(options.weights_dir) / f"direct_{options.train}_{options.epochs}_{options.seed}.pt"
    direct = trained(
        weights,
        direct_network,
        SegmentationStep(seed=options.seed),
        data,
        options.epochs * (options.train // 2),
        options.seed,
        2,
    )
    methods = {"U-Net": plain_masks(direct), "U-Net, largest part": plain_masks(direct, 1)}
    networks = {}
    for name, recipe in recipes(options.epochs).items():
        networks[name], seconds = trained_template(f"{name}, {options.train}", recipe, data, options.weights_dir, options.seed)
        print(f"{name}: {seconds:.0f} CPU s, beta {networks[name].prior.beta.tolist()}", flush=True)
        methods[name] = template_masks(networks[name], None if networks[name].diffeomorphic else False)
        if networks[name].diffeomorphic:
            methods[f"{name}, guard off"] = template_masks(networks[name], False)
    spacing = float(np.mean([whole / n for whole, n in zip((197, 233, 189), SIZE)]))
    parts = [
        "**Semi-synthetic**: one real brain, the MNI152 T1 template with its grey- and white-matter maps that the PyPI package `nilearn` ships, averaged to "
        f"{'x'.join(map(str, SIZE))} voxels of about {spacing:.1f} mm; its tissue is closed to a solid ball-like shape (Betti numbers {numbers}). Every image is "
        "this brain under another random affine map and smooth flow, with another contrast, shading and noise; none folds. The networks therefore know the "
        f"subject, and the table compares methods, not anatomy. {sum(t == (1, 0, 0) for t in truths)} of the {len(truths)} deformed labels are one part "
        "without tunnels or cavities on this lattice.\n\n"
        f"All networks: {options.train} training volumes, {options.epochs} epochs, Dice and cross entropy, one seed. Components with neighbours across faces, "
        "*exactly 1* across edges and corners too. The template is an ellipsoid that nobody fitted, with half-axes of half the frame, beta 1, but in "
        "the last rows, where it begins with the training masks' mean and extent. *Folds*: share of voxels by central differences; *not proved fold-free*: "
        "volumes with a cell whose trilinear map might fold (a Bernstein coefficient of its determinant is not positive), after the guard. All are short "
        "trainings. Limits and gain were chosen on eight volumes of seed 777, shorter trained."
    ]
    for name, test in tests.items():
        films = Films(test["image"], test["label"], tuple(str(i) for i in range(options.test)))
        rows = [_row(method, run_method(run, films, 2, 1), spacing) for method, run in methods.items()]
        parts.append(f"## {options.test} brains deformed {name}\n\n" + markdown_table(rows))
        print(parts[-1], flush=True)
    some = {key: values[:6] for key, values in data.items()}
    parts.append(
        "## Six of the training volumes\n\nWhere the fit is no better here than above, more volumes would not help; velocities near their limits and "
        "answers that are too small point to the limits and to the start.\n\n"
        + markdown_table([{"method": name, **fit(net, some)} for name, net in networks.items() if net.diffeomorphic])
    )
    ours = networks["diffeomorphic template, trained prior"]
    seconds = timing(
        {
            "U-Net": direct,
            "non-diffeomorphic": networks["template, no diffeomorphism (Lee et al.)"],
            "four fields, guarded": ours,
        },
        data["image"][:1],
        10,
    )
    parts.append(
        "## Inference time\n\nMedians of this thread's CPU time, one volume, networks taking turns.\n\n"
        + markdown_table(
            [{"method": k, "seconds a volume": f"{v:.3f}", "ratio": f"{v / seconds['U-Net']:.2f}"} for k, v in seconds.items()]
        )
    )
    print(parts[-1])
    write_page(
        options.output,
        "Template transformers on a real volume",
        command_text("templates_3d", parser, options),
        parts,
        options.seed,
    )


if __name__ == "__main__":
    main()
