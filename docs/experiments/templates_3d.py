"""Template transformers on a real volume: one brain, the MNI152 template, under random maps and grey values."""

import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from scipy import ndimage
from torch import Tensor

from docs.experiments.film_data import Films
from docs.experiments.measures import dice_of
from docs.experiments.pages import Experiment, note, section
from docs.experiments.template_recipes import EVERYTHING, Recipe, Settings, trained_template
from docs.experiments.templates import plain_masks, plus_minus, run_method, template_masks, timing
from docs.experiments.training import trained
from monai_diffeo.augmentation import random_svf
from monai_diffeo.flow import affine_deformation, compose, exp, folding_fraction, warp
from monai_diffeo.metrics import betti_numbers
from monai_diffeo.networks import ShapePrior, TemplateTransformer
from monai_diffeo.training import SegmentationStep

SIZE, CHANNELS = (48, 56, 48), (16, 32, 64)
_SIZES: Settings = {"control_size": (3, 4, 6, 8), "limit": (0.8, 0.6, 0.4, 0.3)}
SPACE: Settings = {"pieces": 4, **_SIZES, "flow_size": 24, "steps": 5, "unshuffle": 2, "gain": 0.3}


def mni_volumes() -> tuple[Tensor, Tensor]:
    """T1, and grey plus white matter, of the MNI152 template, ``(1, 1, 197, 233, 189)``, in [0, 1]; files of ``nilearn``."""
    try:
        files = {file.name: file for file in metadata.files("nilearn") or ()}
    except metadata.PackageNotFoundError:
        message = "mni_volumes(): the volumes come with nilearn: pip install 'monai-diffeo[experiments]'."
        raise FileNotFoundError(message) from None
    volumes = []
    for kind in ("t1", "gm", "wm"):
        path = files[f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"].locate()
        volumes.append(torch.from_numpy(np.asarray(nibabel.load(str(path)).dataobj).astype(np.float32))[None, None] / 255)
    return volumes[0], (volumes[1] + volumes[2]).clamp(max=1)


def brain() -> tuple[Tensor, Tensor]:
    """T1 and a smooth map, above one half inside a solid brain without ventricles and sulci, each ``(1, 1, *SIZE)``."""
    t1, tissue = (F.interpolate(volume, SIZE, mode="area") for volume in mni_volumes())
    solid, cross = ndimage.gaussian_filter(tissue[0, 0].numpy(), 1.0) > 0.35, ndimage.generate_binary_structure(3, 1)
    solid = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(solid, 4), cross, iterations=3))[4:-4, 4:-4, 4:-4]
    return t1, torch.from_numpy(ndimage.gaussian_filter(solid.astype(np.float32), 0.7))[None, None]


def deformed_brains(count: int, generator: torch.Generator, strength: float = 1.0) -> dict[str, Tensor]:
    """The brain under random maps that do not fold, with random grey values: ``image`` and ``label``, (N, 1, *SIZE)."""
    (t1, soft), images, labels = brain(), [], []
    for _ in range(count):
        matrix = torch.randn(1, 3, 4, generator=generator) * 0.08 * strength
        matrix[..., -1] = torch.randn(1, 3, generator=generator) * 2.0 * strength
        pose = affine_deformation(matrix, SIZE).ddf()
        ddf = compose(exp(random_svf(1, SIZE, generator, amplitude=0.1 * strength, sigma=0.1)), pose)
        if folding_fraction(ddf) > 0:
            raise RuntimeError("deformed_brains(): a deformation folds; lower 'strength'.")
        image = warp(t1, ddf, padding_mode="zeros") ** math.exp(0.4 * torch.randn((), generator=generator).item())
        shading = torch.randn(1, 1, 3, 3, 3, generator=generator)
        shading = F.interpolate(shading, SIZE, mode="trilinear", align_corners=True)
        noise = 0.05 * torch.randn(image.shape, generator=generator)
        images.append((image * (1 + 0.15 * shading) + noise).clamp(0, 1))
        labels.append((warp(soft, ddf, padding_mode="zeros") > 0.5).float())
    return {"image": torch.cat(images), "label": torch.cat(labels)}


def ball(trained: Sequence[str] = ()) -> ShapePrior:
    """A centred ellipsoid with half-axes of half the frame, as in the paper."""
    return ShapePrior([[0.0, 0.0, 0.0]], [[0.5, 0.5, 0.5]], 1.0, "diagonal", trained)


def _fitted_prior(labels: Tensor) -> ShapePrior:
    return ShapePrior.from_masks(labels, "diagonal", EVERYTHING, 1.0)


def recipes(epochs: int) -> dict[str, Recipe]:
    """The template transformers of the table."""
    shared, added = {"epochs": epochs, "channels": CHANNELS, "batch_size": 2}, {**SPACE, "diffeomorphic": False}
    single = {**added, "control_size": None, "flow_size": 24, "limit": 0.5}
    rows = {
        "template, no diffeomorphism (Lee et al.)": (lambda _: ball(), single, {"folding": 0.0}),
        "the same fields as ours, added and not integrated": (lambda _: ball(EVERYTHING), added, {"folding": 0.0}),
        "diffeomorphic template, fixed prior": (lambda _: ball(), SPACE),
        "diffeomorphic template, trained prior": (lambda _: ball(EVERYTHING), SPACE),
        "diffeomorphic template, prior fitted to the masks, then trained": (_fitted_prior, SPACE),
    }
    return {name: Recipe(*row, **shared) for name, row in rows.items()}


def direct_network() -> UNet:
    """The U-Net that answers directly, of the templates' width."""
    return UNet(3, 1, 1, CHANNELS, (2, 2), num_res_units=2)


def _row(name: str, row: Mapping[str, Tensor], spacing: float) -> dict[str, str]:
    out = {"method": name, "Dice": plus_minus(row["dice"], 4), "Hausdorff, mm": plus_minus(spacing * row["hausdorff"], 1)}
    out |= {"components": f"{row['components'].mean():.2f}", "exactly 1": f"{row['exact'].mean():.0%}"}
    out |= {"tunnels": f"{row['holes'].mean():.2f}", "cavities": f"{row['cavities'].mean():.2f}", "folds": "", "guard": ""}
    if "folding_fraction" in row:
        out["folds"] = f"{100 * row['folding_fraction'].mean():.3f} %"
        out["not proved fold-free"] = f"{row['broken'].mean():.0%} of volumes"
        out["guard"] = f"{row['acted'].mean():.0%}" if "acted" in row else ""
    return out


def fitted(network: TemplateTransformer, data: Mapping[str, Tensor]) -> dict[str, str]:
    """How a template fits volumes that it was trained on, and whether its limits hold it back."""
    with torch.no_grad():
        result = network.segment(data["image"])
    masks = (result.log_odds > 0).float()
    largest = result.velocity.abs().amax(dim=(0, *range(2, result.velocity.ndim))) / ((network.flow_size - 1) / 2)
    used = ", ".join(f"{share / limit:.0%}" for share, limit in zip(largest.tolist(), network.limit))
    row = {"Dice": f"{dice_of(masks, data['label']).mean():.4f}"}
    row["volume of the answers to the labels'"] = f"{masks.sum() / data['label'].sum():.2f}"
    return row | {"largest velocity of each piece, of its limit": used}


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure and write the page."""
    defaults = {"train": 24, "test": 24, "epochs": 24, "weights_dir": "runs/templates_3d", "seed": 0}
    experiment = Experiment("templates_3d", __doc__, argv, **defaults)
    options = experiment.options
    data = deformed_brains(options.train, torch.Generator().manual_seed(options.seed))
    strengths = {"as in training": 1.0, "1.5 times as strong": 1.5}  # of the same random numbers
    draws = {name: (torch.Generator().manual_seed(options.seed + 1), strength) for name, strength in strengths.items()}
    tests = {name: deformed_brains(options.test, *draw) for name, draw in draws.items()}
    truths = [betti_numbers(label[0].numpy()) for test in tests.values() for label in test["label"]]
    weights = Path(options.weights_dir) / f"direct_{options.train}_{options.epochs}_{options.seed}.pt"
    iterations = options.epochs * (options.train // 2)
    step = SegmentationStep(seed=options.seed)
    direct = trained(weights, direct_network, step, data, iterations, options.seed, batch_size=2)
    methods, networks = {"U-Net": plain_masks(direct), "U-Net, largest part": plain_masks(direct, 1)}, {}
    for name, recipe in recipes(options.epochs).items():
        network, _ = trained_template(f"{name}, {options.train}", recipe, data, options.weights_dir, options.seed)
        networks[name], methods[name] = network, template_masks(network, None if network.diffeomorphic else False)
        if network.diffeomorphic:
            methods[f"{name}, guard off"] = template_masks(network, False)
    spacing = float(np.mean([whole / n for whole, n in zip((197, 233, 189), SIZE)]))
    values = {"size": "x".join(map(str, SIZE)), "spacing": spacing, "numbers": betti_numbers(brain()[1][0, 0].numpy() > 0.5)}
    values |= {"whole": sum(numbers == (1, 0, 0) for numbers in truths), "labels": len(truths)}
    text, six, inference = note("templates_3d", options=options, **values)
    parts = [text]
    for name, test in tests.items():
        films = Films(test["image"], test["label"], tuple(str(i) for i in range(options.test)))
        rows = [_row(method, run_method(run, films, 2, 1), spacing) for method, run in methods.items()]
        parts.append(section(f"## {options.test} brains deformed {name}", rows))
    some = {key: images[:6] for key, images in data.items()}
    fits = [{"method": name, **fitted(net, some)} for name, net in networks.items() if net.diffeomorphic]
    ours, non = networks["diffeomorphic template, trained prior"], networks["template, no diffeomorphism (Lee et al.)"]
    turns = {"U-Net": direct, "non-diffeomorphic": non, "four fields, guarded": ours}
    seconds = timing(turns, data["image"][:1], 10)
    times = [{"method": k, "seconds a volume": f"{v:.3f}", "ratio": f"{v / seconds['U-Net']:.2f}"} for k, v in seconds.items()]
    parts += [section(six, fits), section(inference, times)]
    experiment.write("Template transformers on a real volume", parts, options.seed)


if __name__ == "__main__":
    main()
