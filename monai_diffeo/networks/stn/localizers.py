"""Networks that predict the parameters of a spatial transformer from an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai.networks.layers.factories import Conv, Pool
from monai.networks.nets import Regressor
from torch import Tensor, nn

from monai_diffeo.networks.predictor import resample_image, standardize_image

__all__ = ["CNNLocalizer", "FCNLocalizer", "RegressorLocalizer", "zero_init_last_layer_"]


def zero_init_last_layer_(network: nn.Module) -> nn.Module:
    """Set the last layer of a network to zero, so that it begins with the identity; return the network.

    Makes a localiser of any network with one output a parameter, such as MONAI's ``DenseNet121(2, 1, family.num_parameters)``.

    Raises:
        ValueError: if the network has no linear layer or convolution.
    """
    layers = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    if not layers:
        raise ValueError(f"zero_init_last_layer_(): {type(network).__name__} has no linear layer or convolution to start from.")
    nn.init.zeros_(layers[-1].weight)
    if layers[-1].bias is not None:
        nn.init.zeros_(layers[-1].bias)
    return network


def _dense(widths: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = [x for a, b in zip(widths, widths[1:]) for x in (nn.Linear(a, b), nn.ReLU())]
    return layers[:-1]


class FCNLocalizer(nn.Sequential):
    """Fully connected layers from the pixels of a small image to the parameters of a family.

    Args:
        num_parameters: P, of the family.
        image_size: of the images, one number an axis.
        in_channels: channels of the images.
        hidden: number of outputs of each hidden layer.

    Reference: Jaderberg et al. (2015), https://arxiv.org/abs/1506.02025, for MNIST.
    """

    def __init__(
        self, num_parameters: int, image_size: Sequence[int] = (42, 42), in_channels: int = 1, hidden: Sequence[int] = (32,) * 3
    ) -> None:
        super().__init__(nn.Flatten(), *_dense([in_channels * math.prod(image_size), *hidden, num_parameters]))
        zero_init_last_layer_(self)


class CNNLocalizer(nn.Sequential):
    """Unpadded convolutions, each followed by max pooling, then fully connected layers, for small images.

    Args:
        num_parameters, image_size, in_channels: as for :class:`FCNLocalizer`, for images of 2 or 3 axes.
        channels: number of outputs of each convolution.
        kernel_size: of every convolution.
        hidden: number of outputs of each hidden fully connected layer.

    Raises:
        ValueError: if the image is too small for the convolutions.

    Reference: Jaderberg et al. (2015), https://arxiv.org/abs/1506.02025; two convolutions as in Detlefsen et al. (2018).
    """

    def __init__(
        self,
        num_parameters: int,
        image_size: Sequence[int] = (42, 42),
        in_channels: int = 1,
        channels: Sequence[int] = (20, 20),
        kernel_size: int = 5,
        hidden: Sequence[int] = (20,),
    ) -> None:
        dims, size, layers = len(image_size), tuple(image_size), []
        for a, b in zip([in_channels, *channels], channels):
            layers += [Conv["conv", dims](a, b, kernel_size), nn.ReLU(), Pool["max", dims](2)]
            size = tuple((n - kernel_size + 1) // 2 for n in size)
        if min(size) < 1:
            remedy = f"too small for {len(channels)} convolutions of {kernel_size}. Leave one out or take a smaller kernel."
            raise ValueError(f"CNNLocalizer: images of {tuple(image_size)} are {remedy}")
        super().__init__(*layers, nn.Flatten(), *_dense([channels[-1] * math.prod(size), *hidden, num_parameters]))
        zero_init_last_layer_(self)


class RegressorLocalizer(nn.Module):
    """MONAI's ``Regressor`` on a thumbnail of the image, for images and volumes of the usual sizes.

    Args:
        num_parameters, in_channels: as for :class:`FCNLocalizer`.
        spatial_dims: 2 or 3.
        image_size: size of the thumbnail along every axis; ``theta`` is relative to the frame and does not depend on it.
        channels: number of features after each halving.
        num_res_units: convolutions in each of the network's residual units.
    """

    def __init__(
        self,
        num_parameters: int,
        spatial_dims: int = 2,
        in_channels: int = 1,
        image_size: int = 64,
        channels: Sequence[int] = (16, 32, 64, 64),
        num_res_units: int = 2,
    ) -> None:
        super().__init__()
        self.image_size = (image_size,) * spatial_dims
        shapes, strides = ((in_channels, *self.image_size), (num_parameters,)), (2,) * len(channels)
        self.network = Regressor(*shapes, channels, strides, num_res_units=num_res_units, act="relu")
        zero_init_last_layer_(self.network)

    def forward(self, image: Tensor) -> Tensor:
        """Parameters ``(B, P)`` for images ``(B, C, *S)``."""
        image = image.to(next(self.network.parameters()).dtype)
        return self.network(standardize_image(resample_image(image, self.image_size)).to(image.dtype))
