import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.augmentation import faults, random_faults
from monai_diffeo.errors import ShapeError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def films(batch=4, size=(40, 48)):
    return 0.2 + 0.6 * torch.rand(batch, 1, *size, generator=seeded(9))


def masks(batch=4, size=(40, 48)):
    label = torch.zeros(batch, 1, *size)
    label[:, :, 10:26, 6:18] = label[:, :, 10:26, 28:40] = 1
    return label


def only(monkeypatch, name):
    monkeypatch.setattr(faults, "_FAULTS", (getattr(faults, name),))


def test_a_share_of_the_films_has_a_fault_and_each_kind_comes_as_often(monkeypatch):
    given = films(400)
    shown, seen = random_faults(given, masks(400), seeded(), 0.3)
    changed = (shown != given).flatten(1).any(1)
    assert 0.24 < changed.float().mean() < 0.36
    assert torch.equal(seen[~changed], masks(400)[~changed])
    counts = [0] * len(faults._FAULTS)

    def counted(number):
        def fault(image, label, generator):
            counts[number] += len(image)
            return image, label

        return fault

    monkeypatch.setattr(faults, "_FAULTS", tuple(map(counted, range(len(counts)))))
    random_faults(given, masks(400), seeded(), 1.0)
    assert sum(counts) == 400 and min(counts) > 50


def test_films_stay_in_their_range_the_callers_stay_as_they_were_and_the_seed_decides():
    image, label = films(60), masks(60)
    image_before, label_before = image.clone(), label.clone()
    shown, seen = random_faults(image, label, seeded(), 1.0)
    assert torch.equal(image, image_before) and torch.equal(label, label_before)
    assert shown.shape == image.shape and seen.shape == label.shape and shown.min() >= 0 and shown.max() <= 1
    assert set(seen.unique().tolist()) <= {0.0, 1.0}
    again = random_faults(image, label, seeded(), 1.0)
    assert torch.equal(again[0], shown) and torch.equal(again[1], seen)
    assert not torch.equal(random_faults(image, label, seeded(1), 1.0)[0], shown)
    left = random_faults(image, label, seeded(), 0.0)
    assert left[0] is image and left[1] is label


def test_over_exposure_cuts_one_end_off_and_keeps_the_order_of_grey_values(monkeypatch):
    only(monkeypatch, "_over_exposed")
    given = torch.linspace(0, 1, 64).view(1, 1, 8, 8).repeat(200, 1, 1, 1)
    shown, _ = random_faults(given, torch.zeros_like(given), seeded(), 1.0)
    rows = shown.flatten(1)
    assert (rows.diff() >= 0).all()
    black, white = ((rows == end).sum(1) > 5 for end in (0, 1))
    assert (black ^ white).all() and 0.35 < black.float().mean() < 0.65


def test_one_lung_becomes_white_with_what_lies_around_it_and_the_mask_stays(monkeypatch):
    only(monkeypatch, "_white_lung")
    given = torch.full((100, 1, 40, 48), 0.3)
    shown, seen = random_faults(given, masks(100), seeded(), 1.0)
    assert torch.equal(seen, masks(100))
    whiter = (shown - given).mean((1, 2))
    first, second = whiter[:, 8:16].mean(1), whiter[:, 30:38].mean(1)
    assert (torch.maximum(first, second) > 5 * torch.minimum(first, second)).all()
    assert 0.3 < (first > second).float().mean() < 0.7
    rise = (shown - given)[:, 0, 18].max(1).values  # no step at the edge of the mask, that would give the outline away
    inside, outside = (shown - given)[:, 0, 18, 6], (shown - given)[:, 0, 18, 5]
    assert ((inside - outside).abs() < 0.2 * rise)[first > second].all()


def test_a_black_part_reaches_from_one_side_and_leaves_the_mask(monkeypatch):
    only(monkeypatch, "_part_black")
    shown, seen = random_faults(films(200), masks(200), seeded(), 1.0)
    black = shown == 0
    share = black.float().mean((1, 2, 3))
    assert 0.15 < share.min() and share.max() < 0.6
    assert (seen * black == 0).all() and torch.equal(seen * ~black, masks(200) * ~black)
    sides = torch.stack([black[:, 0, 0].all(1), black[:, 0, -1].all(1), black[:, 0, :, 0].all(1), black[:, 0, :, -1].all(1)], 1)
    assert (sides.sum(1) == 1).all() and (sides.float().mean(0) > 0.15).all()


@pytest.mark.parametrize("name, sign", [("_blurred", -1), ("_noisy", 1)])
def test_blur_takes_detail_away_and_noise_adds_it(monkeypatch, name, sign):
    only(monkeypatch, name)
    given = films(20)
    shown, seen = random_faults(given, masks(20), seeded(), 1.0)
    detail = [x.diff(dim=3).square().mean((1, 2, 3)) for x in (given, shown)]
    assert (sign * (detail[1] - detail[0]) > 0).all() and torch.equal(seen, masks(20))
    assert_close(shown.mean((1, 2, 3)), given.mean((1, 2, 3)), atol=0.03, rtol=0)


def test_only_films_with_masks_of_their_frame_are_taken():
    with pytest.raises(ShapeError, match=r"'films' must have shape \(B, C, H, W\), got \(1, 1, 4, 4, 4\). Made for films"):
        random_faults(torch.rand(1, 1, 4, 4, 4), torch.rand(1, 1, 4, 4, 4))
    with pytest.raises(ShapeError, match=r"'masks' must have shape \(2, K, 8, 8\), got \(2, 1, 4, 8\)"):
        random_faults(torch.rand(2, 1, 8, 8), torch.zeros(2, 1, 4, 8))
