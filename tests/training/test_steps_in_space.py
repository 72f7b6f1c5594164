"""The same laws for every step in the plane and in space, on oblong frames, with one channel and with several."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from monai_diffeo.augmentation import random_training_deformation
from monai_diffeo.energies import CriticEnergy, ResidualDeformationEnergy, VAEEnergy
from monai_diffeo.families import ControlGrid
from monai_diffeo.flow import axis_rotations, mirror, rotate_axes, warp
from monai_diffeo.networks import DeformationPredictor, EnergyCritic, EnergyVAE, ImageOrientation
from monai_diffeo.training import CriticStep, OrientationStep, PredictorStep, VAEStep, steps

CASES = [(2, 2), (3, 1), (3, 2)]  # axes and channels
KINDS = ["vae", "critic", "predictor", "orientation"]


def frame(dims):
    return (24, 17) if dims == 2 else (12, 11, 9)


def bodies(dims, channels=1, batch=6):
    """Ellipsoids with a bright side, one contrast a channel, and their two classes as answers."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in frame(dims)], indexing="ij")
    radius = 0.5 + 0.3 * torch.rand(batch, dims, *[1] * dims, generator=torch.Generator().manual_seed(0))
    inside = torch.sigmoid(20 * (1 - sum((a / radius[:, d]) ** 2 for d, a in enumerate(axes)).sqrt()))[:, None]
    image = torch.cat([0.1 + (0.4 + 0.2 * axes[k % dims] + 0.2 * axes[0]) * inside for k in range(channels)], 1)
    return {"image": image, "answer": torch.cat([1 - inside, inside], 1)}


class Thresholds(nn.Module):
    """Two classes, by the mean of the channels."""

    def forward(self, image):
        odds = 20 * (image.mean(1, keepdim=True) - 0.3)
        return torch.cat([-odds, odds], 1) / 2


def recipe(kind, dims, channels, seed=0):
    """Step, network and learning rate."""
    torch.manual_seed(0)
    if kind == "vae":
        return VAEStep(0.1, seed=seed), EnergyVAE(dims, channels, frame(dims), channels=(4, 8, 8), latent=6), 5e-3
    if kind == "critic":
        return CriticStep(1.0, seed=seed), EnergyCritic(dims, channels, 4, 3, 3, stride=2), 1e-2
    if kind == "orientation":
        network = ImageOrientation(dims, channels, (12,) * dims, (8, 8))
        return OrientationStep(intensity=0.5, seed=seed), network, 5e-3
    family = ControlGrid(dims, controls=3, steps=4)
    size = tuple(n - n % 4 for n in frame(dims))
    network = DeformationPredictor(family.num_parameters, dims, channels, size, channels=(8, 16), hidden=32)
    return PredictorStep(family, Thresholds(), "softmax", working_size=size, seed=seed), network, 3e-3


def loss(kind, dims, channels, network, seed=0):
    """Paired draws, since random deformations move the loss more than a short training does."""
    step = recipe(kind, dims, channels, seed)[0]
    torch.manual_seed(0)
    return sum(float(sum(step(network, bodies(dims, channels)).values()).detach()) for _ in range(2)) / 2


@pytest.mark.parametrize("dims, channels", [(2, 2), (3, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_lower_the_loss_and_a_seed_fixes_it(kind, dims, channels):
    step, network, rate = recipe(kind, dims, channels)
    before = loss(kind, dims, channels, network)
    if kind != "predictor":  # it is slow, and its own tests say so
        assert before == loss(kind, dims, channels, network) != loss(kind, dims, channels, network, seed=1)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for _ in range(10):
        optimizer.zero_grad()
        sum(step(network, bodies(dims, channels)).values()).backward()
        optimizer.step()
    after = loss(kind, dims, channels, network)
    assert after < before - (0.03 if kind == "critic" else 0.005 * before)  # a critic's loss has no zero


@pytest.mark.parametrize("dims, channels", CASES)
def test_energies_of_a_batch_are_those_of_its_images(dims, channels):
    image, family = bodies(dims, channels)["image"], ControlGrid(dims, controls=3)
    predictor = recipe("predictor", dims, channels)[1]
    torch.nn.init.normal_(predictor.head[-1].weight, std=0.1)
    for energy in (
        VAEEnergy(recipe("vae", dims, channels)[1]),
        CriticEnergy(recipe("critic", dims, channels)[1]),
        ResidualDeformationEnergy(predictor, family),
    ):
        one_by_one = torch.cat([energy(row[None]) for row in image])
        assert_close(energy(image), one_by_one, atol=1e-3, rtol=1e-4)
        assert one_by_one.shape == (6,) and one_by_one.std() > 0


@pytest.mark.parametrize("size, g", [((4, 16), (1.0, 2.0)), ((4, 16, 8), (0.5, -2.0, 1.0))])
def test_the_grid_term_counts_every_axis_as_128_voxels(size, g):
    family, dims = ControlGrid(len(size), controls=3), len(size)
    shift = torch.tensor(g).view(1, dims, *[1] * dims).expand(2, dims, *size)
    step = PredictorStep(family, iterations=1, weights={"grid": 1.0}, deformation=lambda *a: shift)
    found = step(lambda x: torch.zeros(2, family.num_parameters), {"image": torch.rand(2, 1, *size)})["grid"]
    length = sum((s * 128 / n) ** 2 for s, n in zip(g, size))
    assert found.item() == pytest.approx((length + 1) ** 0.5 - 1, rel=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_outside_the_frame_a_film_is_as_dark_as_its_darkest_voxel(dims):
    """In [0, 1] that is 0; a standardised image knows black by its own least value, channel by channel."""
    image = torch.rand(2, 2, *[6] * dims, generator=torch.Generator().manual_seed(0)).clamp(0.2)
    away = torch.full((2, dims, *[6] * dims), 9.0)
    assert (steps._black_outside(image, away) == 0).all()
    scaled = image * torch.tensor([4.0, 300.0]).view(1, 2, *[1] * dims) - 2
    lowest = scaled.amin(tuple(range(2, 2 + dims)), keepdim=True)
    assert_close(steps._black_outside(scaled, away), lowest.expand_as(scaled))
    ddf = random_training_deformation(2, (6,) * dims, torch.Generator().manual_seed(0))
    assert_close(steps._black_outside(image, ddf), warp(image, ddf, padding_mode="zeros"))


@pytest.mark.parametrize("size", [(6, 6), (8, 5), (4, 4, 4), (6, 4, 5)])
def test_the_class_of_an_image_is_its_mirroring_and_its_rotation(size, monkeypatch):
    """On any frame: the step resamples to a square or a cube, and the network sees each orientation of it."""
    dims, found = len(size), list[int]()
    rotations = len(axis_rotations(dims))
    still = lambda n, size, generator, angle: torch.zeros(n, dims, *size)  # noqa: E731
    monkeypatch.setattr(steps, "random_training_deformation", still)
    image = torch.rand(80 * dims, 1, *size, generator=torch.Generator().manual_seed(0))
    cubes = torch.nn.functional.interpolate(image, (4,) * dims, mode="area")

    shown = [rotate_axes(cube, k) for cube in (cubes, mirror(cubes)) for k in range(rotations)]

    class Perfect:
        image_size = (4,) * dims

        def __call__(self, seen):
            apart = torch.stack([(seen - one).flatten(1).abs().amax(1) for one in shown], 1)
            found.extend(apart.argmin(1)[apart.amin(1) < 1e-5].tolist())
            return -1e6 * apart.view(len(seen), 2, rotations)

    assert OrientationStep(intensity=0.0)(Perfect(), {"image": image})["orientation"] < 1e-6
    assert len(found) == len(image) and len(set(found)) == 2 * rotations


def test_a_vae_sees_images_of_other_sizes_at_its_own():
    vae = EnergyVAE(3, 1, (8, 8, 8), channels=(4, 4), latent=4)
    losses = VAEStep()(vae, {"image": torch.rand(2, 1, 16, 12, 20)})
    assert losses["reconstruction"].item() > 0 and torch.isfinite(losses["divergence"])
