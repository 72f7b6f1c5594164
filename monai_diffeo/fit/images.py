"""Which images a canonicaliser is fitted to: found, read, checked, and divided."""

from __future__ import annotations

import csv
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from monai.transforms import LoadImage, ResampleToMatch
from torch import Tensor

from monai_diffeo.errors import ConfigError, FilmError, ShapeError
from monai_diffeo.radiograph.paths import format_of_name
from monai_diffeo.transforms import LoadImageFilm

__all__ = ["LEAST_IMAGES", "Reader", "find_images", "number_held_back"]

LEAST_IMAGES = 4
_LISTS = ("manifest.csv", "datalist.json", "dataset.json")  # a folder that holds one is read by it
_NO_IMAGES = {".csv", ".json", ".jsonl", ".txt", ".md", ".pt", ".pth", ".py", ".xml", ".log", ".yaml", ".yml", ".pdf", ".html"}
_COLOURS = (3, 4)

Item = Mapping[str, Any]


def find_images(images: Any) -> list[Item]:
    """Items ``{"image": ..., "label": ...}``; a label is there only if the list names one.

    Args:
        images: a folder (of images, or with a ``manifest.csv``, ``datalist.json`` or ``dataset.json``), such a list itself, or a
            sequence of items, of paths, or of tensors ``(C, *S)``.

    Raises:
        ConfigError: if there is no such folder or list, or nothing in it.
    """
    if not isinstance(images, (str, os.PathLike)):
        return [dict(item) if isinstance(item, Mapping) else {"image": item} for item in images]
    path = Path(images)
    if path.is_dir():
        path = next((path / name for name in _LISTS if (path / name).is_file()), path)
    if not path.exists():
        raise ConfigError(
            f"fit: the images must be a folder or a list of images, {str(path)!r} does not exist. Check the path."
        )
    if path.is_dir():
        below = (file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file())
        files = [f for f in below if f.suffix.lower() not in _NO_IMAGES and not any(p.startswith(".") for p in f.parts)]
        found: list[Item] = [{"image": str(path / file)} for file in files]
    else:
        found = _manifest(path) if path.suffix.lower() == ".csv" else _datalist(path)
    if not found:
        raise ConfigError(f"fit: {str(path)!r} must hold at least {LEAST_IMAGES} images for training, got none.")
    return found


def _manifest(path: Path) -> list[Item]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or "image" not in rows[0]:
        columns = sorted(rows[0]) if rows else []
        raise ConfigError(f"fit: {str(path)!r} must have a column 'image' (and 'mask', 'split' if there are), got {columns}.")
    rows = [row for row in rows if row.get("split") in (None, "", "train")]
    return [_beside(path, row["image"], row.get("mask") or None) for row in rows]


def _datalist(path: Path) -> list[Item]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = 'Write {"training": [{"image": "a.nii.gz"}, ...]}.'
        raise ConfigError(
            f"fit: {str(path)!r} must be a datalist or a manifest.csv, it cannot be read: {error}. {remedy}"
        ) from error
    entries = content.get("training") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ConfigError(f"fit: {str(path)!r} must be a list of images, or have one under 'training', got {got}.")
    pairs = [(e.get("image"), e.get("label")) if isinstance(e, dict) else (e, None) for e in entries]
    if any(image is None for image, _ in pairs):
        raise ConfigError(f"fit: each entry of {str(path)!r} must have an 'image', got one without.")
    return [_beside(path, image, label) for image, label in pairs]


def _beside(file: Path, image: Any, label: Any) -> Item:
    """Paths relative to the list's file; several files of one image are its channels."""

    def full(name: Any) -> Any:
        return [full(part) for part in name] if isinstance(name, list) else str(file.parent / name)

    return {"image": full(image), **({} if label is None else {"label": full(label)})}


def number_held_back(count: int) -> int:
    """A fifth of the images, at least 2 and at most 32, is never trained on."""
    return min(max(count // 5, 2), 32)


class Reader:
    """Reads items as the network sees them, all with the same number of axes and channels as the first.

    Args:
        transform: of dictionaries with ``image`` (and ``label``), as a bundle's preprocessing; None reads files as MONAI's
            ``LoadImage``, and DICOM films as our reader of films.
        dims: 2 or 3; None takes what the first image has.
        say: takes a line on each image that cannot be used.
    """

    def __init__(self, transform: Callable[[Any], Any] | None, dims: int | None, say: Callable[[str], Any]) -> None:
        self.transform, self.dims, self.say = transform, dims, say
        self.channels: int | None = None

    def usable(self, items: Sequence[Item]) -> Iterator[tuple[Item, Tensor]]:
        """Items that can be read, with their images ``(C, *S)``; a line on each of the others."""
        for item in items:
            try:
                yield item, self.image(item)
            except Exception as error:  # readers raise what they like; the others go on
                name = item["image"] if isinstance(item["image"], (str, os.PathLike, list)) else "an image"
                self.say(f"not used: {name}: {_first_line(error)}")

    def image(self, item: Item) -> Tensor:
        """One image, float32 ``(C, *S)``.

        Raises:
            ShapeError: if it has another number of axes or channels than the first one.
        """
        if self.transform is None:
            image = _picture(_load(item["image"]), self.dims)
        else:
            image = self.transform({"image": item["image"]})["image"]
        image = image.float()
        self.dims = image.ndim - 1 if self.dims is None else self.dims
        channels = len(image) if self.channels is None else self.channels
        if self.dims not in (2, 3) or image.ndim - 1 != self.dims or len(image) != channels or min(image.shape[1:]) < 2:
            expected = f"({channels}, {', '.join('HWD'[: self.dims])})"
            raise ShapeError("fit", "image", expected, tuple(image.shape), "All images must be alike; --dims 2|3 says which.")
        if not image.isfinite().all() or image.amax() == image.amin():
            raise ValueError("its values must be finite and not all the same")
        self.channels = channels
        return image

    def label(self, item: Item, image: Tensor) -> Tensor | None:
        """The mask of an item ``(K, *S)`` on the voxels of its image, None without one or where the frames do not fit."""
        if item.get("label") is None:
            return None
        label = _picture(_load(item["label"]), self.dims)
        if tuple(label.shape[1:]) == tuple(image.shape[1:]) and self.transform is None:
            return label
        if not (hasattr(label, "affine") and hasattr(image, "affine")):
            return label if tuple(label.shape[1:]) == tuple(image.shape[1:]) else None
        return ResampleToMatch(mode="nearest")(label, image)


def _load(source: Any) -> Tensor:
    """Files as MONAI reads them, channel first; arrays and tensors as they are."""
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


@lru_cache(maxsize=1)
def _loader() -> LoadImage:
    return LoadImage(image_only=True, ensure_channel_first=True)


def _picture(image: Tensor, dims: int | None) -> Tensor:
    """A slice stored as a volume as ``(1, H, W)``, a colour picture stored as one as ``(3 or 4, H, W)``."""
    if image.ndim != 4 or dims == 3:
        return image
    if image.shape[-1] == 1:
        return image[..., 0]
    for axis in (-1, 1):
        others = [n for i, n in enumerate(image.shape[1:], 1) if i % 4 != axis % 4]
        if len(image) == 1 and image.shape[axis] in _COLOURS and min(others) > 4 * max(_COLOURS):
            return image[0].movedim(axis if axis < 0 else 0, 0)
    return image


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
