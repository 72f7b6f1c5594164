import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_diffeo.augmentation import intensity
from monai_diffeo.augmentation.intensity import random_intensity

PROFILE = settings(deadline=None, derandomize=True, max_examples=20, database=None)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def films(batch=4, size=(32, 40), channels=1):
    return torch.rand(batch, channels, *size, generator=seeded(9))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(4, 40), st.integers(4, 40), st.floats(0.1, 2.0))
@PROFILE
def test_shape_stays_and_values_stay_in_the_unit_interval(batch, channels, height, width, strength):
    out = random_intensity(films(batch, (height, width), channels), seeded(), strength)
    assert out.shape == (batch, channels, height, width)
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
