"""A network that finds by how many quarter turns a film is rotated, and whether it is mirrored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_diffeo.networks.predictor import ResidualUnit, resample_image, standardize_image

__all__ = ["FilmOrientation", "rot90_image", "rot90_generator"]


def rot90_image(image: Tensor, turns: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror square images ``(B, C, N, N)`` left to right where ``mirrored`` (B,) is true, then rotate each by ``turns`` (B,)
    times 90 degrees, counter-clockwise as ``torch.rot90``."""
    image = torch.where(mirrored.view(-1, 1, 1, 1), image.flip(-1), image)
    out = torch.empty_like(image)
    for k in range(4):
        rows = turns == k
        out[rows] = torch.rot90(image[rows], k, (2, 3))
    return out


def rot90_generator(turns: Tensor) -> Tensor:
    """Affine generators ``(B, 2, 3)`` of the flows that undo a rotation of square images by ``turns`` (B,) times 90 degrees."""
    angle = turns.float() * (-math.pi / 2)
    generator = torch.zeros(len(turns), 2, 3, device=turns.device)
    generator[:, 0, 1], generator[:, 1, 0] = angle, -angle
    return generator


class FilmOrientation(nn.Module):
    """Scores of the eight orientations of a square film.

    Args:
        in_channels: channels of the image.
        image_size: to which images are resampled, (N, N).
        channels: width after each halving.
    """

    def __init__(
        self, in_channels: int = 1, image_size: Sequence[int] = (64, 64), channels: Sequence[int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        self.image_size = tuple(image_size)
        widths = [in_channels, *channels]
        self.features = nn.Sequential(*(ResidualUnit(2, a, b) for a, b in zip(widths, widths[1:])))
        positions = math.prod(math.ceil(n / 2 ** len(channels)) for n in image_size)
        self.squeeze = nn.Sequential(nn.Conv2d(channels[-1], 16, 1), nn.SiLU())
        self.head = nn.Sequential(nn.Linear(16 * positions, 64), nn.SiLU(), nn.Linear(64, 8))

    def forward(self, image: Tensor) -> Tensor:
        """Scores ``(B, 2, 4)``: mirrored or not (0 = not), and the number of quarter turns."""
        image = standardize_image(resample_image(image.float(), self.image_size))
        return self.head(self.squeeze(self.features(image)).flatten(1)).view(-1, 2, 4)

    def probabilities(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of each number of quarter turns ``(B, 4)``, and that the film is mirrored ``(B,)``.

        The log-probabilities of the film in all eight orientations are averaged. So the answers on a rotated film are those on
        the film, rotated.
        """
        total, backwards = image.new_zeros(len(image), 2, 4), [0, 3, 2, 1]  # a mirrored film turns the other way round
        for k in range(4):
            scores = self(torch.rot90(image, k, (2, 3))).flatten(1).log_softmax(1).view(-1, 2, 4)
            mirrored = self(torch.rot90(image.flip(-1), k, (2, 3))).flatten(1).log_softmax(1).view(-1, 2, 4)
            total = total + scores.roll(-k, 2) + mirrored.roll(-k, 2).flip(1)[:, :, backwards]
        joint = (total / 8).flatten(1).softmax(1).view(-1, 2, 4)
        return joint.sum(1), joint[:, 1].sum(1)
