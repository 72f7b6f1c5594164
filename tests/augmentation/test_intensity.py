import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
