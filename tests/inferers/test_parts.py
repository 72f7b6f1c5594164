"""Parts of an answer are kept by where they lie in canonical pose."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalization, Canonicalizer
from monai_diffeo.errors import ShapeError
from monai_diffeo.families import AffineMatrix
from monai_diffeo.inferers import DiffeoInferer, PartsInPlace
from monai_diffeo.inferers.aggregation import mask_dice
from monai_diffeo.metrics import connected_components
from monai_diffeo.networks import ImageAtlas
from tests.helpers import Brightness, FixedTheta, Turned

N = 16
IMAGE = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.1


def box(*slices, shape=(N, N)):
    mask = torch.zeros(shape)
    mask[slices] = 1
    return mask


LEFT, RIGHT = (slice(3, 12), slice(2, 6)), (slice(3, 12), slice(10, 14))
EXPECTED = box(*LEFT) + box(*RIGHT)


def atlas_of(place):
    return ImageAtlas(place.shape).measure([place[None]])


def shifted(quarters=0.0, **settings):
    """A canonicaliser that moves every image along the columns: canonical column ``x`` is column ``x + 8 * quarters``."""
    theta = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, quarters]])
    return Canonicalizer(Brightness(), AffineMatrix(), predictor=FixedTheta(theta), max_energy_increase=None, **settings)


def answer_of(mask, height=3.0):
    return torch.where(mask > 0, height, -height)[None, None]


def asked(mask, canonicalizer=None, place=EXPECTED, count=2, **settings):
    parts = PartsInPlace(atlas_of(place), count, **settings)
    found = (canonicalizer or shifted())(IMAGE)
    answer = answer_of(mask)
    return answer, parts(answer, found)


def test_a_small_part_in_place_is_kept_and_a_larger_one_beside_it_is_not():
    corner = box(slice(13, 16), slice(0, 16))  # 48 voxels
    small = box(slice(5, 7), slice(11, 13))
    given, kept = asked(box(*LEFT) + small + corner)
    assert (kept[0, 0] > 0).equal(box(*LEFT) + small > 0)
    assert_close(kept[0, 0][corner > 0], -given[0, 0][corner > 0])
    assert kept[0, 0][corner == 0].equal(given[0, 0][corner == 0])


def test_as_many_parts_as_may_be_kept_stay_wherever_they_lie():
    given, kept = asked(box(*LEFT) + box(slice(14, 16), slice(0, 16)))
    assert kept.equal(given)


@pytest.mark.parametrize("quarters", [-0.5, 0.5])
def test_the_place_is_carried_to_where_the_search_found_it(quarters):
    """Two like parts: the one that lies, in canonical pose, where the atlas has something stays."""
    first, second = box(slice(6, 10), slice(2, 5)), box(slice(6, 10), slice(11, 14))
    _, kept = asked(first + second, shifted(quarters), place=box(slice(6, 10), slice(6, 10)), count=1)
    assert (kept[0, 0] > 0).equal((first if quarters < 0 else second) > 0)


def test_it_turns_with_the_film():
    found = shifted(orientation=Turned())(IMAGE)
    assert found.rotations.tolist() != [0]
    one, other = box(slice(0, 4), slice(6, 10)), box(slice(6, 10), slice(0, 4))
    place = found.warp_input(other[None, None])[0, 0]
    kept = PartsInPlace(atlas_of(place), 1)(answer_of(one + other), found)
    assert (kept[0, 0] > 0).equal(other > 0)


def test_outlines_of_what_is_kept_stay_when_the_answer_is_resized():
    islands = F.interpolate(torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3)), (N, N), mode="bicubic") - 0.8
    kept = PartsInPlace(atlas_of(EXPECTED), 2)(islands, shifted()(IMAGE))
    before, after = (F.interpolate(logits, (5 * N, 5 * N), mode="bilinear")[0, 0].numpy() > 0 for logits in (islands, kept))
    parts, count = connected_components(before, "full")
    whole = [bool(after[parts == i].all()) for i in range(1, count + 1)]
    gone = [not after[parts == i].any() for i in range(1, count + 1)]
    assert [not one for one in whole] == gone and 0 < sum(gone) < count and not (after & ~before).any()


def test_what_is_dropped_is_mirrored_at_the_threshold():
    mask = box(*LEFT) + box(slice(13, 16), slice(0, 16))
    given, kept = asked(mask, count=1, threshold=0.7)
    assert_close(kept[0, 0, 13:], 2 * math.log(0.7 / 0.3) - given[0, 0, 13:])


def test_a_threshold_decides_what_is_a_part():
    faint = box(slice(13, 16), slice(0, 16)) * 0.2
    answer = answer_of(box(*LEFT)) * (faint[None, None] == 0) + faint
    found = shifted()(IMAGE)
    for threshold, dropped in ((0.5, True), (0.6, False)):
        assert bool(PartsInPlace(atlas_of(EXPECTED), 1, threshold).dropped(answer, found).any()) is dropped


def test_a_batch_is_each_image_and_each_channel_has_its_own_parts():
    generator = torch.Generator().manual_seed(1)
    logits = F.interpolate(torch.randn(3, 2, 6, 6, generator=generator), (N, N), mode="bicubic")
    images = torch.rand(3, 1, N, N, generator=generator) + 0.1
    canonicalizer, parts = shifted(0.1), PartsInPlace(atlas_of(EXPECTED), 1)
    together = parts(logits, canonicalizer(images))
    assert not together.equal(logits)
    for i in range(3):
        found = canonicalizer(images[i : i + 1])
        for k in range(2):
            assert together[i : i + 1, k : k + 1].equal(parts(logits[i : i + 1, k : k + 1], found))


def test_the_images_of_a_batch_have_places_of_their_own():
    found = Canonicalization.join([shifted(quarters)(IMAGE) for quarters in (-0.5, 0.5)])
    answer = answer_of(box(slice(6, 10), slice(2, 5)) + box(slice(6, 10), slice(11, 14))).repeat(2, 1, 1, 1)
    kept = PartsInPlace(atlas_of(box(slice(6, 10), slice(6, 10))))(answer, found) > 0
    assert kept[0, ..., :8].any() and not kept[0, ..., 8:].any() and kept[1, ..., 8:].any() and not kept[1, ..., :8].any()


def test_an_image_that_is_not_moved_stays_as_it_is():
    images = torch.rand(2, 1, N, N, generator=torch.Generator().manual_seed(1)) + 0.1
    images[1] = float("nan")
    found = shifted()(images)
    assert found.moved.tolist() == [True, False]
    answer = answer_of(box(*LEFT) + box(slice(13, 16), slice(0, 16))).repeat(2, 1, 1, 1)
    kept = PartsInPlace(atlas_of(EXPECTED), 1)(answer, found)
    assert not kept[0].equal(answer[0]) and kept[1].equal(answer[1])


def test_an_answer_of_fewer_voxels_and_one_in_space():
    coarse = F.max_pool2d(box(*LEFT)[None, None], 2)[0, 0]
    wrong = box(slice(7, 8), slice(0, 8), shape=(8, 8))
    found = shifted()(IMAGE)
    kept = PartsInPlace(atlas_of(EXPECTED), 1)(answer_of(coarse + wrong), found)
    assert (kept[0, 0] > 0).equal(coarse > 0)
    cube, far = box(*[slice(2, 5)] * 3, shape=(8, 8, 8)), box(slice(6, 8), shape=(8, 8, 8))
    theta = torch.zeros(1, 12)
    canonicalizer = Canonicalizer(Brightness(), AffineMatrix(3), predictor=FixedTheta(theta), max_energy_increase=None)
    kept = PartsInPlace(atlas_of(cube))(answer_of(cube + far), canonicalizer(torch.rand(1, 1, 8, 8, 8) + 0.1))
    assert (kept[0, 0] > 0).equal(cube > 0)


def test_an_inferer_drops_parts_of_its_prediction_and_nothing_else():
    mask = box(*LEFT) + box(*RIGHT) + box(slice(13, 16), slice(0, 16))
    network = lambda image: answer_of(mask).expand(len(image), -1, -1, -1)  # noqa: E731
    parts = PartsInPlace(atlas_of(EXPECTED), 2)
    with_parts, without = (DiffeoInferer(shifted(0.05), parts=p).infer(IMAGE, network, plain=True) for p in (parts, None))
    assert with_parts.prediction.equal(parts(without.prediction, without.canonicalization))
    assert not with_parts.prediction.equal(without.prediction) and with_parts.plain.equal(without.plain)
    assert DiffeoInferer(shifted(0.05), parts=parts, enabled=False)(IMAGE, network).equal(network(IMAGE))


def test_the_pose_whose_answers_count_says_where_parts_lie():
    """Of two like parts the one counts that is in place at rest, where answers on the deformed image do not count."""
    answer = answer_of(box(slice(6, 10), slice(2, 5)) + box(slice(6, 10), slice(11, 14)))
    parts = PartsInPlace(atlas_of(box(slice(6, 10), slice(12, 15))), 1)
    for energy, right in ((1e9, False), (-1e9, True)):
        settings = {"motion_limits": {"energy": energy, "disagreement": 1e9}, "tta_samples": 4, "parts": parts}
        poses = []
        inferer = DiffeoInferer(shifted(-1.0), on_result=poses.append, **settings)
        kept = inferer(IMAGE, lambda image: answer.expand(len(image), -1, -1, -1))
        assert bool(poses[0].ddf.any()) is not right
        assert bool((kept[..., 8:] > 0).any()) is right and bool((kept[..., :8] > 0).any()) is not right


WRONG = [torch.zeros(1, 3), torch.zeros(2, 1, N, N), {"seg": torch.zeros(1, 1, N, N)}, torch.ones(1, 1, N, N, dtype=torch.long)]


@pytest.mark.parametrize("answer", WRONG)
def test_another_prediction_is_refused(answer):
    with pytest.raises(
        ShapeError, match=r"PartsInPlace.*one tensor of floating-point logits \(1, K, H, W\).*Leave out 'parts'"
    ):
        PartsInPlace(atlas_of(EXPECTED))(answer, shifted()(IMAGE))


@pytest.mark.parametrize("settings", [{"num_components": 0}, {"threshold": 1.0}, {"threshold": 0}])
def test_settings_are_checked(settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=f"PartsInPlace: '{name}'"):
        PartsInPlace(atlas_of(EXPECTED), **settings)


def test_gradients_flow_through_what_is_kept():
    logits = answer_of(box(*LEFT) + box(slice(13, 16), slice(0, 16))).requires_grad_()
    kept = PartsInPlace(atlas_of(EXPECTED), 1)(logits, shifted()(IMAGE))
    kept.sum().backward()
    assert np.unique(logits.grad).tolist() == [-1.0, 1.0]


def test_an_atlas_of_other_axes_or_of_several_channels_and_what_cannot_be_called_are_refused():
    with pytest.raises(ShapeError, match="PartsInPlace.*one channel"):
        PartsInPlace(ImageAtlas((N, N), in_channels=2))
    with pytest.raises(ShapeError, match=r"PartsInPlace.*2 axes as the images have.*\(4, 4, 4\)"):
        PartsInPlace(ImageAtlas((4, 4, 4)))(answer_of(EXPECTED), shifted()(IMAGE))
    with pytest.raises(TypeError, match="DiffeoInferer: 'parts' must be a function, got the class PartsInPlace"):
        DiffeoInferer(shifted(), parts=PartsInPlace)


def test_under_autocast_and_with_metadata_several_poses_give_the_same_parts():
    cube, far = box(*[slice(2, 5)] * 3, shape=(8, 8, 8)), box(slice(6, 8), shape=(8, 8, 8))
    still, volume = FixedTheta(torch.zeros(1, 12)), torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    found = Canonicalizer(Brightness(), AffineMatrix(3), predictor=still, max_energy_increase=None)(volume)
    with torch.autocast("cpu", torch.bfloat16):
        kept = PartsInPlace(atlas_of(F.interpolate(cube[None, None], (16, 16, 16))[0, 0]))(answer_of(cube + far), found)
    assert (kept[0, 0] > 0).equal(cube > 0)
    mask = box(*LEFT) + box(*RIGHT) + box(slice(13, 16), slice(0, 16))
    network = lambda image: answer_of(mask).expand(len(image), -1, -1, -1)  # noqa: E731
    settings = {"parts": PartsInPlace(atlas_of(EXPECTED), 2), "tta_samples": 4}
    one = DiffeoInferer(shifted(), **settings)(IMAGE, network)
    many = DiffeoInferer(shifted(), tta_batch_size=4, **settings)(MetaTensor(IMAGE, meta={"told": [1]}), network)
    assert (one > 0).sum() == EXPECTED.sum() and isinstance(many, MetaTensor) and many.meta["told"] == [1]
    assert_close(many.as_tensor(), one, atol=1e-5, rtol=0)


def test_the_mean_over_poses_loses_the_same_parts_and_a_decision_compares_what_both_gave():
    mask = box(*LEFT) + box(*RIGHT) + box(slice(13, 16), slice(0, 16))
    network = lambda image: answer_of(mask).expand(len(image), -1, -1, -1)  # noqa: E731
    settings = {"motion_limits": {"energy": -1e9, "disagreement": 0.5, "overlap": 1.01}, "tta_samples": 4}
    inferer = DiffeoInferer(shifted(0.05), parts=PartsInPlace(atlas_of(EXPECTED), 2), **settings)
    result = inferer.infer(IMAGE, network, plain=True)
    corner = (slice(None), slice(None), slice(13, 16))
    assert not (result.averaged[corner] > 0).any() and not (result.prediction[corner] > 0).any()
    assert (result.plain[corner] > 0).all()
    seen = []
    inferer.canonicalizer.limits = SimpleNamespace(decision=lambda signs, status: seen.append(signs["change"]) or "ok")
    inferer.infer(IMAGE, network, plain=True)
    assert seen[0] < 0.1 < 1 - mask_dice(result.prediction > 0, result.plain > 0)
