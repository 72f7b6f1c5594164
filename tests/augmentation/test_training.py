import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.augmentation import (
    random_framing,
    random_strength_tps,
    random_training_deformation,
    tps_protocol,
    training,
    varied_films,
)
from monai_diffeo.flow import compose, folding_fraction

SIZE = (8, 10)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def constant(count, rows, columns, size=SIZE):
    return torch.tensor([rows, columns]).view(1, 2, 1, 1).expand(count, 2, *size).clone()


def stretched(count, factor, size=SIZE):
    axes = torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in size], indexing="ij")
    return (factor * torch.stack(axes)).expand(count, 2, *size).clone()


def test_half_of_the_splines_have_the_full_strength_and_the_others_any(monkeypatch):
    told = []
    monkeypatch.setattr(
        training, "tps_protocol", lambda *a, strength, **more: told.append(strength) or tps_protocol(*a, strength=strength)
    )
    ddf = random_strength_tps(1000, (4, 4), seeded(), 0.6)
    full = told[0] == told[0].max()
    assert told[0].max() == pytest.approx(0.6) and 0.45 < full.float().mean() < 0.55
    weaker = told[0][~full]
    assert weaker.min() < 0.02 and weaker.mean() == pytest.approx(0.3, abs=0.03)
    assert ddf.shape == (1000, 2, 4, 4)


def test_frames_are_scaled_and_shifted_into_the_margin():
    size = (9, 13)
    ddf = random_framing(500, size, seeded())
    half = torch.tensor([4.0, 6.0])
    shift = ddf[:, :, 4, 6]
    scale = torch.stack([ddf[:, 0, 8, 6] - ddf[:, 0, 0, 6], ddf[:, 1, 4, 12] - ddf[:, 1, 4, 0]], 1) / (2 * half) + 1
    assert 0.85 <= scale.min() < 0.87 and 1.48 < scale.max() <= 1.5 and (scale[:, 0] - scale[:, 1]).abs().mean() > 0.1
    room = (scale - 1).clamp(min=0.05) * half
    assert (shift.abs() <= room + 1e-5).all() and (shift.abs() / room).max() > 0.97 and (shift / room).mean().abs() < 0.1
    middle, end = ddf[:, :, 4, 9], ddf[:, :, 4, 12]  # linear, and each component along its own axis
    assert_close((shift + end) / 2, middle, atol=1e-5, rtol=0)
    assert_close(ddf[:, 0, 2, 0], ddf[:, 0, 2, 12])


def test_kinds_of_training_deformations_and_their_shares(monkeypatch):
    """Splines, or flows after a view or after a spline; then the frame; then the identity: in this order and these shares."""
    count, told = 2000, {}
    tps, flow, view, frame = (
        stretched(count, 0.1),
        constant(count, 0.5, -1.0),
        stretched(count, -0.2),
        constant(count, 1.0, 0.0),
    )

    def splines(batch, size, generator, strength, angle, jitter, scale, fold_free):
        told.update(strength=strength, angle=angle, jitter=jitter, scale=scale, fold_free=fold_free)
        return tps

    def flows(batch, size, generator, amplitude, sigma):
        told.update(amplitude=amplitude, sigma=sigma)
        return flow

    monkeypatch.setattr(training, "tps_protocol", splines)
    monkeypatch.setattr(training, "random_svf", flows)
    monkeypatch.setattr(training, "exp", lambda v, steps: v)
    monkeypatch.setattr(training, "random_homography", lambda *a, shift: told.update(shift=shift) or view)
    monkeypatch.setattr(training, "random_framing", lambda *a: frame)
    ddf = random_training_deformation(count, SIZE, seeded(), 0.2, 33.0, 0.11, 0.4)
    kinds = [(0.7, tps), (0.15, compose(view, flow)), (0.15, compose(tps, flow))]
    known = {}
    for share, kind in kinds:
        for part, map_ in ((0.6, kind), (0.4, compose(kind, frame))):
            same = (ddf - map_).flatten(1).abs().amax(1) < 1e-6
            known[share * part * 0.8, len(known)] = same.float().mean().item()
    still = (ddf == 0).flatten(1).all(1).float().mean().item()
    assert still == pytest.approx(0.2, abs=0.03) and still + sum(known.values()) == pytest.approx(1.0)
    for (share, _), found in known.items():
        assert found == pytest.approx(share, abs=0.03)
    assert (
        told["angle"] == 33.0
        and told["jitter"] == 0.11
        and told["fold_free"]
        and told["shift"] == 0.12
        and told["sigma"] == 0.1
    )
    assert 0.75 <= told["scale"] <= 1.1
    assert told["strength"].square().mean() == pytest.approx(0.5, abs=0.03) and told["strength"].max() <= 1
    assert told["amplitude"].mean() == pytest.approx(0.04, abs=0.003) and told["amplitude"].max() <= 0.08


def test_training_deformations_are_seeded_and_rarely_fold():
    def sample(seed, **more):
        return random_training_deformation(100, (32, 32), seeded(seed), **more)

    ddf = sample(0)
    assert ddf.shape == (100, 2, 32, 32) and torch.equal(ddf, sample(0)) and not torch.equal(ddf, sample(1))
    assert not (sample(0, identity_share=0.0) == 0).flatten(1).all(1).any()
    assert (folding_fraction(ddf) > 0).float().mean() <= 0.05  # splines alone never fold; two maps composed rarely do


@pytest.mark.parametrize(
    "label, columns, moved",
    [
        ([0.0, 1, 1, 0, 0], 0.4, [0.0, 1, 1, 0, 0]),  # warped: 0.4 1 0.6 0 0
        ([0.0, 1, 1, 0, 0], 0.6, [1.0, 1, 0, 0, 0]),  # warped: 0.6 1 0.4 0 0
        ([1.0, 1, 1, 1, 1], 2.4, [1.0, 1, 1, 0, 0]),  # warped: 1 1 0.6 0 0, since there is nothing outside the frame
    ],
)
def test_a_mask_keeps_the_voxels_of_which_more_than_half_is_inside(label, columns, moved, monkeypatch):
    monkeypatch.setattr(training, "random_strength_tps", lambda n, size, *a: constant(n, 0.0, columns, size))
    mask = torch.tensor(label).expand(1, 1, 3, 5)
    film, found = varied_films(mask * 0.5, mask, seeded(), 1.0)
    assert torch.equal(found, torch.tensor(moved).expand(1, 1, 3, 5))
    ahead = torch.cat([mask, torch.zeros(1, 1, 3, 5)], -1)
    whole, part = int(columns), columns - int(columns)
    shifted = (1 - part) * ahead[..., whole : whole + 5] + part * ahead[..., whole + 1 : whole + 6]
    assert_close(film, 0.5 * shifted, atol=1e-5, rtol=0)


def test_films_are_varied_in_order_and_only_as_asked(monkeypatch):
    calls = []

    def named(name, result):
        return lambda *a, **more: calls.append((name, a[-1] if name != "other" else more["identity_share"])) or result(*a)

    monkeypatch.setattr(training, "random_opacities", named("opacities", lambda image, *a: image + 1))
    monkeypatch.setattr(training, "random_faults", named("faults", lambda image, label, *a: (image**2, 1 - label)))
    monkeypatch.setattr(training, "random_intensity", named("intensity", lambda image, *a: image * 2))
    monkeypatch.setattr(training, "random_strength_tps", named("protocol", lambda n, size, *a: constant(n, 0.0, 0.0, size)))
    monkeypatch.setattr(
        training, "random_training_deformation", named("other", lambda n, size, *a: constant(n, 0.0, 0.0, size))
    )
    image = torch.rand(2, 1, 4, 4, generator=seeded())
    mask = (image > 0.5).float()
    as_they_are = varied_films(image, mask, seeded())
    assert as_they_are[0] is image and as_they_are[1] is mask and not calls
    film, found = varied_films(image, mask, seeded(), 0.7, intensity=0.3, opacities=0.2)
    assert calls == [("opacities", 0.2), ("intensity", 0.3), ("protocol", 0.7)]
    assert_close(film, 2 * (image + 1))
    assert torch.equal(found, mask)
    calls.clear()
    film, found = varied_films(image, mask, seeded(), intensity=0.3, opacities=0.2, faults=0.4)
    assert calls == [("opacities", 0.2), ("faults", 0.4), ("intensity", 0.3)]
    assert_close(film, 2 * (image + 1) ** 2)
    assert torch.equal(found, 1 - mask)
    calls.clear()
    generator = seeded()
    for _ in range(300):
        varied_films(image, mask, generator, 0.7, framing_share=0.3)
    assert 0.22 < calls.count(("other", 0.1)) / 300 < 0.38 and calls.count(("protocol", 0.7)) == 300 - calls.count(
        ("other", 0.1)
    )
    with pytest.raises(ValueError, match="'framing_share' = 0.3 needs a 'strength'"):
        varied_films(image, mask, seeded(), framing_share=0.3)


@pytest.mark.parametrize("size", [(12, 12, 12), (10, 8, 26)])
def test_training_deformations_of_volumes_are_seeded_never_fold_and_leave_some_as_they_are(size):
    def sample(seed, **more):
        return random_training_deformation(60, size, seeded(seed), **more)

    ddf = sample(0, identity_share=0.3)
    assert ddf.shape == (60, 3, *size) and torch.equal(ddf, sample(0, identity_share=0.3))
    still = (ddf == 0).flatten(1).all(1)
    assert 0.15 < still.float().mean() < 0.45
    moved = sample(1, identity_share=0.0)
    assert not (moved == 0).flatten(1).all(1).any() and folding_fraction(moved).max() == 0
    relative = moved / torch.tensor([n / 2 for n in size]).view(3, 1, 1, 1)
    assert (relative.square().mean((0, 2, 3, 4)).sqrt() > 0.1).all()  # along every axis, a tenth of half the frame


def test_maps_of_volumes_are_drawn_on_few_points_and_show_the_same_at_any_size():
    small, large = (random_training_deformation(4, (n, 24, 24), seeded(3)) for n in (24, 47))
    assert_close(large[:, 1:, ::2], small[:, 1:], atol=1e-4, rtol=0)
    assert_close(large[:, 0, ::2], small[:, 0] * 2, atol=1e-4, rtol=0)


def test_a_deformation_of_ones_own_takes_the_place_of_all_others():
    image = torch.rand(2, 1, 6, 8, generator=seeded())
    given = varied_films(
        image, torch.ones_like(image), seeded(), 1.0, deformation=lambda n, size, draw: constant(n, 0.0, 2.0, size)
    )
    assert_close(given[0][..., :6], image[..., 2:])
    assert not given[0][..., 6:].any() and torch.equal(given[1], torch.ones_like(image) * (given[0] > 0))


def test_frames_have_the_scales_that_are_asked_for_and_maps_of_films_may_be_drawn_on_few_points():
    wide = random_framing(300, (9, 13), seeded(), (0.5, 3.0))
    scale = (wide[:, 0, 8, 6] - wide[:, 0, 0, 6]) / 8 + 1
    assert 0.5 <= scale.min() < 0.6 and 2.8 < scale.max() <= 3.0
    small = random_training_deformation(6, (16, 16), seeded(2), framing_share=1.0, frames=(2.0, 2.5))
    large = random_training_deformation(6, (31, 46), seeded(2), framing_share=1.0, frames=(2.0, 2.5), points=16)
    assert_close(large[:, 0, ::2, ::3], small[:, 0] * 2, atol=1e-4, rtol=1e-4)
    assert_close(large[:, 1, ::2, ::3], small[:, 1] * 3, atol=1e-4, rtol=1e-4)


def test_a_displacement_is_halved_until_it_no_longer_folds_and_others_are_left():
    folded, other = stretched(1, -3.0), stretched(1, 0.4)  # determinants of -2, -0.5 and then 0.25 along each axis
    found = training._halved_until_fold_free(torch.cat([torch.cat([folded[:, :1], folded[:, :1] * 0], 1), other]))
    assert_close(found[:1, :1], folded[:, :1] / 4)
    assert torch.equal(found[1:], other)


def test_frames_of_volumes_change_along_each_axis_by_itself():
    size = (5, 7, 9)
    ddf = random_framing(200, size, seeded())
    for axis, n in enumerate(size):
        line = ddf[:, axis].movedim(1 + axis, -1)
        assert_close(line, line[:, :1, :1].expand_as(line))
        scale = (line[:, 0, 0, -1] - line[:, 0, 0, 0]) / (n - 1) + 1
        assert 0.85 <= scale.min() < 0.9 and 1.45 < scale.max() <= 1.5
        shift, room = line[:, 0, 0, n // 2], (scale - 1).clamp(min=0.05) * (n - 1) / 2
        assert (shift.abs() <= room + 1e-5).all() and (shift.abs() / room).max() > 0.9


def test_draws_of_the_plane_stay_those_that_trained_the_bundles():
    ddf = random_training_deformation(6, (32, 32), seeded(5))
    assert ddf.double().abs().sum().item() == pytest.approx(27691.22, rel=1e-4)
