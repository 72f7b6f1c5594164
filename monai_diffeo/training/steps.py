"""What one training step of each network computes.

Each step is a callable ``(network, batch) -> losses by name``; the sum of the losses is minimised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor, nn

from monai_diffeo.augmentation import (
    random_intensity,
    random_outliers,
    random_strength_tps,
    random_training_deformation,
    value_range,
    varied_films,
)
from monai_diffeo.errors import ShapeError
from monai_diffeo.families import Family
from monai_diffeo.flow import axis_rotations, compose, warp
from monai_diffeo.flow.grid import axis_numbers
from monai_diffeo.networks import orient_images, standardize_image
from monai_diffeo.networks.predictor import resample_image
from monai_diffeo.training.answers import Activation, answer_loss, frozen_copy, network_answer, soft_dice_loss

__all__ = [
    "ClassificationStep", "CriticStep", "OrientationStep", "OutlierStep", "PredictorStep", "SegmentationStep", "VAEStep",
]  # fmt: skip

Losses = Mapping[str, Tensor]


class SegmentationStep:
    """Dice plus cross entropy of a segmentation network with one logit a class; optionally on deformed films.

    Args:
        seed: of all random numbers.
        strength, intensity, framing_share, opacities, faults, deformation: as for
            :func:`~monai_diffeo.augmentation.varied_films`.
    """

    def __init__(
        self,
        strength: float | None = None,
        seed: int = 0,
        intensity: float = 0.0,
        framing_share: float = 0.0,
        opacities: float = 0.0,
        faults: float = 0.0,
        deformation: Callable[[int, tuple[int, ...], torch.Generator], Tensor] | None = None,
    ) -> None:
        self.variation = strength, intensity, framing_share, opacities, faults, deformation
        self.generator = torch.Generator().manual_seed(seed)
        self.loss = DiceCELoss(sigmoid=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Where the random numbers are, for a training that is to go on later."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Losses:
        image, label = varied_films(batch["image"], batch["label"], self.generator, *self.variation)
        return {"segmentation": self.loss(network(image), label)}


class ClassificationStep:
    """Cross entropy of a classifier with one logit a class; ``batch["label"]`` (B,) counts classes from 0.

    ``strength`` and ``seed`` are as for :class:`SegmentationStep`.
    """

    def __init__(self, strength: float | None = None, seed: int = 0) -> None:
        self.strength, self.generator = strength, torch.Generator().manual_seed(seed)

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Losses:
        image = batch["image"]
        if self.strength is not None:
            ddf = random_strength_tps(len(image), image.shape[2:], self.generator, self.strength)
            image = warp(image, ddf.to(image), padding_mode="zeros")
        return {"classification": F.cross_entropy(network(image), batch["label"])}


class VAEStep:
    """Squared error plus ``beta`` times the Kullback-Leibler divergence: sums over an image, means over the batch.

    Images ``(B, C, *S)``, of 2 or 3 axes, are first resampled to the size of the network.

    Args:
        beta: weight of the divergence, 1 as published.
        intensity: strength of the intensity augmentation; 0, as published, also leaves the films unstandardised.
        seed: of all random numbers.
    """

    def __init__(self, beta: float = 1.0, intensity: float = 1.0, seed: int = 0) -> None:
        self.beta, self.intensity, self.generator = beta, intensity, torch.Generator().manual_seed(seed)

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Losses:
        image = resample_image(batch["image"], getattr(network, "image_size", batch["image"].shape[2:]))
        if self.intensity:
            image = standardize_image(random_intensity(image.cpu(), self.generator, self.intensity).to(image))
        rebuilt, mean, log_variance = network(image)
        error = (rebuilt - image).square().flatten(1).sum(1).mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return {"reconstruction": error, "divergence": self.beta * divergence}


class CriticStep:
    """Wasserstein loss with gradient penalty: the score falls on images and rises on the same images deformed.

    Images are ``(B, C, *S)``, of 2 or 3 axes.

    Args:
        penalty: weight of the gradient penalty.
        intensity, seed: as for :class:`VAEStep`.

    Reference: Gulrajani et al. (2017), https://arxiv.org/abs/1704.00028
    """

    def __init__(self, penalty: float = 10.0, intensity: float = 1.0, seed: int = 0) -> None:
        self.penalty, self.intensity, self.generator = penalty, intensity, torch.Generator().manual_seed(seed)

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Losses:
        real = random_intensity(batch["image"].cpu(), self.generator, self.intensity).to(batch["image"])
        size = tuple(real.shape[2:])
        ddf = random_training_deformation(len(real), size, self.generator, identity_share=0.0, framing_share=0.0).to(real)
        fake = _black_outside(real, ddf)
        if self.intensity:
            real, fake = standardize_image(real), standardize_image(fake)
        mix = torch.rand(len(real), *[1] * (real.ndim - 1), generator=self.generator).to(real)
        between = (mix * real + (1 - mix) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(network(between).sum(), between, create_graph=True)
        penalty = (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square().mean()
        return {"wasserstein": network(real).mean() - network(fake).mean(), "penalty": self.penalty * penalty}


class OrientationStep:
    """Cross entropy of an :class:`ImageOrientation` on images that were deformed, mirrored and rotated; no labels are used.

    The class of an image is ``R * mirrored + rotation``, one of the R = 4 or 24 :func:`~monai_diffeo.flow.axis_rotations`,
    after the mirroring. Images ``(B, C, *S)`` of any frame are resampled to a square or a cube, where rotations are exact.

    Args:
        working_size: size at which the step computes, all axes equal; None takes the network's ``image_size``.
        intensity: strength of the intensity augmentation.
        seed: of all random numbers.
        copies: orientations in which each deformed image is shown; to rotate costs less than to deform.
    """

    def __init__(
        self, working_size: Sequence[int] | None = None, intensity: float = 1.0, seed: int = 0, copies: int = 1
    ) -> None:
        self.working_size, self.intensity, self.copies = working_size, intensity, copies
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Losses:
        size = tuple(self.working_size or cast(Sequence[int], network.image_size))
        image = F.interpolate(batch["image"], size, mode="area")
        g = random_training_deformation(len(image), size, self.generator, angle=30.0).to(image)
        shown = _varied(image, g, self.generator, self.intensity).repeat_interleave(self.copies, 0)
        among = (len(axis_rotations(len(size))), 2)
        turns, mirrored = (torch.randint(n, (len(shown),), generator=self.generator).to(image.device) for n in among)
        scores = network(orient_images(shown, turns, mirrored.bool()))
        return {"orientation": F.cross_entropy(scores.flatten(1), mirrored * among[0] + turns)}


class OutlierStep:
    """Cross entropy of an :class:`OutlierDetector` on films ``(B, 1, H, W)`` and on as many :func:`random_outliers`.

    Half of the films are mirrored. What else may happen to a film happens to an outlier, too, so that it gives nothing away:
    opacities, faults, deformations and black around them, see :func:`~monai_diffeo.augmentation.varied_films`.

    Args:
        intensity: strength of the intensity augmentation.
        seed: of all random numbers.
    """

    def __init__(self, intensity: float = 1.0, seed: int = 0) -> None:
        self.intensity, self.generator = intensity, torch.Generator().manual_seed(seed)

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Losses:
        film, mask = batch["image"], batch["label"]
        mirrored = torch.rand(len(film), 1, 1, 1, generator=self.generator).to(film) < 0.5
        film, mask = (torch.where(mirrored, values.flip(3), values) for values in (film, mask))
        shown, masks = torch.cat([film, random_outliers(film, mask, self.generator)]), torch.cat([mask, mask])
        among: Any = {"intensity": self.intensity, "opacities": 0.3, "faults": 0.3, "deformation": _in_pairs}
        shown, _ = varied_films(shown, masks, self.generator, **among)
        outlier = torch.arange(len(shown), device=film.device) >= len(film)
        return {"outlier": F.binary_cross_entropy_with_logits(network(shown), outlier.to(film))}


def _in_pairs(count: int, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Deformations of a batch whose halves move alike, drawn on few points."""
    half = random_training_deformation(count // 2, size, generator, frames=(0.7, 1.8), points=32)
    return torch.cat([half, half])


class PredictorStep:
    """Train a predictor to undo random deformations, in iterations that compose; no labels are used.

    An image ``x`` ``(B, C, *S)``, of 2 or 3 axes, is deformed by a random ``g`` and its values are varied. Each iteration
    predicts what is left to undo. The losses look at the whole map, ``g`` after the deformation found so far, which should be
    the identity: the length of its displacement where every axis counts 128 voxels (``grid``), the squared error of the
    standardised image moved by it (``image``), the soft Dice loss of the answer on ``x`` moved by it (``overlap``), the soft
    Dice loss and cross entropy of the answer on the canonicalised image against that moved answer (``answer``), and the squared
    parameters (``smooth``).

    Args:
        family: of the deformations whose parameters the predictor gives.
        network: the network under test, for the term ``answer``, with its weights; None leaves the term out. A copy is taken,
            put into eval mode and frozen.
        activation: from the network's output to probabilities, as for :func:`answer_activation`; ``"softmax"`` also counts
            the cross entropy over classes. None is the sigmoid of one channel.
        iterations: number of iterations; each starts from the detached result of the one before, and all count equally.
        weights: of the terms above; those left out keep their defaults. ``overlap`` and ``answer`` need ``batch["answer"]``.
        working_size: size at which the step computes; None takes the images' own.
        intensity: strength of the intensity augmentation.
        seed: of all random numbers.
        deformation: ``(B, S, generator) -> ddf`` that draws ``g``.

    Raises:
        ShapeError: on call, if the network's answer is no map on the frame, or has other channels than ``batch["answer"]``.
        ValueError: on call, if ``batch["answer"]`` or the name of an activation is missing.
    """

    def __init__(
        self,
        family: Family,
        network: nn.Module | None = None,
        activation: Activation | None = None,
        iterations: int = 2,
        weights: Mapping[str, float] | None = None,
        working_size: Sequence[int] | None = None,
        intensity: float = 1.0,
        seed: int = 0,
        deformation: Callable[[int, tuple[int, ...], torch.Generator], Tensor] = random_training_deformation,
    ) -> None:
        self.family, self.activation, self.iterations, self.intensity = family, activation, iterations, intensity
        self.deformation, self.network = deformation, None if network is None else frozen_copy(network)
        self.weights = {"grid": 0.02, "image": 0.5, "overlap": 1.0, "answer": 1.0, "smooth": 0.02}
        if iterations < 1 or set(weights or {}) - set(self.weights):
            expected = f"'iterations' must be at least 1 and 'weights' may name {', '.join(self.weights)}"
            raise ValueError(f"PredictorStep: {expected}; got {iterations} and {weights}.")
        self.weights |= weights or {}
        self.working_size = None if working_size is None else tuple(working_size)
        self.generator = torch.Generator().manual_seed(seed)

    def _losses(self, film: Tensor, shown: Tensor, g: Tensor, ddf: Tensor, theta: Tensor, answer: Tensor | None) -> Losses:
        whole = compose(g, ddf)
        voxel = axis_numbers((128 / n for n in film.shape[2:]), whole).view(-1, *[1] * (film.ndim - 2))
        losses = {
            "grid": ((whole * voxel).square().sum(1) + 1).sqrt().mean() - 1,
            "image": (warp(film, whole) - film).square().mean(),
            "smooth": theta.square().sum(1).mean(),
        }
        if answer is not None:
            wanted = warp(answer, whole)
            losses["overlap"] = soft_dice_loss(wanted, answer)
            if self.network is not None:
                seen = warp(shown, ddf)
                given = network_answer("PredictorStep", self.network(seen), seen, self.activation)
                if given.shape != wanted.shape:
                    remedy = "Let AddAnswerd and PredictorStep have the same network and activation."
                    raise ShapeError("PredictorStep", "answer", str(tuple(given.shape)), wanted.shape, remedy)
                losses["answer"] = answer_loss(given, wanted, self.activation)
        return {name: self.weights[name] * value for name, value in losses.items()}

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Losses:
        image, answer = batch["image"], batch.get("answer")
        if self.network is not None and answer is None:
            raise ValueError("PredictorStep: a network under test needs batch['answer']; add AddAnswerd to the transforms.")
        if self.working_size is not None:
            image = F.interpolate(image, self.working_size, mode="area")
            answer = None if answer is None else F.interpolate(answer, self.working_size, mode="area")
        size = tuple(image.shape[2:])
        g = self.deformation(len(image), size, self.generator).to(image)
        shown = _varied(image, g, self.generator, self.intensity)
        film = standardize_image(image)
        total: dict[str, Tensor] = {}
        done = None
        for _ in range(self.iterations):
            with torch.no_grad():
                moved = shown if done is None else warp(shown, done.ddf(size))
            theta = network(moved)
            step = self.family(theta, size)
            done = step if done is None else done.detach().after(step)
            for name, value in self._losses(film, shown, g, done.ddf(size), theta, answer).items():
                total[name] = total.get(name, 0) + value / self.iterations
        return total


def _varied(image: Tensor, g: Tensor, generator: torch.Generator, intensity: float) -> Tensor:
    """Images of varied values, deformed by ``g``; seven batches in ten are black outside their frame."""
    black = torch.rand((), generator=generator) < 0.7
    image = random_intensity(image.cpu(), generator, intensity).to(image)
    return _black_outside(image, g) if black else warp(image, g)


def _black_outside(image: Tensor, ddf: Tensor) -> Tensor:
    """Images warped, with the black of each channel outside the frame."""
    black = value_range(image)[0]
    return warp(image - black, ddf, padding_mode="zeros") + black
