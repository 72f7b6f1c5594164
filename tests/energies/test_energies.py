import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.energies import (
    CriticEnergy,
    DeformationRegularizer,
    ResidualDeformationEnergy,
    StandardizedEnergy,
    VAEEnergy,
    WeightedEnergy,
    folding_penalty,
    smoothness,
)
from monai_diffeo.families import ControlGrid
from monai_diffeo.networks import DeformationPredictor, EnergyCritic, EnergyVAE
from tests.helpers import Brightness, FixedTheta, FromTemplate, blob, some_theta


def energies():
    torch.manual_seed(0)
    family = ControlGrid(2, 4)
    predictor = DeformationPredictor(family.num_parameters, image_size=(32, 32), channels=(8, 8))
    torch.nn.init.normal_(predictor.head[-1].weight, std=0.1)
    return {
        "vae": VAEEnergy(EnergyVAE(image_size=(32, 32), channels=(4, 8, 8), latent=8)),
        "grey vae": VAEEnergy(EnergyVAE(image_size=(32, 32), channels=(4, 8, 8), latent=8), standardize=False),
        "critic": CriticEnergy(EnergyCritic(channels=4, layers=3)),
        "motion": ResidualDeformationEnergy(predictor, family),
    }


@pytest.mark.parametrize("name", energies())
class TestEveryEnergy:
    def test_is_one_number_an_image_and_the_same_twice(self, name):
        energy, image = energies()[name], torch.rand(5, 1, 32, 32)
        assert energy(image).shape == (5,)
        assert torch.equal(energy(image), energy(image))

    def test_of_a_batch_is_that_of_its_images(self, name):
        energy, image = energies()[name], torch.rand(4, 1, 32, 32)
        one_by_one = torch.cat([energy(row[None]) for row in image])
        assert_close(energy(image), one_by_one, atol=1e-3, rtol=1e-5)
        assert one_by_one.std() > 0

    def test_is_frozen_and_stays_in_eval_mode(self, name):
        energy = energies()[name].train()
        assert not any(module.training for module in energy.modules())
        assert not any(p.requires_grad for p in energy.parameters())

    def test_has_a_gradient_with_respect_to_the_image(self, name):
        image = torch.rand(2, 1, 32, 32, requires_grad=True)
        energies()[name](image).sum().backward()
        assert torch.isfinite(image.grad).all() and image.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["vae", "critic"])
def test_standardised_input_does_not_see_contrast(name):
    energy, image = energies()[name], torch.rand(3, 1, 32, 32)
    assert_close(energy(image), energy(0.3 * image + 0.2), rtol=1e-3, atol=1e-2)
    assert (energies()["grey vae"](image) - energies()["grey vae"](0.3 * image + 0.2)).abs().min() > 1


def test_motion_energy_of_a_predictor_that_moves_nothing_is_zero_and_of_a_translation_its_length():
    family = ControlGrid(2, 4)
    theta = torch.zeros(1, family.num_parameters)
    assert ResidualDeformationEnergy(FixedTheta(theta), family)(torch.rand(2, 1, 16, 16)).max() < 1e-5
    theta[0, 2] = 0.25  # a quarter of half the frame along axis 0
    assert_close(ResidualDeformationEnergy(FixedTheta(theta), family)(torch.rand(2, 1, 16, 16)), torch.full((2,), 0.25))


def test_standardised_energy_is_zero_at_the_mean_and_one_a_spread_above():
    energy = StandardizedEnergy(Brightness(), mean=0.4, std=0.1)
    assert_close(energy(torch.full((1, 1, 4, 4), 0.5)), torch.ones(1))
    with pytest.raises(ValueError, match="std"):
        StandardizedEnergy(Brightness(), 0.0, 0.0)


def test_weighted_energy_is_the_sum_of_its_named_terms():
    terms = {"a": Brightness(), "b": FromTemplate(blob()), "off": Brightness()}
    total, image = WeightedEnergy(terms, {"a": 2.0, "off": 0.0}), torch.rand(3, 1, 32, 32)
    assert set(total.terms(image)) == {"a", "b"}
    assert_close(total(image), 2 * Brightness()(image) + FromTemplate(blob())(image))
    with pytest.raises(ValueError, match="'c'"):
        WeightedEnergy(terms, {"c": 1.0})


def test_a_level_makes_everything_below_it_equal():
    total = WeightedEnergy({"a": Brightness()}, level=0.5)
    assert_close(total(torch.tensor([0.1, 0.4, 0.75]).view(3, 1, 1, 1)), torch.tensor([0.0, 0.0, 0.25]))


def test_smoothness_of_an_affine_velocity_is_the_squared_norm_of_its_matrix():
    matrix = torch.tensor([[0.1, -0.2], [0.3, 0.05]])
    grid = torch.stack(torch.meshgrid(torch.arange(9.0), torch.arange(12.0), indexing="ij"))
    v = torch.einsum("ij,jhw->ihw", matrix, grid)[None]
    assert_close(smoothness(v), matrix.square().sum()[None])


def test_folding_penalty_is_zero_for_the_identity_and_the_determinant_for_a_reflection():
    assert folding_penalty(torch.zeros(1, 2, 8, 8)).item() == 0
    ddf = torch.zeros(1, 2, 8, 8)
    ddf[:, 0] = -3 * torch.arange(8.0)[:, None]  # x -> -2 x along axis 0: determinant -2
    assert_close(folding_penalty(ddf), torch.tensor([2.0]))
    regularizer = DeformationRegularizer(smooth=2.0, orientation=3.0)
    assert_close(regularizer(ddf, ddf), 2 * smoothness(ddf) + 6.0)


def test_gradcheck_of_energies_and_regularisers():
    torch.manual_seed(0)
    vae = VAEEnergy(EnergyVAE(image_size=(4, 4), channels=(2, 2), latent=2)).double()
    critic = CriticEnergy(EnergyCritic(channels=2, layers=2, kernel_size=3), standardize=False).double()
    image = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: critic(x), (image,))
    assert torch.autograd.gradcheck(lambda x: VAEEnergy.forward(_grey(vae), x), (image,))
    v = torch.rand(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(smoothness, (v,))
    assert torch.autograd.gradcheck(lambda d: folding_penalty(3 * d), (v,))
    assert some_theta(ControlGrid(2, 3)).shape == (1, 24)


def _grey(energy):
    energy.standardize = False
    return energy
