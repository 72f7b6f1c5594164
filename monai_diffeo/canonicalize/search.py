"""The search for a deformation of low energy: prediction in passes, then optimisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from monai_diffeo.energies import Energy
from monai_diffeo.families import VelocityFamily
from monai_diffeo.flow import Deformation, dense_velocity, exp_chain, warp

__all__ = ["Velocities", "minimize", "predict"]


class Velocities(NamedTuple):
    """T velocities for each image: ``generators`` (B, T, D, D + 1) and ``fields`` (B, T, D, *S')."""

    generators: Tensor
    fields: Tensor

    def then(self, generator: Tensor, field: Tensor) -> Velocities:
        """One more velocity, which moves what these have moved."""
        return Velocities(torch.cat([self.generators, generator[:, None]], 1), torch.cat([self.fields, field[:, None]], 1))

    def scaled(self, factor: Tensor) -> Velocities:
        """All velocities of an image times its factor (B,)."""
        dims = self.generators.shape[2]
        return Velocities(self.generators * factor.view(-1, 1, 1, 1), self.fields * factor.view(-1, 1, 1, *[1] * dims))


def predict(image: Tensor, predictor: nn.Module, family: VelocityFamily, passes: int) -> Velocities | None:
    """Let a predictor move the image, look again, and so on; what each pass adds composes.

    Args:
        image: shape ``(B, C, *S)``.
        predictor: image to ``theta`` (B, P).
        family: of the deformations.
        passes: how often to look; 0 gives None.
    """
    found, flow, size = None, None, tuple(image.shape[2:])
    for _ in range(passes):
        theta = predictor(image if flow is None else warp(image, flow.ddf(size)))
        generator, field = family.velocity(theta, size)
        step = exp_chain(generator[:, None], field[:, None], family.steps)
        flow = step if flow is None else flow.after(step)
        found = Velocities(generator[:, None], field[:, None]) if found is None else found.then(generator, field)
    return found


def minimize(
    image: Tensor,
    energy: Energy,
    family: VelocityFamily,
    regularizer: nn.Module,
    start: Deformation | None,
    steps: int,
    learning_rate: float,
    patience: int | None = None,
    tolerance: float = 1e-4,
    seed: int = 0,
    progress: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Adam on the parameters of one more deformation, each image by itself.

    Every image keeps the best parameters it has seen, and stops when they have not improved for ``patience`` steps; the
    others go on.

    Args:
        image: shape ``(B, C, *S)``.
        energy: of the moved image.
        family: of the deformation that is searched.
        regularizer: ``(velocity, ddf) -> (B,)`` of that deformation.
        start: deformation that moves the image first; None for none.
        steps: at most.
        learning_rate: of Adam.
        patience: steps without improvement by ``tolerance`` after which an image stops; None never stops early.
        tolerance: smallest improvement that counts.
        seed: of the family's starting point.
        progress: called after each step with its number and the objectives ``(B,)``.

    Returns:
        The best ``theta`` (B, P), detached, and the number of steps each image used (B,).
    """
    size = tuple(image.shape[2:])
    theta = family.identity(image.shape[0], image.device, seed).clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=learning_rate)
    best_theta, best = theta.detach().clone(), torch.full((image.shape[0],), float("inf"), device=image.device)
    waited = torch.zeros(image.shape[0], dtype=torch.long, device=image.device)
    used = torch.zeros_like(waited)
    active = torch.ones_like(waited, dtype=torch.bool)
    for step in range(steps + 1):  # the last round only looks at where the last step led
        optimizer.zero_grad(set_to_none=True)
        generator, field = family.velocity(theta, size)
        flow = exp_chain(generator[:, None], field[:, None], family.steps)
        ddf = flow.ddf(size)
        whole = ddf if start is None else start.after(flow).ddf(size)
        velocity = dense_velocity(generator[:, None], field[:, None], size)[:, 0]
        objective = energy(warp(image, whole)) + regularizer(velocity, ddf)
        value = objective.detach()
        better = active & torch.isfinite(value) & (value < best - tolerance)
        best_theta = torch.where(better.view(-1, 1), theta.detach(), best_theta)
        best = torch.where(better, value, best)
        waited = torch.where(better, 0, waited + 1)
        active = active & torch.isfinite(value) & (True if patience is None else waited < patience)
        if progress is not None:
            progress(step, value)
        if step == steps or not bool(active.any()):
            break
        used = used + active.long()
        torch.where(active, objective, torch.zeros_like(objective)).sum().backward()
        theta.grad = torch.nan_to_num(theta.grad)
        optimizer.step()
    return best_theta, used
