"""Segmentation by deforming prior shapes; the answer keeps their topology."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffeo.errors import ShapeError
from monai_diffeo.families.base import half_frame
from monai_diffeo.flow import (
    bch_sequence,
    compose_sequence,
    exp,
    exp_sequence,
    folding_fraction,
    nonpositive_cell_fraction,
    warp_points,
)
from monai_diffeo.flow.kept import keep_tensors
from monai_diffeo.networks.template.backbone import SegmentThenRegister, blocks_to_channels
from monai_diffeo.networks.template.guard import intact_level, topology_of
from monai_diffeo.networks.template.prior import TemplatePrior, relative_grid

__all__ = ["TemplateTransformer", "WarpedTemplate"]

_Begun = tuple[Tensor, Tensor] | None  # velocities found so far and their flows, both (B, t, D, *S'), voxels of the lattice
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WarpedTemplate:
    """The answer of a template transformer on a batch of images, and how it came about.

    Attributes:
        log_odds: of each shape, shape ``(B, K, *S)``; above 0 is inside.
        velocity: the T velocities, shape ``(B, T, D, *S')``, voxels of their own lattice per unit time.
        ddf: log-odds = prior at ``x + ddf(x)``, shape ``(B, D, *S')``, voxels of the same lattice, interpolated linearly.
        factor: factor of the guard on the velocities, shape ``(B,)``; 1 where it did not act.
        level: level that the guard subtracted from the log-odds, shape ``(B,)``; 0 where it did not act.
        intact: whether the shapes on the frame have the prior's topology, shape ``(B,)``; None without a guard.
        folding_fraction: share of folded voxels of ``ddf``, shape ``(B,)``.
        nonpositive_cell_fraction: share of ``ddf``'s :func:`cell_determinants` that are at most 0, shape ``(B,)``; 0 proves
            that the map nowhere folds.
        agreement: Dice of the shapes with the backbone's direct answer, on its lattice, shape ``(B,)``; a low one is a reason
            to look at the film. None where the backbone gives velocities only.
    """

    log_odds: Tensor
    velocity: Tensor
    ddf: Tensor
    factor: Tensor
    level: Tensor
    intact: Tensor | None
    folding_fraction: Tensor
    nonpositive_cell_fraction: Tensor
    agreement: Tensor | None = None


class TemplateTransformer(nn.Module):
    r"""Segmentation by a deformed prior: a backbone predicts T velocities, and their composed flows warp the prior.

    The backbone's output is averaged onto control points, bounded by a hyperbolic tangent and interpolated by cubic B-splines.
    The prior is evaluated, as a function, at the point that each voxel comes from, so that its edges stay smooth.

    A flow keeps the topology of the prior. Sampled on a lattice, it may still fold, cut a thin part off, or let two shapes
    touch. Outside training, a guard tests each image: its map must not fold, and its shapes must have the prior's Betti
    numbers, alone and together. For lungs that is one part each, without holes, apart. If the test fails, the guard takes
    the nearest level of the log-odds that passes. If there is none, it scales the velocities down by ``guard_scales``;
    velocities of 0 give the prior itself. So the answer at log-odds above 0 (probability 0.5) has the prior's topology. That
    topology is found once, on a finer lattice. Components are counted on the CPU.

    Args:
        backbone: any network from the image's channels and the K of the prior (``sees_prior=False``: from the image's alone) to
            ``pieces * D`` channels, of the image's size or coarser. It may return a pair of these and of the log-odds
            ``(B, K, *S')`` of a direct answer, which training may use: :class:`SegmentThenRegister`.
        prior: the shapes, of any topology that the frame can show.
        pieces: T.
        limit: largest velocity of a piece, as share of half the frame; one number, or one a piece.
        gain: slope of the tangent at 0, from the backbone's output to velocity in units of half the frame; small, so that
            training starts gently.
        control_size: control points along each axis, one number, or one a piece: few for a first piece that moves the prior as
            a whole, more for later ones that refine. The slopes, which make folds, are about ``limit * control_size``. None
            takes the backbone's output as the velocity at every voxel, unsmoothed, as published.
        flow_size: lattice of the flows, along each axis; None takes the image's.
        steps: squarings of the exponentials.
        order: None composes the flows of the pieces; 1 to 4 sums their velocities by the Baker-Campbell-Hausdorff series
            (published: 2).
        diffeomorphic: False adds the velocities up as displacements, without integration, as the older template transformer
            did; there is no guard then.
        guard: whether the guard acts outside training.
        guard_scales: factors on the velocities that the guard tries, in this order; the last should be 0.
        sees_prior: whether the backbone sees the prior beside the image.
        unshuffle: the backbone works on a frame smaller by this factor, and sees blocks of as many voxels along each axis as
            channels, ``C * unshuffle**D + K`` in all. 2 saves the time that the many outputs cost.

    Reference: "Diffeomorphic Template Transformers" (2020), under review at ICLR 2021.

    Example:
        >>> from monai.networks.nets import UNet
        >>> from monai_diffeo.networks import ShapePrior
        >>> prior = ShapePrior([[0.0, -0.4], [0.0, 0.4]], [[0.6, 0.25], [0.6, 0.25]], kind="full", trained=["mean"])
        >>> network = TemplateTransformer(UNet(2, 3, 8, (8, 16, 32), (2, 2)), prior, pieces=4)
        >>> network(torch.rand(1, 1, 64, 64)).shape
        torch.Size([1, 2, 64, 64])
    """

    def __init__(
        self,
        backbone: nn.Module,
        prior: TemplatePrior,
        pieces: int = 4,
        limit: float | Sequence[float] = 0.15,
        gain: float = 0.05,
        control_size: int | Sequence[int] | None = 12,
        flow_size: int | None = 64,
        steps: int = 5,
        order: int | None = None,
        diffeomorphic: bool = True,
        guard: bool = True,
        guard_scales: Sequence[float] = (0.9, 0.8, 0.65, 0.5, 0.25, 0.1, 0.0),
        sees_prior: bool = True,
        unshuffle: int = 1,
    ) -> None:
        super().__init__()
        self.backbone, self.prior, self.pieces, self.gain = backbone, prior, pieces, gain
        self.limit = _one_a_piece("limit", limit, pieces)
        self.control_size = None if control_size is None else _one_a_piece("control_size", control_size, pieces)
        self.flow_size, self.steps, self.order = flow_size, steps, order
        self.diffeomorphic, self.guard, self.guard_scales = diffeomorphic, guard and diffeomorphic, tuple(guard_scales)
        self.sees_prior, self.unshuffle = sees_prior, unshuffle
        self._remembered: dict[str, tuple[list, Any]] = {}

    def forward(self, image: Tensor) -> Tensor:
        """Log-odds of each shape, shape ``(B, K, *S)``, for images ``(B, C, *S)``."""
        if self.training:
            ddf = self.integrate(self.velocities(image))
            with torch.autocast(image.device.type, enabled=False):
                return self.warp_prior(ddf, image.shape[2:])
        return self.segment(image).log_odds

    def segment(self, image: Tensor) -> WarpedTemplate:
        """The answer with its velocities, its displacement, and what the guard did."""
        velocity, direct, begun = self._read(image)
        with torch.autocast(image.device.type, enabled=False):
            result = self._guarded(velocity, tuple(image.shape[2:]), begun)
            return result if direct is None else replace(result, agreement=_agreement(result.log_odds > 0, direct > 0))

    def velocities(self, image: Tensor) -> Tensor:
        """The T velocities of each image, shape ``(B, T, D, *S')``, voxels of their lattice per unit time."""
        return self.read(image)[0]

    def read(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """The velocities, and the log-odds of the backbone's direct answer where it gives one."""
        return self._read(image)[:2]

    def _read(self, image: Tensor) -> tuple[Tensor, Tensor | None, _Begun]:
        """Also the velocities of all networks before the last and their flows, so that neither is computed twice."""
        dims = self.prior.spatial_dims
        if image.ndim != dims + 2:
            shape, remedy = f"(B, C, {', '.join('HWD'[:dims])})", "Add batch and channel axes: image[None, None]."
            raise ShapeError("TemplateTransformer", "image", shape, image.shape, remedy)
        image = image.as_tensor() if hasattr(image, "as_tensor") else image
        inputs = blocks_to_channels(image, self.unshuffle)
        if self.sees_prior:
            shown = self._shown_prior(inputs.shape[2:]).to(image.dtype)
            inputs = torch.cat([inputs, shown.expand(image.shape[0], *shown.shape[1:])], dim=1)
        lattice = tuple(image.shape[2:]) if self.flow_size is None else (self.flow_size,) * dims

        begun: _Begun = None

        def moved(some: Tensor) -> Tensor:
            nonlocal begun
            with torch.autocast(image.device.type, enabled=False):
                velocity = self._fields(some, lattice, begun)
                ddf, flows = self._onward(velocity, begun)
                begun = velocity, flows
                return torch.sigmoid(self.warp_prior(ddf, inputs.shape[2:]))

        found = self.backbone(inputs, moved) if isinstance(self.backbone, SegmentThenRegister) else self.backbone(inputs)
        answer, direct = found if isinstance(found, tuple) else (found, None)
        if answer.ndim != image.ndim or answer.shape[1] != self.pieces * dims:
            raise self._misfit(answer)
        return self._fields(answer, lattice, begun), direct, begun

    def _misfit(self, answer: Tensor) -> ShapeError:
        dims = self.prior.spatial_dims
        shape = f"(B, {self.pieces * dims}, *S): {self.pieces} pieces of {dims} components"
        remedy = "Each of several registration networks must give whole pieces."
        return ShapeError("TemplateTransformer", "backbone(image)", shape, answer.shape, remedy)

    def _fields(self, answer: Tensor, lattice: tuple[int, ...], begun: _Begun = None) -> Tensor:
        """Velocities ``(B, t, D, *S')`` from a backbone's output ``(B, t * D, *S'')``; the first are those of ``begun``."""
        dims = self.prior.spatial_dims
        if answer.shape[1] % dims or answer.shape[1] > self.pieces * dims:
            raise self._misfit(answer)
        with torch.autocast(answer.device.type, enabled=False):
            control = answer if answer.dtype == torch.float64 else answer.float()
            first = 0 if begun is None else begun[0].shape[1]
            control = control.unflatten(1, (-1, dims))[:, first:]
            last = first + control.shape[1]
            limit = control.new_tensor(self.limit[first:last]).view(1, -1, *[1] * (dims + 1))
            if self.control_size is None and tuple(control.shape[3:]) == lattice:
                field = limit * torch.tanh(control * (self.gain / limit))
            else:
                field = torch.cat([self._smooth(control, limit, lattice, *run) for run in self._runs(first, last)], dim=1)
            field = field * half_frame(lattice, field).view(-1, *[1] * dims)
            return field if begun is None else torch.cat([begun[0], field], dim=1)

    def _onward(self, velocity: Tensor, begun: _Begun) -> tuple[Tensor, Tensor]:
        """:meth:`integrate` of velocities whose first are ``begun``, and the flow of each velocity."""
        if self.order is not None or not self.diffeomorphic:
            return self.integrate(velocity), velocity  # one flow of a sum
        new = velocity if begun is None else velocity[:, begun[0].shape[1] :]
        flows = exp(new.flatten(0, 1), self.steps).unflatten(0, new.shape[:2])
        flows = flows if begun is None else torch.cat([begun[1], flows], dim=1)
        return compose_sequence(flows), flows

    def _shown_prior(self, size: Sequence[int]) -> Tensor:
        """The prior as the backbone sees it."""
        return self._of_prior("shown", size, lambda: self.prior(size).detach())

    def _of_prior(self, name: str, size: Sequence[int], ask: Callable):
        """What ``ask`` says about the prior; outside training it is called again only after the prior or the frame changed."""
        state = [*self.prior.parameters(), *self.prior.buffers()]
        if self.training or any(x.is_inference() for x in state):  # the prior changes at every step, or keeps no version
            self._remembered.clear()
            with torch.no_grad():
                return ask()
        key: list[Any] = [tuple(size), *((x.data_ptr(), x._version, x.device, x.dtype) for x in state)]
        key += [p.flatten().tolist() for p in self.prior.parameters()]
        if self._remembered.get(name, (None,))[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._remembered[name] = key, ask()
        return self._remembered[name][1]

    def _runs(self, first: int, last: int) -> list[tuple[int | None, slice]]:
        """Runs of pieces with equally many control points, interpolated together: that number, and the slice of the run."""
        sizes = (self.control_size or (None,) * self.pieces)[first:last]
        starts = [t for t in range(len(sizes)) if t == 0 or sizes[t] != sizes[t - 1]]
        return [(sizes[start], slice(start, stop)) for start, stop in zip(starts, [*starts[1:], len(sizes)])]

    def _smooth(self, control: Tensor, limit: Tensor, lattice: tuple[int, ...], points: int | None, run: slice) -> Tensor:
        """Velocities ``(B, T', D, *S')`` of the pieces of a run, units of half the frame."""
        some, bound = control[:, run].flatten(1, 2), limit[:, run]
        if points is not None:
            pool: Callable = F.adaptive_avg_pool2d if some.ndim == 4 else F.adaptive_avg_pool3d
            some = pool(some, [min(points, n) for n in some.shape[2:]])
        some = some.unflatten(1, (bound.shape[1], -1))
        some = bound * torch.tanh(some * (self.gain / bound))
        return _interpolate(some.flatten(1, 2), lattice).unflatten(1, (bound.shape[1], -1))

    def integrate(self, velocity: Tensor) -> Tensor:
        """Displacement of the composed flows of ``velocity`` ``(B, T, D, *S')``, shape ``(B, D, *S')``."""
        if not self.diffeomorphic:
            return velocity.sum(1)
        if self.order is None:
            return exp_sequence(velocity, self.steps)
        return exp(bch_sequence(velocity, self.order), self.steps)

    def warp_prior(self, ddf: Tensor, spatial_size: Sequence[int]) -> Tensor:
        """Log-odds of the prior at ``x + ddf(x)`` on a frame of any size, ``(B, K, *S)``; only ``ddf`` is interpolated."""
        relative = ddf / half_frame(ddf.shape[2:], ddf).view(-1, *[1] * (ddf.ndim - 2))
        if tuple(ddf.shape[2:]) != tuple(spatial_size):
            mode = "bilinear" if ddf.ndim == 4 else "trilinear"
            relative = F.interpolate(relative, tuple(spatial_size), mode=mode, align_corners=True)
        return self.prior.log_odds(relative_grid(spatial_size, ddf.device, ddf.dtype) + relative)

    def outline(self, velocity: Tensor, spatial_size: Sequence[int], count: int = 128) -> Tensor:
        """Points on the edges of the deformed shapes, ``(B, K, D, count)``, voxels of a frame ``spatial_size``.

        They move by the inverse of the map that samples the prior, and their gradient reaches ``velocity`` ``(B, T, D, *S')``.
        ValueError without ``diffeomorphic``, as there is no inverse.
        """
        if not self.diffeomorphic:
            raise ValueError("TemplateTransformer.outline(): added displacements have no inverse; take diffeomorphic=True.")
        with torch.autocast(velocity.device.type, enabled=False):
            back, edge = self.integrate(-velocity.flip(1)), self.prior.outline(count)
            half, target = half_frame(velocity.shape[3:], velocity), half_frame(spatial_size, velocity)
            points = (edge.movedim(1, -1).flatten(0, 1) + 1).to(back.dtype) * half
            moved = warp_points(points.expand(len(back), *points.shape), back) / half * target
            return moved.unflatten(1, edge.shape[::2]).movedim(-1, 2)

    def _guarded(self, velocity: Tensor, size: tuple[int, ...], begun: _Begun) -> WarpedTemplate:
        batch, factor = velocity.shape[0], velocity.new_ones(len(velocity))
        if self.guard and (lost := ~velocity.flatten(1).sum(1).isfinite()).any():
            _warn(lost.nonzero().flatten().tolist(), batch, "the velocities are not finite; the answer is the prior itself.")
            velocity = torch.where(lost.view(-1, *[1] * (velocity.ndim - 1)), torch.zeros_like(velocity), velocity)
            factor[lost], begun = 0, None
        ddf, _ = self._onward(velocity, begun)
        odds, broken = self.warp_prior(ddf, size), nonpositive_cell_fraction(ddf)
        if not self.guard:
            return WarpedTemplate(odds, velocity, ddf, factor, velocity.new_zeros(batch), None, folding_fraction(ddf), broken)
        whole = self._of_prior("whole", size, lambda: topology_of(self.prior, size))
        found = [intact_level(o, whole) if b == 0 else None for o, b in zip(odds, broken.tolist())]
        for scale in self.guard_scales:
            rows = [i for i, value in enumerate(found) if value is None]
            if not rows:
                break
            factor[rows] = scale
            again, index = self.integrate(velocity[rows] * scale), torch.tensor(rows, device=ddf.device)
            ddf, odds = ddf.index_copy(0, index, again), odds.index_copy(0, index, self.warp_prior(again, size))
            broken[rows] = nonpositive_cell_fraction(again)
            for i in rows:
                found[i] = intact_level(odds[i], whole) if broken[i] == 0 else None
        _warn([i for i, value in enumerate(found) if value is None], batch, _TOO_COARSE.format(size))
        intact = torch.tensor([value is not None for value in found], device=odds.device)
        level = torch.tensor([value or 0.0 for value in found], device=odds.device, dtype=odds.dtype)
        if any(found):
            odds = odds - level.view(-1, *[1] * (odds.ndim - 1))
        if (factor != 1).any():
            velocity = velocity * factor.view(-1, *[1] * (velocity.ndim - 1))
        return WarpedTemplate(odds, velocity, ddf, factor, level, intact, _folding(ddf, broken), broken)


_TOO_COARSE = "no level and no scale has the prior's topology on a frame of {} voxels. Take a finer frame, or guard=False."


def _warn(rows: list[int], batch: int, what: str) -> None:
    for i in rows:
        _log.warning("TemplateTransformer: image %d of %d: %s", i + 1, batch, what)


def _one_a_piece(name: str, value, pieces: int) -> tuple:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * pieces
    if len(values) != pieces:
        raise ValueError(f"TemplateTransformer: '{name}' must be one number or one for each of {pieces} pieces, got {value}.")
    return values


def _folding(ddf: Tensor, broken: Tensor) -> Tensor:
    # Where no cell is broken, every determinant of central differences is a mean of determinants of cells: nothing folds.
    rows, share = broken.nonzero().flatten(), torch.zeros_like(broken)
    return share.index_copy(0, rows, folding_fraction(ddf[rows])) if len(rows) else share


def _agreement(answer: Tensor, direct: Tensor) -> Tensor:
    """Dice of the shapes of each image ``(B, K, *S)`` and ``(B, K, *S')``, on the lattice of the latter."""
    if answer.shape != direct.shape:
        answer = F.interpolate(answer.float(), direct.shape[2:], mode="area") > 0.5
    both, either = (answer & direct).flatten(1).sum(1), answer.flatten(1).sum(1) + direct.flatten(1).sum(1)
    return 2 * both / either.clamp(min=1)


@keep_tensors
def _spline_matrix(size: int, controls: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Cubic B-splines of ``controls`` points at ``size`` samples, shape ``(size, controls)``; rows add up to one."""
    where = torch.arange(size, device=device, dtype=torch.float64) * ((controls - 1) / max(size - 1, 1))
    t = (where[:, None] - torch.arange(-1, controls + 1, device=device)).abs()
    basis = torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp(min=0) ** 3 / 6)
    basis[:, 1] += basis[:, 0]  # beyond the ends the outermost control point is repeated
    basis[:, -2] += basis[:, -1]
    return basis[:, 1:-1].to(dtype)


def _interpolate(control: Tensor, spatial_size: Sequence[int]) -> Tensor:
    """Smooth field through control points ``(B, C, *s)``, shape ``(B, C, *S)``."""
    for n in spatial_size:
        matrix = _spline_matrix(int(n), control.shape[2], control.device, control.dtype)
        control = torch.tensordot(control, matrix, dims=([2], [1]))  # the axis goes to the end: all of them, the order is right
    return control
