import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.data import MetaTensor
from monai.transforms import FillHoles, KeepLargestConnectedComponent
from torch.testing import assert_close

from monai_diffeo.errors import ShapeError
from monai_diffeo.metrics import betti_numbers, connected_components, largest_components
from monai_diffeo.networks import ShapePrior
from monai_diffeo.radiograph.lungs import separate_lungs, split_lungs
from monai_diffeo.transforms import KeepLargestPartsd, SeparateLungsd, ShapesToMaskd
from monai_diffeo.transforms.shapes import largest_parts, shapes_to_mask


def boxes():
    mask = np.zeros((10, 16))
    mask[2:8, 2:6] = 1
    mask[1:7, 9:14] = 1
    return mask


def test_lungs_are_separated_the_one_on_the_images_left_first_whichever_is_larger():
    for mask in (boxes(), boxes()[::-1, ::-1]):
        first, second = separate_lungs(mask)
        assert first.nonzero()[1].mean() < second.nonzero()[1].mean()
        assert not (first & second).any() and ((first | second) == (mask > 0)).all()
    specked = boxes()
    specked[9, 0] = 1
    assert separate_lungs(specked).sum() == boxes().sum()


def test_what_has_no_two_lungs_is_refused():
    with pytest.raises(ValueError, match="two lungs that do not touch, got 1 part"):
        separate_lungs(np.ones((4, 4)))
    with pytest.raises(ShapeError, match="separate_lungs"):
        separate_lungs(np.ones((1, 4, 4)))


def test_split_lungs_orders_by_column_and_gives_the_rest():
    specked = boxes()
    specked[9, 0] = specked[0, 15] = 1
    first, second, rest = split_lungs(specked)
    assert (first.sum(), second.sum(), rest.sum()) == (24, 30, 2) and first[:, :7].sum() == 24
    assert (first.astype(int) + second + rest == specked).all()
    mirrored = split_lungs(specked[:, ::-1])
    assert (mirrored[0] == second[:, ::-1]).all() and (mirrored[1] == first[:, ::-1]).all()


def test_the_second_lung_has_its_least_share_or_everything_is_rest():
    mask = np.zeros((12, 30))
    mask[:10, :10] = mask[:5, 20:22] = 1  # 100 and 10
    assert [part.sum() for part in split_lungs(mask)] == [100, 10, 0]
    mask[4, 21] = 0
    assert [part.sum() for part in split_lungs(mask)] == [0, 0, 109]
    assert [part.sum() for part in split_lungs(mask, min_share=0.09)] == [100, 9, 0]
    mask[10, 10] = 1  # at a corner: the same part
    assert [part.sum() for part in split_lungs(mask, min_share=0.05)] == [101, 9, 0]
    for one in (np.zeros((3, 4)), np.ones((3, 4))):
        first, second, rest = split_lungs(one, 0.0)
        assert not first.any() and not second.any() and (rest == one).all() and rest.dtype == first.dtype == bool
    assert not split_lungs(0.5 * mask)[2].any()
    with pytest.raises(ShapeError, match="split_lungs"):
        split_lungs(mask[None])


@given(arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_the_largest_part_without_holes(mask):
    """Against a flood fill by hand: the largest part across faces, and everything that the frame cannot reach around it."""
    labels, count = connected_components(mask, "face")
    sizes = [int((labels == k).sum()) for k in range(1, count + 1)]
    part = labels == sizes.index(max(sizes)) + 1 if sizes else np.zeros_like(mask)
    padded = np.pad(~part, 1, constant_values=True)
    reached = np.zeros_like(padded)
    reached[0, 0] = True
    for _ in range(padded.size):
        spread = np.pad(reached, 1)
        near = [spread[i : i + padded.shape[0], j : j + padded.shape[1]] for i in range(3) for j in range(3)]
        reached = np.logical_or.reduce(near) & padded
    np.testing.assert_array_equal(largest_parts(mask, 1, "face"), ~reached[1:-1, 1:-1])


@given(arrays(np.int8, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 1)), st.integers(1, 4))
def test_largest_components_are_ranked_by_size(mask, count):
    for connectivity in ("face", "full"):
        ranked = largest_components(mask, count, connectivity)
        labels, found = connected_components(mask, connectivity)
        sizes = sorted((int((labels == k).sum()) for k in range(1, found + 1)), reverse=True)[:count]
        assert [int((ranked == k).sum()) for k in range(1, count + 1)] == sizes + [0] * (count - len(sizes))
        assert all(len(np.unique(labels[ranked == k])) == 1 for k in range(1, len(sizes) + 1))
        assert not ranked[mask == 0].any() and ranked.max() <= count


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, MetaTensor])
def test_the_transform_gives_a_channel_a_lung_and_keeps_the_kind(kind):
    data = {"label": kind(boxes()[None].astype(np.float32)), "other": 1}
    out = SeparateLungsd("label")(data)
    assert type(out["label"]) is type(data["label"]) and out["other"] == 1 and tuple(out["label"].shape) == (2, 10, 16)
    assert out["label"].sum() == boxes().sum()


def test_log_odds_of_whole_shapes_become_their_union():
    odds = ShapePrior([[0.0, -0.45], [0.0, 0.45]], [[0.6, 0.3], [0.6, 0.3]]).log_odds
    from monai_diffeo.networks.template.prior import relative_grid

    values = odds(relative_grid((40, 50)))[0]
    mask, level = shapes_to_mask(values)
    assert level == 0 and torch.equal(mask, (values > 0).any(0, keepdim=True))
    out = ShapesToMaskd("pred")({"pred": MetaTensor(values, meta={"filename_or_obj": "a"})})
    assert isinstance(out["pred"], MetaTensor) and out["pred"].shape == (1, 40, 50) and out["pred_level"] == 0.0
    assert out["pred"].meta["filename_or_obj"] == "a" and set(out["pred"].unique().tolist()) == {0.0, 1.0}


def torn(neck):
    """A shape whose neck has log-odds ``neck``, and another one beside it."""
    odds = torch.full((2, 12, 20), -4.0)
    odds[0, 1:5, 2:7] = odds[0, 6:11, 2:6] = 3.0
    odds[0, 5, 3:5] = neck
    odds[1, 2:10, 12:17] = 3.0
    return odds


def test_a_torn_neck_is_read_at_the_level_that_joins_it():
    mask, level = shapes_to_mask(torn(-0.4))
    assert level == -0.5 and betti_numbers(mask[0].numpy()) == (2, 0) and mask[0, 5, 3]


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.booleans()), st.integers(1, 3))
def test_the_largest_parts_are_those_of_monai_wherever_their_sizes_say_which(mask, count):
    labels, found = connected_components(mask, "full")
    sizes = sorted(np.bincount(labels.ravel())[1:].tolist(), reverse=True)
    if found > count and sizes[count - 1] == sizes[count]:
        return
    channel = torch.from_numpy(mask)[None].float()
    expected = FillHoles()(KeepLargestConnectedComponent(num_components=count)(channel))
    np.testing.assert_array_equal(largest_parts(mask, count), expected[0].numpy() > 0)


def test_the_largest_parts_of_each_channel_as_a_transform():
    lungs, ring = torch.from_numpy(boxes()), torch.zeros(10, 16)
    ring[3:6, 3:6] = ring[9, 15] = 1
    ring[4, 4] = 0
    given = MetaTensor(torch.stack([lungs.float(), ring]), meta={"filename_or_obj": "a.png"})
    out = KeepLargestPartsd("pred", num_components=1)({"pred": given})["pred"]
    assert out.meta["filename_or_obj"] == "a.png" and out.dtype == torch.float32
    assert out[0].sum() == 30 and not out[0, :, :8].any() and out[1, 4, 4] == 1 and out[1].sum() == 9
    assert torch.equal(KeepLargestPartsd("pred", 2)({"pred": given})["pred"][0], given[0])


def test_where_no_level_helps_the_largest_part_stays_without_holes_and_apart():
    odds = torn(-3.9)
    odds[0, 0, 2:7] = 3.0  # the upper part is the larger one, its hole not counted
    odds[0, 2, 4] = -4.0
    odds[1, 2:10, 8:12] = 3.0
    odds[1, 8:10, 6:8] = 3.0  # the second shape touches the first
    mask, level = shapes_to_mask(odds)
    assert level is None
    assert connected_components(mask[0].numpy(), "full")[1] == 2 and betti_numbers(mask[0].numpy()) == (2, 0)
    assert mask[0, 2, 4] and not mask[0, 8, 3]


def test_a_shape_that_touches_another_at_a_corner_gives_way_there():
    odds = torn(-3.9)
    odds[0, 0, 2:7] = odds[1, 2:10, 8:12] = odds[1, 5, 7] = 3.0
    mask, level = shapes_to_mask(odds)
    assert level is None and mask[0, 4, 6] and not mask[0, 5, 7]
    assert connected_components(mask[0].numpy(), "full")[1] == 2


def test_in_space_too():
    odds = torch.full((1, 8, 8, 8), -4.0)
    odds[0, 1:7, 1:7, 1:7] = 3.0
    odds[0, 3, 3, 3] = -4.0
    odds[0, 7, 7, 7] = 3.0
    mask, level = shapes_to_mask(odds)
    assert level is None and betti_numbers(mask[0].numpy()) == (1, 0, 0) and mask.sum() == 216
    assert_close(shapes_to_mask(odds[:, :6, :6, 4:])[0].sum(), torch.tensor(75))
