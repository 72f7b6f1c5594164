"""Layers that move what a network sees: spatial transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_diffeo.errors import ShapeError
from monai_diffeo.families import Family
from monai_diffeo.flow import Deformation, warp

__all__ = ["SpatialTransformerChain", "SpatialTransformerLayer"]


class SpatialTransformerLayer(nn.Module):
    """Move each image, or each stack of feature maps, by a deformation that a small network reads off it.

    Two lines before any network in 2D or 3D; it learns with the network's own loss, and begins with the identity::

        family = AffineCPAB((4, 4))
        network = nn.Sequential(SpatialTransformerLayer(RegressorLocalizer(family.num_parameters), family), network)

    Args:
        localizer: images ``(B, C, *S)`` to parameters ``(B, P)`` of ``family``, 0 for the identity, for example
            :class:`CNNLocalizer` or :class:`RegressorLocalizer`.
        family: of the deformations.
        mode: ``"bilinear"`` or ``"nearest"``; the latter has no gradient.
        padding_mode: what lies outside the frame: ``"border"``, ``"zeros"`` or ``"reflection"``.
        limit: largest absolute value of a parameter's distance from the identity, which a hyperbolic tangent comes near to; a localiser
            gone astray is then still computed in bounded time. None: no limit.

    Raises:
        ValueError: if ``limit`` is not positive.

    Reference: Jaderberg et al. (2015), https://arxiv.org/abs/1506.02025; Detlefsen et al. (2018), Deep Diffeomorphic Transformer Networks.
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
        """The deformations that bring images ``(B, C, *S)`` to where the network wants them; in single precision under any autocast.

        Raises:
            ShapeError: if the localiser does not give as many numbers as the family has parameters, or the images have other axes.
        """
        dims = self.family.spatial_dims
        if image.ndim != dims + 2:
            raise ShapeError(
                "SpatialTransformerLayer", "image", f"(B, C, {', '.join('HWD'[:dims])}) as the family has it", image.shape
            )
        theta = self.localizer(image)
        if theta.shape != (len(image), self.family.num_parameters):
            raise ShapeError(
                "SpatialTransformerLayer",
                "localizer(image)",
                f"({len(image)}, {self.family.num_parameters})",
                theta.shape,
                "Give the localiser num_parameters=family.num_parameters.",
            )
        theta = theta.to(torch.promote_types(theta.dtype, torch.float32))
        if self.limit is not None:
            theta = self.limit * torch.tanh(theta / self.limit)
        return self.family(theta + self.origin, tuple(image.shape[2:]))

    def forward(self, image: Tensor) -> Tensor:
        """The moved images, shape and dtype of ``image``."""
        return warp(image, self.deformation(image).ddf(tuple(image.shape[2:])), self.mode, self.padding_mode)


class SpatialTransformerChain(nn.Module):
    """Several transformers, each of which sees what those before it have moved; the image is interpolated once for each look, never twice.

    ``nn.Sequential`` of the same layers samples what was sampled before, and blurs: the reason, say Detlefsen et al., why affine followed by
    CPAB loses on small images.

    Args:
        layers: in the order in which they move the image; the last one's ``mode`` and ``padding_mode`` hold.
    """

    def __init__(self, *layers: SpatialTransformerLayer) -> None:
        super().__init__()
        if not layers:
            raise ValueError("SpatialTransformerChain: give at least one layer.")
        self.layers = nn.ModuleList(layers)

    def deformation(self, image: Tensor) -> Deformation:
        """The whole deformation of images ``(B, C, *S)``."""
        size, whole, seen = tuple(image.shape[2:]), None, image
        for layer in self.layers:
            if whole is not None:
                seen = warp(image, whole.ddf(size), layer.mode, layer.padding_mode)
            step = layer.deformation(seen)
            whole = step if whole is None else whole.after(step)
        return whole

    def forward(self, image: Tensor) -> Tensor:
        """The moved images, shape and dtype of ``image``."""
        last = self.layers[-1]
        return warp(image, self.deformation(image).ddf(tuple(image.shape[2:])), last.mode, last.padding_mode)
