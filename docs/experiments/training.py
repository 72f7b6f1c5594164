"""Training inside an experiment: on tensors, on a CPU, and only where the weights are not there yet."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import monai_diffeo
from docs.experiments.measures import Method, plain, wrapped
from monai_diffeo import energies
from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.energies import CriticEnergy, DeformationRegularizer, VAEEnergy, WeightedEnergy
from monai_diffeo.families import ControlGrid, Siren
from monai_diffeo.networks import DeformationPredictor, EnergyCritic, EnergyVAE, load_weights
from monai_diffeo.training import CriticStep, PredictorStep, SegmentationStep, VAEStep

Data = Mapping[str, Tensor]


def train(network, step, data: Data, iterations: int, seed=0, batch_size=16, rate=2e-3, cycle=True, device="cpu") -> nn.Module:
    """One-cycle AdamW with clipped gradients on random batches; without ``cycle`` Adam at a constant rate.

    On ``device``; the network comes back to the CPU, in eval mode.
    """
    draw = torch.Generator().manual_seed(seed)
    network, data = network.to(device), {name: values.to(device) for name, values in data.items()}
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
    return network.eval().cpu()


def trained(path, build: Callable, step: Callable, data: Data, iterations: int, seed: int = 0, **settings) -> nn.Module:
    """Build and :func:`train` a network, unless its weights lie at ``path``; None keeps nothing.

    The same seed gives the same weights. The file's name has to say all that they depend on.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        if path is not None and Path(path).is_file():
            return load_weights(network, path)
        network = train(network, step, data, iterations, seed, **settings)
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


def code_digest() -> str:
    """A digest of the code that wraps a network, as it is, so that rows of other code are measured again."""
    package, rooms = (
        Path(monai_diffeo.__file__).parent,
        ("flow", "families", "networks", "energies", "canonicalize", "inferers"),
    )
    files = (file for room in rooms for file in sorted((package / room).rglob("*.py")))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def fit_canonicalizers(
    images: Tensor, answers: Tensor, iterations: int, seed=0, keep=None, size=(64, 64), controls=8, channels=(16, 32, 64)
) -> dict[str, Canonicalizer]:
    """The canonicalisers "single pass" and "refine" of images ``(N, C, H, W)`` and a network's probabilities on them.

    The VAE is trained for half of the predictor's ``iterations``. ``keep`` begins the path of the weights; None keeps nothing.
    """
    shrink = partial(F.interpolate, size=size, mode="bilinear", antialias=True)
    image, shared = {"image": shrink(images)}, {"in_channels": images.shape[1], "image_size": size}
    family, step = ControlGrid(controls=controls, steps=5), VAEStep(seed=seed)
    build = partial(DeformationPredictor, family.num_parameters, channels=channels, hidden=256, **shared)
    path, data = keep and f"{keep}_predictor.pt", {**image, "answer": shrink(answers)}
    predictor = trained(path, build, PredictorStep(family, seed=seed), data, iterations, seed)
    build = partial(EnergyVAE, channels=(16, 32, 64, 64), latent=32, **shared)
    vae = trained(keep and f"{keep}_vae.pt", build, step, image, iterations // 2, seed)
    terms = {"vae": VAEEnergy(vae), "motion": energies.ResidualDeformationEnergy(predictor, family)}
    for name, energy in terms.items():
        with torch.no_grad():
            values = torch.cat([energy(part) for part in images.split(64)])
        terms[name] = energies.StandardizedEnergy(energy, values.mean().item(), values.std().item())
    settings = {"family": family, "predictor": predictor, "iterations": 3, "tta_samples": 8, "max_energy_increase": 2.0}
    refine = {"regularizer": DeformationRegularizer(100.0, 10.0), "steps": 30, **settings}
    refined = Canonicalizer(WeightedEnergy(terms, level=0.0), **refine)
    return {"single pass": Canonicalizer(WeightedEnergy(terms), **settings), "refine": refined}


def fit_published(images: Tensor, iterations: int, seed: int = 0, keep: str | None = None) -> Canonicalizer:
    """The published canonicaliser of square images: SIREN, VAE and critic on grey values as they are, 100 steps."""
    side, data, keep = images.shape[-1], {"image": images}, keep and f"{keep}_published"
    channels, shared = (16, 32, 64, 64, 128, 128)[: side.bit_length() - 2], {"in_channels": images.shape[1]}
    build, settings = partial(EnergyVAE, image_size=(side, side), channels=channels, **shared), {"intensity": 0.0, "seed": seed}
    vae = trained(keep and f"{keep}_vae.pt", build, VAEStep(**settings), data, iterations, seed)
    path, build, few = keep and f"{keep}_critic.pt", partial(EnergyCritic, **shared), max(iterations // 10, 1)
    critic = trained(path, build, CriticStep(**settings), data, few, seed, rate=1e-4)
    terms = {"vae": VAEEnergy(vae, standardize=False), "critic": CriticEnergy(critic, standardize=False)}
    energy, regularizer = WeightedEnergy(terms, {"vae": 0.01, "critic": 0.001}), DeformationRegularizer(1.0, 1.0)
    settings = {"steps": 100, "learning_rate": 0.0039, "patience": None, "max_energy_increase": None}
    return Canonicalizer(energy, Siren(), regularizer, **settings)


def fit_methods(
    data: Data, build: Callable, iterations: tuple[int, int], seed=0, keep=None, faithful=False, batch_size=16, **settings
) -> tuple[dict[str, Method], dict[str, Canonicalizer]]:
    """Train networks and canonicalisers; give the methods of a table, and the canonicalisers by mode.

    ``iterations``: of the predictor, and of the baseline; the augmented baseline takes twice as many as the baseline.
    """
    images, (many, few) = data["image"], iterations
    baseline = trained(keep and f"{keep}_naive.pt", build, SegmentationStep(seed=seed), data, few, seed)
    augmented = trained(keep and f"{keep}_augmented.pt", build, SegmentationStep(1.0, seed), data, 2 * few, seed)
    with torch.no_grad():
        answers = torch.cat([torch.sigmoid(baseline(part)) for part in images.split(batch_size)])
    modes = fit_canonicalizers(images, answers, many, seed, keep, **settings)
    modes |= {"faithful": fit_published(images, many // 2, seed, keep)} if faithful else {}
    rows = {"baseline": plain(baseline), "augmented baseline": plain(augmented)}
    order = [mode for mode in ("faithful", "refine", "single pass") if mode in modes]
    rows |= {f"DiffeoNN {mode}": wrapped(baseline, modes[mode]) for mode in order}
    return {**rows, "augmented baseline + DiffeoNN": wrapped(augmented, modes["single pass"])}, modes
