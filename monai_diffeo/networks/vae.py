"""The variational auto-encoder whose error measures how much an image differs from the training images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_diffeo.networks.predictor import check_image

__all__ = ["EnergyVAE"]


class EnergyVAE(nn.Module):
    """Convolutional VAE of the paper: stride-2 convolutions down to a latent vector and back.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        image_size: size of the image, at least ``2 ** len(channels)`` along every axis; an odd size is halved downwards.
        channels: number of features after each halving; the paper has six.
        latent: size of the latent vector.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        image_size: Sequence[int] = (128, 128),
        channels: Sequence[int] = (16, 32, 64, 64, 128, 128),
        latent: int = 128,
    ) -> None:
        super().__init__()
        if min(image_size) < 2 ** len(channels) or len(image_size) != spatial_dims:
            expected = f"image_size must have {spatial_dims} axes of at least {2 ** len(channels)}"
            raise ValueError(f"EnergyVAE: {expected}, got {tuple(image_size)}. Resize, or use fewer channels.")
        conv, transposed = Conv["conv", spatial_dims], Conv["convtrans", spatial_dims]
        self.spatial_dims, self.in_channels, self.image_size = spatial_dims, in_channels, tuple(image_size)
        self.bottom = (channels[-1], *[n >> len(channels) for n in image_size])
        widths = [in_channels, *channels]
        odd = [tuple(n >> k & 1 for n in image_size) for k in range(len(channels))]  # what halving drops comes back
        down = [nn.Sequential(conv(a, b, 4, stride=2, padding=1), nn.LeakyReLU(0.2)) for a, b in zip(widths, widths[1:])]
        up = [
            nn.Sequential(nn.LeakyReLU(0.2), transposed(b, a, 4, stride=2, padding=1, output_padding=rest))
            for a, b, rest in zip(widths, widths[1:], odd)
        ]
        size = int(torch.tensor(self.bottom).prod())
        self.down, self.up = nn.Sequential(*down), nn.Sequential(*reversed(up))
        self.to_mean, self.to_log_variance = nn.Linear(size, latent), nn.Linear(size, latent)
        self.from_latent = nn.Linear(latent, size)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent vector, each ``(B, latent)``; :class:`ShapeError` for images of another shape."""
        check_image(self, image, self.spatial_dims, self.in_channels, self.image_size)
        features = self.down(image).flatten(1)
        return self.to_mean(features), self.to_log_variance(features).clamp(-12, 8)

    def decode(self, latent: Tensor) -> Tensor:
        """Image ``(B, C, *S)`` of a latent vector ``(B, latent)``."""
        return self.up(self.from_latent(latent).unflatten(1, self.bottom))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, mean and log-variance; the latent vector is sampled in training mode and the mean otherwise."""
        mean, log_variance = self.encode(image)
        latent = mean + torch.randn_like(mean) * (log_variance / 2).exp() if self.training else mean
        return self.decode(latent), mean, log_variance
