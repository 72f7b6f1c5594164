"""Prior shapes of template transformers: position, size and sharpness of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from monai.utils import optional_import
from torch import Tensor, nn

from monai_diffeo.errors import ShapeError
from monai_diffeo.families.base import half_frame
from monai_diffeo.flow.grid import centered_grid
from monai_diffeo.flow.kept import keep_tensors
from monai_diffeo.flow.warp import sample

__all__ = ["AtlasPrior", "ShapePrior", "TemplatePrior", "relative_grid", "compress_logits"]

_TRAINABLE = ("mean", "covariance", "beta")
_CLOSEST = 1e-7  # least exponent; log-odds become infinite at 0


@keep_tensors
def _relative_grid(spatial_size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    grid = centered_grid(spatial_size, device, dtype)
    return (grid / half_frame(spatial_size, grid).view(-1, *[1] * len(spatial_size)))[None]


def relative_grid(spatial_size: Sequence[int], device: torch.device | str = "cpu", dtype=torch.float32) -> Tensor:
    """Coordinates of every voxel from the centre of the frame, 1 = half the frame; shape ``(1, D, *S)``."""
    return _relative_grid(tuple(int(n) for n in spatial_size), torch.device(device), dtype)


def compress_logits(log_odds: Tensor, scale: float = 4.0) -> Tensor:
    """``sign(l) * scale * log(1 + |l| / scale)``: slope 1 at 0, growing only like a logarithm far from it.

    A generalised Gaussian falls so fast that a few voxels far from the edge would dominate any mean of log-odds, such as a
    cross entropy. The sign stays, and with it the shape.
    """
    return log_odds.sign() * scale * torch.log1p(log_odds.abs() / scale)


class TemplatePrior(nn.Module):
    """K shapes in the plane or in space, each given by the log-odds that a point belongs to it.

    Attributes:
        spatial_dims: 2 or 3.
        num_shapes: K.
    """

    spatial_dims: int
    num_shapes: int

    def log_odds(self, points: Tensor) -> Tensor:
        """Log-odds of each shape at ``points`` ``(B, D, *S)``, 1 = half the frame; shape ``(B, K, *S)``."""
        raise TypeError(f"{type(self).__name__} must define log_odds(points).")

    def outline(self, count: int) -> Tensor:
        """``count`` points on the edge of each shape, relative coordinates, shape ``(K, D, count)``."""
        raise TypeError(f"{type(self).__name__} has no outline(count); train with outline=0.")

    def forward(self, spatial_size: Sequence[int]) -> Tensor:
        """Probability of each undeformed shape on a frame, shape ``(1, K, *S)``."""
        reference = next(iter([*self.parameters(), *self.buffers()]))
        return torch.sigmoid(self.log_odds(relative_grid(spatial_size, reference.device, reference.dtype)))


class ShapePrior(TemplatePrior):
    r"""Generalised Gaussians, :math:`p(x) = \exp(-\log 2\; ((x-\mu)^T \Sigma^{-1} (x-\mu))^\beta)`.

    For every :math:`\beta` the boundary p = 0.5 is the ellipse at Mahalanobis distance 1; a larger :math:`\beta` gives a
    sharper edge. Positions are relative to the frame, 1 = half of it, so that one prior serves every resolution.

    Args:
        mean: centres, shape ``(K, D)``, a tensor or nested lists.
        covariance: :math:`\Sigma` of each, shape ``(K, D, D)``; or half-axes, shape ``(K, D)``.
        beta: one number, or K.
        kind: form of :math:`\Sigma`: ``"isotropic"``, ``"diagonal"`` or ``"full"``. A given covariance is brought to that form
            with the same volume.
        trained: which of ``"mean"``, ``"covariance"`` and ``"beta"`` are trained; the others stay as they are given.

    Reference: equation 5 of "Diffeomorphic Template Transformers" (2020).

    Example:
        >>> prior = ShapePrior([[0.0, -0.4], [0.0, 0.4]], [[0.6, 0.25], [0.6, 0.25]])     # two lungs
        >>> [round(p, 3) for p in prior.at(torch.tensor([[[0.0], [-0.15]]])).flatten().tolist()]    # at the edge of the first
        [0.5, 0.035]
    """

    def __init__(
        self,
        mean: Sequence[Sequence[float]] | Tensor,
        covariance: Sequence | Tensor,
        beta: float | Sequence[float] = 1.0,
        kind: str = "diagonal",
        trained: Iterable[str] = (),
    ) -> None:
        super().__init__()
        mean, covariance = (torch.as_tensor(x, dtype=torch.float32) for x in (mean, covariance))
        if mean.ndim != 2 or mean.shape[1] not in (2, 3):
            raise ShapeError("ShapePrior", "mean", "(K, D) with D = 2 or 3", mean.shape)
        shapes, dims = mean.shape
        if covariance.shape == (shapes, dims):
            covariance = torch.diag_embed(covariance.square())
        if covariance.shape != (shapes, dims, dims):
            expected = f"({shapes}, {dims}, {dims}), or ({shapes}, {dims}) for half-axes"
            raise ShapeError("ShapePrior", "covariance", expected, covariance.shape)
        if kind not in ("isotropic", "diagonal", "full"):
            raise ValueError(f"ShapePrior: 'kind' must be 'isotropic', 'diagonal' or 'full', got {kind!r}.")
        trained = tuple(trained)
        if unknown := set(trained) - set(_TRAINABLE):
            raise ValueError(f"ShapePrior: 'trained' may hold {', '.join(_TRAINABLE)}; got {sorted(unknown)}.")
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed.any():
            raise ValueError("ShapePrior: 'covariance' must be positive definite.")
        exponents = torch.as_tensor(beta, dtype=torch.float32).expand(shapes).clone()
        if not (exponents > 0).all():
            raise ValueError(f"ShapePrior: 'beta' must be positive, got {exponents.tolist()}.")
        self.spatial_dims, self.num_shapes, self.kind = dims, shapes, kind
        scale = factor.diagonal(dim1=1, dim2=2).log()
        if kind == "diagonal":
            axes = covariance.diagonal(dim1=1, dim2=2).log() / 2
            scale = axes + (scale.mean(1, keepdim=True) - axes.mean(1, keepdim=True))
        rows, columns = torch.tril_indices(dims, dims, -1)
        self.mean = nn.Parameter(mean.clone(), requires_grad="mean" in trained)
        scale = scale.mean(1, keepdim=True) if kind == "isotropic" else scale
        self.log_scale = nn.Parameter(scale, requires_grad="covariance" in trained)
        tilt = factor[:, rows, columns] if kind == "full" else torch.zeros(shapes, 0)
        self.tilt = nn.Parameter(tilt, requires_grad=kind == "full" and "covariance" in trained)
        self.log_beta = nn.Parameter(exponents.log(), requires_grad="beta" in trained)

    @classmethod
    def from_masks(cls, masks: Tensor, kind: str = "full", trained: Iterable[str] = (), beta: float = 1.0) -> ShapePrior:
        """The ellipses with the masks' mean centres and mean second moments.

        Args:
            masks: shape ``(N, K, *S)``, one channel a shape, each with a mask that is not empty; empty ones are left out.
        """
        weights = masks.flatten(2).double()
        grid = relative_grid(masks.shape[2:], dtype=torch.float64)[0].flatten(1)
        volume = weights.sum(2, keepdim=True)
        seen = (volume[..., 0] > 0).double()
        if not (seen.sum(0) > 0).all():
            raise ValueError("ShapePrior.from_masks(): each channel of 'masks' needs a mask that is not empty.")
        volume = volume.clamp(min=1)
        centers = weights @ grid.T / volume
        offsets = grid.T - centers.unsqueeze(2)
        moments = torch.einsum("nkp,nkpi,nkpj->nkij", weights, offsets, offsets) / volume[..., None]
        mean = (centers * seen[..., None]).sum(0) / seen.sum(0)[:, None]
        spread = (moments * seen[..., None, None]).sum(0) / seen.sum(0)[:, None, None]
        dims = grid.shape[0]
        return cls(mean.float(), ((dims + 2) * spread).float(), beta, kind, trained)  # a full ellipsoid has Sigma / (D + 2)

    @property
    def factor(self) -> Tensor:
        """Lower triangular ``L`` with ``L L^T = Sigma``, shape ``(K, D, D)``."""
        dims = self.spatial_dims
        factor = torch.diag_embed(self.log_scale.exp().expand(-1, dims))
        if self.kind == "full":
            rows, columns = torch.tril_indices(dims, dims, -1)
            lower = torch.zeros_like(factor)
            lower[:, rows, columns] = self.tilt
            factor = factor + lower
        return factor

    @property
    def covariance(self) -> Tensor:
        """Sigma of each shape, ``(K, D, D)``."""
        factor = self.factor
        return factor @ factor.transpose(1, 2)

    @property
    def beta(self) -> Tensor:
        """Beta of each shape, ``(K,)``."""
        return self.log_beta.exp()

    def exponent(self, points: Tensor) -> Tensor:
        """``-log p`` at relative points ``(B, D, *S)``, shape ``(B, K, *S)``."""
        shapes, dims, tail = self.num_shapes, self.spatial_dims, points.shape[2:]
        with torch.autocast(points.device.type, enabled=False):
            eye = torch.eye(dims, device=points.device, dtype=points.dtype).expand(shapes, dims, dims)
            inverse = torch.linalg.solve_triangular(self.factor.to(points.dtype), eye, upper=False)
            shift = inverse @ self.mean.to(points.dtype)[..., None]
            offset = inverse.flatten(0, 1) @ points.flatten(2) - shift.flatten(0, 1)
            squared = offset.unflatten(1, (shapes, dims)).square().sum(2).clamp(min=_CLOSEST)
            log = squared.log() * self.beta.to(points.dtype)[:, None]
            return (log.clamp(max=20).exp() * math.log(2)).unflatten(2, tail)

    def at(self, points: Tensor) -> Tensor:
        """Probabilities at relative points ``(B, D, *S)``, shape ``(B, K, *S)``."""
        return torch.exp(-self.exponent(points))

    def outline(self, count: int) -> Tensor:
        """``count`` points on each ellipse, or spread over each ellipsoid, relative coordinates, shape ``(K, D, count)``."""
        turn = torch.arange(count, device=self.mean.device, dtype=self.mean.dtype)
        if self.spatial_dims == 2:
            angle = turn * (2 * math.pi / count)
            sphere = torch.stack([angle.sin(), angle.cos()])
        else:  # Fibonacci's spiral
            height, angle = 1 - (2 * turn + 1) / count, turn * (math.pi * (3 - math.sqrt(5)))
            ring = (1 - height.square()).sqrt()
            sphere = torch.stack([height, ring * angle.sin(), ring * angle.cos()])
        return self.mean[..., None] + self.factor @ sphere

    def log_odds(self, points: Tensor) -> Tensor:
        exponent = self.exponent(points).clamp(min=_CLOSEST)
        return -exponent - torch.log(-torch.expm1(-exponent))

    def extra_repr(self) -> str:
        return f"shapes={self.num_shapes}, spatial_dims={self.spatial_dims}, kind={self.kind}"


class AtlasPrior(TemplatePrior):
    """Shapes from masks: the log-odds are the signed distance from the edge of the mean mask, in units of ``width``.

    The distance, unlike the mean mask itself, has a gradient everywhere in the frame, and keeps the topology of the edge.

    Args:
        distance: signed distances, positive inside, shape ``(K, *S)``, 1 = half the frame.
        width: distance over which the log-odds fall by one.
        trained: whether ``width`` is trained.
    """

    distance: Tensor

    def __init__(self, distance: Tensor | Sequence, width: float = 0.02, trained: bool = False) -> None:
        super().__init__()
        distance = torch.as_tensor(distance, dtype=torch.float32)
        self.spatial_dims, self.num_shapes = distance.ndim - 1, distance.shape[0]
        self.register_buffer("distance", distance)
        self.log_width = nn.Parameter(torch.tensor(float(width)).log(), requires_grad=trained)

    @classmethod
    def from_masks(
        cls, masks: Tensor, size: int | None = None, width: float = 0.02, trained: bool = False, smooth: float = 1.0
    ) -> AtlasPrior:
        """Shapes of the voxels in more than half of the masks ``(N, K, *S)``; every answer will have their topology.

        Args:
            masks: shape ``(N, K, *S)``, 0 or 1.
            size: points of the lattice along each axis; None takes the masks' own lattice.
            smooth: standard deviation of the Gaussian that smooths the distances, points of the lattice.
        """
        ndimage, found = optional_import("scipy.ndimage")
        if not found:
            raise ImportError("AtlasPrior.from_masks() needs scipy: pip install scipy.")
        mean = masks.float().mean(0)
        if size is not None:
            mean = F.interpolate(mean[None], [size] * (masks.ndim - 2), mode="area")[0]
        spacing = [2 / (n - 1) for n in mean.shape[1:]]
        fields = []
        for inside in (mean > 0.5).numpy():
            signed = ndimage.distance_transform_edt(inside, spacing) - ndimage.distance_transform_edt(~inside, spacing)
            fields.append(torch.from_numpy(ndimage.gaussian_filter(signed, smooth)))
        return cls(torch.stack(fields), width, trained)

    @classmethod
    def empty(cls, num_shapes: int, spatial_size: Sequence[int]) -> AtlasPrior:
        """A prior of the right size for a state dictionary that is loaded later."""
        return cls(torch.zeros(num_shapes, *spatial_size))

    def outline(self, count: int) -> Tensor:
        """``count`` points where an edge crosses the lines of the lattice, relative coordinates, shape ``(K, D, count)``."""
        outlines = []
        for distance in self.distance:
            crossings = [_crossings(distance, axis) for axis in range(self.spatial_dims)]
            points = torch.cat(crossings) / half_frame(distance.shape, distance) - 1
            if not len(points):
                raise ValueError("AtlasPrior.outline(): a shape has no edge inside the frame; give masks with one.")
            outlines.append(points[torch.linspace(0, len(points) - 1, count, device=points.device).round().long()].T)
        return torch.stack(outlines)

    def log_odds(self, points: Tensor) -> Tensor:
        where = (points + 1) * half_frame(self.distance.shape[1:], points).view(-1, *[1] * (points.ndim - 2))
        atlas = self.distance.to(points.dtype).expand(points.shape[0], *self.distance.shape)
        return sample(atlas, where) / self.log_width.exp()


def _crossings(values: Tensor, axis: int) -> Tensor:
    """Where the linear interpolation of ``values`` ``(*S)`` changes its sign along an axis, voxels, shape ``(N, D)``."""
    last = values.shape[axis] - 1
    before, after = values.narrow(axis, 0, last), values.narrow(axis, 1, last)
    changed = (before > 0) != (after > 0)
    points, before, after = changed.nonzero().to(values.dtype), before[changed], after[changed]
    points[:, axis] += before / (before - after)
    return points
