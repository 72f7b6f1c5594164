"""Signs are 0 for the best, grow with what is wrong, and of a batch are those of its images."""

import math

import pytest
import torch

from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.trust import References, film_signs
from monai_diffeo.trust.shapes import SHAPE_NUMBERS, shape_numbers
from tests.helpers import blob, tiny_canonicalizer


def two_parts(batch=1, size=32, shift=0, height=16):
    mask = torch.zeros(batch, size, size)
    for i in range(batch):
        top = 8 - height // 2 + 8 + shift
        mask[i, top : top + height, 4 + i % 3 : 12] = 1
        mask[i, top : top + height - i % 4, 20:28] = 1
    return mask


def references():
    draw = torch.Generator().manual_seed(0)
    masks = torch.stack([two_parts(1, shift=s % 5 - 2, height=12 + s % 7)[0] for s in range(40)])
    masks = (masks + 0.4 * torch.rand(masks.shape, generator=draw) > 0.5).float()
    return References.of(blob(40, (32, 32), torch.linspace(-0.2, 0.2, 40)), masks[:, None])


def wrapped(images, network, **settings):
    return DiffeoInferer(tiny_canonicalizer(), tta_samples=4, **settings).infer(images, network, plain=True)


def test_known_shapes():
    mask = torch.zeros(1, 101, 101)
    mask[0, 20:61, 10:31] = 1  # 41 x 21
    mask[0, 20:61, 60:91] = 1  # 41 x 31
    mask[0, 100, 0] = 1
    numbers, rest = shape_numbers(mask)
    found = dict(zip(SHAPE_NUMBERS, numbers[0].tolist()))
    area = 41 * 52
    assert abs(rest.item() - 1 / (area + 1)) < 1e-12
    assert abs(found["area"] - (area / 101**2) ** 0.5) < 1e-9 and abs(found["area_ratio"] - 21 / 31) < 1e-9
    assert abs(found["first_row"] - 0.4) < 1e-9 and abs(found["first_column"] - 0.2) < 1e-9
    assert abs(found["second_column"] - 0.75) < 1e-9 and abs(found["first_slope"]) < 1e-9
    assert abs(found["first_width"] - ((21**2 - 1) / 12) ** 0.5 / 100) < 1e-9
    assert abs(found["roughness"] - 2 * (41 + 21 + 41 + 31) / area**0.5) < 1e-9


def test_an_empty_mask_and_a_line_have_no_shape():
    line = torch.zeros(1, 8, 8)
    line[0, :, 3] = 1
    for mask in (torch.zeros(1, 8, 8), line):
        numbers, rest = shape_numbers(mask)
        assert bool(numbers.isnan().all()) and rest.item() == 1


def test_a_batch_has_the_signs_of_its_images():
    images, refs = blob(3, (32, 32), torch.tensor([0.0, 0.2, -0.3])), references()
    limits = {"energy": 100.0, "disagreement": 2.0}
    many = film_signs(wrapped(images, lambda x: 8 * x - 2, motion_limits=limits), refs, 8 * images - 3)
    for i in range(3):
        one = film_signs(wrapped(images[i : i + 1], lambda x: 8 * x - 2, motion_limits=limits), refs, 8 * images[i : i + 1] - 3)
        assert set(one) == set(many) and {"second", "change", "search_change", "disagreement"} <= set(one)
        for name in one:
            torch.testing.assert_close(many[name][i : i + 1], one[name], atol=1e-5, rtol=1e-4, equal_nan=True)


def test_what_is_wrong_raises_its_sign_alone_and_agreement_is_zero():
    images, refs = blob(1), references()
    result = wrapped(images, lambda x: torch.where(two_parts()[:, None] > 0, 9.0, -9.0) + 0 * x)
    for sign in ("second", "whole"):
        same, other = (
            film_signs(result, refs, **{sign: answer}) for answer in (result.prediction, result.prediction.flip(2) - 4)
        )
        assert same[sign].item() == 0 < other[sign].item()
        assert {name for name in same if not torch.equal(same[name].nan_to_num(), other[name].nan_to_num())} == {sign}
    assert all(bool((value.isnan() | (value >= 0)).all()) for value in same.values())


def test_the_log_odds_of_an_outlier_are_a_sign_from_zero_on():
    result, odds = wrapped(blob(3), lambda x: x - 0.5), torch.tensor([-40.0, 0.0, 5.0])
    found = film_signs(result, references(), outlier=odds)["outlier"]
    assert found[0] < 1e-12 and found[1].item() == pytest.approx(math.log(2)) and 5 < found[2] < 5.01
    assert found.dtype == torch.float64 and "outlier" not in film_signs(result, references())


def test_training_films_are_near_their_own_references_and_noise_is_far():
    refs = references()
    assert refs.film.mean().abs() < 1e-6 < refs.film.square().mean() <= 1
    good = wrapped(blob(1), lambda x: torch.where(two_parts()[:, None] > 0, 9.0, -9.0) + 0 * x)
    noise = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    bad = wrapped(noise, lambda x: 40 * (x - 0.5))
    signs = [film_signs(result, refs) for result in (good, bad)]
    for name in ("likeness", "shape", "parts"):
        assert signs[0][name].item() < signs[1][name].item(), name
