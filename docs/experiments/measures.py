"""What the tables say of a method: Dice, its tail, equivariance, folding, seconds; with intervals."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

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


class Answer(NamedTuple):
    """What a method gives for a batch; ``seconds`` are those of an image."""

    masks: Tensor  # (B, 1, H, W), or classes (B,)
    folding_fraction: Tensor  # (B,)
    moved: Tensor  # (B,), 0 or 1
    seconds: float = 0.0


Method = Callable[[Tensor], Answer]
Measured = dict[str, dict]  # by row and measure


def _mask(logits: Tensor) -> Tensor:
    return (torch.sigmoid(logits) > 0.5).float()


def plain(network: nn.Module, decide: Callable[[Tensor], Tensor] = _mask) -> Method:
    """The network as it is; ``decide`` makes its output an answer."""

    def run(images: Tensor) -> Answer:
        with torch.no_grad():
            return Answer(decide(network(images)), torch.zeros(len(images)), torch.zeros(len(images)))

    return run


def wrapped(network: nn.Module, canonicalizer: Canonicalizer, tta_samples: int | None = None, decide=_mask) -> Method:
    """The network inside a ``DiffeoInferer``, with the number of TTA samples of its mode, or another."""

    def run(images: Tensor) -> Answer:
        results = []
        inferer = DiffeoInferer(canonicalizer, tta_samples=tta_samples, on_result=results.append)
        with torch.no_grad():
            masks = decide(inferer(images, network))
        return Answer(masks, results[0].folding_fraction, results[0].moved.float())

    return run


class _NoEnergy(Energy):
    def forward(self, image: Tensor) -> Tensor:
        return torch.zeros(len(image))


class _NoMotion(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.zeros(len(image), ControlGrid(controls=2).num_parameters)


def tta_only(network: nn.Module, tta_samples: int = 8) -> Method:
    """Test-time augmentation as a ``DiffeoInferer`` does it, around the film as it came: averaging without moving."""
    still = Canonicalizer(_NoEnergy(), ControlGrid(controls=2), predictor=_NoMotion(), max_energy_increase=None)
    return wrapped(network, still, tta_samples)


def answer(method: Method, images: Tensor, batch_size: int = 16) -> Answer:
    """Run a method on any number of images; ``seconds`` is a film's mean of the processor's time: other work does not count."""
    began = time.process_time()
    masks, folding, moved, _ = zip(*(method(batch) for batch in images.split(batch_size)))
    return Answer(torch.cat(masks), torch.cat(folding), torch.cat(moved), (time.process_time() - began) / len(images))


def dice_of(masks: Tensor, labels: Tensor) -> Tensor:
    """Dice of each image, shape ``(B,)``."""
    return compute_dice(masks, labels, ignore_empty=False).flatten()


def equivariance_error(deformed: Tensor, undeformed: Tensor, ddf: Tensor) -> Tensor:
    """``1 - Dice(f(g x), g f(x))`` of each image: masks on the deformed film against deformed masks, shape ``(B,)``."""
    return 1 - dice_of(deformed, (warp(undeformed, ddf, padding_mode="zeros") > 0.5).float())


def bootstrap_interval(values: Tensor, draws: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of the mean over films."""
    values = values.double().numpy()
    picks = np.random.default_rng(0).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[picks].mean(1), [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return float(low), float(high)


def with_bootstrap(values: Tensor, form: str = "+.4f", ends: str = "+.3f") -> str:
    """Mean over films and, in brackets, its 95 % bootstrap interval."""
    low, high = bootstrap_interval(values)
    return f"{values.mean():{form}} [{low:{ends}}, {high:{ends}}]"


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of a handful of runs, for which a bootstrap is too narrow."""
    if len(values) < 2:
        return -math.inf, math.inf
    reach = float(t.ppf((1 + 0.95) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return float(np.mean(values)) - reach, float(np.mean(values)) + reach


def with_interval(values: Sequence[float], form: str = ".4f") -> str:
    """Mean of some runs and, of two or more, in brackets its 95 % interval by Student's t."""
    low, high = student_interval(values)
    return f"{statistics.fmean(values):{form}}" + (f" [{low:{form}}, {high:{form}}]" if len(values) > 1 else "")


def evaluate(method: Method, films: Films, ddf: Tensor, undeformed: Tensor | None = None) -> dict[str, Tensor | float]:
    """All columns of one row: ``dice`` and ``iou`` by film, ``error`` of equivariance where ``undeformed`` masks are given."""
    masks, folding, moved, seconds = answer(method, films.images)
    row = {"masks": masks, "dice": dice_of(masks, films.labels)}
    row["iou"] = compute_iou(masks, films.labels, ignore_empty=False).flatten()
    row |= {"folding_fraction": folding.mean().item(), "moved": moved.mean().item(), "seconds": seconds}
    return row if undeformed is None else row | {"error": equivariance_error(masks, undeformed, ddf)}


def measure_set(films: Films, protocol: str, methods: Mapping[str, Method], undeformed: dict, seed: int = 0) -> Measured:
    """:func:`evaluate` every method under one protocol; ``undeformed`` keeps the masks of the plain films between calls."""
    shown, ddf = deform(films, protocol, seed)
    measured = {name: evaluate(method, shown, ddf, undeformed.get(name)) for name, method in methods.items()}
    undeformed |= {name: row["masks"] for name, row in measured.items()} if protocol == "plain" else {}
    return measured


def table_rows(measured: Measured) -> list[dict[str, str]]:
    """What :func:`measure_set` found as rows of a table, with differences to the baselines, paired over films."""
    rows = []
    for name, row in measured.items():
        out = {"method": name, "Dice": with_bootstrap(row["dice"], ".4f", ".3f")}
        out |= {"p10": f"{row['dice'].quantile(0.1):.3f}", "IoU": f"{row['iou'].mean():.4f}"}
        for other in ("baseline", "augmented baseline"):
            compared = other in measured and other != name
            out[f"- {other}"] = with_bootstrap(row["dice"] - measured[other]["dice"]) if compared else ""
        out["error"] = f"{row['error'].mean():.3f}" if "error" in row else ""
        out |= {"folded": f"{row['folding_fraction']:.4f}", "moved": f"{row['moved']:.0%}", "s/film": f"{row['seconds']:.3f}"}
        rows.append(out)
    return rows


def interval_points(measured: Measured) -> dict[str, tuple[float, float, float]]:
    """Mean Dice of each row with the ends of its interval."""
    return {name: (row["dice"].mean().item(), *bootstrap_interval(row["dice"])) for name, row in measured.items()}
