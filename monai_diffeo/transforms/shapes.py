"""MONAI transforms around template transformers: labels of single shapes, and masks from warped shapes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_numpy

from monai_diffeo.data.lungs import separate_lungs

__all__ = ["SeparateLungsD", "SeparateLungsDict", "SeparateLungsd"]


class SeparateLungsd(MapTransform):
    """Turn a mask of both lungs ``(1, H, W)`` into one channel a lung ``(2, H, W)``, the patient's right lung first.

    Put it before anything that resizes: two lungs may come to touch.
    """

    backend = [TransformBackends.NUMPY]

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        out = dict(data)
        for key in self.key_iterator(out):
            lungs = separate_lungs(convert_to_numpy(out[key])[0])
            out[key] = convert_to_dst_type(torch.from_numpy(lungs.astype(np.float32)), out[key])[0]
        return out


SeparateLungsD = SeparateLungsDict = SeparateLungsd
