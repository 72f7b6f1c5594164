import math

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.augmentation import opacities
from monai_diffeo.augmentation.opacities import random_opacities
from monai_diffeo.errors import ShapeError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def films(batch=4, size=(32, 40)):
    return torch.rand(batch, 1, *size, generator=seeded(9))


def masks(batch=4, size=(32, 40)):
    """Two squares, one channel each."""
    label = torch.zeros(batch, 2, *size)
    label[:, 0, 8:20, 4:14] = 1
    label[:, 1, 8:20, 24:34] = 1
    return label


@pytest.mark.parametrize("channels", [1, 3])
def test_they_brighten_and_never_darken_within_the_range(channels):
    image = films().repeat(1, channels, 1, 1)
    image[..., :8] = 1
    out = random_opacities(image, masks(), seeded(), share=1.0)
    assert out.shape == image.shape and (out >= image).all() and out.max() <= 1
    assert ((out - image).flatten(1).amax(1) > 0.05).all()
    assert (out[..., :8] == 1).all()


def test_they_lie_over_the_masks():
    dark = torch.zeros(300, 1, 32, 40)
    out = random_opacities(dark, masks(300), seeded(), share=1.0, most=1)
    inside = masks(300).amax(1, keepdim=True) > 0
    assert ((out * inside).flatten(1).amax(1) > 0.15).all()  # the middle of each lies in a mask
    heights = out.mean((0, 1, 3))
    assert heights[8:20].mean() > 1.3 * heights[24:].mean()


def test_a_share_of_the_films_gets_them_and_some_get_several():
    dark = torch.zeros(200, 1, 32, 40)
    touched = [
        (random_opacities(dark, masks(200), seeded(), share=s) > 0.02).flatten(1).any(1).float().mean() for s in (0.25, 0.75)
    ]
    assert touched[0] == pytest.approx(0.25, abs=0.07) and touched[1] == pytest.approx(0.75, abs=0.07)
    one, three = (random_opacities(dark, masks(200), seeded(), 1.0, most).mean() for most in (1, 3))
    assert 1.4 * one < three < 3 * one


def test_a_share_of_zero_and_films_without_masks_stay_as_they_are():
    assert torch.equal(random_opacities(films(), masks(), seeded(), share=0.0), films())
    without = masks()
    without[1:3] = 0
    out = random_opacities(films(), without, seeded(), share=1.0)
    assert [torch.equal(a, b) for a, b in zip(out, films())] == [False, True, True, False]


def test_seeds_fix_everything_and_the_input_is_left_alone():
    image, label, state = films(), masks(), torch.get_rng_state()
    first = random_opacities(image, label, seeded(1), share=1.0)
    assert torch.equal(image, films()) and torch.equal(label, masks()) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(random_opacities(image, label, seeded(1), share=1.0), first)
    assert not torch.equal(random_opacities(image, label, seeded(2), share=1.0), first)


def test_edges_are_sharp_or_soft():
    steepest = (
        (random_opacities(torch.zeros(200, 1, 64, 64), masks(200, (64, 64)), seeded(), 1.0, 1))
        .diff(dim=2)
        .abs()
        .flatten(1)
        .amax(1)
    )
    assert steepest.min() < 0.08 < 0.4 < steepest.max()


@pytest.mark.parametrize(
    "image, label, settings, error, says",
    [
        (torch.rand(1, 1, 8, 8, 8), torch.ones(1, 1, 8, 8, 8), {}, ShapeError, "not for volumes"),
        (torch.rand(2, 1, 8, 8), torch.ones(2, 1, 8, 9), {}, ShapeError, r"\(2, K, 8, 8\)"),
        (torch.rand(2, 1, 8, 8), torch.ones(1, 1, 8, 8), {}, ShapeError, "'masks'"),
        (torch.rand(2, 1, 8, 8), torch.ones(2, 1, 8, 8), {"most": 0}, ValueError, "'most' of at least 1"),
        (torch.ones(2, 1, 8, 8).byte(), torch.ones(2, 1, 8, 8), {}, ValueError, "torch.uint8"),
    ],
)
def test_wrong_arguments_are_refused(image, label, settings, error, says):
    with pytest.raises(error, match=says):
        random_opacities(image, label, seeded(), **settings)


@pytest.mark.parametrize(
    "end, axes, softness, weight, brightness", [("low", 1 / 16, 0.03, 0.4, 0.5), ("high", 0.7, 0.4, 1.0, 1.0)]
)
def test_an_opacity_is_an_ellipse_of_its_axes_edge_weight_and_brightness(end, axes, softness, weight, brightness, monkeypatch):
    monkeypatch.setattr(
        opacities, "uniform", lambda low, high, shape, generator: torch.full(shape, float(low if end == "low" else high))
    )
    mask = torch.zeros(1, 1, 81, 81)
    mask[..., 40, 30] = 1
    out = random_opacities(torch.full((1, 1, 81, 81), 0.1), mask, seeded(), share=1.0, most=1)[0, 0]
    away = torch.arange(51.0) / 80  # along the columns, in units of the frame
    expected = weight * torch.sigmoid((1 - away / (axes / 2)) / softness)
    assert_close(out[40, 30:], 0.1 + expected * (brightness - 0.1), atol=1e-4, rtol=0)
    assert_close(out[40:81, 30], out[40, 30:71], atol=1e-4, rtol=0)


def test_opacities_are_turned_by_their_angle(monkeypatch):
    """Axes of 0.6 and 0.1 of the frame, turned by 30 degrees from the rows towards the columns."""

    def chosen(low, high, shape, generator):
        if high == math.pi:
            return torch.full(shape, math.radians(30))
        if shape[1:] == (2, 1, 1):
            return torch.tensor([math.log(1.2), math.log(0.2)]).view(1, 2, 1, 1)
        return torch.full(shape, float(low))

    monkeypatch.setattr(opacities, "uniform", chosen)
    mask = torch.zeros(1, 1, 101, 101)
    mask[..., 50, 50] = 1
    inside = random_opacities(torch.zeros(1, 1, 101, 101), mask, seeded(), share=1.0, most=1)[0, 0] > 0.1
    where = (inside.nonzero() - 50) / 100
    spread = where.T @ where / len(where)
    (least, most), axes = torch.linalg.eigh(spread)
    assert_close(torch.stack([most, least]), torch.tensor([0.3, 0.05]).square() / 4, rtol=0.05, atol=0)
    assert_close(axes[:, 1].abs(), torch.tensor([math.cos(math.radians(30)), 0.5]), atol=0.02, rtol=0)
    assert axes[0, 1] * axes[1, 1] > 0
