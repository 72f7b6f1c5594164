"""Did it work? What a fitted canonicaliser does to images that it was not trained on, and the rule that answers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from monai_diffeo.augmentation import random_training_deformation
from monai_diffeo.canonicalize import Canonicalization, Canonicalizer
from monai_diffeo.canonicalize.acceptance import possible_rotations
from monai_diffeo.fit.network import NetworkUnderTest, dice_of_masks, masks_of_label
from monai_diffeo.flow import compose, rotate_axes, warp
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.inferers.aggregation import agreement
from monai_diffeo.inferers.record import signs_of
from monai_diffeo.networks import ImageOrientation
from monai_diffeo.networks.predictor import resample_image

__all__ = [
    "FitOutcome", "Overlap", "asked_with_signs", "keeps_orientation", "measure", "measure_orientation", "measure_overlap",
    "twin_deformations",
]  # fmt: skip

CLOSED, UNDONE, REGAINED = 0.5, 0.5, 1 / 3  # what "it worked" takes
VISIBLE, UPRIGHT_LOSS, LOSS_SHARE = 0.02, 0.01, 0.25  # Dice; share of what deformed images gain
KEPT_UPRIGHT, FOUND_TURNS, CONFIDENCE = 0.95, 0.8, 0.9  # what an orientation network must reach to be used
_SLOW = 2.0  # seconds of one answer of the network, above which one pose is asked at


@dataclass(frozen=True)
class Overlap:
    """Mean Dice without (``plain``) and with the canonicaliser; ``reference`` is ``"masks"`` or ``"its own answers"``."""

    reference: str
    images: int
    tta_samples: int
    upright_plain: float
    upright: float
    deformed_plain: float
    deformed: float

    def reasons(self) -> list[str]:
        """Why it did not work, a clause each."""
        gain, gap = self.deformed - self.deformed_plain, self.upright_plain - self.deformed_plain
        reasons = []
        if gain <= 0:
            reasons.append(f"on deformed images the Dice falls from {self.deformed_plain:.3f} to {self.deformed:.3f}")
        elif gap >= VISIBLE and gain < REGAINED * gap:
            reasons.append(f"{gain / gap:.0%} of the Dice that deformation costs is regained, less than {REGAINED:.0%}")
        lost = self.upright_plain - self.upright  # from its own answers a network differs in any other pose
        if self.reference == "masks" and lost > max(UPRIGHT_LOSS, LOSS_SHARE * gain):
            reasons.append(f"on undeformed images the Dice falls from {self.upright_plain:.3f} to {self.upright:.3f}")
        return reasons


@dataclass(frozen=True)
class FitOutcome:
    """Figures of images that were held back.

    Attributes:
        energy, energy_deformed, energy_canonical: medians: as they are, deformed, canonicalised after that.
        undone: share of the displacement that is taken back, median: an image and its deformed twin should come to the same
            pose. Voxels count by the slope of the image, since displacement of an even background shows nowhere. Neither an
            energy nor a network is asked.
        canonicalized: share of the deformed images that were moved.
        folding: largest share of folded voxels of a field.
        seconds: an image, at the working size.
        kept_upright, found_turns: shares of upright images that are seen upright, and of turned ones whose rotation is found,
            by the orientation network alone.
        orientation: whether the canonicaliser uses that.
        overlap: with the network's masks, if there is one.
        mode: of the canonicaliser, its default; of those that were tried the one that undoes most.
    """

    images: int
    energy: float
    energy_deformed: float
    energy_canonical: float
    undone: float
    canonicalized: float
    folding: float
    seconds: float
    kept_upright: float = 0.0
    found_turns: float = 0.0
    orientation: bool = False
    overlap: Overlap | None = None
    mode: str = ""

    @property
    def closed(self) -> float:
        """Share of the gap between deformed and undeformed images' energies that is closed; 0 if deformation opens none."""
        gap = self.energy_deformed - self.energy
        return (self.energy_deformed - self.energy_canonical) / gap if gap > 0 else 0.0

    def reasons(self) -> list[str]:
        """The rule: why it did not work, a clause each; nothing if it worked. With a network, its answers count."""
        reasons = [f"{self.closed:.0%} of the energy gap is closed, less than {CLOSED:.0%}"] if self.closed < CLOSED else []
        if self.folding > 0:
            reasons.append(f"up to {self.folding:.2%} of a field folds")
        if self.overlap is not None:
            return reasons + self.overlap.reasons()
        if self.undone < UNDONE:
            reasons.append(f"{self.undone:.0%} of the displacement is undone, less than {UNDONE:.0%}")
        return reasons

    def sentence(self) -> str:
        """The answer."""
        if reasons := self.reasons():
            return f"No: {'; '.join(reasons)}. More minutes or more images may help."
        closed = f"canonicalisation closes {self.closed:.0%} of the energy gap that deformation opens"
        better = f"undoes {self.undone:.0%} of the displacement"
        if (dice := self.overlap) is not None:
            better = f"raises the Dice on deformed images from {dice.deformed_plain:.3f} to {dice.deformed:.3f}"
        return f"Yes: {closed}, {better}, and nothing folds."

    def as_dict(self) -> dict[str, Any]:
        """Everything, and the answer, for ``fit.json``."""
        return {**asdict(self), "closed": self.closed, "worked": not self.reasons(), "sentence": self.sentence()}


def twin_deformations(count: int, size: Sequence[int], seed: int) -> Tensor:
    """Deformations like those of the training, drawn with another seed."""
    draw = torch.Generator().manual_seed(seed + 1_000_003)
    return random_training_deformation(count, tuple(size), draw, identity_share=0.0, framing_share=0.0)


def measure(
    canonicalizer: Canonicalizer, images: Tensor, seed: int, seconds: float, signs: list[dict[str, float]] | None = None
) -> tuple[FitOutcome, Tensor, Tensor]:
    """Figures of held-back images ``(N, C, *S)``; also those images deformed, and canonicalised after that.

    After ``seconds`` no further image is begun; two are always taken. ``signs`` gets those of all images, deformed or not.
    """
    began = time.perf_counter()
    rows: list[tuple[Tensor, Tensor, Canonicalization, Canonicalization]] = []
    for image, ddf in zip(images.split(1), twin_deformations(len(images), images.shape[2:], seed).to(images).split(1)):
        if len(rows) >= 2 and time.perf_counter() - began > seconds:
            break
        twin = warp(image, ddf, padding_mode="zeros")
        rows.append((ddf, twin, canonicalizer(image), canonicalizer(twin)))
    ddfs, twins, before, after = zip(*rows)
    if signs is not None:
        signs += [row for found in (*before, *after) for row in signs_of(found, None, None)]
    outcome = FitOutcome(
        images=len(rows),
        energy=median(float(found.energy_before) for found in before),
        energy_deformed=median(float(found.energy_before) for found in after),
        energy_canonical=median(float(found.energy_after) for found in after),
        undone=median(_undone(*four) for four in zip(images.split(1), ddfs, before, after)),
        canonicalized=fmean(float(found.moved) for found in after),
        folding=max(float(found.folding_fraction) for found in (*before, *after)),
        seconds=fmean(found.seconds for found in after),
    )
    size = tuple(images.shape[2:])
    return outcome, torch.cat(twins), torch.cat([resample_image(found.image, size) for found in after])


def _undone(image: Tensor, ddf: Tensor, upright: Canonicalization, deformed: Canonicalization) -> float:
    """How much nearer the canonical poses of an image and of its deformed twin are than image and twin; 1 is the same pose."""
    if not upright.ddf.shape == deformed.ddf.shape == ddf.shape:
        return 0.0  # rotated to another frame
    slopes = torch.gradient(warp(image, upright.ddf), dim=list(range(2, image.ndim)))
    weight = sum((slope.abs().sum(1) for slope in slopes), torch.tensor(0.0))
    left, all_ = ((field.square().sum(1).sqrt() * weight).sum() for field in (compose(ddf, deformed.ddf) - upright.ddf, ddf))
    return 1 - float(left / all_)


def measure_orientation(network: ImageOrientation, images: Tensor, seed: int) -> tuple[float, float]:
    """Shares of upright images ``(N, C, *S)`` seen upright, and of turned ones whose rotation is found; of 16 at most."""
    images = images[:16]

    def seen(image: Tensor, index: int) -> float:
        with torch.no_grad():
            rotation, _ = network.probabilities(rotate_axes(image[None], index))
        return float(max(possible_rotations(rotation[0].tolist(), CONFIDENCE, None), default=0) == index)

    indices = torch.randint(1, network.num_rotations, (len(images),), generator=torch.Generator().manual_seed(seed)).tolist()
    return fmean(seen(image, 0) for image in images), fmean(seen(*pair) for pair in zip(images, indices))


def keeps_orientation(kept_upright: float, found_turns: float) -> bool:
    """Whether an orientation network is good enough to be used."""
    return kept_upright >= KEPT_UPRIGHT and found_turns >= FOUND_TURNS


def measure_overlap(
    canonicalizer: Canonicalizer,
    network: NetworkUnderTest,
    images: Iterable[tuple[Tensor, Tensor | None]],
    seed: int,
    device: torch.device,
    seconds: float,
    signs: list[dict[str, float]] | None = None,
) -> Overlap | None:
    """Dice of the network with and without the canonicaliser, on images at their own size.

    Args:
        canonicalizer, network, seed, device: what is measured, and how.
        images: each ``(C, *S)``, with its mask or None. If the first has none, the network's own answers on undeformed images
            stand in for masks; they say what deformation changes, not what is right.
        seconds: after which no further image is begun; two are always taken.
        signs: gets those of all images, deformed or not.
    """
    rows: list[list[float]] = []
    began, reference, poses = time.perf_counter(), "", 1
    for image, label in images:
        start = time.perf_counter()
        if len(rows) >= 2 and start - began > seconds:
            break
        own = network.masks(network.ask(image, device))
        if not reference:
            reference = "its own answers" if label is None else "masks"
            poses = canonicalizer.tta_samples if time.perf_counter() - start < _SLOW else 1
        wanted = own if reference != "masks" else None if label is None else masks_of_label(label, len(own))
        if wanted is None:
            continue
        inferer = DiffeoInferer(canonicalizer, network.inferer, tta_samples=poses)  # type: ignore[arg-type]
        wrapped = partial(asked_with_signs, inferer, [] if signs is None else signs)
        ddf = twin_deformations(1, image.shape[1:], seed + len(rows))
        plain, least = torch.Tensor.as_subclass(image, Tensor), image.amin()
        moved = warp(plain[None] - least, ddf, padding_mode="zeros")[0] + least
        goal = warp(wanted[None].float(), ddf, padding_mode="zeros")[0] > 0.5
        found = [network.masks(network.ask(some, device, wrapped)) for some in (plain, moved)]
        without = network.masks(network.ask(moved, device))
        rows.append([dice_of_masks(*two) for two in ((own, wanted), (found[0], wanted), (without, goal), (found[1], goal))])
    return Overlap(reference, len(rows), poses, *(fmean(column) for column in zip(*rows))) if rows else None


def asked_with_signs(inferer: DiffeoInferer, signs: list[dict[str, float]], image: Tensor, network: Any) -> Any:
    """The wrapped prediction; ``signs`` gets those of the image."""
    result = inferer.infer(image, network, plain=True)
    if (found := result.searched) is not None and result.canonicalization is not None:
        likeness = agreement([result.prediction, result.plain], found.moved)
        signs += signs_of(found, result.canonicalization.agreement, likeness)
    return result.prediction
