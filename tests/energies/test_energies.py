import math

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.energies import (
    AtlasEnergy,
    CriticEnergy,
    DeformationRegularizer,
    Energy,
    ResidualDeformationEnergy,
    StandardizedEnergy,
    VAEEnergy,
    WeightedEnergy,
    folding_penalty,
    smoothness,
)
from monai_diffeo.errors import ShapeError
from monai_diffeo.families import ControlGrid
from monai_diffeo.networks import DeformationPredictor, EnergyCritic, EnergyVAE, ImageAtlas, load_weights, save_weights
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
        "atlas": AtlasEnergy(ImageAtlas((24, 24)).measure(blob(2, shift=torch.tensor([0.1, -0.1])))),
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


class Rebuilds(torch.nn.Module):
    """Stands for a VAE: rebuilds zeros, with a latent vector of two numbers, mean 2 and variance 2."""

    def __init__(self, image_size):
        super().__init__()
        self.image_size = image_size

    def forward(self, image):
        latent = image.new_ones(len(image), 2)
        return torch.zeros_like(image), 2 * latent, latent * math.log(2)


def test_the_vae_energy_is_the_squared_error_plus_beta_times_the_divergence():
    image = torch.tensor([[1.0, 2.0], [0.0, 3.0]]).view(1, 1, 2, 2)
    divergence = 2 * 0.5 * (4 + 2 - 1 - math.log(2))  # two numbers, each (mean^2 + variance - 1 - log variance) / 2
    for beta in (0.0, 1.0, 3.0):
        energy = VAEEnergy(Rebuilds((2, 2)), beta, standardize=False)
        assert_close(energy(image), torch.tensor([14.0 + beta * divergence]))


@pytest.mark.parametrize("size", [(1, 4), (1, 1, 4)])
def test_an_image_is_resampled_to_the_networks_size_with_pixels_as_areas(size):
    image = torch.tensor([0.0, 1.0]).view(1, 1, *size[:-1], 2)
    energy = VAEEnergy(Rebuilds(size), beta=0.0, standardize=False)
    assert_close(energy(image), torch.tensor([0.25**2 + 0.75**2 + 1]))  # 0, 1/4, 3/4, 1; corners on corners give 1/3 and 2/3


def test_a_standardised_image_has_mean_zero_and_spread_one():
    image = torch.rand(3, 1, 4, 5)
    assert_close(VAEEnergy(Rebuilds((4, 5)), beta=0.0)(image), torch.full((3,), 19.0))
    assert CriticEnergy(Brightness())(image).abs().max() < 1e-6
    assert_close(CriticEnergy(Brightness(), standardize=False)(image), image.mean((1, 2, 3)))


def test_the_residual_energy_is_the_root_mean_square_length_of_the_velocity():
    family = ControlGrid(2, 4)
    theta = torch.zeros(2, family.num_parameters)
    theta[0, 2], theta[0, 5] = 0.3, 0.4  # a translation along both axes: length 1/2 everywhere
    theta[1, 0] = 0.1  # 0.1 x along axis 0; the mean of x^2 over 33 points from -1 to 1 is 2992 / 33 / 256
    image = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 8, 12)

    class Chooses(torch.nn.Module):
        def forward(self, image):
            return theta[image[:, 0, 0, 0].long()]

    assert_close(ResidualDeformationEnergy(Chooses(), family)(image), torch.tensor([0.5, 0.1 * math.sqrt(2992 / 33 / 256)]))


def test_a_weight_multiplies_what_exceeds_the_level():
    values = torch.tensor([0.4, 0.75, 2.0]).view(3, 1, 1, 1)
    for weight in (0.5, 2.0, 4.0):
        total = WeightedEnergy({"a": Brightness(), "b": Brightness()}, {"a": weight}, level=0.5)
        excess = torch.tensor([0.0, 0.25, 1.5])
        energy, terms = total.evaluate(values)
        assert_close(energy, weight * excess + excess)
        assert_close(total(values), energy)
        assert set(terms) == {"a", "b"} and torch.equal(terms["a"], values.flatten())


def test_an_energy_without_terms_evaluates_to_itself():
    energy, terms = Brightness().evaluate(torch.ones(2, 1, 3, 3))
    assert torch.equal(energy, torch.ones(2)) and terms == {}


def test_an_energy_copies_its_network_and_leaves_the_callers_alone():
    torch.manual_seed(0)
    family, image = ControlGrid(2, 4), torch.rand(2, 1, 32, 32)
    predictor = DeformationPredictor(family.num_parameters, image_size=(32, 32), channels=(8, 8))
    vae, critic = EnergyVAE(image_size=(32, 32), channels=(4, 8), latent=8), EnergyCritic(channels=4, layers=3)
    torch.nn.init.normal_(predictor.head[-1].weight, std=0.1)
    for network, build in (
        (vae, VAEEnergy),
        (critic, CriticEnergy),
        (predictor, lambda network: ResidualDeformationEnergy(network, family)),
    ):
        energy = build(network.train())
        before = energy(image)
        wrapped = WeightedEnergy({"a": StandardizedEnergy(energy, 0.0, 2.0)})
        assert network.training and all(p.requires_grad for p in network.parameters())
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 1.0
        assert torch.equal(energy(image), before) and torch.equal(wrapped(image), before / 2)


def test_wrapping_an_energy_of_ones_own_does_not_freeze_it():
    class Learned(Energy):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, image):
            return self.scale * image.flatten(1).mean(1)

    own = Learned()
    WeightedEnergy({"own": StandardizedEnergy(own)})(torch.rand(1, 1, 4, 4)).sum().backward()
    assert own.scale.requires_grad and own.scale.grad is not None


def test_the_folding_penalty_is_the_mean_of_the_negative_determinants():
    ddf = torch.zeros(1, 2, 8, 4)
    ddf[0, 0] = torch.tensor([0.0, 0, 0, 0, -3, -6, -9, -12])[:, None]  # determinants 1, 1, 1, -1/2, -2, -2, -2, -2
    assert_close(folding_penalty(ddf), torch.tensor([8.5 / 8]))


def test_the_regulariser_measures_smoothness_on_the_velocity_and_folds_on_the_displacement():
    v, ddf, still = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    v[:, 1], ddf[:, 0] = 0.5 * torch.arange(8.0), -3 * torch.arange(8.0)[:, None]
    regularizer = DeformationRegularizer(smooth=2.0, orientation=5.0)
    assert_close(regularizer(v, still), torch.tensor([2 * 0.25]))
    assert_close(regularizer(still, ddf), torch.tensor([5 * 2.0]))


class TestAtlas:
    def test_grey_values_may_be_scaled_and_shifted_and_the_image_be_of_any_size(self):
        energy = AtlasEnergy(ImageAtlas((32, 32), 2).measure([torch.cat([blob(1)[0], blob(1, width=0.4)[0]])]), contrast=1e-3)
        image = energy.atlas()
        assert_close(energy(image), torch.zeros(1), atol=1e-3, rtol=0)
        assert_close(energy(3 * image - 7), energy(image), atol=1e-3, rtol=0)
        large = torch.nn.functional.interpolate(image, (64, 64), mode="bilinear")
        assert energy(large) < 0.05 < 0.3 < energy(image.flip(1).roll(8, 2))

    def test_the_further_the_image_is_moved_the_higher(self):
        energy = AtlasEnergy(ImageAtlas((32, 32)).measure(blob(1)))
        found = energy(torch.cat([blob(1, shift=shift) for shift in (0.0, 0.1, 0.2, 0.3)]))
        assert (found.diff() > 0.02).all() and found[0] < 0.9

    def test_noise_of_less_than_the_contrast_counts_little(self):
        image, draw = blob(1), torch.Generator().manual_seed(0)
        noisy = [image + 0.01 * torch.randn(image.shape, generator=draw) for _ in range(2)]
        calm, nervous = (AtlasEnergy(ImageAtlas((32, 32)).measure(noisy[0]), contrast=c) for c in (0.2, 1e-3))
        calmly, nervously = (float(e(noisy[1]) - e(noisy[0])) for e in (calm, nervous))
        assert 0 < calmly < 0.15 * nervously

    def test_its_networks_image_is_a_mean_that_is_saved_and_loaded(self, tmp_path):
        images = [torch.rand(1, 8, 6, 4), torch.rand(1, 16, 12, 8)]
        atlas = ImageAtlas((8, 6, 4)).measure(images)
        small = torch.nn.functional.avg_pool3d(images[1], 2)
        assert_close(atlas()[0], (images[0] + small) / 2)
        save_weights(atlas, tmp_path / "atlas.pt")
        assert torch.equal(load_weights(ImageAtlas((8, 6, 4)), tmp_path / "atlas.pt")(3)[2], atlas()[0])

    @pytest.mark.parametrize("settings", [{"window": 4}, {"window": 0}, {"contrast": 0.0}, {"contrast": float("nan")}])
    def test_settings_that_measure_nothing_are_refused(self, settings):
        with pytest.raises(ValueError, match="^AtlasEnergy: 'window' must be odd and 'contrast' larger than 0, got "):
            AtlasEnergy(ImageAtlas((8, 8)), **settings)

    def test_other_channels_and_no_images_are_refused(self):
        with pytest.raises(ShapeError, match=r"AtlasEnergy: 'image' must have shape \(B, 1, H, W\), got \(1, 2, 8, 8\)"):
            AtlasEnergy(ImageAtlas((8, 8)))(torch.rand(1, 2, 8, 8))
        with pytest.raises(ShapeError, match=r"ImageAtlas: 'image' must have shape \(B, 3, H, W\)"):
            ImageAtlas((8, 8), 3).measure([torch.rand(1, 8, 8)])
        with pytest.raises(ValueError, match="^ImageAtlas.measure.*must be one image or more, got none"):
            ImageAtlas((8, 8)).measure([])
        whole = ImageAtlas((8, 8)).measure([torch.full((1, 8, 8), 3, dtype=torch.uint8)])
        assert_close(whole(), torch.full((1, 1, 8, 8), 3.0))


def test_the_terms_tell_the_value_of_each_energy_that_they_consist_of():
    image, parts = torch.rand(2, 1, 4, 4), [Brightness() for _ in range(4)]
    total = WeightedEnergy(
        {"own": parts[0], "scaled": StandardizedEnergy(parts[1], 3.0, 0.5), "off": parts[2]}, {"off": 0.0}, level=0.0
    )
    terms = total.terms(image)
    for part in parts[:2]:
        assert_close(total.known_value(part, terms), part(image))
    assert total.known_value(parts[2], terms) is None is total.known_value(parts[3], terms)
    assert parts[0].known_value(parts[0], {}) is None
