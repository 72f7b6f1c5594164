"""What the tables say of a method: Dice, its tail, equivariance, folding, seconds; with intervals."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_dice, compute_iou
from torch import Tensor, nn

from docs.experiments.films import Films
from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.energies import Energy
from monai_diffeo.families import ControlGrid
from monai_diffeo.flow import warp
from monai_diffeo.inferers import DiffeoInferer

__all__ = [
    "Answer",
    "Method",
    "answer",
    "bootstrap_interval",
    "dice_of",
    "equivariance_error",
    "evaluate",
    "iou_of",
    "plain",
    "student_interval",
    "views_only",
    "with_interval",
    "wrapped",
]

Method = Callable[[Tensor], "Answer"]


@dataclass
class Answer:
    """What a method gives for a batch: masks ``(B, 1, H, W)``, folded share and moved or not ``(B,)``."""

    masks: Tensor
    folding_fraction: Tensor
    moved: Tensor
    seconds: float = 0.0


def plain(network: nn.Module) -> Method:
    """The network as it is."""

    def run(images: Tensor) -> Answer:
        with torch.no_grad():
            masks = (torch.sigmoid(network(images)) > 0.5).float()
        return Answer(masks, torch.zeros(len(images)), torch.zeros(len(images)))

    return run


def wrapped(network: nn.Module, canonicalizer: Canonicalizer, tta_samples: int | None = None) -> Method:
    """The network inside a ``DiffeoInferer``, with the number of views of its mode, or another."""

    def run(images: Tensor) -> Answer:
        results = []
        inferer = DiffeoInferer(canonicalizer, tta_samples=tta_samples, on_result=results.append)
        with torch.no_grad():
            masks = (torch.sigmoid(inferer(images, network)) > 0.5).float()
        return Answer(masks, results[0].folding_fraction, results[0].moved.float())

    return run


def views_only(network: nn.Module, tta_samples: int = 8) -> Method:
    """The network asked in the poses of a ``DiffeoInferer`` around the film as it came: what averaging over views gives without moving."""
    family = ControlGrid(controls=2)
    return wrapped(
        network, Canonicalizer(_NoEnergy(), family, predictor=_NoMotion(family.num_parameters), max_energy_increase=None), tta_samples
    )


class _NoEnergy(Energy):
    def forward(self, image: Tensor) -> Tensor:
        return torch.zeros(len(image))


class _NoMotion(nn.Module):
    def __init__(self, num_parameters: int) -> None:
        super().__init__()
        self.num_parameters = num_parameters

    def forward(self, image: Tensor) -> Tensor:
        return torch.zeros(len(image), self.num_parameters)


def answer(method: Method, images: Tensor, batch_size: int = 16) -> Answer:
    """Run a method on any number of images; ``seconds`` is a film's mean of the processor's time, so that other work does not count."""
    began = time.process_time()
    parts = [method(batch) for batch in images.split(batch_size)]
    seconds = (time.process_time() - began) / len(images)
    return Answer(*(torch.cat([getattr(p, name) for p in parts]) for name in ("masks", "folding_fraction", "moved")), seconds)


def dice_of(masks: Tensor, labels: Tensor) -> Tensor:
    """Dice of each image, shape ``(B,)``."""
    return compute_dice(masks, labels, ignore_empty=False).flatten()


def iou_of(masks: Tensor, labels: Tensor) -> Tensor:
    """Intersection over union of each image, shape ``(B,)``."""
    return compute_iou(masks, labels, ignore_empty=False).flatten()


def equivariance_error(deformed: Tensor, undeformed: Tensor, ddf: Tensor) -> Tensor:
    """``1 - Dice(f(g x), g f(x))`` of each image: masks on the deformed film against deformed masks, shape ``(B,)``."""
    return 1 - dice_of(deformed, (warp(undeformed, ddf, padding_mode="zeros") > 0.5).float())


def bootstrap_interval(values: Tensor, seed: int = 0, draws: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over films."""
    values = values.double().numpy()
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[picks].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def student_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean over a handful of independent runs, for which a bootstrap is too narrow; infinite for a single one."""
    from scipy.stats import t

    if len(values) < 2:
        return -math.inf, math.inf
    mean = float(np.mean(values))
    reach = float(t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean - reach, mean + reach


def with_interval(values: Sequence[float], form: str = ".4f") -> str:
    """Mean of some runs and, of two or more, in brackets its 95 % interval by Student's t."""
    mean = f"{statistics.fmean(values):{form}}"
    if len(values) < 2:
        return mean
    low, high = student_interval(values)
    return f"{mean} [{low:{form}}, {high:{form}}]"


def evaluate(method: Method, films: Films, ddf: Tensor, undeformed: Tensor | None = None) -> dict[str, Tensor | float]:
    """All columns of one row: ``dice`` and ``iou`` by film, ``error`` of equivariance where ``undeformed`` masks are given."""
    got = answer(method, films.images)
    row: dict[str, Tensor | float] = {
        "masks": got.masks,
        "dice": dice_of(got.masks, films.labels),
        "iou": iou_of(got.masks, films.labels),
        "folding_fraction": got.folding_fraction.mean().item(),
        "moved": got.moved.mean().item(),
        "seconds": got.seconds,
    }
    if undeformed is not None:
        row["error"] = equivariance_error(got.masks, undeformed, ddf)
    return row
