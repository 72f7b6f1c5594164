"""Small networks that read digits, with and without a spatial transformer in front: how they are built, trained, measured and compared."""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docs.experiments.measures import student_interval, with_interval
from docs.experiments.training import train
from monai_diffeo.families import CoarseSampling
from monai_diffeo.flow import folding_fraction, warp
from monai_diffeo.networks import SpatialTransformerChain, SpatialTransformerLayer

__all__ = [
    "DigitStep",
    "cnn",
    "compared",
    "fcn",
    "fit",
    "measure_digits",
    "narrowed",
    "parameter_count",
    "run_options",
]


class DigitStep:
    """Cross entropy of a classifier of bytes, plus ``penalty`` times the mean squared slope of the displacement of a transformer in front.

    Slopes are differences of the displacement between neighbours, without unit.
    """

    def __init__(self, penalty: float = 0.0) -> None:
        self.penalty = penalty

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        image = batch["image"].float() / 255
        if not self.penalty:
            return {"cross_entropy": F.cross_entropy(network(image), batch["label"])}
        transformer, classifier = network
        ddf = transformer.deformation(image).ddf()
        slopes = sum(ddf.diff(dim=d).square().mean() for d in range(2, ddf.ndim))
        moved = warp(image, ddf, padding_mode=transformer.padding_mode)
        return {"cross_entropy": F.cross_entropy(classifier(moved), batch["label"]), "smoothness": self.penalty * slopes}


def fcn(outputs: int, width: int, side: int) -> nn.Module:
    """Two hidden layers of ``width`` on the pixels."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(side**2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


def cnn(
    outputs: int,
    width: int,
    side: int,
    channels: Sequence[int] = (16, 32),
    kernels: Sequence[int] = (5, 3),
    pool_first: bool = True,
) -> nn.Module:
    """Two convolutions, the first in steps of 2 voxels, then one hidden layer of ``width``.

    Args:
        outputs: of the last layer.
        width: of the hidden layer.
        side: of the images.
        channels: of the convolutions.
        kernels: their sizes.
        pool_first: whether a maximum over 2 x 2 follows the first convolution too, and not the second alone.
    """
    (first, second), (a, b) = channels, kernels
    rest = ((side - a) // 2 + 1) // (2 if pool_first else 1)
    return nn.Sequential(
        nn.Conv2d(1, first, a, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(2) if pool_first else nn.Identity(),
        nn.Conv2d(first, second, b),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * ((rest - b + 1) // 2) ** 2, width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )


def parameter_count(network: nn.Module) -> int:
    """Trained numbers of a network."""
    return sum(p.numel() for p in network.parameters())


def narrowed(build: Callable[[int], nn.Module], parameters: int, widest: int = 1024) -> nn.Module:
    """``build(width)`` with the width that comes nearest to a number of parameters, which grows with it."""
    low, high = 1, widest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if parameter_count(build(middle)) > parameters else (middle, high)
    return min((build(low), build(high)), key=lambda network: abs(parameter_count(network) - parameters))


def measure_digits(
    network: nn.Module, data: Mapping[str, Tensor], batch_size: int = 500, unfolded: int | None = None
) -> dict[str, float]:
    """``accuracy``; where a spatial transformer comes first, how its deformations of the first ``unfolded`` digits (None for all) fold:
    ``folded`` (share of voxels with a Jacobian determinant of at most 0) and ``folded_samples`` (number of digits with such a voxel, of so
    many ``samples``). For this a :class:`CoarseSampling` family is computed on every voxel."""
    layers = (SpatialTransformerLayer, SpatialTransformerChain)
    transformer = network[0] if isinstance(network, nn.Sequential) and isinstance(network[0], layers) else None
    rows = torch.arange(len(data["label"]))
    with torch.no_grad():
        right = [network(data["image"][part].float() / 255).argmax(1) == data["label"][part] for part in rows.split(batch_size)]
        found = {"accuracy": torch.cat(right).double().mean().item()}
        if transformer is not None:
            exact = copy.deepcopy(transformer)
            for module in exact.modules():
                if isinstance(module, CoarseSampling):
                    module.factor = 1
            maps = (exact.deformation(data["image"][part].float() / 255) for part in rows[:unfolded].split(batch_size))
            shares = torch.cat([folding_fraction(deformation.ddf()) for deformation in maps])
            found |= {
                "folded": shares.double().mean().item(),
                "folded_samples": int((shares > 0).sum()),
                "samples": len(shares),
            }
    return found


def fit(
    network: nn.Module,
    step: DigitStep,
    data: Mapping[str, Tensor],
    shown: Mapping[str, Tensor],
    iterations: int,
    seed: int,
    batch_size: int,
    rate: float,
    cycle: bool = True,
    unfolded: int | None = None,
) -> dict[str, float]:
    """Train a network and measure it on what is ``shown``; with its ``parameters``, and ``seconds`` of processor time an iteration."""
    began = time.process_time()
    train(network, step, data, iterations, seed, batch_size, rate, cycle)
    seconds = (time.process_time() - began) / max(iterations, 1)
    return {**measure_digits(network, shown, unfolded=unfolded), "parameters": parameter_count(network), "seconds": seconds}


def run_options(
    name: str, description: str | None, rows: Sequence[str], seeds: int, iterations: int, digits: int | None
) -> argparse.ArgumentParser:
    """The options that the experiments on digits share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--dataset_dir", required=True, help="folder of mnist.npz")
    parser.add_argument("--weights_dir", default=None, help="keep what each run found here, and take up what is here")
    parser.add_argument("--rows", nargs="+", default=list(rows), choices=list(rows))
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--iterations", type=int, default=iterations)
    parser.add_argument("--digits", type=int, default=digits, help="train on so many, evenly spaced")
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--output", default=f"docs/results/{name}.md")
    return parser


def compared(what: str, first: Sequence[float], second: Sequence[float]) -> dict[str, str]:
    """A row that says whether the runs of ``first`` are on average at least as accurate as those of ``second``, seed by seed; undecided
    where the interval has both signs."""
    differences = [a - b for a, b in zip(first, second)]
    mean, (low, high) = statistics.fmean(differences), student_interval(differences)
    undecided = f"undecided, {'behind' if mean < 0 else 'ahead' if mean > 0 else 'equal'} in {'one run' if len(differences) < 2 else 'the mean'}"
    verdict = "yes" if low > 0 else "**no**" if high < 0 else undecided
    return {"asked": what, "difference": with_interval(differences, "+.4f"), "holds": verdict}
