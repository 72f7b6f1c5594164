"""What one training step of each network computes.

Each step is a callable ``(network, batch) -> losses by name``; the sum of the losses is minimised.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.transforms import MapTransform
from torch import Tensor, nn

from monai_diffeo.augmentation import random_intensity, random_strength_tps, random_training_deformation, varied_films
from monai_diffeo.families import Family
from monai_diffeo.flow import compose, warp
from monai_diffeo.networks import orient_images, standardize_image
from monai_diffeo.renamed import renamed_arguments

__all__ = ["AddAnswerd", "ClassificationStep", "CriticStep", "OrientationStep", "PredictorStep", "SegmentationStep", "VAEStep"]

Losses = Mapping[str, Tensor]


class SegmentationStep:
    """Dice plus cross entropy of a segmentation network with one logit a class; optionally on deformed films.

    Args:
        seed: of all random numbers.
        strength, intensity, framing_share, opacities: as for :func:`~monai_diffeo.augmentation.varied_films`.
    """

    def __init__(
        self,
        strength: float | None = None,
        seed: int = 0,
        intensity: float = 0.0,
        framing_share: float = 0.0,
        opacities: float = 0.0,
    ) -> None:
        self.variation = strength, intensity, framing_share, opacities
        self.generator = torch.Generator().manual_seed(seed)
        self.loss = DiceCELoss(sigmoid=True)

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
    """Squared error plus ``beta`` times the Kullback-Leibler divergence: sums over a film, means over the batch.

    Args:
        beta: weight of the divergence, 1 as published.
        intensity: strength of the intensity augmentation; 0, as published, also leaves the films unstandardised.
        seed: of all random numbers.
    """

    def __init__(self, beta: float = 1.0, intensity: float = 1.0, seed: int = 0) -> None:
        self.beta, self.intensity, self.generator = beta, intensity, torch.Generator().manual_seed(seed)

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Losses:
        image = batch["image"]
        if self.intensity:
            image = standardize_image(random_intensity(image.cpu(), self.generator, self.intensity).to(image))
        rebuilt, mean, log_variance = network(image)
        error = (rebuilt - image).square().flatten(1).sum(1).mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return {"reconstruction": error, "divergence": self.beta * divergence}


class CriticStep:
    """Wasserstein loss with gradient penalty: the score falls on films and rises on the same films deformed.

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
        fake = warp(real, ddf, padding_mode="zeros")
        if self.intensity:
            real, fake = standardize_image(real), standardize_image(fake)
        mix = torch.rand(len(real), 1, 1, 1, generator=self.generator).to(real)
        between = (mix * real + (1 - mix) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(network(between).sum(), between, create_graph=True)
        penalty = (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square().mean()
        return {"wasserstein": network(real).mean() - network(fake).mean(), "penalty": self.penalty * penalty}


class OrientationStep:
    """Cross entropy of a :class:`ImageOrientation` on films that were deformed, mirrored and turned; no labels are used.

    The class of a film is ``4 * mirrored + turns``, turns in steps of 90 degrees, counter-clockwise, after the mirroring.

    Args:
        working_size: (N, N), size at which the step computes.
        intensity: strength of the intensity augmentation.
        seed: of all random numbers.
    """

    def __init__(self, working_size: Sequence[int] = (64, 64), intensity: float = 1.0, seed: int = 0) -> None:
        self.working_size, self.intensity = tuple(working_size), intensity
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Losses:
        image = F.interpolate(batch["image"], self.working_size, mode="area")
        g = random_training_deformation(len(image), self.working_size, self.generator, angle=30.0).to(image)
        outside = "zeros" if torch.rand((), generator=self.generator) < 0.7 else "border"
        shown = warp(random_intensity(image.cpu(), self.generator, self.intensity).to(image), g, padding_mode=outside)
        turns, mirrored = (torch.randint(n, (len(image),), generator=self.generator).to(image.device) for n in (4, 2))
        scores = network(orient_images(shown, turns, mirrored.bool()))
        return {"orientation": F.cross_entropy(scores.flatten(1), mirrored * 4 + turns)}


class PredictorStep:
    """Train a predictor to undo random deformations, in iterations that compose; no labels are used.

    A film ``x`` is deformed by a random ``g`` and its grey values are varied. Each iteration predicts what is left to undo.
    The losses look at the whole map, ``g`` after the deformation found so far, which should be the identity: the length of
    its displacement in voxels of a 128 frame (``grid``), the squared error of the standardised film moved by it (``image``),
    the soft Dice loss of the answer on ``x`` moved by it (``overlap``), the soft Dice loss and cross entropy of the answer on
    the canonicalised film against that moved answer (``answer``), and the squared parameters (``smooth``).

    Args:
        family: of the deformations whose parameters the predictor gives.
        network: the network under test, for the term ``answer``, with its weights; None leaves the term out. A copy is taken,
            put into eval mode and frozen.
        activation: from the network's output to probabilities.
        iterations: number of iterations; each starts from the detached result of the one before, and all count equally.
        weights: of the terms above; those left out keep their defaults. ``overlap`` and ``answer`` need ``batch["answer"]``.
        working_size: size at which the step computes; None takes the films' own.
        intensity: strength of the intensity augmentation.
        seed: of all random numbers.
        deformation: ``(B, S, generator) -> ddf`` that draws ``g``.
    """

    @renamed_arguments(passes="iterations")
    def __init__(
        self,
        family: Family,
        network: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] = torch.sigmoid,
        iterations: int = 2,
        weights: Mapping[str, float] | None = None,
        working_size: Sequence[int] | None = None,
        intensity: float = 1.0,
        seed: int = 0,
        deformation: Callable[[int, tuple[int, ...], torch.Generator], Tensor] = random_training_deformation,
    ) -> None:
        self.family, self.activation, self.iterations, self.intensity = family, activation, iterations, intensity
        self.deformation, self.network = deformation, None if network is None else _frozen_copy(network)
        self.weights = {"grid": 0.02, "image": 0.5, "overlap": 1.0, "answer": 1.0, "smooth": 0.02}
        if iterations < 1 or set(weights or {}) - set(self.weights):
            expected = f"'iterations' must be at least 1 and 'weights' may name {', '.join(self.weights)}"
            raise ValueError(f"PredictorStep: {expected}; got {iterations} and {weights}.")
        self.weights |= weights or {}
        self.working_size = None if working_size is None else tuple(working_size)
        self.generator = torch.Generator().manual_seed(seed)

    def _losses(self, film: Tensor, shown: Tensor, g: Tensor, ddf: Tensor, theta: Tensor, answer: Tensor | None) -> Losses:
        whole, voxel = compose(g, ddf), 128 / film.shape[-1]
        losses = {
            "grid": ((whole * voxel).square().sum(1) + 1).sqrt().mean() - 1,
            "image": (warp(film, whole) - film).square().mean(),
            "smooth": theta.square().sum(1).mean(),
        }
        if answer is not None:
            wanted = warp(answer, whole)
            losses["overlap"] = _soft_dice_loss(wanted, answer)
            if self.network is not None:
                given = self.activation(self.network(warp(shown, ddf)))
                bounded = given.clamp(1e-4, 1 - 1e-4)  # torch's own entropy refuses NaN before the iteration can say where
                entropy = -(wanted * bounded.log() + (1 - wanted) * (1 - bounded).log()).mean()
                losses["answer"] = _soft_dice_loss(given, wanted) + entropy
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
        outside = "zeros" if torch.rand((), generator=self.generator) < 0.7 else "border"
        shown = warp(random_intensity(image.cpu(), self.generator, self.intensity).to(image), g, padding_mode=outside)
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


class AddAnswerd(MapTransform):
    """Put the answer of a network on ``image`` ``(C, *S)`` under ``answer``, as probabilities; no label is needed.

    Args:
        network: the network under test, with its weights. A copy is taken, put into eval mode and frozen.
        activation: from its output to probabilities.
    """

    def __init__(self, network: nn.Module, activation: Callable[[Tensor], Tensor] = torch.sigmoid) -> None:
        super().__init__("image")
        self.network, self.activation = _frozen_copy(network), activation

    def __call__(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            answer = self.activation(self.network(torch.as_tensor(data["image"])[None]))[0]
        return {**data, "answer": answer}


def _frozen_copy(network: nn.Module) -> nn.Module:
    """The caller's network stays in its mode and trainable."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def _soft_dice_loss(probability: Tensor, wanted: Tensor) -> Tensor:
    """One minus the soft Dice of each image and channel, averaged."""
    axes = tuple(range(2, probability.ndim))
    overlap = (probability * wanted).sum(axes)
    return 1 - ((2 * overlap + 1) / (probability.sum(axes) + wanted.sum(axes) + 1)).mean()
