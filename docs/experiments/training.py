"""Training inside an experiment: on tensors, on a CPU, and only where the weights are not there yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docs.experiments.measures import Method, plain, wrapped
from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.energies import (
    CriticEnergy,
    DeformationRegularizer,
    Energy,
    ResidualDeformationEnergy,
    StandardizedEnergy,
    VAEEnergy,
    WeightedEnergy,
)
from monai_diffeo.families import ControlGrid, Siren
from monai_diffeo.networks import DeformationPredictor, EnergyCritic, EnergyVAE, load_weights
from monai_diffeo.training import CriticStep, PredictorStep, SegmentationStep, VAEStep

__all__ = ["fit_canonicalizers", "fit_methods", "fit_published", "kept", "train", "trained"]


def train(
    network: nn.Module,
    step: Callable,
    data: Mapping[str, Tensor],
    iterations: int,
    seed: int = 0,
    batch_size: int = 16,
    rate: float = 2e-3,
    cycle: bool = True,
) -> nn.Module:
    """Minimise a step's losses on random batches of tensors; gives the network back in eval mode.

    One-cycle AdamW with clipped gradients; without ``cycle`` Adam at a constant rate, gradients as they are.
    """
    draw = torch.Generator().manual_seed(seed)
    optimizer = (torch.optim.AdamW if cycle else torch.optim.Adam)(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, iterations) if cycle else None
    network.train()
    for _ in range(iterations):
        rows = torch.randint(len(data["image"]), (batch_size,), generator=draw)
        optimizer.zero_grad()
        sum(step(network, {name: values[rows] for name, values in data.items()}).values()).backward()
        if schedule is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return network.eval()


def trained(
    path: str | Path | None,
    build: Callable[[], nn.Module],
    step: Callable,
    data: Mapping[str, Tensor],
    iterations: int,
    seed: int = 0,
    batch_size: int = 16,
    rate: float = 2e-3,
) -> nn.Module:
    """Build and :func:`train` a network, unless its weights lie at ``path`` already; what was trained is kept there. None keeps nothing.

    The same seed gives the same weights, whatever was trained or taken up before. The file's name has to say all that they depend on.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        if path is not None and Path(path).is_file():
            return load_weights(network, path)
        network = train(network, step, data, iterations, seed, batch_size, rate)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), path)
    return network


def kept(folder: str | Path | None, settings: Mapping[str, object], run: Callable[[], dict]) -> dict:
    """What ``run`` gives, from ``folder`` if the same settings were run before; None keeps nothing."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = folder and Path(folder) / f"{settings['experiment']}_{digest}.json"
    if path and path.is_file():
        return json.loads(path.read_text())["found"]
    found = run()
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"settings": dict(settings), "found": found}))
    return found


def fit_canonicalizers(
    images: Tensor,
    answers: Tensor,
    iterations: int,
    size: Sequence[int] = (64, 64),
    controls: int = 8,
    channels: Sequence[int] = (16, 32, 64),
    seed: int = 0,
    keep: str | Path | None = None,
) -> dict[str, Canonicalizer]:
    """The canonicalisers "single pass" and "refine" of a set of training images, without labels.

    Args:
        images: training images ``(N, C, H, W)``.
        answers: what the network under test answers on them, probabilities.
        iterations: of the predictor; the VAE takes half.
        size: at which predictor and VAE look.
        controls: of the control grid, along each axis.
        channels: of the predictor.
        seed: of every random number.
        keep: beginning of the path of the weights' files; None keeps nothing.
    """
    shrink = partial(F.interpolate, size=tuple(size), mode="bilinear", antialias=True)
    data, shared = (
        {"image": shrink(images), "answer": shrink(answers)},
        {"in_channels": images.shape[1], "image_size": tuple(size)},
    )
    family = ControlGrid(controls=controls, steps=5)
    build = partial(DeformationPredictor, family.num_parameters, channels=channels, hidden=256, **shared)
    predictor = trained(keep and f"{keep}_predictor.pt", build, PredictorStep(family, seed=seed), data, iterations, seed)
    build = partial(EnergyVAE, channels=(16, 32, 64, 64), latent=32, **shared)
    image = {"image": data["image"]}
    vae = trained(keep and f"{keep}_vae.pt", build, VAEStep(seed=seed), image, iterations // 2, seed)
    predictor.double()  # see DeformationPredictor.forward
    energies = {"vae": VAEEnergy(vae), "motion": ResidualDeformationEnergy(predictor, family)}
    energies = {name: _standardized(energy, images) for name, energy in energies.items()}
    settings = {"family": family, "predictor": predictor, "iterations": 3, "tta_samples": 8, "max_energy_increase": 2.0}
    refine = {"regularizer": DeformationRegularizer(100.0, 10.0), "steps": 30, **settings}
    return {
        "single pass": Canonicalizer(WeightedEnergy(energies), **settings),
        "refine": Canonicalizer(WeightedEnergy(energies, level=0.0), **refine),
    }


def _standardized(energy: Energy, images: Tensor) -> StandardizedEnergy:
    with torch.no_grad():
        values = torch.cat([energy(part) for part in images.split(64)])
    return StandardizedEnergy(energy, values.mean().item(), values.std().item())


def fit_published(images: Tensor, iterations: int, seed: int = 0, keep: str | Path | None = None) -> Canonicalizer:
    """The published canonicaliser of square training images ``(N, C, H, W)``: SIREN velocities, VAE and critic on grey values as they are,
    100 steps; 128 latents and as many halvings as reach two voxels. Arguments as :func:`fit_canonicalizers`."""
    side, data = images.shape[-1], {"image": images}
    channels = (16, 32, 64, 64, 128, 128)[: side.bit_length() - 2]
    build = partial(EnergyVAE, in_channels=images.shape[1], image_size=(side, side), channels=channels)
    step = VAEStep(intensity=0.0, seed=seed)
    vae = trained(keep and f"{keep}_published_vae.pt", build, step, data, iterations, seed)
    build, step = partial(EnergyCritic, in_channels=images.shape[1]), CriticStep(intensity=0.0, seed=seed)
    path = keep and f"{keep}_published_critic.pt"
    critic = trained(path, build, step, data, max(iterations // 10, 1), seed, rate=1e-4)
    energies = {"vae": VAEEnergy(vae, standardize=False), "critic": CriticEnergy(critic, standardize=False)}
    energy, regularizer = WeightedEnergy(energies, {"vae": 0.01, "critic": 0.001}), DeformationRegularizer(1.0, 1.0)
    settings = {"steps": 100, "learning_rate": 0.0039, "patience": None, "max_energy_increase": None}
    return Canonicalizer(energy, Siren(), regularizer, **settings)


def fit_methods(
    images: Tensor,
    labels: Tensor,
    build: Callable[[], nn.Module],
    iterations: int,
    network_iterations: int,
    seed: int = 0,
    keep: str | None = None,
    faithful: bool = False,
    batch_size: int = 16,
    **settings: object,
) -> tuple[dict[str, Method], dict[str, Canonicalizer]]:
    """Train networks and canonicalisers on images; give the methods of a table, and the canonicalisers by mode.

    Args:
        images: training images ``(N, 1, H, W)``.
        labels: their masks, for the networks alone.
        build: gives the network before training.
        iterations: of the predictor; VAEs take half.
        network_iterations: of the baseline; the augmented baseline takes twice as many.
        seed: of all random numbers.
        keep: beginning of the path of the weights' files; None keeps nothing.
        faithful: with the published method, which is slow.
        batch_size: of the baseline's answers.
        settings: of :func:`fit_canonicalizers`.
    """
    data = {"image": images, "label": labels}
    baseline = trained(keep and f"{keep}_naive.pt", build, SegmentationStep(seed=seed), data, network_iterations, seed)
    step = SegmentationStep(1.0, seed)
    augmented = trained(keep and f"{keep}_augmented.pt", build, step, data, 2 * network_iterations, seed)
    with torch.no_grad():
        answers = torch.cat([torch.sigmoid(baseline(part)) for part in images.split(batch_size)])
    modes = fit_canonicalizers(images, answers, iterations, seed=seed, keep=keep, **settings)
    rows = {"baseline": plain(baseline), "augmented baseline": plain(augmented)}
    if faithful:
        modes["faithful"] = fit_published(images, iterations // 2, seed, keep)
    rows |= {
        f"DiffeoNN {mode}": wrapped(baseline, modes[mode]) for mode in ("faithful", "refine", "single pass") if mode in modes
    }
    return rows | {"augmented baseline + DiffeoNN": wrapped(augmented, modes["single pass"])}, modes
