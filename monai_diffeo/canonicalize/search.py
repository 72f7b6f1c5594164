"""The search for a deformation of low energy: iterated prediction, then optimisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffeo.canonicalize.acceptance import looks_again
from monai_diffeo.energies import Energy
from monai_diffeo.errors import ShapeError
from monai_diffeo.families import Family, VelocityFamily
from monai_diffeo.flow import Deformation, dense_velocity, warp
from monai_diffeo.networks.channels import explained_channels

__all__ = ["Chain", "SearchObjective", "minimize", "predict", "search_theta"]


@dataclass(frozen=True)
class Chain:
    """Deformations that were found one after another: for each its family and its parameters ``(B, P)``."""

    links: tuple[tuple[Family, Tensor], ...] = ()
    known: tuple[tuple[int, ...], Deformation] | None = None  # a frame and :meth:`forward` there by each family's own steps

    def then(self, family: Family, theta: Tensor) -> Chain:
        """One more deformation, which moves what these have moved."""
        return Chain((*self.links, (family, theta)))

    def scaled(self, factor: Tensor) -> Chain:
        """All deformations of an image weakened by its factor (B,); 0 is the identity."""
        return Chain(tuple((family, family.scaled(theta, factor)) for family, theta in self.links))

    def forward(self, size: Sequence[int], steps: int | None = None) -> Deformation:
        """The whole deformation; ``steps`` squarings where velocities are integrated, by default each family's own."""
        if self.known is not None and self.known[0] == tuple(size):
            if steps is None or all(getattr(family, "steps", None) == steps for family, _ in self.links):
                return self.known[1]
        return _compose(self._each(lambda family, theta: family(theta, size, steps)))

    def inverse(self, size: Sequence[int], steps: int | None = None) -> Deformation:
        """Its inverse."""
        return _compose(self._each(lambda family, theta: family.inverse(theta, size, steps))[::-1])

    def velocity(self, size: Sequence[int]) -> Tensor:
        """What each deformation costs is measured on, ``(B, T, D, *size)``, see :func:`velocity_of`."""
        return torch.stack(self._each(lambda family, theta: velocity_of(family, theta, size)), 1)

    def _each(self, function: Callable[[Family, Tensor], Any]) -> list[Any]:
        """``function(family, theta)`` of every link; it gets those of one family as one batch, which is quicker."""
        found = []
        for family, links in groupby(self.links, itemgetter(0)):
            thetas = [theta for _, theta in links]
            found += function(family, torch.cat(thetas)).split(len(thetas[0]))
        return found


def _compose(parts: Sequence[Deformation]) -> Deformation:
    return reduce(Deformation.after, parts)


def velocity_of(family: Family, theta: Tensor, size: Sequence[int], ddf: Tensor | None = None) -> Tensor:
    """The velocity on the frame, ``(B, D, *size)``, voxels per unit time; of a family without velocities the displacement."""
    if isinstance(family, VelocityFamily):
        generator, field = family.velocity(theta, size)
        return dense_velocity(generator[:, None], field[:, None], size)[:, 0]
    return family(theta, size).ddf(size) if ddf is None else ddf


def predict(image: Tensor, predictor: nn.Module, family: Family, iterations: int, min_motion: float | None = None) -> Chain:
    """Let a predictor move the image, look again, and so on; what each iteration adds composes.

    ``predictor`` takes images ``(B, C, *S)`` to the parameters ``(B, P)`` of ``family``; anything else is a ShapeError. An
    image that the last look moved by at most ``min_motion`` is not looked at again, see :class:`Canonicalizer`.
    """
    found, flow, size, looking = Chain(), None, tuple(image.shape[2:]), torch.ones(len(image), device=image.device) > 0
    for _ in range(iterations):
        rows = looking.nonzero().flatten()
        seen = image if flow is None else warp(image[rows], Deformation(flow.matrix[rows], flow.residual[rows]).ddf(size))
        with explained_channels("predict()", predictor, image):
            looked = predictor(seen)
        _check_theta("predict()", "the predictor", looked, (len(rows), family.num_parameters), family)
        theta = looked if bool(looking.all()) else family.scaled(_spread(looked, rows, len(image)), looking.to(looked))
        step = family(theta, size)
        flow = step if flow is None else flow.after(step)
        found = found.then(family, theta)
        if min_motion is not None:
            looking = looking & looks_again(step.ddf(size), min_motion)
            if not bool(looking.any()):
                break
    return Chain(found.links, None if flow is None else (size, flow))


def _spread(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Values ``(R, P)`` of these rows among ``count`` rows; the first one's elsewhere."""
    spread = values[:1].repeat(count, 1)
    spread[rows] = values
    return spread


def _check_theta(who: str, giver: str, theta: Any, expected: tuple[int, int], family: Family) -> None:
    if not isinstance(theta, Tensor):
        raise TypeError(
            f"{who}: 'theta' must be a torch.Tensor {expected}, got {type(theta).__name__}. Let {giver} return one."
        )
    if tuple(theta.shape) != expected:
        remedy = f"Let {giver} give num_parameters={family.num_parameters} numbers an image."
        raise ShapeError(who, "theta", f"{expected} as {type(family).__name__} has it", theta.shape, remedy)


@dataclass(frozen=True)
class SearchObjective:
    """What a search lowers: energy of the moved images, plus what the deformation costs.

    Called with ``theta`` (B, P) of ``family`` it gives ``(B,)``, differentiable. A search of one's own is a function
    ``search(objective) -> theta``; ``objective.identity()`` is where it may begin.

    Attributes:
        image: shape ``(B, C, *S)``.
        energy: of the moved image.
        family: of the deformation that is searched.
        regularizer: ``(velocity, ddf) -> (B,)`` of that deformation; None costs nothing.
        start: deformation that moves the image first; None for none.
        seed: of everything random.
    """

    image: Tensor
    energy: Energy
    family: Family
    regularizer: Callable[[Tensor, Tensor], Tensor] | None = None
    start: Deformation | None = None
    seed: int = 0

    def identity(self) -> Tensor:
        """Parameters ``(B, P)`` of the deformation that moves nothing, in the precision of the images, at least float32."""
        start = self.family.identity(len(self.image), self.image.device, self.seed)
        return start.to(torch.promote_types(self.image.dtype, torch.float32))

    def __call__(self, theta: Tensor) -> Tensor:
        size = tuple(self.image.shape[2:])
        flow = self.family(theta, size)
        ddf = flow.ddf(size)
        value = self.energy(warp(self.image, ddf if self.start is None else self.start.after(flow).ddf(size)))
        if theta.requires_grad and torch.is_grad_enabled() and not value.requires_grad:
            remedy = "Compute it with torch operations, or search with steps=0."
            raise ValueError(
                f"{self.energy._called()}: must be differentiable in the image for 'steps', got no gradient. {remedy}"
            )
        if self.regularizer is None:
            return value
        cost = self.regularizer(velocity_of(self.family, theta, size, ddf), ddf)
        if not isinstance(cost, Tensor) or cost.shape != value.shape:
            actual, remedy = (
                cost.shape if isinstance(cost, Tensor) else (),
                "Give one number for each image of (velocity, ddf).",
            )
            raise ShapeError("Canonicalizer", "regularizer", f"({len(value)},)", actual, remedy)
        return value + cost


def search_theta(search: Callable[[SearchObjective], Tensor], objective: SearchObjective) -> Tensor:
    """What a search of the user's own finds, ``(B, P)``, detached; a ShapeError for anything else."""
    theta, expected = search(objective), (len(objective.image), objective.family.num_parameters)
    _check_theta("Canonicalizer", "'search'", theta, expected, objective.family)
    return theta.detach().to(objective.image.device)


def minimize(
    image: Tensor,
    energy: Energy,
    family: Family,
    regularizer: Callable[[Tensor, Tensor], Tensor] | None,
    start: Deformation | None,
    steps: int,
    learning_rate: float,
    patience: int | None = None,
    tolerance: float = 1e-4,
    seed: int = 0,
    progress: Callable[[int, Tensor], None] | None = None,
    cuda_graph: bool = False,
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
        steps, learning_rate, patience: as for :class:`Canonicalizer`.
        tolerance: smallest improvement that counts.
        seed: of the family's starting point.
        progress: called after each step with its number and the objectives ``(B,)``.
        cuda_graph: as for :class:`Canonicalizer`.

    Returns:
        The best ``theta`` (B, P), detached, and the number of steps each image used (B,).
    """
    goal = SearchObjective(image, energy, family, regularizer, start, seed)
    theta = goal.identity().clone().requires_grad_()
    graphed: Any = torch.cuda.make_graphed_callables
    lowered = graphed(lambda theta: goal(theta), (theta,)) if cuda_graph and image.is_cuda else goal
    optimizer = torch.optim.Adam([theta], lr=learning_rate)
    best_theta, best = theta.detach().clone(), theta.new_full((len(image),), float("inf"))
    waited = torch.zeros(image.shape[0], dtype=torch.long, device=image.device)
    used = torch.zeros_like(waited)
    active = torch.ones_like(waited, dtype=torch.bool)
    for step in range(steps + 1):  # the last round only looks at where the last step led
        objective = lowered(theta)
        value = objective.detach().clone()  # a graph writes the next one to the same place
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
        total = torch.where(active, objective, 0.0).sum()
        theta.grad = torch.nan_to_num(torch.autograd.grad(total, theta)[0])  # theta's alone: no weight collects one
        optimizer.step()
    return best_theta, used
