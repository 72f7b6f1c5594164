"""Networks that compute in bfloat16."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from monai_diffeo.networks.template import SegmentThenRegister, TemplateTransformer

__all__ = ["mixed_precision"]

Network = TypeVar("Network", bound=nn.Module)


def mixed_precision(network: Network) -> Network:
    """Let a network run under autocast to bfloat16 from now on; what it gives, one tensor, stays float32. Returns the network.

    Of a :class:`TemplateTransformer` only the networks of its backbone do so: template and fields stay in float32.
    """
    backbone: Any = network.backbone if isinstance(network, TemplateTransformer) else network
    several = isinstance(backbone, SegmentThenRegister)
    for part in (backbone.segmentation, *backbone.registration) if several else (backbone,):
        part.forward = partial(_in_bfloat16, part)
    return network


def _in_bfloat16(network: nn.Module, image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    with torch.autocast(image.device.type, dtype=torch.bfloat16):
        return type(network).forward(network, image, *args, **kwargs).float()
