"""An image with another number of channels than a network was made for, said in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from monai_diffeo.errors import ShapeError

__all__ = ["explained_channels"]


@contextmanager
def explained_channels(who: str, module: Any, image: Tensor) -> Iterator[None]:
    """A ShapeError that names the channels, if ``module`` fails and its first convolution takes others than ``image`` has."""
    try:
        yield
    except RuntimeError as error:
        parts = module.modules() if isinstance(module, nn.Module) else iter(())
        first = next((part for part in parts if isinstance(part, _ConvNd)), None)
        if first is None or first.in_channels == image.shape[1]:
            raise
        remedy = f"{type(module).__name__} was made for images with {first.in_channels} channels; give such, or fit it anew."
        raise ShapeError(who, "image", f"(B, {first.in_channels}, *S)", image.shape, remedy) from error
