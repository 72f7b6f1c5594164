"""MONAI transforms around template transformers: labels of single shapes, and masks from warped shapes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_numpy, convert_to_tensor, optional_import

from monai_diffeo.metrics import largest_components
from monai_diffeo.networks.template.guard import intact_level
from monai_diffeo.radiograph.lungs import separate_lungs

__all__ = ["SeparateLungsD", "SeparateLungsDict", "SeparateLungsd", "ShapesToMaskD", "ShapesToMaskDict", "ShapesToMaskd"]
__all__ += ["shapes_to_mask"]

ndimage, _ = optional_import("scipy.ndimage")


class SeparateLungsd(MapTransform):
    """Turn a mask of both lungs ``(1, H, W)`` into one channel a lung ``(2, H, W)``, the one further left in the image first.

    Put it before anything that resizes: two lungs may come to touch.
    """

    backend = [TransformBackends.NUMPY]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            lungs = separate_lungs(convert_to_numpy(out[key])[0])
            out[key] = convert_to_dst_type(torch.from_numpy(lungs.astype(np.float32)), out[key])[0]
        return out


def shapes_to_mask(log_odds: torch.Tensor) -> tuple[torch.Tensor, float | None]:
    """Log-odds ``(K, *S)`` of K shapes as one mask ``(1, *S)``, bool, with K components, and the level at which they were read.

    The log-odds are positive inside, on any frame. The level is 0 unless this frame's lattice tears a shape or lets two touch.
    Then it is the nearest one at which it does not, as in the guard of a template transformer. Where there is none, each shape
    keeps its largest part without holes, apart from the shapes before it, and the level is None.
    """
    level = intact_level(log_odds)
    if level is not None:
        return (log_odds > level).any(0, keepdim=True), level
    taken = np.zeros(tuple(log_odds.shape[1:]), dtype=bool)
    for inside in (log_odds > 0).cpu().numpy():
        taken |= _largest_part(inside & ~ndimage.binary_dilation(taken, np.ones((3,) * taken.ndim)))
    return torch.from_numpy(taken)[None].to(log_odds.device), None


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest part of a mask, its holes filled; empty for an empty mask."""
    return ndimage.binary_fill_holes(largest_components(mask, 1, "face") == 1, np.ones((3,) * mask.ndim))


class ShapesToMaskd(MapTransform):
    """Turn log-odds of K shapes ``(K, *S)`` into one mask ``(1, *S)`` with K components, as :func:`shapes_to_mask`.

    The level goes to ``<key>_level``. The largest components need not be looked for afterwards, nor holes filled.
    """

    backend = [TransformBackends.TORCH]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            mask, out[f"{key}_level"] = shapes_to_mask(convert_to_tensor(out[key], track_meta=False))
            out[key] = convert_to_dst_type(mask.float(), out[key])[0]
        return out


ShapesToMaskD = ShapesToMaskDict = ShapesToMaskd
SeparateLungsD = SeparateLungsDict = SeparateLungsd
