"""What the tables say of a method: Dice, its tail, equivariance, folding, seconds; with intervals."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_dice, compute_iou
from scipy.stats import t
from torch import Tensor, nn

from docs.experiments.film_data import Films, deform
from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.energies import Energy
from monai_diffeo.families import ControlGrid
from monai_diffeo.flow import warp
from monai_diffeo.inferers import DiffeoInferer

__all__ = ["Answer", "Method", "answer", "bootstrap_interval", "dice_of", "equivariance_error", "evaluate", "interval_points"]
__all__ += ["measure_set", "plain", "student_interval", "table_rows", "tta_only", "with_bootstrap", "with_interval", "wrapped"]

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
    """The network inside a ``DiffeoInferer``, with the number of TTA samples of its mode, or another."""

    def run(images: Tensor) -> Answer:
        results = []
        inferer = DiffeoInferer(canonicalizer, tta_samples=tta_samples, on_result=results.append)
        with torch.no_grad():
            masks = (torch.sigmoid(inferer(images, network)) > 0.5).float()
        return Answer(masks, results[0].folding_fraction, results[0].moved.float())

    return run


def tta_only(network: nn.Module, tta_samples: int = 8) -> Method:
    """Test-time augmentation as a ``DiffeoInferer`` does it, around the film as it came: what averaging gives without moving."""

    class Still(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.zeros(len(image), family.num_parameters)

    class NoEnergy(Energy):
        def forward(self, image: Tensor) -> Tensor:
            return torch.zeros(len(image))

    family = ControlGrid(controls=2)
    return wrapped(network, Canonicalizer(NoEnergy(), family, predictor=Still(), max_energy_increase=None), tta_samples)


def answer(method: Method, images: Tensor, batch_size: int = 16) -> Answer:
    """Run a method on any number of images; ``seconds`` is a film's mean of the processor's time, so that other work does not count."""
    began = time.process_time()
    parts = [method(batch) for batch in images.split(batch_size)]
    seconds = (time.process_time() - began) / len(images)
    return Answer(*(torch.cat([getattr(p, name) for p in parts]) for name in ("masks", "folding_fraction", "moved")), seconds)


def dice_of(masks: Tensor, labels: Tensor) -> Tensor:
    """Dice of each image, shape ``(B,)``."""
    return compute_dice(masks, labels, ignore_empty=False).flatten()


def equivariance_error(deformed: Tensor, undeformed: Tensor, ddf: Tensor) -> Tensor:
    """``1 - Dice(f(g x), g f(x))`` of each image: masks on the deformed film against deformed masks, shape ``(B,)``."""
    return 1 - dice_of(deformed, (warp(undeformed, ddf, padding_mode="zeros") > 0.5).float())


def bootstrap_interval(values: Tensor, seed: int = 0, draws: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over films."""
    values = values.double().numpy()
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[picks].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def with_bootstrap(values: Tensor, form: str = "+.4f", ends: str = "+.3f") -> str:
    """Mean over films and, in brackets, its 95 % bootstrap interval."""
    low, high = bootstrap_interval(values)
    return f"{values.mean():{form}} [{low:{ends}}, {high:{ends}}]"


def student_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean over a handful of independent runs, for which a bootstrap is too narrow; infinite for a single one."""
    if len(values) < 2:
        return -math.inf, math.inf
    mean = float(np.mean(values))
    reach = float(t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean - reach, mean + reach


def with_interval(values: Sequence[float], form: str = ".4f") -> str:
    """Mean of some runs and, of two or more, in brackets its 95 % interval by Student's t."""
    low, high = student_interval(values)
    return f"{statistics.fmean(values):{form}}" + (f" [{low:{form}}, {high:{form}}]" if len(values) > 1 else "")


def evaluate(method: Method, films: Films, ddf: Tensor, undeformed: Tensor | None = None) -> dict[str, Tensor | float]:
    """All columns of one row: ``dice`` and ``iou`` by film, ``error`` of equivariance where ``undeformed`` masks are given."""
    got = answer(method, films.images)
    row: dict[str, Tensor | float] = {
        "masks": got.masks,
        "dice": dice_of(got.masks, films.labels),
        "iou": compute_iou(got.masks, films.labels, ignore_empty=False).flatten(),
        "folding_fraction": got.folding_fraction.mean().item(),
        "moved": got.moved.mean().item(),
        "seconds": got.seconds,
    }
    return row if undeformed is None else row | {"error": equivariance_error(got.masks, undeformed, ddf)}


def measure_set(
    films: Films, protocol: str, methods: Mapping[str, Method], undeformed: dict[str, Tensor], seed: int = 0
) -> dict[str, dict]:
    """:func:`evaluate` every method under one protocol; ``undeformed`` keeps the masks of the plain films between calls."""
    shown, ddf = deform(films, protocol, seed)
    measured = {}
    for name, method in methods.items():
        measured[name] = evaluate(method, shown, ddf, undeformed.get(name))
        if protocol == "plain":
            undeformed[name] = measured[name]["masks"]
    return measured


def table_rows(measured: Mapping[str, Mapping]) -> list[dict[str, str]]:
    """What :func:`measure_set` found as rows of a table, with differences to the baselines, paired over films."""
    rows = []
    for name, row in measured.items():
        out = {"method": name, "Dice": with_bootstrap(row["dice"], ".4f", ".3f")}
        out |= {"p10": f"{row['dice'].quantile(0.1):.3f}", "IoU": f"{row['iou'].mean():.4f}"}
        for baseline in ("baseline", "augmented baseline"):
            compared = baseline in measured and baseline != name
            out[f"- {baseline}"] = with_bootstrap(row["dice"] - measured[baseline]["dice"]) if compared else ""
        out["error"] = f"{row['error'].mean():.3f}" if "error" in row else ""
        out |= {"folded": f"{row['folding_fraction']:.4f}", "moved": f"{row['moved']:.0%}", "s/film": f"{row['seconds']:.3f}"}
        rows.append(out)
    return rows


def interval_points(measured: Mapping[str, Mapping]) -> dict[str, tuple[float, float, float]]:
    """Mean Dice of each row with the ends of its interval."""
    return {name: (row["dice"].mean().item(), *bootstrap_interval(row["dice"])) for name, row in measured.items()}
