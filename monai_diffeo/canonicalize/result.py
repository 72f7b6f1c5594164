"""What a canonicalisation gives back: data, with no state left on the canonicaliser."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import Deformation, affine_deformation, warp
from monai_diffeo.flow.grid import centered_grid, half_frame
from monai_diffeo.renamed import renamed_attributes

_TENSORS = ("image", "velocity", "ddf", "inverse_ddf", "energy_before", "energy_after", "folding_fraction", "inverse_error")
_TENSORS += ("steps",)

__all__ = ["CANONICALIZED", "Canonicalization", "LEFT_ALONE", "REJECTED", "mean_inverse_error", "move_image", "resize_ddf"]

CANONICALIZED = "canonicalized"
LEFT_ALONE = "left alone"
REJECTED = "rejected"


@renamed_attributes(there="forward", back="inverse", folding="folding_fraction", views="tta_samples")
@dataclass(frozen=True)
class Canonicalization:
    """A batch of images in canonical pose, and the way back.

    Attributes:
        image: canonical images, shape ``(B, C, *S)``; rows that are not ``"canonicalized"`` hold the input, bit for bit. ``*S``
            is the input's frame ``*S'``, or, where oblong images were rotated back, the frame that they have then.
        velocity: the T velocities that were found, shape ``(B, T, D, *W)``, voxels per unit time of the working frame; ``ddf``
            is the composition of their flows, then of the rotation. In families that know no velocities, the T displacements.
        ddf: canonical = ``warp(input, ddf, centered=True)``; shape ``(B, D, *S)``, voxels; exactly zero for rows left as they
            were.
        inverse_ddf: the way back, shape ``(B, D, *S')``, voxels.
        energy_before: energy of the input, shape ``(B,)``; NaN where the input is not finite.
        energy_after: energy of ``image``, shape ``(B,)``.
        folding_fraction: share of folded voxels of ``ddf``, shape ``(B,)``.
        inverse_error: mean distance of ``ddf`` after ``inverse_ddf`` from the identity, where the way leads through the
            frame, shape ``(B,)``, voxels.
        steps: optimisation steps each image used, shape ``(B,)``.
        status: ``"canonicalized"``, ``"left alone: reason"`` or ``"rejected: reason"``, one an image.
        seconds: wall time for the batch.
        terms: named energies before, ``(B,)`` each, for the report.
        notes: remarks for the report, one an image: a quarter turn taken back, a film that looks mirrored or like a negative.
        agreement: how much the answers from several poses agree, shape ``(B,)``, 0 to 1; None where there was one pose.
        forward, inverse: the maps of which ``ddf`` and ``inverse_ddf`` are the displacements; they hold outside the frame too.
        sampling: how ``image`` was sampled, and how :meth:`tta_samples` are, see :func:`move_image`.
    """

    image: Tensor
    velocity: Tensor
    ddf: Tensor
    inverse_ddf: Tensor
    energy_before: Tensor
    energy_after: Tensor
    folding_fraction: Tensor
    inverse_error: Tensor
    steps: Tensor
    status: tuple[str, ...]
    seconds: float
    terms: Mapping[str, Tensor]
    notes: tuple[str, ...]
    agreement: Tensor | None = field(default=None, kw_only=True)
    sampling: str = field(default="bilinear", kw_only=True)
    forward: Deformation
    inverse: Deformation

    @property
    def moved(self) -> Tensor:
        """Which images were canonicalised, shape ``(B,)``, bool."""
        return torch.tensor([s == CANONICALIZED for s in self.status], device=self.image.device)

    @classmethod
    def join(cls, results: Sequence[Canonicalization]) -> Canonicalization:
        """One batch of several.

        Raises:
            ShapeError: if canonical images have different frames.
        """
        first, frames = results[0], [tuple(result.image.shape[2:]) for result in results]
        if odd := [frame for frame in frames if frame != frames[0]]:
            remedy = "Oblong images of one batch are rotated differently: canonicalise them one by one."
            raise ShapeError("canonicalize()", "image", f"{frames[0]}, as the first canonical image has", odd[0], remedy)
        joined: dict[str, Any] = {name: torch.cat([getattr(r, name) for r in results]) for name in _TENSORS}
        joined |= {name: Deformation.join([getattr(r, name) for r in results]) for name in ("forward", "inverse")}
        joined |= {name: sum((getattr(r, name) for r in results), ()) for name in ("status", "notes")}
        terms = {name: torch.cat([r.terms[name] for r in results]) for name in first.terms}
        agreements = [r.agreement for r in results]
        joined["agreement"] = None if any(a is None for a in agreements) else torch.cat(agreements)  # type: ignore[arg-type]
        return cls(**joined, terms=terms, seconds=sum(r.seconds for r in results), sampling=first.sampling)

    @property
    def largest_displacement(self) -> Tensor:
        """Largest displacement of each image, shape ``(B,)``, voxels."""
        return torch.linalg.vector_norm(self.ddf, dim=1).flatten(1).amax(1)

    def tta_samples(
        self, given: Tensor, count: int, spread: float = 0.06, shift: float = 0.047, seed: int = 0
    ) -> list[Canonicalization]:
        """Poses around the canonical one: small affine maps, in pairs of a map and its inverse, the same for every image.

        The mean of a network's answers on them, mapped back, depends less on the exact pose than one answer does. How much the
        answers agree says how certain they are. An odd ``count`` begins with the canonical pose itself.

        Args:
            given: the images before canonicalisation, shape ``(B, C, *S)``.
            count: number of poses, at least 1.
            spread: standard deviation of the entries of the affine generators' matrices.
            shift: standard deviation of the translations, 1 = half the frame.
            seed: of the maps.

        Raises:
            ValueError: if ``count`` is less than 1.
        """
        if count < 1:
            raise ValueError(f"tta_samples(): 'count' must be at least 1, got {count}. 1 is the canonical pose alone.")
        if not bool(self.moved.any()):
            return [self]
        poses = [self] if count % 2 else []
        size, margin, back = tuple(self.ddf.shape[2:]), self.forward.residual.shape[2:], self.inverse_ddf.shape[2:]
        draw = torch.Generator().manual_seed(seed)
        half = half_frame(size, torch.empty(0))
        row = self.moved.view(-1, *[1] * len(margin), 1)
        for _ in range(count // 2):
            linear = torch.randn(len(size), len(size), generator=draw) * spread * half[:, None] / half
            generator = torch.cat([linear, torch.randn(len(size), 1, generator=draw) * shift * half[:, None]], 1).to(self.ddf)
            for sign in (1, -1):
                step, unstep = (affine_deformation(sign * s * generator.expand(len(given), -1, -1), margin) for s in (1, -1))
                ddf, inverse_ddf = self.forward.after(step).ddf(size), unstep.after(self.inverse).ddf(back)
                ddf, inverse_ddf = (torch.where(row, d, torch.zeros_like(d)) for d in (ddf, inverse_ddf))
                image = torch.where(row, move_image(given, ddf, self.sampling), self.image)
                poses.append(replace(self, image=image, ddf=ddf, inverse_ddf=inverse_ddf))
        return poses

    def warp_back(self, prediction: Any, mode: str = "bilinear") -> Any:
        """Map what a network answered on ``image`` to the pose of the input.

        Tensors with a value for every voxel (or every few: a lower-resolution head) are warped, in dictionaries, lists and
        tuples too, integers by nearest neighbour; vectors, ``None`` and everything else pass untouched. Give probabilities or
        logits and take the argmax afterwards.

        Args:
            prediction: tensor ``(B, K, *S')``, stacked heads ``(B, T, K, *S')``, a map without channels ``(B, *S)``, or any
                nesting of such.
            mode: ``"bilinear"`` or, for label maps, ``"nearest"``.
        """
        return _map(prediction, lambda p: self._warp_tensor(p, self.inverse_ddf, self.ddf.shape[2:], mode))

    def warp_input(self, companion: Any, mode: str = "bilinear") -> Any:
        """Bring something that lies on the input, a mask or a second channel, to the canonical pose; as :meth:`warp_back`."""
        return _map(companion, lambda p: self._warp_tensor(p, self.ddf, self.inverse_ddf.shape[2:], mode))

    def _warp_tensor(self, tensor: Tensor, ddf: Tensor, frame: Sequence[int], mode: str) -> Tensor:
        """What lies on ``frame``, pulled back along a displacement that leads there."""
        without_channel = tensor.shape[1:] == frame
        if (tensor.ndim < ddf.ndim and not without_channel) or tensor.shape[0] != ddf.shape[0] or not bool(self.moved.any()):
            return tensor
        maps = tensor.reshape(tensor.shape[0], -1, *tensor.shape[2 - ddf.ndim :])
        field = resize_ddf(ddf, tuple(maps.shape[2:]), tuple(frame)).to(tensor.device)
        moved = self.moved.to(tensor.device).view(-1, *[1] * (maps.ndim - 1))
        warped = warp(maps, field, mode if tensor.is_floating_point() else "nearest", centered=True)
        warped = torch.where(moved, warped, maps) if warped.shape == maps.shape else warped  # another frame: a batch of one
        return warped.view(*tensor.shape[: tensor.ndim - maps.ndim + 2], *warped.shape[2:])


def move_image(image: Tensor, ddf: Tensor, sampling: str = "bilinear") -> Tensor:
    """``warp``, with what ``"bicubic"`` sampling overshoots cut off at each image's own range; ``(B, C, *S)``."""
    moved = warp(image, ddf, sampling, centered=True)
    if sampling == "bilinear":
        return moved
    low, high = (edge.view(-1, *[1] * (image.ndim - 1)) for edge in image.flatten(1).aminmax(dim=1))
    return torch.minimum(torch.maximum(moved, low), high)


def _map(value: Any, function) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map(item, function) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(item, function) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, function) for item in value)
    return value


def resize_ddf(ddf: Tensor, size: tuple[int, ...], frame: tuple[int, ...] | None = None) -> Tensor:
    """The same displacement for an image of ``size`` voxels over the frame to which it leads, corners on corners.

    Args:
        ddf: shape ``(B, D, *S)``, voxels.
        size: of the image that it is to pull back.
        frame: to which ``ddf`` leads, by default its own ``*S``, or that with its axes in another order.

    Returns:
        Shape ``(B, D, *size)``, the axes of ``size`` ordered as those of ``*S`` are in ``frame``.
    """
    frame, dims = tuple(ddf.shape[2:]) if frame is None else frame, ddf.ndim - 2
    if frame == size:
        return ddf
    order = next(p for p in itertools.permutations(range(dims)) if tuple(frame[a] for a in p) == tuple(ddf.shape[2:]))
    new, column = tuple(size[a] for a in order), (-1, *[1] * dims)
    factor = torch.tensor([(n - 1) / max(m - 1, 1) for n, m in zip(size, frame)], device=ddf.device, dtype=ddf.dtype)
    mode = {2: "bilinear", 3: "trilinear"}[dims]
    if order == tuple(range(dims)):
        return F.interpolate(ddf, size, mode=mode, align_corners=True) * factor.view(column)
    where = F.interpolate(centered_grid(ddf.shape[2:], ddf.device, ddf.dtype) + ddf, new, mode=mode, align_corners=True)
    return where * factor.view(column) - centered_grid(new, ddf.device, ddf.dtype)


def mean_inverse_error(ddf: Tensor, inverse_ddf: Tensor) -> Tensor:
    """Mean over the voxels whose way stays in the frame of the distance of ``ddf`` after ``inverse_ddf`` from the identity,
    shape ``(B,)``, voxels."""
    where = centered_grid(inverse_ddf.shape[2:], ddf.device, ddf.dtype) + inverse_ddf
    edge = torch.tensor([(n - 1) / 2 for n in ddf.shape[2:]], device=ddf.device, dtype=ddf.dtype).view(
        -1, *[1] * (ddf.ndim - 2)
    )
    inside = (where.abs() <= edge).all(1)
    error = torch.linalg.vector_norm(warp(ddf, inverse_ddf, centered=True) + inverse_ddf, dim=1)
    return (error * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
