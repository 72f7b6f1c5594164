"""What a user hands over is checked once, at the boundary."""

from __future__ import annotations

import inspect
import numbers
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_diffeo.errors import ShapeError

__all__ = ["check_callable", "check_device", "check_image", "check_number"]


def check_image(who: str, image: Any, spatial_dims: int) -> None:
    """A TypeError or ShapeError unless ``image`` is a real tensor ``(B, C, *S)`` of one image or more."""
    expected = f"({', '.join('BCHWD'[: 2 + spatial_dims])})"
    if not isinstance(image, Tensor) or image.is_complex():
        came = f"{type(image).__name__} of shape {tuple(getattr(image, 'shape', ()))} and type {getattr(image, 'dtype', None)}"
        remedy = "Convert it: torch.as_tensor(image). An inferer takes the images first, then the network."
        raise TypeError(f"{who}: 'image' must be a torch.Tensor of shape {expected} with real values, got {came}. {remedy}")
    missing = 2 + spatial_dims - image.ndim
    if missing:
        other = (
            f"This canonicalizer is for images with {spatial_dims} axes: give slices one by one, or use one made for volumes."
        )
        one = "Add the axis that is missing: image[None] for the batch, or image[:, None] for the channel."
        remedy = {1: one, 2: "Add batch and channel axes: image[None, None].", -1: other}.get(missing, "Check its axes.")
        raise ShapeError(who, "image", expected, image.shape, remedy)
    if not image.numel():
        raise ShapeError(who, "image", f"{expected} with no axis of length 0", image.shape, "Leave out empty batches.")


def check_number(who: str, name: str, value: Any, least: float, whole: bool = True, optional: bool = False) -> None:
    """A ValueError unless ``value`` is a number of at least ``least``, or None where that is allowed."""
    if optional and value is None:
        return
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or (whole and float(value) % 1 != 0):
        came = f"{value!r}{', a text: write it without quotes' * isinstance(value, str)}"
        kind = f"{'a whole number' if whole else 'a number'}{' or None' * optional}"
        raise ValueError(f"{who}: {name!r} must be {kind}, at least {least}, got {came}.")
    if not value >= least:  # NaN is at least nothing
        raise ValueError(f"{who}: {name!r} must be at least {least}{' or None' * optional}, got {value}.")


def check_device(who: str, device: Any) -> torch.device:
    """The device; a ValueError if there is none of this name, or this machine has none."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{who}: 'device' must be the name of a device, got {device!r}. Use 'cpu' or 'cuda:0'.") from error
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        remedy = "Use device='cpu', or install torch with CUDA."
        have = f"which has {torch.cuda.device_count()} CUDA devices"
        raise ValueError(f"{who}: 'device' must be one of this machine, {have}, got {str(device)!r}. {remedy}") from error
    return found


def check_callable(who: str, name: str, value: Any, expected: str, remedy: str) -> None:
    """A TypeError unless ``value`` can be called and is no class."""
    if not callable(value) or inspect.isclass(value):
        came = f"the class {value.__name__}" if inspect.isclass(value) else type(value).__name__
        came += f" {str(value)!r}" if isinstance(value, (str, Path)) else ""
        raise TypeError(f"{who}: {name!r} must be {expected}, got {came}. {remedy}")
