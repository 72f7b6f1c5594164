"""Did it work? What a fitted canonicaliser does to images that it was not trained on, and the rule that answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from monai_diffeo.augmentation import random_training_deformation
from monai_diffeo.canonicalize import Canonicalization, Canonicalizer
from monai_diffeo.canonicalize.acceptance import confident_rotations
from monai_diffeo.fit.network import NetworkUnderTest, dice_of_masks, masks_of_label
from monai_diffeo.flow import compose, rotate_axes, warp
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.networks import ImageOrientation

__all__ = ["FitOutcome", "Overlap", "measure", "measure_orientation", "measure_overlap"]

CLOSED, UNDONE, UPRIGHT_LOSS = 0.5, 0.5, 0.01  # what "it worked" takes, beside no fold
KEPT_UPRIGHT, FOUND_TURNS = 0.95, 0.8  # what keeps the orientation network in the folder
MIN_CONFIDENCE = 0.9  # at which a canonicaliser believes it
_SLOW = 2.0  # seconds of one answer of the network, above which one pose is asked at, not eight


@dataclass(frozen=True)
class Overlap:
    """Mean Dice over images, without and with the canonicaliser; ``reference`` is ``"masks"`` or ``"own answers"``."""

    reference: str
    images: int
    tta_samples: int
    upright_plain: float
    upright: float
    deformed_plain: float
    deformed: float

    @property
    def closed(self) -> float:
        """Share of what deformation costs the plain network that the canonicaliser wins back; NaN if it costs nothing."""
        gap = self.upright_plain - self.deformed_plain
        return (self.deformed - self.deformed_plain) / gap if gap > 0 else float("nan")


@dataclass(frozen=True)
class FitOutcome:
    """Figures of held-back images.

    Attributes:
        images: how many were measured.
        energy, energy_deformed, energy_canonical: medians: as they are, deformed, canonicalised after that.
        undone: share of the displacement that canonicalisation takes back: an image and its deformed twin should be brought to
            the same pose. Median; no energy and no network is asked.
        canonicalized: share of the deformed images that were not left as they were.
        folding: largest share of folded voxels of a field.
        seconds: an image, at the working size.
        kept_upright, found_turns: shares of upright images left upright, and of turned ones whose rotation is found; None without
            an orientation network.
        overlap: Dice, if there is a network.
        notes: what else to know, a sentence each.
    """

    images: int
    energy: float
    energy_deformed: float
    energy_canonical: float
    undone: float
    canonicalized: float
    folding: float
    seconds: float
    kept_upright: float | None
    found_turns: float | None
    overlap: Overlap | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def closed(self) -> float:
        """Share of the gap between deformed and undeformed images' energies that canonicalisation closes."""
        gap = self.energy_deformed - self.energy
        return (self.energy_deformed - self.energy_canonical) / gap if gap > 0 else float("nan")

    @property
    def worked(self) -> bool:
        """The rule: half of the energy gap is closed, half of the displacement undone, nothing folds, and no Dice is lost."""
        return not self.reasons()

    def reasons(self) -> list[str]:
        """Why it did not work, a clause each."""
        reasons = []
        if not self.closed >= CLOSED:
            reasons.append(f"only {self.closed:.0%} of the energy gap is closed, less than {CLOSED:.0%}")
        if not self.undone >= UNDONE:
            reasons.append(f"only {self.undone:.0%} of the displacement is undone, less than {UNDONE:.0%}")
        if self.folding > 0:
            reasons.append(f"up to {self.folding:.2%} of a field folds")
        if (overlap := self.overlap) is not None:
            if overlap.deformed <= overlap.deformed_plain:
                reasons.append(f"on deformed images the Dice falls from {overlap.deformed_plain:.3f} to {overlap.deformed:.3f}")
            if overlap.upright < overlap.upright_plain - UPRIGHT_LOSS:
                reasons.append(f"on undeformed images the Dice falls by more than {UPRIGHT_LOSS}")
        return reasons

    def sentence(self) -> str:
        """Did it work?"""
        if reasons := self.reasons():
            return f"No: {'; '.join(reasons)}. More minutes or more images may help."
        closed = f"canonicalisation closes {self.closed:.0%} of the energy gap that deformation opens"
        return f"Yes: {closed}, undoes {self.undone:.0%} of the displacement, and nothing folds."

    def as_dict(self) -> dict[str, Any]:
        """Everything, and the answer, for ``fit.json``."""
        return {**asdict(self), "closed": self.closed, "worked": self.worked, "sentence": self.sentence()}


def _deformations(count: int, size: Sequence[int], seed: int) -> Tensor:
    """Deformations like those of the training, drawn with another seed."""
    draw = torch.Generator().manual_seed(seed + 1_000_003)
    return random_training_deformation(count, tuple(size), draw, identity_share=0.0, framing_share=0.0)


def measure(canonicalizer: Canonicalizer, images: Tensor, seed: int, device: torch.device) -> tuple[FitOutcome, Tensor, Tensor]:
    """Figures of held-back images ``(N, C, *S)``; also those images deformed, and canonicalised after that."""
    ddf = _deformations(len(images), images.shape[2:], seed).to(device)
    images = images.to(device)
    deformed = warp(images, ddf, padding_mode="zeros")
    before, found = ([canonicalizer(image[None]) for image in some] for some in (images, deformed))
    undone = [_undone(g[None], first, then) for g, first, then in zip(ddf, before, found)]
    outcome = FitOutcome(
        images=len(images),
        energy=_median(before, "energy_before"),
        energy_deformed=_median(found, "energy_before"),
        energy_canonical=_median(found, "energy_after"),
        undone=median(undone),
        canonicalized=fmean(float(row.moved.all()) for row in found),
        folding=max(float(row.folding_fraction.max()) for row in (*before, *found)),
        seconds=fmean(row.seconds for row in found),
        kept_upright=None,
        found_turns=None,
    )
    return outcome, deformed.cpu(), torch.cat([row.image for row in found]).cpu()


def _undone(ddf: Tensor, upright: Canonicalization, deformed: Canonicalization) -> float:
    """How much less an image's canonical pose and that of its deformed twin differ than image and twin, 1 for not at all."""
    if upright.ddf.shape != ddf.shape or deformed.ddf.shape != ddf.shape:
        return 0.0  # rotated to another frame
    left = compose(ddf, deformed.ddf) - upright.ddf
    return 1 - float(torch.linalg.vector_norm(left, dim=1).mean() / torch.linalg.vector_norm(ddf, dim=1).mean())


def _median(rows: Sequence[Canonicalization], name: str) -> float:
    return float(torch.cat([getattr(row, name) for row in rows]).nanmedian())


def measure_orientation(network: ImageOrientation, images: Tensor, seed: int) -> tuple[float, float]:
    """Shares of upright images that are left upright, and of turned ones whose rotation is found."""
    draw = torch.Generator().manual_seed(seed)

    def found(image: Tensor, index: int) -> bool:
        with torch.no_grad():
            rotation, _ = network.probabilities(rotate_axes(image[None], index))
        return int(confident_rotations(rotation, MIN_CONFIDENCE)) == index

    indices = torch.randint(1, network.num_rotations, (len(images),), generator=draw).tolist()
    kept = fmean(float(found(image, 0)) for image in images)
    return kept, fmean(float(found(image, index)) for image, index in zip(images, indices))


def measure_overlap(
    canonicalizer: Canonicalizer,
    network: NetworkUnderTest,
    images: Sequence[tuple[Tensor, Tensor | None]],
    seed: int,
    device: torch.device,
    seconds: float,
) -> Overlap | None:
    """Dice of the network with and without the canonicaliser, on images at their own size.

    Args:
        canonicalizer, network: to be judged.
        images: each ``(C, *S)``, with its mask or None; an iterator, from which images are taken until the time is up. Where the
            first has no mask, the network's own answers on undeformed images stand in for masks.
        seed: of the deformations.
        device: of the canonicaliser and the network.
        seconds: after which no further image is begun; two are always taken.
    """
    rows: list[tuple[float, float, float, float]] = []
    began, reference, poses = time.perf_counter(), "", 1
    for image, label in images:
        if len(rows) >= 2 and time.perf_counter() - began > seconds:
            break
        start = time.perf_counter()
        own = network.masks(network.ask(image, device))
        if not reference:
            poses = canonicalizer.tta_samples if time.perf_counter() - start < _SLOW else 1
            reference = "own answers" if label is None else "masks"
        wanted = own if reference == "own answers" else None if label is None else masks_of_label(label, len(own))
        if wanted is None:
            continue
        wrapped: Callable[..., Any] = DiffeoInferer(canonicalizer, network.inferer, tta_samples=poses)  # type: ignore[arg-type]
        plain = torch.as_tensor(image)
        ddf = _deformations(1, image.shape[1:], seed + len(rows))
        moved = warp(plain[None] - plain.amin(), ddf, padding_mode="zeros")[0] + plain.amin()
        goal = warp(wanted[None].float(), ddf, padding_mode="zeros")[0] > 0.5
        with_it = [network.masks(network.ask(some, device, wrapped)) for some in (plain, moved)]
        without = network.masks(network.ask(moved, device))
        answers = ((own, wanted), (with_it[0], wanted), (without, goal), (with_it[1], goal))
        rows.append(tuple(dice_of_masks(*pair) for pair in answers))  # type: ignore[arg-type]
    if not rows:
        return None
    upright_plain, upright, deformed_plain, deformed = (fmean(column) for column in zip(*rows))
    return Overlap(reference, len(rows), poses, upright_plain, upright, deformed_plain, deformed)
