"""Colour pictures of made-up bodies: a folder, a network and a bundle that nobody chose for us."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import monai
import numpy as np
from monai.networks.nets import UNet
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

SIZE = (192, 160)
CLASSES = ("background", "liver", "spleen")
SPLITS = {"train": 80, "val": 24, "test": 60}
NETWORK = {"spatial_dims": 2, "in_channels": 3, "out_channels": len(CLASSES), "channels": (16, 32, 64, 128)}
NETWORK |= {"strides": (2, 2, 2), "num_res_units": 2}
INFERENCE = {
    "imports": ["$import glob", "$import os"],
    "bundle_root": ".",
    "weights_file": "$@bundle_root + '/models/model.pt'",
    "dataset_dir": "$@bundle_root + '/data'",
    "output_dir": "$@bundle_root + '/eval'",
    "datalist": "$sorted(glob.glob(os.path.join(@dataset_dir, 'images', '*.png')))",
    "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "network_def": {"_target_": "UNet", **NETWORK},
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "reader": "PILReader", "reverse_indexing": False},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1},
            {"_target_": "EnsureTyped", "keys": "image"},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
    "inferer": {"_target_": "SimpleInferer"},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_ext": ".png", "scale": None},
        ],
    },
    "weights": {"_target_": "CheckpointLoader", "load_path": "@weights_file", "load_dict": {"model": "@network"}},
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "val_handlers": ["@weights"],
    },
    "run": ["$@evaluator.run()"],
}
Array = NDArray[np.float64]


class Organ(NamedTuple):
    """An ellipse with bumps; lengths in halves of the frame's width, rows first, from the middle of the frame."""

    center: tuple[float, float]
    axes: tuple[float, float]
    angle: float  # degrees
    colour: tuple[float, float, float]
    stripes: tuple[float, float]  # their direction, degrees, and how many lie in a width
    label: int = 0
    bumps: tuple[float, float, float] = (0.0, 0.04, 0.02)


ORGANS = (  # painted in this order; stomach and kidneys have the colours of what is asked for, and only lie elsewhere
    Organ((0.05, 0.0), (1.08, 0.80), 0, (0.80, 0.62, 0.52), (10, 3), bumps=(0.03, 0.08, 0.05)),  # skin
    Organ((0.07, 0.02), (0.98, 0.70), 0, (0.70, 0.42, 0.38), (80, 14), bumps=(0.03, 0.07, 0.05)),  # muscle
    Organ((-0.55, -0.30), (0.36, 0.24), 8, (0.78, 0.56, 0.58), (0, 9)),  # lungs
    Organ((-0.52, 0.34), (0.33, 0.21), -12, (0.78, 0.56, 0.58), (0, 9)),
    Organ((-0.42, 0.08), (0.20, 0.17), 30, (0.58, 0.20, 0.18), (50, 8)),  # heart
    Organ((0.20, 0.02), (0.68, 0.07), 3, (0.86, 0.82, 0.70), (90, 16)),  # spine
    Organ((0.68, 0.04), (0.28, 0.44), 5, (0.82, 0.55, 0.48), (35, 11), bumps=(0.0, 0.05, 0.08)),  # bowel
    Organ((0.38, -0.36), (0.19, 0.11), 12, (0.48, 0.20, 0.26), (70, 12)),  # kidneys
    Organ((0.42, 0.30), (0.18, 0.11), -15, (0.48, 0.20, 0.26), (70, 12)),
    Organ((0.07, 0.24), (0.16, 0.27), -35, (0.56, 0.26, 0.22), (120, 10)),  # stomach
    Organ((-0.02, -0.27), (0.25, 0.38), -14, (0.54, 0.24, 0.20), (25, 10), 1, (0.05, 0.10, 0.06)),  # liver
    Organ((0.10, 0.52), (0.26, 0.14), 14, (0.48, 0.19, 0.25), (100, 12), 2),  # spleen
)


def _smooth(rng: Generator, sigma: float) -> Array:
    """Smooth noise over the frame, of spread 1."""
    noise = gaussian_filter(rng.standard_normal(SIZE), sigma, mode="wrap")
    return noise / noise.std()


def _level(organ: Organ, grid: Array, rng: Generator) -> Array:
    """How far inside an organ of one subject each voxel lies: 1 in its middle, 0 at its border."""
    middle = np.array(organ.center) + 0.025 * rng.standard_normal(2)
    axes = np.array(organ.axes) * np.exp(0.06 * rng.standard_normal(2))
    turn = np.deg2rad(organ.angle + 5 * rng.standard_normal())
    (y, x), (c, s) = grid - middle[:, None, None], (np.cos(turn), np.sin(turn))
    y, x = (c * y - s * x) / axes[0], (s * y + c * x) / axes[1]
    around, border = np.arctan2(x, y), 1.0
    for k, bump in enumerate(organ.bumps, 1):
        border = border + (bump + 0.02 * rng.standard_normal()) * np.cos(k * around + k)
    return border - np.hypot(y, x)


def body(seed: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A subject: colours ``(H, W, 3)``, and for each voxel the number of its class ``(H, W)``."""
    rng = np.random.default_rng(seed)
    pixel = 2 / SIZE[1]
    grid = np.stack(np.meshgrid(*((np.arange(n) - (n - 1) / 2) * pixel for n in SIZE), indexing="ij"))
    weave = np.sin(grid[0] * 60 + 0.5 * _smooth(rng, 6)) * np.sin(grid[1] * 60 + 0.5 * _smooth(rng, 6))
    drape = np.array([0.25, 0.45, 0.48]) + 0.05 * rng.standard_normal(3)
    picture = drape + (0.04 * weave + 0.05 * _smooth(rng, 10))[..., None]
    turn, scale, shift = np.deg2rad(2.5 * rng.standard_normal()), np.exp(0.03 * rng.standard_normal()), rng.standard_normal(2)
    c, s = np.cos(turn) / scale, np.sin(turn) / scale
    grid = np.stack([c * grid[0] - s * grid[1], s * grid[0] + c * grid[1]]) - 0.025 * shift[:, None, None]
    grid = grid + 0.015 * np.stack([_smooth(rng, 14), _smooth(rng, 14)])
    label = np.zeros(SIZE, np.uint8)
    for organ in ORGANS:
        level, (angle, count) = _level(organ, grid, rng), organ.stripes
        across = grid[0] * np.cos(np.deg2rad(angle)) + grid[1] * np.sin(np.deg2rad(angle))
        stripes = np.sin(np.pi * count * across + 0.8 * _smooth(rng, 5))
        light = 1 + 0.05 * stripes + 0.04 * _smooth(rng, 2) - 0.12 * np.gradient(level, axis=0) / pixel * min(organ.axes)
        colour = np.array(organ.colour) * np.exp(0.05 * rng.standard_normal(3) + 0.05 * rng.standard_normal())
        cover = np.clip(level * min(organ.axes) / pixel / 2 + 0.5, 0, 1)[..., None]
        picture = picture * (1 - cover) + cover * light[..., None] * colour
        label[level > 0] = organ.label
    lamp = 1 + 0.10 * (rng.standard_normal() * grid[0] + rng.standard_normal() * grid[1]) - 0.10 * grid[0]
    picture = picture * lamp[..., None] * np.exp(0.04 * rng.standard_normal(3))
    picture = np.clip(picture, 0, 1) ** np.exp(0.15 * rng.standard_normal())
    picture = gaussian_filter(picture, (0.7, 0.7, 0)) + (0.02 + 0.02 * rng.random()) * rng.standard_normal((*SIZE, 3))
    return (255 * np.clip(picture, 0, 1)).astype(np.uint8), label


def write_folder(folder: Path, seed: int = 0, splits: Mapping[str, int] = SPLITS) -> Path:
    """Write a folder a split as a user has one: ``images``, ``labels`` (0, 1, 2), and a list in ``datalist.json``."""
    for split, count in splits.items():
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        names = [f"{split}_{i:03d}.png" for i in range(count)]
        for i, name in enumerate(names):
            for kind, values in zip(("images", "labels"), body((seed, list(SPLITS).index(split), i))):
                Image.fromarray(values).save(folder / split / kind / name)
        items = [{"image": f"images/{name}", "label": f"labels/{name}"} for name in names]
        (folder / split / "datalist.json").write_text(json.dumps({"training": items}, indent=1))
    return folder


def unet() -> UNet:
    """A network as the tutorials of MONAI have it."""
    return UNet(**NETWORK)


def write_bundle(folder: Path) -> Path:
    """Write a bundle in the style of MONAI's zoo, which does not know of us; weights go to ``models/model.pt``."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    image = {"type": "image", "format": "RGB", "num_channels": 3, "spatial_shape": SIZE, "value_range": [0, 1]}
    answer = {"type": "image", "format": "segmentation", "num_channels": len(CLASSES), "channel_def": dict(enumerate(CLASSES))}
    formats = {"inputs": {"image": image}, "outputs": {"pred": answer}}
    metadata = {"name": "Organs of made-up bodies", "version": "1.0.0", "monai_version": monai.__version__}
    metadata |= {"task": "segmentation", "network_data_format": formats}
    for name, content in (("metadata", metadata), ("inference", INFERENCE)):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content, indent=1))
    return folder
