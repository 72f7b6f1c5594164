"""What one training step of each network computes. Each step is a callable ``(network, batch) -> losses by name``; the sum
of the losses is minimised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.transforms import MapTransform
from torch import Tensor, nn

from monai_diffeo.augmentation.deformations import random_homography, random_svf, tps_protocol
from monai_diffeo.augmentation.intensity import random_intensity
from monai_diffeo.augmentation.opacities import random_opacities
from monai_diffeo.families import Family
from monai_diffeo.flow import compose, exp, warp
from monai_diffeo.flow.grid import centered_grid
from monai_diffeo.networks import rot90_image, standardize_image

__all__ = [
    "AddAnswerd",
    "ClassificationStep",
    "CriticStep",
    "OrientationStep",
    "PredictorStep",
    "SegmentationStep",
    "VAEStep",
    "random_training_deformation",
    "varied_films",
]

Losses = Mapping[str, Tensor]


def random_training_deformation(
    batch_size: int,
    spatial_size: tuple[int, ...],
    generator: torch.Generator,
    identity_share: float = 0.2,
    angle: float = 45.0,
    jitter: float = 0.15,
    framing_share: float = 0.4,
) -> Tensor:
    """Displacements for training a predictor: thin-plate splines of all strengths, views and smooth flows, other frames, some
    identities.

    Returns:
        Shape ``(B, 2, H, W)``, voxels.
    """
    scale = torch.rand(1, generator=generator).item() * 0.35 + 0.75
    tps = tps_protocol(
        batch_size,
        spatial_size,
        generator,
        angle=angle,
        jitter=jitter,
        scale=scale,
        strength=torch.rand(batch_size, generator=generator).sqrt(),
        fold_free=True,
    )
    flow = exp(
        random_svf(
            batch_size, spatial_size, generator, sigma=0.1, amplitude=torch.rand(batch_size, generator=generator) * 0.08
        ),
        5,
    )
    view = random_homography(batch_size, spatial_size, generator, shift=0.12)
    draw = torch.rand(batch_size, 1, 1, 1, generator=generator)
    kinds = torch.where(draw < 0.7, tps, torch.where(draw < 0.85, compose(view, flow), compose(tps, flow)))
    framed = torch.rand(batch_size, 1, 1, 1, generator=generator) < framing_share
    kinds = torch.where(framed, compose(kinds, _random_framing(batch_size, spatial_size, generator)), kinds)
    still = torch.rand(batch_size, 1, 1, 1, generator=generator) < identity_share
    return torch.where(still, torch.zeros_like(kinds), kinds)


def _random_framing(batch_size: int, spatial_size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Displacements of another frame around the same anatomy: each axis stretched or squeezed, and shifted into the room that is left,
    as collimation and black margins do; shape ``(B, 2, H, W)``, voxels."""
    half = torch.tensor([(n - 1) / 2 for n in spatial_size])
    scale = torch.rand(batch_size, 2, generator=generator) * 0.65 + 0.85
    room = (scale - 1).clamp(min=0.05) * half
    shift = (torch.rand(batch_size, 2, generator=generator) * 2 - 1) * room
    grid = centered_grid(spatial_size)
    return (scale - 1).view(-1, 2, 1, 1) * grid + shift.view(-1, 2, 1, 1)


class SegmentationStep:
    """Dice plus cross entropy of a segmentation network with one logit a class; optionally on deformed films.

    Args:
        strength: None for films as they are (baseline); else the TPS protocol at strengths drawn from [0, ``strength``], half of
            them at ``strength`` itself (the augmented baseline).
        seed: of the deformations.
        intensity: strength of the intensity augmentation.
        framing_share: share of batches that :func:`random_training_deformation` deforms in place of the protocol; with ``strength`` only.
        opacities: share of films with :func:`random_opacities` over their lungs.
    """

    def __init__(
        self,
        strength: float | None = None,
        seed: int = 0,
        intensity: float = 0.0,
        framing_share: float = 0.0,
        opacities: float = 0.0,
    ) -> None:
        self.varied = {"strength": strength, "intensity": intensity, "framing_share": framing_share, "opacities": opacities}
        self.generator = torch.Generator().manual_seed(seed)
        self.loss = DiceCELoss(sigmoid=True)

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Losses:
        image, label = varied_films(batch["image"], batch["label"], self.generator, **self.varied)
        return {"segmentation": self.loss(network(image), label)}


def varied_films(
    image: Tensor,
    label: Tensor,
    generator: torch.Generator,
    strength: float | None,
    intensity: float = 0.0,
    framing_share: float = 0.0,
    opacities: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Films of varied grey values and deformed, with their masks; arguments as :class:`SegmentationStep`."""
    if opacities:
        image = random_opacities(image, label, generator, opacities)
    if intensity:
        image = random_intensity(image.cpu(), generator, intensity).to(image)
    if strength is None:
        return image, label
    if framing_share and torch.rand(1, generator=generator).item() < framing_share:
        ddf = random_training_deformation(len(image), tuple(image.shape[2:]), generator, identity_share=0.1).to(image)
    else:
        ddf = _augmentation(image, strength, generator)
    moved = (warp(label, ddf, padding_mode="zeros") > 0.5).to(label)
    return warp(image, ddf, padding_mode="zeros"), moved


class ClassificationStep:
    """Cross entropy of a classifier with one logit a class; ``batch["label"]`` (B,) counts classes from 0; arguments as
    :class:`SegmentationStep`."""

    def __init__(self, strength: float | None = None, seed: int = 0) -> None:
        self.strength, self.generator = strength, torch.Generator().manual_seed(seed)

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Losses:
        image = batch["image"]
        if self.strength is not None:
            image = warp(image, _augmentation(image, self.strength, self.generator), padding_mode="zeros")
        return {"classification": F.cross_entropy(network(image), batch["label"])}


def _augmentation(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Displacements of the TPS protocol, half of them at ``strength``, the others weaker; shape ``(B, 2, H, W)``, voxels."""
    draw = (2 * torch.rand(len(image), generator=generator)).clamp(max=1) * strength
    return tps_protocol(len(image), image.shape[2:], generator, strength=draw).to(image)


class VAEStep:
    """Squared error plus ``beta`` times the Kullback-Leibler divergence, per film, on films of varied grey values.

    Args:
        beta: weight of the divergence, 1 as published.
        intensity: strength of the intensity augmentation, 0 as published.
        seed: of the augmentation.
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
    """Wasserstein loss with gradient penalty: real = films, fake = the same films deformed on the fly.

    Args:
        penalty: weight of the gradient penalty.
        intensity: strength of the intensity augmentation, 0 as published.
        seed: of all random numbers.

    Reference: Gulrajani et al. (2017), https://arxiv.org/abs/1704.00028
    """

    def __init__(self, penalty: float = 10.0, intensity: float = 1.0, seed: int = 0) -> None:
        self.penalty, self.intensity, self.generator = penalty, intensity, torch.Generator().manual_seed(seed)

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Losses:
        real = batch["image"]
        if self.intensity:
            real = random_intensity(real.cpu(), self.generator, self.intensity).to(real)
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
    """Teach a :class:`FilmOrientation` the quarter turn of deformed, mirrored and turned films, by cross entropy; no labels.

    Args:
        working_size: size at which the step computes, square.
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
        turns = torch.randint(4, (len(image),), generator=self.generator).to(image.device)
        mirrored = torch.randint(2, (len(image),), generator=self.generator).to(image.device)
        scores = network(rot90_image(shown, turns, mirrored.bool()))
        return {"orientation": F.cross_entropy(scores.flatten(1), mirrored * 4 + turns)}


class PredictorStep:
    """Teach a predictor to bring a deformed film back, in passes that compose; no labels are used.

    A film ``x`` is deformed by a random ``g`` and its grey values are varied; each pass moves what the last one left. With
    ``phi`` the deformation after a pass: ``g`` after ``phi`` should be the identity, the film so moved should be ``x``, what the
    network under test answers on ``x`` should come to lie on itself, and on the canonical film the network should answer what
    it answered on ``x`` there: the equivariance that the whole method is for.

    Args:
        family: the family whose parameters the predictor gives.
        network: the frozen network under test, for the term ``answer``; None leaves it out.
        activation: from the network's output to probabilities.
        iterations: unrolled passes; each starts from the detached result of the one before.
        weights: of the terms ``grid`` (voxels of a 128 frame), ``image`` (squared error of standardised films), ``overlap``
            (soft Dice of moved answers; needs ``batch["answer"]``), ``answer`` (soft Dice and cross entropy) and ``smooth``
            (squared parameters).
        working_size: size at which the step computes; None takes the films' own.
        intensity: strength of the intensity augmentation.
        seed: of all random numbers.
        deformation: ``(B, S, generator) -> ddf`` that draws ``g``.
    """

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
        self.deformation = deformation
        self.network = None if network is None else network.eval().requires_grad_(False)
        self.weights = {"grid": 0.02, "image": 0.5, "overlap": 1.0, "answer": 1.0, "smooth": 0.02, **(weights or {})}
        self.working_size = None if working_size is None else tuple(working_size)
        self.generator = torch.Generator().manual_seed(seed)

    def _losses(self, film: Tensor, shown: Tensor, g: Tensor, ddf: Tensor, theta: Tensor, answer: Tensor | None) -> Losses:
        whole = compose(g, ddf)
        voxel = 128 / film.shape[-1]
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
                sure = given.clamp(
                    1e-4, 1 - 1e-4
                )  # by hand: torch's own stops at NaN before the iteration can say where it was
                entropy = -(wanted * sure.log() + (1 - wanted) * (1 - sure).log()).mean()
                losses["answer"] = _soft_dice_loss(given, wanted) + entropy
        return {name: self.weights[name] * value for name, value in losses.items()}

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Losses:
        image, answer = batch["image"], batch.get("answer")
        if self.network is not None and answer is None:
            raise ValueError(
                "PredictorStep: with a network under test, batch['answer'] is needed; add AddAnswerd to the transforms."
            )
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
    """Put what a frozen network answers on ``image`` ``(C, *S)`` under ``answer``, as probabilities; no label is needed.

    Args:
        network: the network under test.
        activation: from its output to probabilities.
    """

    def __init__(self, network: nn.Module, activation: Callable[[Tensor], Tensor] = torch.sigmoid) -> None:
        super().__init__("image")
        self.network, self.activation = network.eval().requires_grad_(False), activation

    def __call__(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            answer = self.activation(self.network(torch.as_tensor(data["image"])[None]))[0]
        return {**data, "answer": answer}


def _soft_dice_loss(probability: Tensor, wanted: Tensor) -> Tensor:
    """One minus the soft Dice of each image and channel, averaged."""
    axes = tuple(range(2, probability.ndim))
    overlap = (probability * wanted).sum(axes)
    return 1 - ((2 * overlap + 1) / (probability.sum(axes) + wanted.sum(axes) + 1)).mean()
