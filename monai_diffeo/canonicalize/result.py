"""What a canonicalisation gives back: data, with no state left on the canonicaliser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from monai_diffeo.canonicalize.answers import map_parts, return_answers
from monai_diffeo.canonicalize.displacement_image import displacement_image
from monai_diffeo.canonicalize.drawing import describe_result, html_of_result
from monai_diffeo.canonicalize.points import move_boxes, move_points
from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import Deformation, affine_deformation, warp
from monai_diffeo.flow.grid import axis_numbers, centered_grid, half_frame
from monai_diffeo.flow.warp import resize_ddf

_TENSORS = (
    "image", "velocity", "ddf", "inverse_ddf", "energy_before", "energy_after", "folding_fraction", "steps",
)  # fmt: skip

__all__ = ["CANONICALIZED", "Canonicalization", "LEFT_ALONE", "REJECTED", "mean_inverse_error", "move_image", "resize_ddf"]

CANONICALIZED = "canonicalized"
LEFT_ALONE = "left alone"
SWITCHED_OFF = f"{LEFT_ALONE}: canonicalisation is switched off"  # in a run with ``--enabled false``
REJECTED = "rejected"
OK, NOT_JUDGED, REVIEW, NO_RESULT = "ok", "not judged", "review", "no result"  # what a person should do about an image


@dataclass(frozen=True)
class Canonicalization:
    """A batch of images in canonical pose, and the way back.

    Attributes:
        image: canonical images, shape ``(B, C, *S)``; rows that are not ``"canonicalized"`` hold the input, bit for bit. ``*S``
            is the input's frame ``*S'``, or, where oblong images were rotated back, the frame that they have then.
        velocity: the T velocities that were found, shape ``(B, T, D, *W)``, voxels per unit time of the working frame; ``ddf``
            is the composition of their flows, then of rotation and enlarging. In families that know no velocities, the T
            displacements. Those of an image that needed fewer than others of its batch end with zeros.
        ddf: canonical = ``warp(input, ddf, centered=True)``; shape ``(B, D, *S)``, voxels; exactly zero for rows left as they
            were.
        inverse_ddf: the way back, shape ``(B, D, *S')``, voxels.
        energy_before: energy of the input, shape ``(B,)``; NaN where the input is not finite.
        energy_after: energy of ``image``, shape ``(B,)``.
        folding_fraction: share of folded voxels of ``ddf``, shape ``(B,)``.
        steps: optimisation steps each image used, shape ``(B,)``.
        status: ``"canonicalized"``, ``"left alone: reason"`` or ``"rejected: reason"``, one an image.
        seconds: wall time for the batch.
        terms: named energies before, ``(B,)`` each, for the report.
        notes: remarks for the report, one an image: what was rotated or enlarged, a film that looks mirrored or negative.
        agreement: how much the answers from several poses agree, shape ``(B,)``, 0 to 1; None where there was one pose.
        forward, inverse: the maps of which ``ddf`` and ``inverse_ddf`` are the displacements; they hold outside the frame too.
        sampling: how ``image`` was sampled, and how :meth:`tta_samples` are, see :func:`move_image`.
        rotations: number of the rotation of the axes that each image showed, see :func:`~monai_diffeo.flow.axis_rotations`,
            shape ``(B,)``; None where nothing was asked.
    """

    image: Tensor
    velocity: Tensor
    ddf: Tensor
    inverse_ddf: Tensor
    energy_before: Tensor
    energy_after: Tensor
    folding_fraction: Tensor
    steps: Tensor
    status: tuple[str, ...]
    seconds: float
    terms: Mapping[str, Tensor]
    notes: tuple[str, ...]
    agreement: Tensor | None = field(default=None, kw_only=True)
    sampling: str = field(default="bilinear", kw_only=True)
    rotations: Tensor | None = field(default=None, kw_only=True)
    forward: Deformation
    inverse: Deformation

    @property
    def moved(self) -> Tensor:
        """Which images were canonicalised, shape ``(B,)``, bool."""
        return torch.tensor([s == CANONICALIZED for s in self.status], device=self.image.device)

    @cached_property
    def inverse_error(self) -> Tensor:
        """Mean distance of ``ddf`` after ``inverse_ddf`` from the identity, where the way leads through the frame, shape
        ``(B,)``, voxels; computed when it is asked for."""
        return mean_inverse_error(self.ddf, self.inverse_ddf)

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
        most = max(result.velocity.shape[1] for result in results)
        results = [replace(result, velocity=_padded(result.velocity, most)) for result in results]
        joined: dict[str, Any] = {name: torch.cat([getattr(r, name) for r in results]) for name in _TENSORS}
        joined |= {name: Deformation.join([getattr(r, name) for r in results]) for name in ("forward", "inverse")}
        joined |= {name: sum((getattr(r, name) for r in results), ()) for name in ("status", "notes")}
        terms = {name: torch.cat([r.terms[name] for r in results]) for name in first.terms}
        for name in ("agreement", "rotations"):
            parts = [getattr(r, name) for r in results]
            joined[name] = None if any(part is None for part in parts) else torch.cat(parts)
        return cls(**joined, terms=terms, seconds=sum(r.seconds for r in results), sampling=first.sampling)

    def where(self, rows: Tensor, other: Canonicalization) -> Canonicalization:
        """These images in ``rows`` ``(B,)``, bool, and the same images as ``other`` has them elsewhere."""
        pairs = zip(rows.tolist(), self.rows(), other.rows())
        return Canonicalization.join([mine if keep else others for keep, mine, others in pairs])

    def rows(self) -> list[Canonicalization]:
        """A result for each image."""
        found = []
        for i, (forward, inverse) in enumerate(zip(self.forward.split(1), self.inverse.split(1))):
            one = slice(i, i + 1)
            parts: dict[str, Any] = {name: getattr(self, name)[one] for name in (*_TENSORS, "status", "notes")}
            parts |= {n: None if (v := getattr(self, n)) is None else v[one] for n in ("agreement", "rotations")}
            parts["terms"] = {name: term[one] for name, term in self.terms.items()}
            found.append(replace(self, **parts, forward=forward, inverse=inverse))
        return found

    @property
    def largest_displacement(self) -> Tensor:
        """Largest displacement of each image, shape ``(B,)``, voxels."""
        return self.ddf.square().sum(1).flatten(1).amax(1).sqrt()

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
        size, back = tuple(self.ddf.shape[2:]), self.inverse_ddf.shape[2:]
        row = self.moved.view(-1, *[1] * len(size), 1)
        given = torch.where(row, given, torch.zeros_like(given))  # what is not finite has no gradient
        generators = [sign * generator for generator in pose_generators(size, count, spread, shift, seed) for sign in (1, -1)]
        steps = affine_deformation(torch.stack(generators).to(self.ddf), (1,) * len(size)).matrix.split(1) if generators else ()
        for i, matrix in enumerate(steps):
            step = Deformation(matrix.expand(len(given), -1, -1), torch.zeros_like(self.ddf))
            ddf, inverse_ddf = self.forward.after(step).ddf(), self.inverse.then_affine(steps[i ^ 1]).ddf(back)
            ddf, inverse_ddf = (torch.where(row, d, torch.zeros_like(d)) for d in (ddf, inverse_ddf))
            image = torch.where(row, move_image(given, ddf, self.sampling), self.image)
            poses.append(replace(self, image=image, ddf=ddf, inverse_ddf=inverse_ddf))
        return poses

    def moved_image(self, given: Tensor) -> Tensor:
        """``image`` once more, from the images before canonicalisation ``(B, C, *S')``, so that a gradient flows to them."""
        row = self.moved.view(-1, *[1] * (given.ndim - 1))
        moved = move_image(torch.where(row, given, 0.0).float(), self.ddf, self.sampling).to(given.dtype)
        return torch.where(row, moved, given) if moved.shape == given.shape else moved  # another frame: a batch of one

    def warp_back(self, prediction: Any, mode: str = "bilinear", outputs: Any = None) -> Any:
        """Map what a network answered on ``image`` to the pose of the input.

        Tensors with a value for every voxel (or every few: a lower-resolution head) are warped, in dictionaries, lists and
        tuples too, integers by nearest neighbour; scores, ``None`` and everything else pass untouched. Give probabilities or
        logits and take the argmax afterwards.

        Args:
            prediction: tensor ``(B, K, *S')``, stacked heads ``(B, T, K, *S')``, a map without channels ``(B, *S)``, scores
                ``(B, K)``, or any nesting of such; points ``(B, N, D)`` and boxes ``(B, N, 2 * D)`` if they are declared.
            mode: ``"bilinear"`` or, for label maps, ``"nearest"``.
            outputs: what the prediction is, see :class:`DiffeoInferer`; None decides by shape.

        Raises:
            ShapeError: where a shape does not say what a tensor is, or is not that of its declaration.
        """
        return return_answers(self, prediction, mode, outputs)

    def warp_input(self, companion: Any, mode: str = "bilinear") -> Any:
        """Bring something that lies on the input, a mask or a second channel, to the canonical pose; maps as
        :meth:`warp_back`, all else passes untouched."""
        return map_parts(companion, lambda part, *_: self._warp_if_map(part, self.ddf, tuple(self.inverse_ddf.shape[2:]), mode))

    def warp_points(self, points: Tensor, to: str = "input") -> Tensor:
        """Where points lie in the other image.

        Args:
            points: shape ``(B, N, D)``, voxel coordinates in axis order. Rows that were not moved are returned bit for bit.
            to: ``"input"`` brings points of ``image``, a network's landmarks say, to the input; ``"canonical"`` the reverse.

        Raises:
            ShapeError: if ``points`` has another shape.
            ValueError: for another ``to``.
        """
        return move_points(points, *self._way(to))

    def warp_boxes(self, boxes: Tensor, to: str = "input", box_mode: str | None = None) -> Tensor:
        """The smallest axis-aligned boxes around boxes ``(B, N, 2 * D)`` in the other image; see :meth:`warp_points`.

        ``box_mode`` is MONAI's name of the order of the numbers, such as ``"ccwh"``; None: lower corner, then upper corner.
        """
        return move_boxes(boxes, *self._way(to), box_mode)

    def _way(self, to: str) -> tuple[Tensor, tuple[int, ...], Tensor]:
        if to not in ("input", "canonical"):
            raise ValueError(
                f"Canonicalization: 'to' must be 'input' or 'canonical', got {to!r}. Points of 'image' go to 'input'."
            )
        own, other = (self.ddf, self.inverse_ddf) if to == "input" else (self.inverse_ddf, self.ddf)
        return own, tuple(other.shape[2:]), self.moved

    def to_displacement_image(self, index: int = 0, inverse: bool = False, like: Tensor | None = None) -> Any:
        """The displacement of one image as SimpleITK has it; see :func:`displacement_image`."""
        return displacement_image(self.ddf, self.inverse_ddf, index, inverse, like)

    def __repr__(self) -> str:
        return describe_result(self)

    def _repr_html_(self) -> str:
        return html_of_result(self)

    def _warp_if_map(self, tensor: Any, ddf: Tensor, frame: tuple[int, ...], mode: str) -> Any:
        if not isinstance(tensor, Tensor) or tensor.shape[:1] != ddf.shape[:1]:
            return tensor
        return self.warp_map(tensor, ddf, frame, mode) if tensor.ndim >= ddf.ndim or tensor.shape[1:] == frame else tensor

    def warp_map(self, tensor: Tensor, ddf: Tensor, frame: tuple[int, ...], mode: str) -> Tensor:
        """A map ``(B, ..., *S')`` over ``frame``, pulled back along a displacement that leads there; integers by nearest
        neighbour."""
        if not any(moved := [s == CANONICALIZED for s in self.status]):
            return tensor
        maps = tensor.reshape(tensor.shape[0], -1, *tensor.shape[2 - ddf.ndim :])
        field = resize_ddf(ddf, tuple(maps.shape[2:]), frame).to(tensor.device)
        warped = warp(maps, field, mode if tensor.is_floating_point() else "nearest", centered=True)
        if warped.shape == maps.shape and not all(moved):  # another frame: a batch of one
            warped = torch.where(self.moved.to(tensor.device).view(-1, *[1] * (maps.ndim - 1)), warped, maps)
        return warped.view(*tensor.shape[: tensor.ndim - maps.ndim + 2], *warped.shape[2:])


def pose_generators(size: Sequence[int], count: int, spread: float = 0.06, shift: float = 0.047, seed: int = 0) -> list[Tensor]:
    """Affine generators ``(D, D + 1)`` of half the poses of :meth:`Canonicalization.tta_samples`; the others undo them."""
    draw, half = torch.Generator().manual_seed(seed), half_frame(size, torch.empty(0))[:, None]
    found = []
    for _ in range(count // 2):
        linear = torch.randn(len(size), len(size), generator=draw) * spread * half / half[:, 0]
        found.append(torch.cat([linear, torch.randn(len(size), 1, generator=draw) * shift * half], 1))
    return found


def _padded(velocity: Tensor, count: int) -> Tensor:
    """Velocities ``(B, T, D, *S)``, and zeros after them up to ``count``."""
    still = velocity.new_zeros(len(velocity), count - velocity.shape[1], *velocity.shape[2:])
    return torch.cat([velocity, still], 1)


def move_image(image: Tensor, ddf: Tensor, sampling: str = "bilinear") -> Tensor:
    """``warp``, with what ``"bicubic"`` sampling overshoots cut off at each image's own range; ``(B, C, *S)``."""
    moved = warp(image, ddf, sampling, centered=True)
    if sampling == "bilinear":
        return moved
    low, high = (edge.view(-1, *[1] * (image.ndim - 1)) for edge in image.flatten(1).aminmax(dim=1))
    return torch.minimum(torch.maximum(moved, low), high)


def mean_inverse_error(ddf: Tensor, inverse_ddf: Tensor) -> Tensor:
    """Mean over the voxels whose way stays in the frame of the distance of ``ddf`` after ``inverse_ddf`` from the identity,
    shape ``(B,)``, voxels."""
    where = centered_grid(inverse_ddf.shape[2:], ddf.device, ddf.dtype) + inverse_ddf
    edge = axis_numbers(((n - 1) / 2 for n in ddf.shape[2:]), ddf).view(-1, *[1] * (ddf.ndim - 2))
    inside = (where.abs() <= edge).all(1)
    error = (warp(ddf, inverse_ddf, centered=True) + inverse_ddf).square().sum(1).sqrt()
    return (error * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
