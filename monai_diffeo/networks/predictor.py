"""A network that predicts a deformation from an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow.kept import keep_tensors
from monai_diffeo.networks.rows import row_by_row

__all__ = ["DeformationPredictor", "standardize_image"]


def standardize_image(image: Tensor) -> Tensor:
    """Each image to mean 0 and spread 1 over all channels and voxels; a constant image to zeros. ``(B, C, *S)``."""
    image = image if image.dtype == torch.float64 else image.float()
    flat = image.flatten(1)
    mean, std = (x.view(-1, *[1] * (image.ndim - 1)) for x in (flat.mean(1), flat.std(1)))
    return (image - mean) / torch.maximum(std, 1e-6 + 1e-4 * mean.abs())  # a spread of rounding errors is none


def resample_image(image: Tensor, spatial_size: Sequence[int]) -> Tensor:
    """Images ``(B, C, *S)`` on another grid over the same frame, edges on edges; linear, with antialiasing.

    In space an axis that loses voxels is averaged over blocks, and then all axes are interpolated.
    """
    if tuple(image.shape[2:]) == tuple(spatial_size):
        return image
    if image.ndim == 4:
        return F.interpolate(image, spatial_size, mode="bilinear", align_corners=False, antialias=True)
    for axis, m in enumerate(spatial_size, 2):
        if m < image.shape[axis]:
            means = _block_means(image.shape[axis], m, image.device, image.dtype)
            image = (image.movedim(axis, -1) @ means).movedim(-1, axis)
    return F.interpolate(image, tuple(spatial_size), mode="trilinear", align_corners=False)


def resample_once_more(image: Tensor, spatial_size: Sequence[int]) -> Tensor:
    """As :func:`resample_image`, with less averaging: images, which must be finite, are taken to be averaged once already. The
    result is then nearer to that of one resampling.

    Linear antialiasing averages by a triangle whose sides are a voxel of the new grid long. Variances of averages add, and that
    of a triangle is a sixth of its side squared. So where r voxels become one, sides of sqrt(r² - 1) voxels remain. Up to the
    square root of 2 that is interpolation alone. Volumes, and images of which an axis grows, are resampled as ever.
    """
    size = tuple(image.shape[2:])
    if image.ndim != 4 or size == tuple(spatial_size) or any(new > old for new, old in zip(spatial_size, size)):
        return resample_image(image, spatial_size)
    rows, columns = (_triangles(old, new, image.device, image.dtype) for old, new in zip(size, spatial_size))
    if torch.compiler.is_compiling():  # a graph takes batches of any size
        return rows @ image @ columns.T
    return torch.cat([rows @ one @ columns.T for one in image.split(1)])  # products of a batch are rounded otherwise


@keep_tensors
def _triangles(old: int, new: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Averages along an axis as a matrix ``(new, old)``, see :func:`resample_once_more`."""
    ratio, voxels = old / new, torch.arange(old, dtype=torch.float64)
    places = (torch.arange(new, dtype=torch.float64)[:, None] + 0.5) * ratio - 0.5
    weights = (1 - (voxels - places).abs() / max(math.sqrt(ratio**2 - 1), 1.0)).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).to(device, dtype)


@keep_tensors
def _block_means(old: int, new: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Adaptive average pooling along an axis as a matrix ``(old, new)``; exporters have no such operation in space."""
    return F.adaptive_avg_pool1d(torch.eye(old, device=device, dtype=dtype)[None], new)[0]


def check_image(network: nn.Module, image: Tensor, dims: int, channels: int, size: tuple[int, ...] = ()) -> None:
    """Raise :class:`ShapeError` unless ``image`` has the axes and channels of a network, and its ``size`` if one is given."""
    if image.ndim != dims + 2 or image.shape[1] != channels or (size and tuple(image.shape[2:]) != size):
        axes = ", ".join(map(str, size or "HWD"[:dims]))
        remedy = "Build the network for such images, or bring the images to its axes, channels and size."
        raise ShapeError(type(network).__name__, "image", f"(B, {channels}, {axes})", image.shape, remedy)


class ResidualUnit(nn.Module):
    """Strided convolution, then a convolution added to it."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        conv, groups = Conv["conv", spatial_dims], (min(8, out_channels), out_channels)
        down = conv(in_channels, out_channels, 3, stride=2, padding=1)
        self.down = nn.Sequential(down, nn.GroupNorm(*groups), nn.SiLU())
        self.refine = nn.Sequential(conv(out_channels, out_channels, 3, padding=1), nn.GroupNorm(*groups), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return x + self.refine(x)


class DeformationPredictor(nn.Module):
    """Image to the parameters of a family's deformation; the identity at the start of training.

    Args:
        num_parameters: length of ``theta``, the family's ``num_parameters``.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        image_size: one number an axis; images of another size are resampled to it, since ``theta`` is relative to the frame.
        channels: number of features after each halving.
        hidden: width of the last hidden layer.
        output_scale: factor on the output; small, so that training starts gently.
    """

    def __init__(
        self,
        num_parameters: int,
        spatial_dims: int = 2,
        in_channels: int = 1,
        image_size: Sequence[int] = (128, 128),
        channels: Sequence[int] = (24, 48, 96, 160),
        hidden: int = 384,
        output_scale: float = 0.1,
    ) -> None:
        super().__init__()
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        self.image_size, self.output_scale = tuple(image_size), output_scale
        widths = [in_channels, *channels]
        self.features = nn.Sequential(*(ResidualUnit(spatial_dims, a, b) for a, b in zip(widths, widths[1:])))
        positions = math.prod(math.ceil(n / 2 ** len(channels)) for n in image_size)
        squeeze = max(channels[-1] // 4, 8)
        self.squeeze = nn.Sequential(Conv["conv", spatial_dims](channels[-1], squeeze, 1), nn.SiLU())
        first, last = nn.Linear(squeeze * positions, hidden), nn.Linear(hidden, num_parameters)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, image: Tensor) -> Tensor:
        """Parameters ``theta``, shape ``(B, P)``, of the deformation that moves ``image`` ``(B, C, *S)`` to its canonical pose.

        Computed in the precision of the weights. Rounding depends on the batch and grows from iteration to iteration. A batch
        gives what its images give one by one all the same: outside of training, single precision takes them
        :func:`~monai_diffeo.networks.rows.row_by_row`. With ``double()`` weights all are computed at once, and rounding stays
        small. Raises :class:`ShapeError` for other axes or channels.
        """
        check_image(self, image, self.spatial_dims, self.in_channels)
        dtype, image = image.dtype, image.to(next(self.parameters()).dtype)
        at_once = self.training or image.dtype == torch.float64 or torch.compiler.is_compiling()
        theta = self._theta(image) if at_once else row_by_row(self._theta, image)
        return theta.to(dtype) if dtype.is_floating_point else theta

    def _theta(self, image: Tensor) -> Tensor:
        image = standardize_image(resample_image(image, self.image_size))
        return self.head(self.squeeze(self.features(image)).flatten(1)) * self.output_scale
