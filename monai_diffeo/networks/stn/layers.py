"""Spatial transformers: layers that deform images or feature maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from monai_diffeo.errors import ShapeError
from monai_diffeo.families import Family
from monai_diffeo.flow import Deformation, warp

__all__ = ["SpatialTransformerChain", "SpatialTransformerLayer"]


class SpatialTransformerLayer(nn.Module):
    """Deform each image, or each stack of feature maps, as a small network predicts from it.

    It needs two lines before any network in 2D or 3D, is trained by that network's loss, and begins with the identity::

        family = AffineCPAB((4, 4))
        network = nn.Sequential(SpatialTransformerLayer(RegressorLocalizer(family.num_parameters), family), network)

    Args:
        localizer: from images ``(B, C, *S)`` to ``(B, P)``, the parameters of ``family`` minus those of its identity, for
            example :class:`CNNLocalizer` or :class:`RegressorLocalizer`.
        family: of the deformations.
        mode: ``"bilinear"`` or ``"nearest"``; the latter has no gradient.
        padding_mode: what lies outside the frame: ``"border"``, ``"zeros"`` or ``"reflection"``.
        limit: bound on each parameter's distance from the identity, by a hyperbolic tangent, so that very large parameters
            are still computed in bounded time. None: no limit.

    Raises:
        ValueError: if ``limit`` is not positive.

    Reference: Jaderberg et al. (2015), https://arxiv.org/abs/1506.02025; Detlefsen et al. (2018), Deep Diffeomorphic
        Transformer Networks.
    """

    def __init__(
        self,
        localizer: nn.Module,
        family: Family,
        mode: str = "bilinear",
        padding_mode: str = "border",
        limit: float | None = None,
    ) -> None:
        super().__init__()
        if limit is not None and not limit > 0:
            raise ValueError(f"SpatialTransformerLayer: 'limit' must be larger than 0 or None, got {limit}.")
        self.localizer, self.family, self.mode, self.padding_mode, self.limit = localizer, family, mode, padding_mode, limit
        with torch.inference_mode(False):
            self.register_buffer("origin", family.identity(1), persistent=False)

    def deformation(self, image: Tensor) -> Deformation:
        """The predicted deformations of images ``(B, C, *S)``, in single precision under any autocast.

        Raises:
            ShapeError: if the localiser does not give one number a parameter, or the images have other axes than the family.
        """
        axes, wanted = "BCHWD"[: 2 + self.family.spatial_dims], (len(image), self.family.num_parameters)
        if image.ndim != len(axes):
            raise ShapeError("SpatialTransformerLayer", "image", f"({', '.join(axes)}) as the family has it", image.shape)
        theta = self.localizer(image)
        if theta.shape != wanted:
            remedy = "Give the localiser num_parameters=family.num_parameters."
            raise ShapeError("SpatialTransformerLayer", "localizer(image)", str(wanted), theta.shape, remedy)
        theta = theta.to(torch.promote_types(theta.dtype, torch.float32))
        if self.limit is not None:
            theta = self.limit * torch.tanh(theta / self.limit)
        return self.family(theta + self.origin, tuple(image.shape[2:]))

    def forward(self, image: Tensor) -> Tensor:
        """The deformed images, shape and dtype of ``image``."""
        return warp(image, self.deformation(image).ddf(image.shape[2:]), self.mode, self.padding_mode)


class SpatialTransformerChain(nn.Module):
    """Several transformers in a row, whose deformations are composed; the image is never interpolated twice.

    Each one sees the original image under the composed deformation of those before it. ``nn.Sequential`` of the same layers
    interpolates again and again, and blurs: on small images this costs accuracy, say Detlefsen et al. (2018).

    Args:
        layers: in the order in which they deform the image; the ``mode`` and ``padding_mode`` of the last one make the result.
    """

    layers: Any  # a ModuleList, which mypy takes for one of plain modules

    def __init__(self, *layers: SpatialTransformerLayer) -> None:
        super().__init__()
        if not layers:
            raise ValueError("SpatialTransformerChain: give at least one layer.")
        self.layers = nn.ModuleList(layers)

    def deformation(self, image: Tensor) -> Deformation:
        """The whole deformation of images ``(B, C, *S)``."""
        whole = self.layers[0].deformation(image)
        for layer in self.layers[1:]:
            seen = warp(image, whole.ddf(image.shape[2:]), layer.mode, layer.padding_mode)
            whole = whole.after(layer.deformation(seen))
        return whole

    def forward(self, image: Tensor) -> Tensor:
        """The deformed images, shape and dtype of ``image``."""
        last = self.layers[-1]
        return warp(image, self.deformation(image).ddf(image.shape[2:]), last.mode, last.padding_mode)
