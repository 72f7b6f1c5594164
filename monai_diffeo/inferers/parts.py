"""Which parts of an answer lie where they are expected: in canonical pose, not by size."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from monai_diffeo.canonicalize import Canonicalization
from monai_diffeo.canonicalize.checks import check_number
from monai_diffeo.errors import ShapeError
from monai_diffeo.metrics.topology import components_in_place
from monai_diffeo.networks import ImageAtlas
from monai_diffeo.networks.predictor import resample_image

__all__ = ["PartsInPlace"]


class PartsInPlace:
    """Makes background of all but a few parts of an answer, by where they lie: those stay that have most of the mean of the
    training masks, brought to the pose of the image. See :func:`components_in_place`.

    A part that is dropped gets its logits mirrored at the threshold. The outline of the others, resized linearly, stays the
    same. Images that were not moved stay bit for bit.

    Args:
        atlas: the mean of training masks, one channel, over the canonical frame, with as many axes as the images.
        num_components: how many parts are kept at most.
        threshold: probability above which a network's answer is inside.

    Raises:
        ShapeError: for an atlas of several channels.
        ValueError: for another setting without a meaning.

    Example::

        inferer = DiffeoInferer(canonicalizer, parts=PartsInPlace(atlas, num_components=2))
    """

    def __init__(self, atlas: ImageAtlas, num_components: int = 1, threshold: float = 0.5) -> None:
        check_number("PartsInPlace", "num_components", num_components, 1)
        if not 0 < threshold < 1:
            raise ValueError(f"PartsInPlace: 'threshold' must lie between 0 and 1, got {threshold!r}. Give a probability.")
        if atlas.image.shape[1] != 1:
            raise ShapeError("PartsInPlace", "atlas", "one channel", tuple(atlas.image.shape[1:]), "Measure single masks.")
        self.atlas, self.num_components = atlas, num_components
        self.level = math.log(threshold / (1 - threshold))

    @torch.no_grad()
    def dropped(self, logits: Tensor, found: Canonicalization) -> Tensor:
        """Which voxels lie in parts that are dropped, shape and device of the logits, bool; arguments as for a call."""
        with torch.autocast(logits.device.type, enabled=False):
            canonical = resample_image(self.atlas(len(logits)).to(found.image.device), found.image.shape[2:])
            place = resample_image(found.warp_back(canonical, outputs="map"), logits.shape[2:]).cpu().numpy()
        inside = (logits > self.level).cpu().numpy()
        out = np.zeros_like(inside)
        for i in np.flatnonzero(found.moved.cpu().numpy()):
            for k, mask in enumerate(inside[i]):
                out[i, k] = mask & ~components_in_place(mask, place[i, 0], self.num_components)
        return torch.from_numpy(out).to(logits.device)

    def __call__(self, logits: Tensor, found: Canonicalization) -> Tensor:
        """The logits without the parts that are dropped.

        Args:
            logits: ``(B, K, *S)``, in the frame of the images; each channel is a sigmoid's and has its own parts.
            found: canonicalisation of the images.

        Raises:
            ShapeError: for another prediction, or an atlas of another number of axes.
        """
        axes = found.ddf.ndim
        if len(self.atlas.image_size) != axes - 2:
            expected = f"{axes - 2} axes as the images have"
            raise ShapeError("PartsInPlace", "atlas", expected, self.atlas.image_size, "Measure one on masks of such images.")
        fits = isinstance(logits, Tensor) and logits.is_floating_point() and logits.ndim == axes
        if not fits or len(logits) != len(found.status):
            expected = f"one tensor of floating-point logits ({len(found.status)}, K{', H, W' if axes == 4 else ', H, W, D'})"
            got = (*logits.shape, str(logits.dtype)) if isinstance(logits, Tensor) else type(logits).__name__
            raise ShapeError("PartsInPlace", "prediction", expected, got, "Leave out 'parts' for such a network.")
        return torch.where(self.dropped(logits, found), 2 * self.level - logits, logits)
