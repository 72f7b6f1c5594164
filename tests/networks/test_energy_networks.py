import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from monai_diffeo.errors import ShapeError
from monai_diffeo.families import ControlGrid
from monai_diffeo.networks import DeformationPredictor, EnergyCritic, EnergyVAE, standardize_image
from monai_diffeo.networks.predictor import resample_image, resample_once_more


def build(kind, dims=2, channels=1, seed=0):
    size = (32, 48, 16)[:dims]
    torch.manual_seed(seed)
    if kind is DeformationPredictor:
        network = kind(10, dims, channels, image_size=size, channels=(4, 8), hidden=12)
        torch.nn.init.normal_(network.head[-1].weight)  # as after training; at the start every answer is zero
    elif kind is EnergyVAE:
        network = kind(dims, channels, image_size=size, channels=(4, 8, 8), latent=6)
    else:
        network = kind(dims, channels, channels=4, layers=3)
    return network.eval()


def image(dims=2, channels=1, batch=3):
    return torch.rand(batch, channels, *(32, 48, 16)[:dims], generator=torch.Generator().manual_seed(1))


def first(answer):
    return answer[0] if isinstance(answer, tuple) else answer


KINDS = [DeformationPredictor, EnergyVAE, EnergyCritic]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_answers_have_the_shapes_they_promise(dims, channels):
    x = image(dims, channels)
    assert build(DeformationPredictor, dims, channels)(x).shape == (3, 10)
    assert build(EnergyCritic, dims, channels)(x).shape == (3,)
    rebuilt, mean, log_variance = build(EnergyVAE, dims, channels)(x)
    assert rebuilt.shape == x.shape and mean.shape == log_variance.shape == (3, 6)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_its_images_give_one_by_one(kind, dims):
    network, x = build(kind, dims), image(dims)
    with torch.no_grad():
        together = first(network(x))
        for i in range(3):
            assert_close(together[i : i + 1], first(network(x[i : i + 1])), atol=1e-5, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_survives_pickling_and_strict_loading(kind):
    network, x = build(kind), image()
    again, other = pickle.loads(pickle.dumps(network)), build(kind, seed=7)
    assert not torch.equal(first(other(x)), first(network(x)))
    other.load_state_dict(network.state_dict())
    for same in (again, other):
        assert torch.equal(first(same(x)), first(network(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_moves_with_the_image(kind):
    x = image().requires_grad_()
    first(build(kind)(x)).square().sum().backward()
    assert torch.isfinite(x.grad).all() and (x.grad.flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_new_predictor_predicts_the_identity(dims):
    family = ControlGrid(dims, controls=3)
    size = (32, 48, 16)[:dims]
    network = DeformationPredictor(family.num_parameters, dims, image_size=size, channels=(4, 8), hidden=12)
    theta = network(image(dims))
    assert theta.shape == (3, family.num_parameters) and (theta == 0).all()
    assert family(theta, size).ddf(size).abs().max() == 0
    theta.sum().backward()
    assert network.head[-1].weight.grad.abs().max() > 0  # and can learn to leave it


@pytest.mark.parametrize("size", [(64, 96), (31, 50)])
def test_a_predictor_looks_at_its_own_size(size):
    network = build(DeformationPredictor)

    def blob(height, width):
        y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
        return torch.exp(-8 * ((y - 0.3) ** 2 + x**2))[None, None]

    small, other = network(blob(32, 48)), network(blob(*size))
    assert other.shape == (1, 10)
    assert (small - other).abs().max() <= 0.25 * small.abs().max()


def test_a_predictor_takes_volumes_of_another_size():
    assert build(DeformationPredictor, 3)(torch.rand(2, 1, 20, 30, 21)).shape == (2, 10)


def test_a_predictor_does_not_see_brightness_and_contrast():
    network, x = build(DeformationPredictor), image()
    assert_close(network(3 * x + 5), network(x), atol=1e-3, rtol=1e-3)


def test_standardized_images_have_mean_zero_and_spread_one():
    for x in (4095 * image(channels=2), image(3) - 7, image().half()):
        flat = standardize_image(x).flatten(1)
        assert flat.dtype == torch.float32
        assert flat.mean(1).abs().max() <= 1e-4
        assert_close(flat.std(1), torch.ones(3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.5, 1000.1, 4095.3, -7.3])
def test_a_constant_image_is_standardized_to_zeros(value):
    assert standardize_image(torch.full((2, 1, 128, 128), value)).abs().max() <= 0.02


def test_a_vae_draws_while_training_and_takes_the_mean_otherwise():
    network, x = build(EnergyVAE), image()
    state = torch.get_rng_state()
    assert torch.equal(network(x)[0], network(x)[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(network(x)[0], network.decode(network.encode(x)[0]))
    network.train()
    assert not torch.equal(network(x)[0], network(x)[0])


def test_the_log_variance_is_bounded_and_spreads_the_latents():
    network = build(EnergyVAE)
    torch.nn.init.zeros_(network.to_log_variance.weight)
    for bias, expected in ((100.0, 8.0), (-100.0, -12.0), (-3.0, -3.0)):
        torch.nn.init.constant_(network.to_log_variance.bias, bias)
        assert (network(image())[2] == expected).all()
    network.decode = lambda latent: latent
    latent, mean, _ = network.train()(image(batch=1).expand(3000, -1, -1, -1))
    assert (latent - mean).mean().abs() < 0.01
    assert (latent - mean).std().item() == pytest.approx(math.exp(-1.5), rel=0.03)


@pytest.mark.parametrize("size", [(30, 32), (33, 47), (8, 15), (8, 9, 11), (20, 16, 13)])
def test_a_vae_rebuilds_images_of_any_size_from_all_their_voxels(size):
    torch.manual_seed(0)
    vae = EnergyVAE(len(size), 2, size, channels=(4, 4, 4), latent=6).eval()
    x = torch.rand(2, 2, *size).requires_grad_()
    rebuilt, mean, _ = vae(x)
    assert rebuilt.shape == x.shape and vae.bottom == (4, *[n // 8 for n in size])
    mean.square().sum().backward()
    assert (x.grad.abs().amax((0, 1)) > 0).all()  # an odd size loses no row
    assert (torch.autograd.grad(rebuilt[..., -1].sum(), vae.from_latent.weight)[0] != 0).any()


def test_a_vae_of_sixty_four_halves_six_times_and_any_size_above_it_does():
    assert EnergyVAE(image_size=(192, 160)).eval()(torch.rand(1, 1, 192, 160))[0].shape == (1, 1, 192, 160)
    assert EnergyVAE(3, image_size=(160, 160, 96), channels=(2,) * 6, latent=4).bottom == (2, 2, 2, 1)


@pytest.mark.parametrize("dims, size", [(2, (7, 32)), (3, (32, 32, 4)), (3, (32, 32))])
def test_a_vae_refuses_sizes_it_cannot_halve(dims, size):
    with pytest.raises(ValueError, match=f"image_size must have {dims} axes of at least 8") as caught:
        EnergyVAE(dims, image_size=size, channels=(4, 4, 4))
    assert str(size) in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", [2, 3])
def test_images_of_other_channels_or_axes_are_refused_in_a_sentence(kind, dims):
    network = build(kind, dims, 2)
    for wrong in (image(dims, 1), image(5 - dims, 2), image(dims, 2)[0]):
        with pytest.raises(ShapeError, match=rf"{kind.__name__}: 'image' must have shape \(B, 2, .*got .*Build the network"):
            network(wrong)


def test_a_vae_refuses_images_of_another_size_and_its_energy_resamples_them():
    vae = build(EnergyVAE)
    with pytest.raises(ShapeError, match=r"\(B, 1, 32, 48\), got \(1, 1, 64, 96\)"):
        vae(torch.rand(1, 1, 64, 96))


def test_a_critic_takes_any_size_and_counts_voxels_evenly():
    network = build(EnergyCritic)
    x = torch.rand(1, 1, 40, 44, generator=torch.Generator().manual_seed(0))
    assert network(x).shape == (1,) and network(torch.rand(2, 1, 17, 23)).shape == (2,)
    small, large = network(torch.full((1, 1, 64, 64), 0.5)), network(torch.full((1, 1, 256, 256), 0.5))
    assert_close(small, large, rtol=0.2, atol=0.01)  # a mean, not a sum: only the rim differs


def test_a_critic_adds_the_image_anew_at_every_layer():
    """relu(2 x), then relu(-x + h), then relu(3 x - h + 1), then 5 h - 2, and the mean over voxels."""
    critic = EnergyCritic(channels=1, layers=3, kernel_size=1)
    weights = [(2.0, 0.0), (-1.0, 0.0), (3.0, 1.0), (1.0, 0.0), (-1.0, 0.0), (5.0, -2.0)]
    for layer, (weight, bias) in zip([*critic.from_image, *critic.from_features, critic.score], weights):
        torch.nn.init.constant_(layer.weight, weight)
        torch.nn.init.constant_(layer.bias, bias)
    # x = 1: 2, 1, 3 -> 13;  x = -1: 0, 1, relu(-3) = 0 -> -2;  x = 2: 4, 2, 5 -> 23
    scores = critic(torch.tensor([[1.0, -1.0], [2.0, 2.0]]).view(2, 1, 1, 2))
    assert scores.tolist() == pytest.approx([(13 - 2) / 2, 23.0])


def test_a_predictor_scales_its_output():
    network = build(DeformationPredictor)
    torch.nn.init.zeros_(network.head[-1].weight)
    torch.nn.init.constant_(network.head[-1].bias, 3.0)
    assert_close(network(image()), torch.full((3, 10), 0.3))


def test_standardising_by_hand():
    values = standardize_image(torch.tensor([[[[1.0, 3.0]], [[5.0, 7.0]]]]))  # two channels: mean 4, variance 20 / 3
    assert_close(values.flatten(), torch.tensor([-3.0, -1, 1, 3]) / math.sqrt(20 / 3))


def test_a_critic_with_a_stride_still_scores():
    assert EnergyCritic(channels=4, layers=3)(image()).shape == (3,)
    assert EnergyCritic(channels=4, layers=3, stride=2)(image()).shape == (3,)


def test_the_published_critic_has_six_and_five_convolutions():
    critic = EnergyCritic()
    assert len(critic.from_image) == 6 and len(critic.from_features) == 5
    assert sum(p.numel() for p in critic.parameters()) == 6 * (25 * 16 + 16) + 5 * (25 * 256 + 16) + 17


def test_the_published_vae_has_six_halvings_and_128_latents():
    vae = EnergyVAE()
    assert len(vae.down) == len(vae.up) == 6 and vae.to_mean.out_features == 128
    assert vae.bottom == (128, 2, 2)


def test_a_volume_that_loses_voxels_is_averaged_over_blocks():
    volume = torch.rand(2, 3, 17, 24, 9)
    blocks = torch.nn.functional.adaptive_avg_pool3d(volume, (8, 16, 9))
    assert_close(resample_image(volume, (8, 16, 9)), blocks)


@pytest.mark.parametrize("between, left", [((48, 60), 0.8), ((64, 80), 0.3), ((128, 160), 0.3)])
def test_an_image_that_was_resampled_before_is_averaged_as_much_less(between, left):
    draw = torch.Generator().manual_seed(0)
    image = F.interpolate(torch.rand(2, 3, 64, 80, generator=draw), (256, 320), mode="bicubic")
    once, first = resample_image(image, (32, 40)), resample_image(image, between)
    off, twice = ((again(first, (32, 40)) - once).square().mean().sqrt() for again in (resample_once_more, resample_image))
    assert off < left * twice and off < 0.02
    assert_close(resample_once_more(torch.full((1, 1, 48, 60), 7.0), (32, 40)), torch.full((1, 1, 32, 40), 7.0))
    ramp = torch.arange(64.0).expand(1, 1, 32, 64)
    assert_close(resample_once_more(ramp, (16, 32))[..., 1:-1], resample_image(ramp, (16, 32))[..., 1:-1])


def test_what_is_not_made_smaller_is_resampled_as_ever():
    for image, size in (
        (torch.rand(1, 1, 20, 30), (40, 30)),
        (torch.rand(1, 1, 20, 30), (10, 60)),
        (torch.rand(1, 1, 6, 8, 4), (3, 4, 2)),
    ):
        assert torch.equal(resample_once_more(image, size), resample_image(image, size))
    image = torch.rand(1, 2, 20, 30)
    assert resample_once_more(image, (20, 30)) is image
