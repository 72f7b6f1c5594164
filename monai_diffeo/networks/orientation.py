"""A network that finds how the axes of an image are rotated, and whether it is mirrored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import axis_rotations, mirror, rotate_axes
from monai_diffeo.flow.axis_rotations import mirror_axis
from monai_diffeo.flow.kept import keep_tensors
from monai_diffeo.networks.predictor import ResidualUnit, resample_image, standardize_image
from monai_diffeo.networks.rows import ROWS_ON_CUDA, row_by_row

__all__ = ["ImageOrientation", "orient_images"]


def orient_images(image: Tensor, rotation: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror square or cubic images ``(B, C, N, ..., N)`` where ``mirrored`` (B,) is true, then rotate each by the rotation of
    its number (B,), see :func:`~monai_diffeo.flow.axis_rotations`."""
    if len(set(image.shape[2:])) != 1:
        raise ShapeError(
            "orient_images()", "image", "(B, C, N, N) or (B, C, N, N, N)", image.shape, "Resample it to such a frame."
        )
    rows = [mirror(row) if flip else row for row, flip in zip(image.split(1), mirrored.tolist())]
    return torch.cat([rotate_axes(row, index) for row, index in zip(rows, rotation.tolist())])


@keep_tensors
def _products(spatial_dims: int, device: torch.device) -> Tensor:
    """For an image of class g that is shown as h, its class then: entry ``[h, g]``; classes are ``mirrored * R + rotation``."""
    rotations, flip = axis_rotations(spatial_dims), torch.ones(spatial_dims)
    flip[mirror_axis(spatial_dims)] = -1
    maps = torch.cat([rotations, torch.diag(flip) @ rotations])
    products = torch.einsum("gij,hjk->hgik", maps, maps)
    return (products[:, :, None] - maps).abs().sum((3, 4)).argmin(2).to(device)


class ImageOrientation(nn.Module):
    """Scores of the orientations of an image: mirrored or not, times 4 rotations in 2D or 24 in 3D.

    Images of any frame are resampled to a square or a cube, where every rotation is exact.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        image_size: to which images are resampled, one number an axis, all equal; None is 64 in 2D and 32 in 3D.
        channels: width after each halving.

    Raises:
        ValueError: if the numbers of ``image_size`` differ.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        image_size: Sequence[int] | None = None,
        channels: Sequence[int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        size = (64 if spatial_dims == 2 else 32,) * spatial_dims if image_size is None else tuple(image_size)
        if len(size) != spatial_dims or len(set(size)) != 1:
            raise ValueError(f"ImageOrientation: 'image_size' must be {spatial_dims} equal numbers, got {size}.")
        self.spatial_dims, self.image_size, self.num_rotations = spatial_dims, size, len(axis_rotations(spatial_dims))
        widths = [in_channels, *channels]
        self.features = nn.Sequential(*(ResidualUnit(spatial_dims, a, b) for a, b in zip(widths, widths[1:])))
        positions = math.prod(math.ceil(n / 2 ** len(channels)) for n in size)
        self.squeeze = nn.Sequential(Conv["conv", spatial_dims](channels[-1], 16, 1), nn.SiLU())
        self.head = nn.Sequential(nn.Linear(16 * positions, 64), nn.SiLU(), nn.Linear(64, 2 * self.num_rotations))

    def forward(self, image: Tensor) -> Tensor:
        """Scores ``(B, 2, R)``: mirrored or not (0 = not), and the number of the rotation."""
        image = standardize_image(resample_image(image.float(), self.image_size))
        return self.head(self.squeeze(self.features(image)).flatten(1)).view(-1, 2, self.num_rotations)

    def probabilities(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of each rotation ``(B, R)``, and that the image is mirrored ``(B,)``.

        The log-probabilities of the image in all its orientations are averaged. So the answers on a rotated image are those on
        the image, rotated.
        """
        rows = max(ROWS_ON_CUDA * 8 // (2 * self.num_rotations), 1)  # each is shown in all orientations, 8 in 2D
        scores = row_by_row(self._mean_scores, resample_image(image.float(), self.image_size), rows)
        joint = scores.softmax(1).view(-1, 2, self.num_rotations)
        return joint.sum(1), joint[:, 1].sum(1)

    def _mean_scores(self, image: Tensor) -> Tensor:
        """Log-probabilities of the classes ``(B, 2 * R)``, each the mean over all orientations in which an image is shown."""
        shown = [rotate_axes(each, k) for each in (image, mirror(image)) for k in range(self.num_rotations)]
        scores = self(torch.cat(shown)).flatten(1).log_softmax(1).unflatten(0, (len(shown), len(image)))
        classes = _products(self.spatial_dims, image.device)[:, None].expand_as(scores)
        return scores.gather(2, classes).mean(0)
