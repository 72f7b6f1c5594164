"""Films that other loaders gave as columns x rows: recognised by their metadata, turned to rows x columns and back.

MONAI's readers index an array ``[x, y]``, which is columns x rows; the package's own index it ``[row, column]``. One is the
transpose of the other: a mirrored quarter turn, which no rotation undoes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import convert_to_numpy
from torch import Tensor

from monai_diffeo.radiograph.nifti import index_matrix, nifti_axes
from monai_diffeo.radiograph.paths import format_of_name

__all__ = ["FILM_AXES", "affine_rows_first", "film_axes", "from_rows_first", "to_rows_first"]

FILM_AXES = "film_axes"
"""Entry of the metadata of a film that was turned to rows x columns: the axes that it had."""


def film_axes(image: Any) -> str | None:
    """Axes of an image ``(..., *S)`` along columns and rows of its film, such as ``"x,y"``, where x is the first axis of S.

    It is ``""`` for a film that has rows x columns, and None where that is not known: for a plain tensor, a file of another
    kind than a film's, and an image that was rotated, reversed or transposed since it was read. A transposed square image
    cannot be told from one that was not, because MONAI's ``Transpose`` leaves no trace.
    """
    if not isinstance(image, MetaTensor):
        return None
    batched = image.affine.ndim == 3
    meta = {key: _first(value) if batched else value for key, value in image.meta.items()}
    if "film_format" in meta or FILM_AXES in meta:
        return ""
    name, read = meta.get("filename_or_obj"), meta.get("spatial_shape")
    if "row_pixel_spacing" in meta or meta.get("original_channel_dim") == "no_channel":  # MONAI Deploy's words
        return "x,y"
    kind = format_of_name(Path(str(name)).name) if name else None
    if kind is None or read is None or len(read) < 2:
        return None
    shape = tuple(int(n) for n in read)[:2]
    applied = image.applied_operations
    first = applied[0] if applied else None
    first = first[0] if batched and isinstance(first, list) and first else first
    size = image.shape[-3:-1] if image.shape[-1] == 1 else image.shape[-2:]
    size = first.get("orig_size", size) if isinstance(first, dict) else size
    if shape[0] != shape[1] and tuple(int(n) for n in size)[:2] == shape[::-1]:
        return None
    affine = _matrix(image.affine[0] if batched else image.affine)
    original = _matrix(meta.get("original_affine"))
    change = np.linalg.lstsq(original, affine, rcond=None)[0][:2, :2]
    if not (np.diag(change) > abs(change[[0, 1], [1, 0]])).all():
        return None
    return nifti_axes(meta, original, shape)[0] if kind == "nifti" and "srow_y" in meta else "x,y"


def to_rows_first(image: Tensor, axes: str) -> Tensor:
    """Images ``(..., *S)`` with these axes as rows x columns, exactly.

    Example:
        >>> to_rows_first(torch.tensor([[1, 2], [3, 4]]), "x,-y").tolist()
        [[2, 4], [1, 3]]
    """
    return _reversed(image if axes[-1] == "x" else image.transpose(-1, -2), axes)


def from_rows_first(image: Tensor, axes: str) -> Tensor:
    """The inverse of :func:`to_rows_first`."""
    image = _reversed(image, axes)
    return image if axes[-1] == "x" else image.transpose(-1, -2)


def _reversed(image: Tensor, axes: str) -> Tensor:
    column, row = axes.split(",")
    return image.flip([dim for dim, axis in ((-2, row), (-1, column)) if axis[0] == "-"])


def affine_rows_first(affine: Tensor, axes: str, shape: tuple[int, int], back: bool = False) -> Tensor:
    """The affine of a film ``shape`` = rows x columns from that of the image with these axes; or the other way round."""
    change = torch.from_numpy(index_matrix(axes, shape)).to(affine)
    return affine @ (torch.linalg.inv(change) if back else change)


def _first(value: Any) -> Any:
    """The first of a batch's entries."""
    return value[0] if isinstance(value, (list, tuple, np.ndarray, Tensor)) and len(value) else value


def _matrix(affine: Any) -> np.ndarray:
    """An affine; the identity where there is none, as in a MetaTensor."""
    matrix = np.asarray(convert_to_numpy(affine))
    return matrix.astype(np.float64) if matrix.shape == (4, 4) else np.eye(4)
