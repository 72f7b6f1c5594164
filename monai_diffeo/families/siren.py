"""Velocity fields from sinusoidal networks, as the paper uses them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_diffeo.families.base import VelocityFamily
from monai_diffeo.flow.grid import centered_grid, half_frame

__all__ = ["Siren"]


class Siren(VelocityFamily):
    """One SIREN for each image: coordinates in [-1, 1] to a velocity, sine after every layer but the last.

    Args:
        spatial_dims: 2 or 3.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        first_omega: frequency of the first layer.
        omega: frequency of the others.
        c: spread of the hidden weights, ``U(-sqrt(c / n) / omega, sqrt(c / n) / omega)``.
        last: bound of the last layer's weights at the start.
        scale: factor on the output, in units of half the longest side of the frame.
        steps: squarings of the exponential.

    ``theta`` holds all weights and biases of the network in order.

    Reference: Sitzmann et al. (2020), https://arxiv.org/abs/2006.09661; settings of DiffeoNN, arXiv 2602.06695.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        hidden: int = 256,
        layers: int = 3,
        first_omega: float = 1.6,
        omega: float = 1.0,
        c: float = 6.0,
        last: float = 1e-4,
        scale: float = 0.0036,
        steps: int = 7,
    ) -> None:
        super().__init__(steps)
        self.spatial_dims, self.first_omega, self.omega = spatial_dims, first_omega, omega
        self.c, self.last, self.scale = c, last, scale
        widths = [spatial_dims] + [hidden] * layers + [spatial_dims]
        self.shapes = list(zip(widths[1:], widths[:-1]))
        self.num_parameters = sum(rows * (columns + 1) for rows, columns in self.shapes)

    def identity(self, batch_size: int, device: torch.device | str = "cpu", seed: int = 0) -> Tensor:
        """Random weights whose last layer is within ``last`` of zero; the same for every image, so that a batch gives
        what its images give one by one."""
        draw = torch.Generator().manual_seed(seed)
        parts = []
        for i, (rows, columns) in enumerate(self.shapes):
            bound = 1 / columns if i == 0 else (self.c / columns) ** 0.5 / self.omega
            bound = self.last if i == len(self.shapes) - 1 else bound
            parts.append((torch.rand(rows * (columns + 1), generator=draw) * 2 - 1) * bound)
        return torch.cat(parts).to(device).repeat(batch_size, 1)

    def scaled(self, theta: Tensor, factor: Tensor) -> Tensor:
        """The last layer, and with it the velocity, times ``factor``."""
        rows, columns = self.shapes[-1]
        hidden, last = theta.split([self.num_parameters - rows * (columns + 1), rows * (columns + 1)], dim=1)
        return torch.cat([hidden, last * factor[:, None].to(theta)], dim=1)

    def sample(self, batch_size: int, spread: float | Tensor = 0.1, generator: torch.Generator | None = None) -> Tensor:
        """Random networks ``(B, P)``, the weights of the last layer within ``spread`` of zero, a number or shape ``(B,)``."""
        seeds = torch.randint(2**31 - 1, (batch_size,), generator=generator).tolist()
        start = torch.cat([self.identity(0), *(self.identity(1, seed=seed) for seed in seeds)])
        return self.scaled(start, torch.as_tensor(spread, dtype=start.dtype).expand(batch_size) / self.last)

    def velocity(self, theta: Tensor, spatial_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        dims, batch = self.spatial_dims, theta.shape[0]
        grid = centered_grid(spatial_size, theta.device, theta.dtype)
        signal = grid / half_frame(spatial_size, theta).view(-1, *[1] * dims)
        signal = signal.flatten(1).expand(batch, -1, -1)
        start = 0
        for i, (rows, columns) in enumerate(self.shapes):
            weight, bias = theta[:, start : start + rows * (columns + 1)].split([rows * columns, rows], 1)
            start += rows * (columns + 1)
            signal = torch.baddbmm(bias.unsqueeze(-1), weight.view(batch, rows, columns), signal)
            if i < len(self.shapes) - 1:
                signal = torch.sin((self.first_omega if i == 0 else self.omega) * signal)
        field = signal.view(batch, dims, *spatial_size) * (self.scale * ((max(*spatial_size, 2) - 1) / 2))
        return theta.new_zeros(batch, dims, dims + 1), field
