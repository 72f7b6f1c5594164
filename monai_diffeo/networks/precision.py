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
    """Let a network run under autocast to bfloat16 from now on; what it gives is float32 again. Returns the network.

    Of a :class:`TemplateTransformer` only the networks of its backbone do so: template and fields stay in float32.
    """
    backbone: Any = network.backbone if isinstance(network, TemplateTransformer) else network
    several = isinstance(backbone, SegmentThenRegister)
    for part in (backbone.segmentation, *backbone.registration) if several else (backbone,):
        part.forward = partial(_in_bfloat16, part)
    return network


def _in_bfloat16(network: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.autocast(next(network.parameters()).device.type, dtype=torch.bfloat16):
        return _in_float32(type(network).forward(network, *args, **kwargs))


def _in_float32(answer: Any) -> Any:
    """A tensor, or tensors in dictionaries and sequences, those of bfloat16 as float32."""
    if isinstance(answer, Tensor):
        return answer.float() if answer.dtype == torch.bfloat16 else answer
    if isinstance(answer, dict):
        return {name: _in_float32(part) for name, part in answer.items()}
    return type(answer)(map(_in_float32, answer)) if isinstance(answer, (list, tuple)) else answer
