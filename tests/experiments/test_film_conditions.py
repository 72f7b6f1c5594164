"""How the tables show films: always in the same way, and as the name of the condition says."""

import pytest
import torch
from torch.testing import assert_close

from docs.experiments.film_conditions import FAULTS, FRAMES, show
from docs.experiments.film_data import Films
from docs.experiments.outlines import outline_distances, spacing_of


def films(count=3, size=(64, 64)):
    """Bright films with two dark lungs."""
    masks = torch.zeros(count, 1, *size)
    masks[:, :, 16:48, 10:26] = masks[:, :, 16:48, 38:54] = 1
    return Films(0.8 - 0.5 * masks + torch.linspace(0, 0.1, size[1]), masks, tuple(f"film{i}" for i in range(count)))


@pytest.mark.parametrize("condition", [*FRAMES, *FAULTS, "plain", "turned 90°"])
def test_a_film_is_shown_the_same_way_whatever_its_neighbours(condition):
    given = films()
    shown = show(given, condition)
    assert shown.images.shape == given.images.shape and shown.labels.shape == given.labels.shape
    assert set(shown.labels.unique().tolist()) <= {0.0, 1.0} and shown.labels.flatten(1).any(1).all()
    assert shown.images.min() >= 0 and shown.images.max() <= 1.01
    alone = show(Films(given.images[1:2], given.labels[1:2], given.ids[1:2]), condition)
    assert torch.equal(alone.images[0], shown.images[1]) and torch.equal(alone.labels[0], shown.labels[1])
    if condition != "plain":
        assert (shown.images - given.images).abs().mean() > 0.02


def test_frames_shrink_and_enlarge_the_lungs():
    area = {name: show(films(20), name).labels.mean((1, 2, 3)) / films(20).labels.mean((1, 2, 3)) for name in FRAMES}
    assert (area["letter box"] > 1 / 2.1).all() and (area["letter box"] < 1 / 1.35).all()
    assert (area["small in black"] < 1 / 1.8**2).all() and (area["small in black"] > 1 / 3**2).all()
    assert (area["zoomed"] > 1.1).all()


def test_what_is_hidden_is_in_the_mask_only_where_it_can_be_inferred():
    given = films(20)
    white, black, half = (show(given, name) for name in ("one lung white", "half black", "left half"))
    assert torch.equal(white.labels, given.labels)
    lungs = [(white.images * given.labels)[..., a:b].flatten(1).sum(1) for a, b in ((0, 32), (32, 64))]
    assert (torch.maximum(*lungs) > 1.5 * torch.minimum(*lungs)).all()
    dark = black.images == 0
    assert_close(dark.float().mean((1, 2, 3)), torch.full((20,), 0.5)) and not (black.labels * dark).any()
    assert_close(half.labels[..., ::2], given.labels[..., :32])


def test_outlines_are_measured_in_the_units_of_the_pixel():
    mask, moved = torch.zeros(2, 1, 64, 64), torch.zeros(2, 1, 64, 64)
    mask[:, :, 10:30, 10:30] = 1
    moved[0, :, 14:34, 10:30] = 1
    mean, reach = outline_distances(mask, moved, [(0.5, 2.0)] * 2)
    assert reach[0] == 2.0 and 0 < mean[0] < 2 and mean[1] == reach[1] == torch.inf  # an empty mask has no outline
    assert outline_distances(mask, mask, [(0.5, 2.0)] * 2)[0].tolist() == [0.0, 0.0]
    assert spacing_of("montgomery", (512, 512)) == ((0.0875 * 4456 / 512,) * 2, "mm")
    assert spacing_of("shenzhen", (512, 256)) == ((2.0, 4.0), "pixels of 1024")
