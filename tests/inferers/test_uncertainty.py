"""0 where all answers are certain and the same, 1 where they say nothing; each kind of answer counts alike."""

import pytest
import torch

from monai_diffeo.inferers import DiffeoInferer, DiffeoResult, uncertainty_map
from tests.helpers import blob, tiny_canonicalizer

YES, NO = torch.full((1, 1, 2, 2), 30.0), torch.full((1, 1, 2, 2), -30.0)


def sure(index):
    return torch.eye(3)[index].view(1, 3, 1, 1).expand(1, 3, 2, 2)


@pytest.mark.parametrize(
    "answers, value",
    [
        ({"prediction": YES}, 0.0),
        ({"prediction": 1e-9 * NO}, 1.0),
        ({"prediction": YES, "plain": NO}, 1.0),
        ({"prediction": YES, "poses": (YES, NO, NO, NO), "plain": NO, "second": NO}, 1 / 6),  # a quarter of a third, twice
        ({"prediction": YES, "poses": (YES,) * 4, "second": NO, "plain": YES}, 2 / 3),
        ({"prediction": torch.tensor([3.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 2, 2) * 99}, 0.0),
        ({"prediction": torch.zeros(1, 3, 2, 2) - 5}, 1.0),
        ({"prediction": sure(0), "plain": sure(1)}, 0.75),
        ({"prediction": torch.full((1, 1, 2, 2), 0.75)}, 0.5),  # a probability
    ],
)  # fmt: skip
def test_the_map_of_known_answers(answers, value):
    torch.testing.assert_close(uncertainty_map(DiffeoResult(**answers)), torch.full((1, 1, 2, 2), value))


def test_scores_have_no_map_and_a_second_answer_of_other_classes_does_not_count():
    assert uncertainty_map(DiffeoResult(torch.rand(2, 3))) is None
    one = DiffeoResult(torch.randn(1, 2, 4, 4), second=torch.randn(1, 1, 4, 4))
    torch.testing.assert_close(uncertainty_map(one), uncertainty_map(DiffeoResult(one.prediction)))


def test_poses_are_kept_only_if_asked_and_change_no_bit_of_the_answer():
    images, network = blob(2, shift=torch.tensor([0.0, 0.3])), lambda x: 20 * (x - 0.5)
    off, on = (
        DiffeoInferer(tiny_canonicalizer(), tta_samples=4, keep_poses=kept).infer(images, network, plain=True)
        for kept in (False, "true")
    )
    assert off.poses == () and len(on.poses) == 4 and torch.equal(off.prediction, on.prediction)
    torch.testing.assert_close(torch.stack(on.poses).mean(0), on.prediction)
    both = uncertainty_map(on)
    assert both.shape == images.shape and 0 <= both.min() < 0.01 and 0.9 < both.max() <= 1
    alone = DiffeoInferer(tiny_canonicalizer(), tta_samples=4, keep_poses=True).infer(images[1:], network, plain=True)
    torch.testing.assert_close(uncertainty_map(alone), both[1:], atol=1e-4, rtol=0)
    edge = (network(images).abs() < 2).float()
    assert (both * edge).sum() / edge.sum() > 5 * (both * (1 - edge)).sum() / (1 - edge).sum()
