"""Films of a manifest as tensors, and the deformations of the tables, each film always deformed the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from monai.transforms import AsDiscreted, Compose, EnsureTyped, Resized, ScaleIntensityd
from torch import Tensor

from monai_diffeo.augmentation import random_elastic, random_homography, random_svf, tps_protocol
from monai_diffeo.flow import Deformation, axis_rotations, exp, warp
from monai_diffeo.networks import load_weights
from monai_diffeo.radiograph.manifest import read_manifest, spread_rows
from monai_diffeo.transforms import LoadImageFilmd, ScaleFilmIntensityd

SIZE = (128, 128)


@dataclass(frozen=True)
class Films:
    """Films and masks of one source: ``images`` and ``labels`` (N, 1, H, W), ``ids`` their names."""

    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]

    def spread(self, count: int | None) -> Films:
        """``count`` films evenly spaced over the set; None for all."""
        rows = spread_rows(len(self.ids), count)
        return Films(self.images[rows], self.labels[rows], tuple(self.ids[i] for i in rows))


def prepare_films(keys: Sequence[str], before_resizing: Sequence[Callable] = (), size: tuple[int, int] = SIZE) -> Compose:
    """From paths under ``image`` and ``label`` to tensors, as the bundles prepare them."""
    load, cut = (LoadImageFilmd(keys), ScaleFilmIntensityd("image")), Resized(keys, size, mode="bilinear", anti_aliasing=True)
    binary = AsDiscreted("label", threshold=0.5)
    return Compose([*load, ScaleIntensityd("label"), *before_resizing, cut, binary, EnsureTyped(keys, track_meta=False)])


def load_films(
    dataset_dir: str | Path,
    source: str,
    split: str,
    limit: int | None = None,
    size: tuple[int, int] = SIZE,
    pixels_dir: str | Path | None = None,
) -> Films:
    """Films of a manifest, prepared as the bundle prepares them; ``limit`` of them, evenly spaced over the list.

    ``pixels_dir`` has the same files in other sizes.
    """
    prepare, rows = prepare_films(["image", "label"], size=size), read_manifest(dataset_dir, split, [source], limit=limit)
    if pixels_dir is not None:
        moved = lambda path: str(Path(pixels_dir) / Path(path).relative_to(dataset_dir))  # noqa: E731
        rows = [{**row, "image": moved(row["image"]), "label": moved(row["label"])} for row in rows]
    items = [prepare(item) for item in rows]
    images, labels = (torch.stack([item[key] for item in items]) for key in ("image", "label"))
    names = (item.get("id", Path(str(item.get("image_path", i))).stem) for i, item in enumerate(items))
    return Films(images, labels, tuple(names))


def lung_unet() -> UNet:
    """The lung bundle's U-Net without weights."""
    return UNet(2, 1, 1, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2)


def segmentation_network(weights: str | Path) -> UNet:
    """The lung bundle's U-Net with weights, in eval mode."""
    return load_weights(lung_unet(), weights)


def _turned(quarters: int, size: tuple[int, ...], _: torch.Generator) -> Tensor:
    matrix = F.pad(axis_rotations(2)[quarters], (0, 1))[None]
    return Deformation(matrix, torch.zeros(1, 2, *size)).ddf()


def _svf(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return exp(random_svf(1, size, generator, amplitude=0.1, sigma=0.08))


DEFORMATIONS: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor] | None] = {
    "plain": None,
    "TPS/2": partial(tps_protocol, 1, strength=0.5),
    "TPS": partial(tps_protocol, 1),
    "TPS 15°/0.06": partial(tps_protocol, 1, angle=15.0, jitter=0.06),
    "TPS 45°/0.18": partial(tps_protocol, 1, angle=45.0, jitter=0.18),
    "TPS 60°/0.25": partial(tps_protocol, 1, angle=60.0, jitter=0.25),
    "SVF": _svf,
    "elastic": partial(random_elastic, 1, amplitude=0.06, sigma=0.05),
    "turned 90°": partial(_turned, 1),
    "turned 180°": partial(_turned, 2),
    "turned 270°": partial(_turned, 3),
    "perspective": partial(random_homography, 1, shift=0.15),
}


def deform(films: Films, name: str, seed: int = 0) -> tuple[Films, Tensor]:
    """Deformed films (bilinear, zeros outside, mask > 0.5), and their displacements ``(N, 2, H, W)``, voxels.

    Random numbers depend on a film's id, the protocol and ``seed`` alone: a film is deformed the same way in every table.
    """
    size, deformer = tuple(films.images.shape[2:]), DEFORMATIONS[name]
    if deformer is None:
        return films, torch.zeros(len(films.ids), 2, *size)
    ddf = torch.cat([deformer(size, generator_of(f"{seed}/{name.split()[0].split('/')[0]}/{film}")) for film in films.ids])
    images, labels = (warp(values, ddf, padding_mode="zeros") for values in (films.images, films.labels))
    return Films(images, (labels > 0.5).float(), films.ids), ddf


def generator_of(text: str) -> torch.Generator:
    """Random numbers that depend on the text alone."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
