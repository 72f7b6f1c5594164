"""MONAI transforms around template transformers: labels of single shapes, and masks from warped shapes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_numpy, convert_to_tensor, optional_import

from monai_diffeo.metrics import connected_components
from monai_diffeo.metrics.topology import bounding_box, plane_parts_are_simple, ranked_components
from monai_diffeo.networks.template.guard import intact_level
from monai_diffeo.radiograph.lungs import separate_lungs

__all__ = ["KeepLargestPartsD", "KeepLargestPartsDict", "KeepLargestPartsd"]
__all__ += ["SeparateLungsD", "SeparateLungsDict", "SeparateLungsd", "ShapesToMaskD", "ShapesToMaskDict", "ShapesToMaskd"]
__all__ += ["largest_parts", "shapes_to_mask"]

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
        taken |= largest_parts(inside & ~ndimage.binary_dilation(taken, np.ones((3,) * taken.ndim)), 1, "face")
    return torch.from_numpy(taken)[None].to(log_odds.device), None


def largest_parts(mask: np.ndarray, count: int, connectivity: str = "full") -> np.ndarray:
    """The ``count`` largest parts of a mask, shape ``S``, their holes filled, bool; arguments as `largest_components`.

    The same as MONAI's ``KeepLargestConnectedComponent`` and ``FillHoles`` one after the other, in a fraction of the time.

    Example:
        >>> ring = np.pad(np.ones((3, 3)), ((0, 0), (1, 3))); ring[1, 2], ring[1, -1] = 0, 1
        >>> largest_parts(ring, 1).astype(int)[1].tolist()
        [0, 1, 1, 1, 0, 0, 0]
    """
    whole = np.asarray(mask) != 0
    if not whole.any():
        return whole
    box = bounding_box(whole)
    kept, out = whole[box], np.zeros_like(whole)
    labels, found = connected_components(kept, connectivity)
    kept = ranked_components(labels, found, count) > 0 if found > count else kept
    if not (kept.ndim == 2 and plane_parts_are_simple(kept, min(count, found))):
        outside, _ = connected_components(~np.pad(kept, 1), "full")
        kept = (outside != outside.flat[0])[(slice(1, -1),) * kept.ndim]
    out[box] = kept
    return out


class KeepLargestPartsd(MapTransform):
    """Keep the ``num_components`` largest parts of each channel of a mask ``(K, *S)``, their holes filled: `largest_parts`."""

    backend = [TransformBackends.NUMPY]

    def __init__(self, keys: KeysCollection, num_components: int = 1, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_components = num_components

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            parts = [largest_parts(channel, self.num_components) for channel in convert_to_numpy(out[key])]
            out[key] = convert_to_dst_type(torch.from_numpy(np.stack(parts)), out[key])[0]
        return out


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


KeepLargestPartsD = KeepLargestPartsDict = KeepLargestPartsd
ShapesToMaskD = ShapesToMaskDict = ShapesToMaskd
SeparateLungsD = SeparateLungsDict = SeparateLungsd
