"""Template transformers on a real volume: one brain, the MNI152 template, under random maps and grey values."""

import copy
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from scipy import ndimage
from torch import Tensor, nn

from bundles.brain_3d.scripts.brains import nilearn_volumes
from docs.experiments.film_data import Films
from docs.experiments.measures import dice_of
from docs.experiments.pages import Experiment, judged, note, section
from docs.experiments.template_recipes import EVERYTHING, Recipe, Settings, logged, trained_template
from docs.experiments.templates import Masker, plain_masks, plus_minus, run_method, template_masks, timing
from docs.experiments.training import trained
from monai_diffeo.augmentation import random_svf
from monai_diffeo.flow import affine_deformation, compose, exp, folding_fraction, warp
from monai_diffeo.flow.warp import sample
from monai_diffeo.metrics import betti_numbers
from monai_diffeo.networks import AtlasPrior, SegmentThenRegister, ShapePrior, TemplateTransformer
from monai_diffeo.networks.template.prior import relative_grid
from monai_diffeo.training import SegmentationStep

SIZE, CHANNELS = (48, 56, 48), (16, 32, 64)
_SIZES: Settings = {"control_size": (3, 4, 6, 8), "limit": (0.8, 0.6, 0.4, 0.3)}
ROUNDS = 8  # every training volume is answered so often for the registration
LONGER = 20
BIAS = -1.5  # of the direct answer's log-odds where they are uncertain
CALMER: Settings = {"gain": 0.45, "limit": (0.8, 0.8, 0.8, 0.1)}  # of the registration after its training
LONG, OURS = f"U-Net, trained {LONGER} times as long", "U-Net, then the mean shape registered to its answer"
SPACE: Settings = {"pieces": 4, **_SIZES, "flow_size": 24, "steps": 5, "unshuffle": 2, "gain": 0.3}


def brain() -> tuple[Tensor, Tensor]:
    """T1 and a smooth map, above one half inside a solid brain without ventricles and sulci, each ``(1, 1, *SIZE)``."""
    t1, grey, white = (torch.from_numpy(volume)[None, None] for volume in nilearn_volumes())
    t1, tissue = (F.interpolate(volume, SIZE, mode="area") for volume in (t1, (grey + white).clamp(max=1)))
    solid, cross = ndimage.gaussian_filter(tissue[0, 0].numpy(), 1.0) > 0.35, ndimage.generate_binary_structure(3, 1)
    solid = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(solid, 4), cross, iterations=3))[4:-4, 4:-4, 4:-4]
    return t1, torch.from_numpy(ndimage.gaussian_filter(solid.astype(np.float32), 0.7))[None, None]


def random_map(generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Displacement of a random affine map after a random flow, ``(1, 3, *SIZE)``, voxels; it does not fold."""
    matrix = torch.randn(1, 3, 4, generator=generator) * 0.08 * strength
    matrix[..., -1] = torch.randn(1, 3, generator=generator) * 2.0 * strength
    pose = affine_deformation(matrix, SIZE).ddf()
    ddf = compose(exp(random_svf(1, SIZE, generator, amplitude=0.1 * strength, sigma=0.1)), pose)
    if folding_fraction(ddf) > 0:
        raise RuntimeError("random_map(): the map folds; lower 'strength'.")
    return ddf


def deformed_brains(count: int, generator: torch.Generator, strength: float = 1.0, volumes=None) -> dict[str, Tensor]:
    """The brain under random maps that do not fold, with random grey values: ``image`` and ``label``, (N, 1, *SIZE).

    ``volumes``: what :func:`brain` gives, if it was called before.
    """
    (t1, soft), images, labels = volumes or brain(), [], []
    for _ in range(count):
        ddf = random_map(generator, strength)
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


def aligned(labels: Tensor) -> Tensor:
    """Masks ``(N, 1, *S)`` under affine maps that give all of them the same centre and second moments, soft at their edges.

    Their mean keeps thin parts that the mean of masks in different poses has lost.
    """
    size, common, masks = labels.shape[2:], ShapePrior.from_masks(labels, "full"), []
    half, points = torch.tensor([(n - 1) / 2 for n in size]), relative_grid(size)[0].flatten(1)
    for label in labels.split(1):
        own = ShapePrior.from_masks(label, "full")
        where = own.mean.T + _root(own) @ torch.linalg.solve(_root(common), points - common.mean.T)
        masks.append(sample(label, ((where.T + 1) * half).T.reshape(1, 3, *size), padding_mode="zeros"))
    return torch.cat(masks)


def _root(prior: ShapePrior) -> Tensor:
    """The symmetric square root of the first shape's covariance."""
    values, vectors = torch.linalg.eigh(prior.covariance[0])
    return vectors @ values.sqrt().diag() @ vectors.T


def _aligned_mean(labels: Tensor) -> AtlasPrior:
    return AtlasPrior.from_masks(aligned(labels), smooth=0.7)


def recipes(epochs: int) -> dict[str, Recipe]:
    """The template transformers of the table."""
    shared, added = {"epochs": epochs, "channels": CHANNELS, "batch_size": 2}, {**SPACE, "diffeomorphic": False}
    single = {**added, "control_size": None, "flow_size": 24, "limit": 0.5}
    rows = {
        "template, no diffeomorphism (Lee et al.)": (lambda _: ball(), single, {"folding": 0.0}),
        "the same fields as ours, added and not integrated": (lambda _: ball(EVERYTHING), added, {"folding": 0.0}),
        "diffeomorphic template, fixed prior": (lambda _: ball(), SPACE),
        "diffeomorphic template, trained prior": (lambda _: ball(EVERYTHING), SPACE),
    }
    return {name: Recipe(*row, **shared) for name, row in rows.items()}


@dataclass(frozen=True)
class Registration(Recipe):
    """One network without normalisation that registers a shape to log-odds, which take the place of the image.

    It is asked several times, and each time sees what is left to do. A direct network may be set before it afterwards.
    """

    passes: int = 3
    strides: tuple[int, ...] = (2, 2)

    def build(self, labels: Tensor) -> TemplateTransformer:
        """The network before training, behind an identity in the place of the segmentation."""
        dims, unshuffle = labels.ndim - 2, 2
        seen = 2 * labels.shape[1] * unshuffle**dims
        network = UNet(dims, seen, dims, self.channels, self.strides, norm=None, act="RELU")
        backbone = SegmentThenRegister(nn.Identity(), [network] * self.passes, unshuffle=unshuffle)
        return TemplateTransformer(backbone, self.prior(labels), pieces=self.passes, **self.settings)


def direct_answers(direct: nn.Module, data: Mapping[str, Tensor], rounds: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The direct network's log-odds on volumes, as they are and under ``rounds - 1`` random maps each, with their labels."""
    odds, labels = [], []
    with torch.no_grad():
        for turn in range(rounds):
            for image, label in zip(data["image"].split(1), data["label"].split(1)):
                if turn:
                    ddf = random_map(generator)
                    image, label = (warp(volume, ddf, padding_mode="zeros") for volume in (image, label))
                odds.append(direct(image))
                labels.append((label > 0.5).float())
    return {"image": torch.cat(odds), "label": torch.cat(labels)}


def after(direct: nn.Module, registration: TemplateTransformer) -> TemplateTransformer:
    """The registration behind a network that answers directly, with the settings that it has after its training."""
    network = copy.deepcopy(registration)
    network.gain, network.limit = CALMER["gain"], CALMER["limit"]
    network.backbone.segmentation, network.backbone.uncertainty_bias = direct, BIAS
    return network


def registrations(epochs: int) -> tuple[Registration, Registration]:
    """The two parts of the training of the registration: the second begins with the weights of the first."""
    settings = {"control_size": (6, 10, 14, 18), "limit": 0.8, "flow_size": 24, "steps": 4, "gain": 0.5}
    network = {"channels": (16, 32, 64, 64), "passes": 4, "strides": (1, 2, 2)}
    step: Settings = {"direct": 0.0, "outline": 1.0, "outline_points": 1000}
    first = Registration(_aligned_mean, settings, step, epochs, batch_size=4, rate=4e-3, **network)
    smoother = {**settings, "limit": (0.8, 0.8, 0.8, 0.3)}, {**step, "folding": 100.0, "margin": 0.4, "power": 12.0}
    return first, Registration(_aligned_mean, *smoother, math.ceil(epochs / 12), batch_size=2, rate=8e-4, **network)


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


def figures(ours: Mapping[str, Tensor], direct: Mapping[str, Tensor], spacing: float) -> list[dict[str, str]]:
    """What was asked of a template, against the network that answers directly."""
    gap = (ours["dice"] - direct["dice"]).mean().item()
    near, far = (spacing * row["hausdorff"].mean().item() for row in (ours, direct))
    whole = (ours["exact"] == 1) & (ours["holes"] == 0) & (ours["cavities"] == 0)
    acted, folded = ours["acted"].mean().item(), int(((ours["folding_fraction"] > 0) | (ours["broken"] > 0)).sum())
    return [
        judged("Dice against the U-Net's", "at most 0.005 below", f"{gap:+.4f}", gap >= -0.005),
        judged("Hausdorff distance, mm", f"below the U-Net's {far:.1f}", f"{near:.1f}", near < far),
        judged("guard", "acts on at most 10 % of volumes", f"{acted:.0%}", acted <= 0.1),
        judged(
            "one part, no tunnels, no cavities", "in all volumes", f"in {int(whole.sum())} of {len(whole)}", bool(whole.all())
        ),
        judged("volumes that are folded, or not proved fold-free", "0", str(folded), folded == 0),
    ]


def _spent(log: Mapping[str, Any]) -> dict[str, str]:
    return {"seconds": f"{log['seconds']:.0f}", "CPU seconds": f"{log['cpu_seconds']:.0f}"}


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


Networks = dict[str, Any]  # a U-Net or a template transformer by its row


def trained_methods(options: Namespace, data: Mapping[str, Tensor]) -> tuple[Networks, list[dict[str, Any]]]:
    """The U-Nets and the templates, in the order of the tables, and the logs of their training."""
    step, folder, shared = SegmentationStep(seed=options.seed), Path(options.weights_dir), {"device": options.device}
    networks, logs = Networks(), []

    def add(name: str, found: tuple[nn.Module, dict[str, Any]]) -> nn.Module:
        networks[name], log = found
        logs.append({**log, "name": name})
        return networks[name]

    for name, epochs in {"U-Net": options.epochs, LONG: LONGER * options.epochs}.items():
        stem, iterations = folder / f"direct_{options.train}_{epochs}_{options.seed}", epochs * (options.train // 2)
        build = stem.with_suffix(".pt"), direct_network, step, data, iterations, options.seed
        add(name, logged(stem, name, iterations, options.device, partial(trained, *build, batch_size=2, **shared)))
    for name, recipe in recipes(options.epochs).items():
        add(name, trained_template(f"{name}, {options.train}", recipe, data, folder, options.seed, **shared))
    answers = direct_answers(networks["U-Net"], data, ROUNDS, torch.Generator().manual_seed(options.seed + 2))
    (recipe, longer), name = registrations(options.epochs), f"{OURS}, {options.train}"
    begun, log = trained_template(name, recipe, answers, folder, options.seed, **shared)
    logs.append({**log, "name": f"{OURS}, first part"})
    found = trained_template(name, longer, answers, folder, options.seed, before=(recipe, begun), **shared)
    registered, behind = add(OURS, found), {OURS: "U-Net", f"{LONG}, then the same registration": LONG}
    logs[-1]["name"] = f"{OURS}, second part"
    networks |= {name: after(networks[direct], registered) for name, direct in behind.items()}
    return networks, logs


def maskers(networks: Networks) -> dict[str, Masker]:
    """The rows of the tables; a diffeomorphic template stands there without its guard, too."""
    methods = {}
    for name, network in networks.items():
        if not isinstance(network, TemplateTransformer):
            methods |= {name: plain_masks(network), f"{name}, largest part": plain_masks(network, 1)}
        elif network.diffeomorphic:
            methods |= {name: template_masks(network), f"{name}, guard off": template_masks(network, False)}
        else:
            methods[name] = template_masks(network, False)
    return methods


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure and write the page; ``--volumes`` is a file with what :func:`brain` gives, where ``nilearn`` is not."""
    defaults = {"train": 24, "test": 24, "epochs": 24, "weights_dir": "runs/templates_3d", "seed": 0}
    defaults |= {"device": "cpu", "volumes": str, "only_train": False}
    experiment = Experiment("templates_3d", __doc__, argv, **defaults)
    options = experiment.options
    volumes = brain() if options.volumes is None else torch.load(options.volumes)
    data = deformed_brains(options.train, torch.Generator().manual_seed(options.seed), volumes=volumes)
    networks, logs = trained_methods(options, data)
    if options.only_train:
        return
    methods = maskers(networks)
    strengths = {"as in training": 1.0, "1.5 times as strong": 1.5}  # of the same random numbers
    draws = {name: (torch.Generator().manual_seed(options.seed + 1), strength) for name, strength in strengths.items()}
    tests = {name: deformed_brains(options.test, *draw, volumes) for name, draw in draws.items()}
    truths = [betti_numbers(label[0].numpy()) for test in tests.values() for label in test["label"]]
    spacing = float(np.mean([whole / n for whole, n in zip((197, 233, 189), SIZE)]))
    values = {"size": "x".join(map(str, SIZE)), "spacing": spacing, "numbers": betti_numbers(volumes[1][0, 0].numpy() > 0.5)}
    values |= {"whole": sum(numbers == (1, 0, 0) for numbers in truths), "labels": len(truths)}
    values |= {"ours": OURS, "rounds": ROUNDS - 1, "longer": LONGER, "passes": registrations(0)[0].passes}
    values |= {"bias": BIAS, "calmer": CALMER, "second": registrations(0)[1].settings}
    text, asked, training, six, inference = note("templates_3d", options=options, **values)
    parts, judgements = [], []
    for name, test in tests.items():
        films = Films(test["image"], test["label"], tuple(str(i) for i in range(options.test)))
        measured = {method: run_method(run, films, 2, 1) for method, run in methods.items()}
        judgements.append(figures(measured[OURS], measured["U-Net"], spacing))
        rows = [_row(method, row, spacing) for method, row in measured.items()]
        parts.append(section(f"## {options.test} brains deformed {name}", rows))
    some = {key: images[:6] for key, images in data.items()}
    fits = [{"method": name, **fitted(net, some)} for name, net in networks.items() if getattr(net, "diffeomorphic", False)]
    logs = [{"network": log["name"], "iterations": log["iterations"], "on": log["device"], **_spent(log)} for log in logs]
    parts = [text, section(asked, judgements[0]), *parts, section(training, logs)]
    timed = ("U-Net", "template, no diffeomorphism (Lee et al.)", "diffeomorphic template, trained prior", OURS)
    turns = {name: networks[name] for name in timed}
    seconds = timing(turns, data["image"][:1], 10)
    times = [{"method": k, "seconds a volume": f"{v:.3f}", "ratio": f"{v / seconds['U-Net']:.2f}"} for k, v in seconds.items()]
    parts += [section(six, fits), section(inference, times)]
    experiment.write("Template transformers on a real volume", parts, options.seed)


if __name__ == "__main__":
    main()
