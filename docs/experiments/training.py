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

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.energies import (
    CriticEnergy,
    DeformationRegularizer,
    ResidualDeformationEnergy,
    StandardizedEnergy,
    VAEEnergy,
    WeightedEnergy,
)
from monai_diffeo.families import ControlGrid, Siren
from monai_diffeo.networks import DeformationPredictor, EnergyCritic, EnergyVAE, load_weights
from monai_diffeo.training import CriticStep, PredictorStep, VAEStep

__all__ = ["fit_canonicalizers", "fit_published", "kept", "train", "trained"]


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
    if cycle:
        optimizer = torch.optim.AdamW(network.parameters(), rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, iterations)
    else:
        optimizer = torch.optim.Adam(network.parameters(), rate)
    network.train()
    for _ in range(iterations):
        rows = torch.randint(len(data["image"]), (batch_size,), generator=draw)
        optimizer.zero_grad()
        sum(step(network, {name: values[rows] for name, values in data.items()}).values()).backward()
        if cycle:
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if cycle:
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
    text = json.dumps(settings, sort_keys=True)
    path = (
        folder and Path(folder) / f"{settings.get('experiment', 'run')}_{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    )
    if path and path.is_file():
        return json.loads(path.read_text())["found"]
    found = run()
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"settings": dict(settings), "found": found}))
    return found


def fit_canonicalizers(
    images: Tensor,
    answers: Tensor | None,
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
        answers: what the network under test answers on them, probabilities; None trains the predictor without.
        iterations: of the predictor; the VAE takes half.
        size: at which predictor and VAE look.
        controls: of the control grid, along each axis.
        channels: of the predictor.
        seed: of every random number.
        keep: beginning of the path of the weights' files; None keeps nothing.
    """
    small = F.interpolate(images, tuple(size), mode="bilinear", antialias=True)
    data = {"image": small}
    if answers is not None:
        data["answer"] = F.interpolate(answers, tuple(size), mode="bilinear", antialias=True)
    family = ControlGrid(controls=controls, steps=5)
    predictor = trained(
        keep and f"{keep}_predictor.pt",
        partial(
            DeformationPredictor,
            family.num_parameters,
            in_channels=images.shape[1],
            image_size=size,
            channels=channels,
            hidden=256,
        ),
        PredictorStep(family, seed=seed),
        data,
        iterations,
        seed,
    )
    vae = trained(
        keep and f"{keep}_vae.pt",
        partial(EnergyVAE, in_channels=images.shape[1], image_size=tuple(size), channels=(16, 32, 64, 64), latent=32),
        VAEStep(seed=seed),
        {"image": small},
        iterations // 2,
        seed,
    )
    predictor.double()  # see DeformationPredictor.forward
    energies = {
        "vae": _standardized(VAEEnergy(vae), images),
        "motion": _standardized(ResidualDeformationEnergy(predictor, family), images),
    }
    settings = {"family": family, "predictor": predictor, "iterations": 3, "tta_samples": 8, "max_energy_increase": 2.0}
    return {
        "single pass": Canonicalizer(WeightedEnergy(energies), **settings),
        "refine": Canonicalizer(
            WeightedEnergy(energies, level=0.0), regularizer=DeformationRegularizer(100.0, 10.0), steps=30, **settings
        ),
    }


def fit_published(images: Tensor, iterations: int, seed: int = 0, keep: str | Path | None = None) -> Canonicalizer:
    """The published canonicaliser of square training images ``(N, C, H, W)``: SIREN velocities, VAE and critic on grey values as they are,
    100 steps; 128 latents and as many halvings as reach two voxels. Arguments as :func:`fit_canonicalizers`."""
    side = images.shape[-1]
    channels = (16, 32, 64, 64, 128, 128)[: side.bit_length() - 2]
    data = {"image": images}
    vae = trained(
        keep and f"{keep}_published_vae.pt",
        partial(EnergyVAE, in_channels=images.shape[1], image_size=(side, side), channels=channels),
        VAEStep(intensity=0.0, seed=seed),
        data,
        iterations,
        seed,
    )
    critic = trained(
        keep and f"{keep}_published_critic.pt",
        partial(EnergyCritic, in_channels=images.shape[1]),
        CriticStep(intensity=0.0, seed=seed),
        data,
        max(iterations // 10, 1),
        seed,
        rate=1e-4,
    )
    energies = {"vae": VAEEnergy(vae, standardize=False), "critic": CriticEnergy(critic, standardize=False)}
    return Canonicalizer(
        WeightedEnergy(energies, {"vae": 0.01, "critic": 0.001}),
        Siren(),
        DeformationRegularizer(1.0, 1.0),
        steps=100,
        learning_rate=0.0039,
        patience=None,
        max_energy_increase=None,
    )


def _standardized(energy, images: Tensor) -> StandardizedEnergy:
    with torch.no_grad():
        values = torch.cat([energy(part) for part in images.split(64)])
    return StandardizedEnergy(energy, values.mean().item(), values.std().item())
