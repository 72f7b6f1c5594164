"""The lung bundle with small random networks, for runs over many films."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import UNet
from PIL import Image

from monai_diffeo.networks import ImageAtlas, OutlierDetector
from monai_diffeo.trust import Score, fitted_to, save_trust
from monai_diffeo.trust.judge import SETTINGS
from tests.helpers import canonicalizer_folder
from tests.trust.test_decision import MODEL

LUNGS = Path(__file__).parents[2] / "bundles" / "cxr_lung_segmentation"


def tiny_lungs(root):
    """Its folder. Its trust model reviews every film."""
    (root / "configs").mkdir(parents=True)
    config = json.loads((LUNGS / "configs" / "inference.json").read_text())
    config["network_def"] |= {"channels": [4, 8], "strides": [2], "num_res_units": 0}
    config["image_size"] = [32, 32]
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    (root / "configs" / "metadata.json").write_text('{"name": "tiny"}')
    energy = canonicalizer_folder(root / "models" / "energy")
    torch.save(ImageAtlas((64, 64)).measure([torch.ones(1, 64, 64)]).state_dict(), energy / "label_atlas.pt")
    torch.manual_seed(0)
    for name in ("model", "whole_lungs"):
        network = UNet(**{key: value for key, value in config["network_def"].items() if key != "_target_"})
        torch.save(network.state_dict(), root / "models" / f"{name}.pt")
    torch.save(OutlierDetector().state_dict(), root / "models" / "outlier.pt")
    limits = {"energy": 1.0, "blur": 0.1, "displacement": 0.01}
    error, foreign = Score(0.0, {"energy": 1.0, "blur": 1.0}, 0.0), Score(-1e3, {"energy": 1.0}, 0.0)
    settings = {name: config[name] for name in SETTINGS}
    sha256 = fitted_to(root / "models" / "model.pt", energy, **settings)
    model = replace(MODEL, limits=limits, error=error, foreign=foreign, sha256=sha256)
    save_trust(root / "models" / "trust.json", model)
    return root


def films_in(folder, count, seed=0):
    """Grey pictures, each with two darker parts."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:40j, -1:1:48j]
    for i in range(count):
        wide, shift = draw.uniform(0.15, 0.3), draw.uniform(-0.1, 0.1)
        lungs = sum(np.exp(-(((x - side) / wide) ** 2) - ((y - shift) / 0.5) ** 2) for side in (-0.4, 0.4))
        picture = 200 - 150 * lungs + draw.normal(0, 4, y.shape)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.png")
    return folder
