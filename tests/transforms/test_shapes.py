import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch.testing import assert_close

from monai_diffeo.errors import ShapeError
from monai_diffeo.metrics import betti_numbers, connected_components
from monai_diffeo.networks import ShapePrior
from monai_diffeo.radiograph.lungs import separate_lungs
from monai_diffeo.transforms import SeparateLungsd, ShapesToMaskd
from monai_diffeo.transforms.shapes import shapes_to_mask


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


def test_in_space_too():
    odds = torch.full((1, 8, 8, 8), -4.0)
    odds[0, 1:7, 1:7, 1:7] = 3.0
    odds[0, 3, 3, 3] = -4.0
    odds[0, 7, 7, 7] = 3.0
    mask, level = shapes_to_mask(odds)
    assert level is None and betti_numbers(mask[0].numpy()) == (1, 0, 0) and mask.sum() == 216
    assert_close(shapes_to_mask(odds[:, :6, :6, 4:])[0].sum(), torch.tensor(75))
