import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from monai_diffeo.augmentation import intensity
from monai_diffeo.augmentation.intensity import random_intensity, value_range

PROFILE = settings(deadline=None, derandomize=True, max_examples=20, database=None)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def films(batch=4, size=(32, 40), channels=1):
    return torch.rand(batch, channels, *size, generator=seeded(9))


@given(st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(4, 20), min_size=2, max_size=3), st.floats(0.1, 2.0))
@PROFILE
def test_shape_stays_and_values_stay_in_the_unit_interval(batch, channels, size, strength):
    out = random_intensity(films(batch, size, channels), seeded(), strength)
    assert out.shape == (batch, channels, *size)
    assert torch.isfinite(out).all() and out.min() >= 0 and out.max() <= 1


def test_strength_zero_changes_nothing():
    assert torch.equal(random_intensity(films(), seeded(), 0), films())


def test_a_small_strength_changes_little():
    smooth = torch.linspace(0.2, 0.8, 32).view(1, 1, 32, 1).expand(8, 1, 32, 32)
    small = (random_intensity(smooth, seeded(), 0.01) - smooth).abs()
    large = (random_intensity(smooth, seeded(), 1.0) - smooth).abs()
    assert small.mean() < 0.01 < 0.05 < large.mean()


def test_seeds_fix_everything_and_the_input_is_left_alone():
    image, state = films(), torch.get_rng_state()
    first = random_intensity(image, seeded(1))
    assert torch.equal(image, films())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(random_intensity(image, seeded(1)), first)
    assert not torch.equal(random_intensity(image, seeded(2)), first)


def test_each_film_has_its_own_draw():
    out = random_intensity(films(1).expand(4, -1, -1, -1), seeded())
    assert all((out[0] - out[i]).abs().max() > 0.05 for i in range(1, 4))


def test_some_films_get_black_bands_at_the_frame_and_most_do_not():
    out = random_intensity(torch.full((400, 1, 32, 32), 0.5), seeded())
    black = (out == 0).all(-1)[:, 0].any(1) | (out == 0).all(-2)[:, 0].any(1)
    assert 0.2 < black.float().mean() < 0.6  # four sides at 0.15 each, one in 2.6
    assert (out[:, 0, 8:-8, 8:-8].flatten(1) > 0).any(1).all()


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("end", ["low", "high"])
def test_gamma_contrast_and_brightness_reach_their_bounds_in_this_order(strength, end, monkeypatch):
    monkeypatch.setattr(
        intensity, "uniform", lambda low, high, shape, generator: torch.full(shape, float(low if end == "low" else high))
    )
    monkeypatch.setattr(torch, "rand", lambda *shape, generator=None: torch.ones(*shape))  # no blur, no bands, all the shading
    monkeypatch.setattr(torch, "randn", lambda shape, generator=None: torch.full(shape, 2.0))
    sign = -1 if end == "low" else 1
    gamma, contrast = math.exp(sign * 0.7 * strength), math.exp(sign * 0.5 * strength)
    value = (0.6**gamma - 0.5) * contrast + 0.5 + sign * 0.15 * strength + sign * 0.2 * strength + 2 * 0.05 * strength
    out = random_intensity(torch.full((2, 1, 9, 9), 0.6), None, strength)
    assert 0 < value < 1 and out.flatten().tolist() == pytest.approx([value] * 162, abs=1e-5)


def test_bands_are_as_wide_as_drawn_at_every_side_of_every_channel(monkeypatch):
    monkeypatch.setattr(
        intensity, "uniform", lambda low, high, shape, generator: torch.full(shape, float(high if high < 0.14 else 0))
    )
    monkeypatch.setattr(torch, "rand", lambda *shape, generator=None: torch.zeros(*shape))
    out = random_intensity(torch.full((1, 2, 51, 101), 0.6), None, 0.5)  # 0.06 of the frame: 3 rows, 6 columns
    expected = torch.zeros(51, 101)
    expected[3:48, 6:95] = 0.6
    assert (out - expected).abs().max() < 1e-5


def test_three_films_in_ten_are_blurred():
    board = (torch.arange(16).view(-1, 1) + torch.arange(16)).remainder(2).float().expand(400, 1, 16, 16)
    contrast = random_intensity(board, seeded(), 0.01)[..., 4:-4, 4:-4].flatten(1).std(1)
    assert 0.24 < (contrast < 0.1).float().mean() < 0.36 and ((contrast < 0.1) | (contrast > 0.45)).all()


def spanning(channels, size):
    """Images whose every channel reaches from 0 to 1."""
    image = films(3, size, channels)
    image.flatten(2)[..., 0], image.flatten(2)[..., 1] = 0, 1
    return image


@pytest.mark.parametrize("size", [(12, 15), (8, 10, 9)])
@pytest.mark.parametrize("factor, offset", [(2000.0, -1000.0), (255.0, 0.0), (0.5, 3.0), (4.0, -2.0)])
def test_images_of_any_range_are_varied_as_they_are(size, factor, offset):
    """Hounsfield units, bytes and standardised images change as their copies in [0, 1] would."""
    image = spanning(2, size)
    wanted = random_intensity(image, seeded()) * factor + offset
    assert_close(random_intensity(image * factor + offset, seeded()), wanted, rtol=1e-4, atol=1e-4 * factor)


def test_the_range_of_a_channel_is_its_own_where_it_leaves_the_unit_interval():
    image = torch.tensor([[0.0, 0.5], [-0.05, 1.05], [-3.0, 1.0], [0.2, 255.0], [7.0, 7.0]]).view(1, 5, 1, 2)
    low, width = (x.flatten().tolist() for x in value_range(image))
    assert low == pytest.approx([0, 0, -3, 0.2, 7]) and width == pytest.approx([1, 1, 4, 254.8, 1])


@pytest.mark.parametrize("size", [(40, 40), (16, 16, 16)])
def test_channels_vary_apart_and_share_their_bands(size):
    image = torch.full((200, 2, *size), 0.5)
    out = random_intensity(image, seeded(), 0.5)
    middle = out[(..., *[slice(5, -5)] * len(size))].flatten(2).mean(2)
    assert abs(torch.corrcoef(middle.T)[0, 1].item()) < 0.25 and (middle[:, 0] - middle[:, 1]).abs().mean() > 0.03
    black = (out == 0).flatten(2).float().mean(2)
    assert torch.equal(black[:, 0], black[:, 1]) and (black[:, 0] > 0).float().mean() > 0.3


def test_slabs_are_as_wide_as_drawn_at_every_side_of_a_volume(monkeypatch):
    monkeypatch.setattr(
        intensity, "uniform", lambda low, high, shape, generator: torch.full(shape, float(high if high < 0.14 else 0))
    )
    monkeypatch.setattr(torch, "rand", lambda *shape, generator=None: torch.zeros(*shape))
    out = random_intensity(torch.full((1, 1, 51, 21, 31), 0.6), None, 0.5)[0, 0]  # 0.06 of the frame
    expected = torch.zeros(51, 21, 31)
    expected[3:48, 2:19, 2:29] = 0.6
    assert (out - expected).abs().max() < 1e-5


def test_grey_values_of_the_plane_stay_those_that_trained_the_bundles():
    out = random_intensity(films(6, (32, 40)), seeded(2), 1.5)
    assert out.double().sum().item() == pytest.approx(3788.566, rel=1e-4)


def test_each_side_has_its_own_band(monkeypatch):
    """Before and behind along each axis, one axis after the other, each as wide as it was drawn."""
    widths = torch.tensor([[0.015, 0.035, 0.055, 0.075, 0.095, 0.115]])
    monkeypatch.setattr(
        intensity, "uniform", lambda low, high, shape, generator: widths if shape == (1, 6) else torch.zeros(shape)
    )
    monkeypatch.setattr(torch, "rand", lambda *shape, generator=None: torch.zeros(*shape))
    out = random_intensity(torch.full((1, 1, 101, 101, 101), 0.6), None)[0, 0]
    inside = out.nonzero()
    assert inside.amin(0).tolist() == [2, 6, 10] and inside.amax(0).tolist() == [96, 92, 88]
