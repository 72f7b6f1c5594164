"""Which images a canonicaliser is fitted to: found, read and checked."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from monai.transforms import EnsureChannelFirst, LoadImage, LoadImaged, ResampleToMatch
from torch import Tensor

from monai_diffeo.errors import ConfigError, FilmError, ShapeError
from monai_diffeo.radiograph.manifest import read_manifest
from monai_diffeo.radiograph.paths import format_of_name, list_films
from monai_diffeo.transforms import LoadImageFilm

__all__ = ["LEAST_IMAGES", "ImagesReader", "find_images", "is_held_back"]

LEAST_IMAGES = 4
_LISTS = ("manifest.csv", "datalist.json", "dataset.json")  # a folder that holds one is read by it
_NO_IMAGES = {".csv", ".json", ".jsonl", ".txt", ".md", ".pt", ".pth", ".py", ".xml", ".log", ".yaml", ".yml", ".pdf", ".html"}

Item = Mapping[str, Any]


def find_images(images: Any) -> list[Item]:
    """Items with an ``image``, and a ``label`` only if the list names one.

    Args:
        images: a folder of images, or with a ``manifest.csv``, ``datalist.json`` or ``dataset.json``; such a list; or a
            sequence of items, paths, or tensors ``(C, *S)``. Of a manifest with splits only ``train`` is taken.

    Raises:
        ConfigError: if there is nothing of this kind.
    """
    if not isinstance(images, (str, os.PathLike)):
        return [dict(item) if isinstance(item, Mapping) else {"image": item} for item in images]
    path = Path(images)
    path = next((path / name for name in _LISTS if (path / name).is_file()), path)
    try:
        if path.suffix.lower() == ".csv":
            rows = read_manifest(path.parent, manifest=path.name)
            return [row for row in rows if row.get("split", "train") in ("train", "")]
        if path.suffix.lower() == ".json":
            return _datalist(path)
        return [{"image": str(file)} for file in list_films(path) if file.suffix.lower() not in _NO_IMAGES]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"fit: the images must be a folder, a datalist.json or a manifest.csv that can be read, got {str(path)!r}: {error}."
        ) from error


def _datalist(path: Path) -> list[Item]:
    """Entries of a MONAI datalist; paths are relative to its file, several files of one image are its channels."""

    def full(name: Any) -> Any:
        return [full(part) for part in name] if isinstance(name, list) else str(path.parent / name)

    content = json.loads(path.read_text(encoding="utf-8"))
    entries = content["training"] if isinstance(content, dict) else content
    entries = [entry if isinstance(entry, dict) else {"image": entry} for entry in entries]
    return [{"image": full(e["image"]), **({"label": full(e["label"])} if e.get("label") else {})} for e in entries]


def is_held_back(number: int) -> bool:
    """Whether an image, by its number in the order of reading, is not trained on: about a fifth, 2 of 4, at most 32."""
    return number == 3 or (number % 5 == 1 and number <= 5 * 30 + 1)


class ImagesReader:
    """Reads images as the network sees them, all with the same number of axes and channels as the first.

    Args:
        transform: of ``{"image": path}``, as a bundle's preprocessing; None reads files as MONAI's ``LoadImage`` does, and
            DICOM films as :class:`~monai_diffeo.transforms.LoadImageFilm`.
        dims: 2 or 3; None takes what the first image has.
        say: takes a line on each image that cannot be used.
    """

    def __init__(self, transform: Callable[[Any], Any] | None, dims: int | None, say: Callable[[str], Any]) -> None:
        self.transform, self.dims, self.channels, self.say = transform, dims, 0, say
        self.refused = ""  # why the first image that could not be used was refused

    def usable(self, items: Sequence[Item]) -> Iterator[tuple[Item, Tensor]]:
        """Items with their images ``(C, *S)``; a line on each that cannot be read."""
        for item in items:
            try:
                image = self.image(item)
            except Exception as error:  # readers raise what they like; the others go on
                name = "an image" if isinstance(item["image"], Tensor) else item["image"]
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                self.refused = self.refused or reason
                self.say(f"not used: {name}: {reason}")
            else:
                yield item, image

    def image(self, item: Item) -> Tensor:
        """One image, float32 ``(C, *S)``.

        Raises:
            ShapeError: if it has another number of axes or channels than the first one.
        """
        if self.transform is None:
            image = _picture(_load(item["image"]), self.dims)
        else:
            image = self.transform({"image": item["image"]})["image"]
        dims, channels = self.dims or image.ndim - 1, self.channels or len(image)
        if dims not in (2, 3) or image.ndim - 1 != dims or len(image) != channels or min(image.shape[1:]) < 2:
            expected = f"({channels}, {', '.join('HWD'[:dims])})"
            remedy = "All images must have the axes and channels of the first one. Check --dims, or take the odd files out."
            raise ShapeError("fit", "image", expected, tuple(image.shape), remedy)
        image = image.float().cpu()
        if not image.isfinite().all() or image.amax() == image.amin():
            raise ValueError("its values must be finite and not all the same")
        self.dims, self.channels = dims, channels
        return image

    def label(self, item: Item, image: Tensor) -> Tensor | None:
        """The mask of an item ``(K, *S)`` on the voxels of its image; None without one, or where the frames do not fit."""
        if item.get("label") is None:
            return None
        try:
            label = _picture(self._load_label(item["label"]), self.dims)
        except Exception as error:  # as for images
            self.say(f"mask not used: {item['label']}: {' '.join(str(error).split())[:300]}")
            return None
        if self.transform is not None and hasattr(label, "affine") and hasattr(image, "affine"):
            return ResampleToMatch(mode="nearest")(label, image)
        return label if label.shape[1:] == image.shape[1:] else None

    def _load_label(self, source: Any) -> Tensor:
        """A mask as the transform loads its images: a reader may be told to transpose pictures."""
        loads = (step for step in getattr(self.transform, "transforms", ()) if isinstance(step, LoadImaged))
        if not isinstance(source, (str, os.PathLike)) or (load := next(loads, None)) is None:
            return _load(source)
        label = load(dict.fromkeys(load.keys, source))[load.keys[0]]
        return label if label.ndim == (self.dims or 0) + 1 else EnsureChannelFirst(strict_check=False)(label)


@lru_cache(maxsize=1)
def _loader() -> LoadImage:
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)  # a missing accelerator is no fault
    return LoadImage(image_only=True, ensure_channel_first=True)


def _load(source: Any) -> Tensor:
    """Files channel first; arrays and tensors as they are."""
    if not isinstance(source, (str, os.PathLike, list)):
        return torch.as_tensor(source)
    if not isinstance(source, list) and format_of_name(Path(source).name) == "dicom":
        try:
            return LoadImageFilm()(source)
        except FilmError:  # MONAI's own readers may read it
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _loader()(source)


def _picture(image: Tensor, dims: int | None) -> Tensor:
    """A slice stored as a volume as ``(1, H, W)``; a colour picture stored as one as ``(3 or 4, H, W)``."""
    if image.ndim != 4 or len(image) > 1 or dims == 3:
        return image
    if image.shape[-1] == 1:
        return image[..., 0]
    colours = [axis for axis in (3, 1) if image.shape[axis] in (3, 4) and image[0].numel() > 256 * image.shape[axis]]
    return image[0].movedim(colours[0] - 1, 0) if colours else image
