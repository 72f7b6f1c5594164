"""The template transformers that the tables compare: how each is built and trained, and its weights kept in a folder."""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.networks.nets import UNet
from torch import Tensor, nn

from docs.experiments.film_data import lung_unet
from docs.experiments.training import trained
from monai_diffeo.networks import ShapePrior, TemplatePrior, TemplateTransformer, load_weights
from monai_diffeo.training import SegmentationStep, TemplateStep

Network = TypeVar("Network", bound=nn.Module)
Settings = Mapping[str, Any]
Data = Mapping[str, Tensor]
Parts = Sequence[tuple[int, Settings]]
EVERYTHING = ("mean", "covariance", "beta")  # of a prior
VERSION = 1  # of what a training is, so that weights kept from another are not taken up
SHORT = 8  # epochs of every row that only the comparison trains; the bundles' networks train longer
# velocities from coarse to fine, composed: the method that the rows of a comparison share
_SIZES: Settings = {"control_size": (4, 8, 16, 24), "limit": (0.4, 0.2, 0.1, 0.07)}
SMOOTH: Settings = {"pieces": 4, **_SIZES, "flow_size": 64, "steps": 5, "unshuffle": 2}
# four velocities at every voxel, limited at 256 voxels as in the paper, summed by the series to order 2, no guard
_SIZES = {"control_size": None, "limit": 4.0}
PUBLISHED: Settings = {"pieces": 4, **_SIZES, "flow_size": None, "steps": 7, "order": 2, "guard": False}
# parts of the training of the U-Net that is trained long: epochs, and how films are varied
VARIED: Parts = (
    (205, {"strength": 1.0, "intensity": 1.0, "framing_share": 0.35}),
    (75, {"strength": 1.0, "intensity": 1.0, "framing_share": 0.5, "opacities": 0.75}),
)


def bundle_template(bundle: str | Path, weights: bool = True, **changes: Any) -> TemplateTransformer:
    """The bundle's template transformer, in eval mode, as its ``inference.json`` says, with ``changes`` of its settings."""
    parser = ConfigParser(ConfigParser.load_config_file(str(Path(bundle) / "configs" / "inference.json")))
    parser["network_def"].update(changes)
    parser["first_pass"]["out_channels"] = 2 * (parser["network_def"]["pieces"] // 2)  # each pass finds half of the velocities
    network = parser.get_parsed_content("network_def").eval()
    return load_weights(network, Path(bundle) / "models" / "model.pt") if weights else network


def guessed_lungs(kind: str = "diagonal", trained: tuple[str, ...] = (), beta: float = 1.0) -> ShapePrior:
    """Two ellipses side by side that nobody fitted: each in the middle of its half, half as wide and as high as it."""
    return ShapePrior([[0.0, -0.5], [0.0, 0.5]], [[0.5, 0.25], [0.5, 0.25]], beta, kind, trained)


@dataclass(frozen=True)
class Recipe:
    """One template transformer, and its training."""

    prior: Callable[[Tensor], TemplatePrior]  # from training masks (N, K, *S)
    settings: Settings = field(default_factory=lambda: SMOOTH)  # of the TemplateTransformer
    step: Settings = field(default_factory=dict)  # of the TemplateStep
    epochs: int = 20
    size: int | None = None  # of the frame that it works on, along each axis; None is the data's
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)  # of the backbone
    batch_size: int = 8
    rate: float = 2e-3

    def build(self, labels: Tensor) -> TemplateTransformer:
        """The network before training, on a U-Net that sees one image channel."""
        prior, unshuffle = self.prior(labels), self.settings.get("unshuffle", 1)
        dims, strides = prior.spatial_dims, (1 if unshuffle > 1 else 2, *(2,) * (len(self.channels) - 2))
        seen, found = unshuffle**dims + prior.num_shapes, self.settings["pieces"] * dims
        return TemplateTransformer(UNet(dims, seen, found, self.channels, strides, num_res_units=2), prior, **self.settings)


def _ablation(kind: str, *trained: str, **settings: Any) -> Recipe:
    smaller = {"flow_size": 32, "control_size": (4, 8, 12, 16), "limit": (0.4, 0.2, 0.13, 0.1), "unshuffle": 1}
    settings = {**SMOOTH, **smaller, **settings}
    return Recipe(lambda _: guessed_lungs(kind, trained), settings, epochs=6, size=64, channels=(16, 32, 64, 128))


ABLATION: Mapping[str, Recipe] = {
    "fixed prior": _ablation("diagonal"),
    "train mu": _ablation("diagonal", "mean"),
    "train scale (Sigma = s² I)": _ablation("isotropic", "covariance"),
    "train diag(Sigma)": _ablation("diagonal", "covariance"),
    "train mu + s²": _ablation("isotropic", "mean", "covariance"),
    "train mu + diag(Sigma)": _ablation("diagonal", "mean", "covariance"),
    "train mu + diag(Sigma) + beta": _ablation("diagonal", *EVERYTHING),
    "train mu + full Sigma + beta (ours)": _ablation("full", *EVERYTHING),
    "ours, fields added and not integrated": _ablation("full", *EVERYTHING, diffeomorphic=False),
}
_plain = partial(Recipe, step={"folding": 0.0, "compress": None}, epochs=SHORT)
_ADDED = {**PUBLISHED, "order": None, "diffeomorphic": False}
COMPARED: Mapping[str, Recipe] = {
    "template, no diffeomorphism (Lee et al.)": _plain(lambda _: guessed_lungs(), _ADDED),
    "template as published, fixed prior": _plain(lambda _: guessed_lungs(), PUBLISHED),
    "template as published, trained prior": _plain(lambda _: guessed_lungs("diagonal", EVERYTHING), PUBLISHED),
    "template, smooth and guarded, trained prior": Recipe(lambda _: guessed_lungs("full", EVERYTHING, 4.0), epochs=SHORT),
}


def at_size(data: Mapping[str, Tensor], size: int | None) -> dict[str, Tensor]:
    """Images and labels on a smaller frame, by area; labels are cut at one half. None leaves them as they are."""
    if size is None:
        return dict(data)
    small = {name: F.interpolate(values, [size] * (values.ndim - 2), mode="area") for name, values in data.items()}
    return {**small, "label": (small["label"] > 0.5).float()} if "label" in small else small


def _stem(cache: str | Path, name: str, epochs: int, seed: int, **settings: object) -> Path:
    """Beginning of the path of a row's files: what it is, and a digest of all else that the weights depend on."""
    digest = hashlib.sha256(json.dumps({"version": VERSION, **settings}, sort_keys=True).encode()).hexdigest()[:8]
    return Path(cache) / "".join(c if c.isalnum() else "_" for c in f"{name}_{epochs}_{seed}_{digest}")


def trained_direct(name: str, data: Data, cache: str | Path, seed: int = 0, parts: Parts = ((SHORT, {}),)) -> UNet:
    """The direct U-Net of the lung bundle, trained on all shapes in one mask; else as :func:`trained_template`.

    Each of ``parts``, epochs and settings of the :class:`SegmentationStep`, begins with the weights of the one before.
    """
    both = {"image": data["image"], "label": data["label"].amax(1, keepdim=True)}
    build: Callable[[], nn.Module] = lung_unet
    for number, (epochs, varied) in enumerate(parts):
        before = {"before": [[n, dict(some)] for n, some in parts[:number]]} if number else {}
        stem = _stem(cache, name, epochs, seed, films=len(data["image"]), batch_size=8, varied=dict(varied), **before)
        step, iterations = SegmentationStep(seed=seed, **varied), epochs * (len(data["image"]) // 8)
        network = trained(stem.with_suffix(".pt"), build, step, both, iterations, seed, batch_size=8)
        build = partial(copy.deepcopy, network)
    return network


def logged(stem: Path, name: str, iterations: int, device: str, run: Callable[[], Network]) -> tuple[Network, dict[str, Any]]:
    """The network that ``run`` trains, and the log of its training, kept beside the weights."""
    log, cpu, began = stem.with_suffix(".json"), time.process_time(), time.perf_counter()
    network = run()
    if not log.is_file():
        machine = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
        seconds = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - began}
        log.write_text(json.dumps({"name": name, "iterations": iterations, "device": machine, **seconds}))
    found = json.loads(log.read_text())
    print(f"{name}: {found['cpu_seconds']:.0f} CPU s", flush=True)
    return network, found


def _described(recipe: Recipe) -> dict[str, Any]:
    """All of a recipe but its prior."""
    settings = {key: value for key, value in asdict(recipe).items() if key != "prior"}
    old = {"compress": "tame"}  # as older files have it
    return {**settings, "step": {old.get(key, key): value for key, value in recipe.step.items()}}


def _begun(build: Callable[[], Network], earlier: nn.Module) -> Network:
    network = build()
    network.load_state_dict(earlier.state_dict())
    return network


def trained_template(
    name: str,
    recipe: Recipe,
    data: Data,
    cache: str | Path,
    seed: int,
    device: str = "cpu",
    before: tuple[Recipe, nn.Module] | None = None,
) -> tuple[TemplateTransformer, dict[str, Any]]:
    """A trained network, and its log; from the files of an earlier run of this row in ``cache``, if there are any.

    ``before``: the recipe of an earlier part of the training and the network from it, whose weights this part begins with.
    """
    earlier = {} if before is None else {"before": _described(before[0])}
    stem = _stem(cache, name, recipe.epochs, seed, films=len(data["image"]), recipe=_described(recipe), **earlier)
    data, iterations = at_size(data, recipe.size), recipe.epochs * (len(data["image"]) // recipe.batch_size)
    build: Callable[[], nn.Module] = partial(recipe.build, data["label"])
    build, step = build if before is None else partial(_begun, build, before[1]), TemplateStep(seed=seed, **recipe.step)
    shared = {"batch_size": recipe.batch_size, "rate": recipe.rate, "device": device}
    run = partial(trained, stem.with_suffix(".pt"), build, step, data, iterations, seed, **shared)
    return logged(stem, name, iterations, device, run)
