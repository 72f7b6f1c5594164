from dataclasses import replace

import pytest
import torch
from monai.data import MetaTensor
from monai.networks import nets
from torch.testing import assert_close

from monai_diffeo.canonicalize.acceptance import prefer_motion
from monai_diffeo.flow import folding_fraction, inverse_error, warp
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.inferers.aggregation import agreement, mean_prediction
from tests.helpers import blob, tiny_canonicalizer


def test_samples_lie_around_the_canonical_pose_in_pairs_and_lead_back():
    image = blob(2, (64, 64))
    result = tiny_canonicalizer()(image)
    samples = result.tta_samples(image, 8)
    assert len(samples) == 8
    centre = torch.stack([v.ddf for v in samples]).mean(0) - result.ddf
    for sample in samples:
        assert 0.3 < (sample.ddf - result.ddf).abs().mean() < 8
        assert (folding_fraction(sample.ddf) == 0).all()
        assert inverse_error(sample.ddf, sample.inverse_ddf, 16).mean() < 0.1
        assert_close(sample.image, warp(image, sample.ddf))
    assert centre[..., 8:-8, 8:-8].abs().mean() < 0.4  # maps and their inverses cancel to first order


def test_an_odd_number_begins_with_the_canonical_pose_and_samples_are_the_same_for_every_image():
    image = blob(3, (64, 64))
    result = tiny_canonicalizer()(image)
    samples = result.tta_samples(image, 3)
    assert samples[0] is result
    alone = tiny_canonicalizer()(image[:1]).tta_samples(image[:1], 3)
    assert_close(alone[2].ddf[0], samples[2].ddf[1], atol=1e-4, rtol=0)


def test_the_inferer_gives_the_mean_over_samples_mapped_back():
    torch.manual_seed(0)
    network, image, canonicalizer = nets.UNet(2, 1, 2, (4, 8), (2,)).eval(), torch.rand(2, 1, 32, 32), tiny_canonicalizer()
    with torch.no_grad():
        out = DiffeoInferer(canonicalizer, tta_samples=4)(image, network)
        samples = canonicalizer(image).tta_samples(image, 4)
        expected = torch.stack([warp(network(v.image), v.inverse_ddf) for v in samples]).mean(0)
    assert_close(out, expected)


def test_an_image_left_alone_gets_the_plain_answer_bit_for_bit_with_samples_too():
    image = torch.rand(2, 1, 32, 32)
    image[0] *= 0.1
    results = []
    inferer = DiffeoInferer(tiny_canonicalizer(skip_below=0.2), tta_samples=6, on_result=results.append)
    network = nets.UNet(2, 1, 2, (4, 8), (2,)).eval()
    with torch.no_grad():
        out, plain = inferer(image, network), network(image)
    assert torch.equal(out[0], plain[0]) and not torch.equal(out[1], plain[1])
    assert torch.isnan(results[0].agreement[0]) and 0 <= results[0].agreement[1] <= 1


@pytest.mark.parametrize("size", [2, 5, 100])
def test_poses_that_go_in_at_once_give_the_answers_of_one_after_another(size):
    canonicalizer, image = tiny_canonicalizer(), MetaTensor(torch.rand(2, 1, 32, 32), meta={"filename_or_obj": "film"})
    asked = []

    def network(x):
        asked.append(len(x))
        return {"map": torch.cat([x, 1 - x], 1), "scores": x.mean((2, 3))}

    one, many = (DiffeoInferer(canonicalizer, tta_samples=5, tta_batch_size=n).infer(image, network) for n in (1, size))
    assert asked[:5] == [2] * 5 and asked[5:] == {2: [2] * 5, 5: [4, 4, 2], 100: [10]}[size]
    assert_close({k: v.as_tensor() for k, v in many.prediction.items()}, {k: v.as_tensor() for k, v in one.prediction.items()})
    assert_close(many.canonicalization.agreement, one.canonicalization.agreement)
    assert all(part.meta["filename_or_obj"] == "film" for part in many.prediction.values())


def test_an_image_left_alone_and_further_arguments_go_in_one_after_another_as_before():
    canonicalizer = tiny_canonicalizer(skip_below=1e9)  # every image is left alone
    image, seen = torch.rand(2, 1, 32, 32), []
    inferer = DiffeoInferer(canonicalizer, tta_samples=4, tta_batch_size=8)
    assert torch.equal(inferer(image, lambda x: seen.append(len(x)) or x.square()), image.square()) and seen == [2]
    moving, seen[:] = DiffeoInferer(tiny_canonicalizer(), tta_samples=4, tta_batch_size=8), []
    moving(image, lambda x, prior: seen.append(len(x)) or x + prior, torch.ones(2, 1, 1, 1))
    assert seen == [2] * 4


def test_three_dimensional_samples_and_structured_answers():
    image = torch.rand(1, 1, 16, 16, 16)
    out = DiffeoInferer(tiny_canonicalizer(3), tta_samples=2)(
        image, lambda x: {"seg": x, "rest": (None, "word", x.flatten(1)[:, :3])}
    )
    assert (
        out["seg"].shape == image.shape
        and out["rest"][0] is None
        and out["rest"][1] == "word"
        and out["rest"][2].shape == (1, 3)
    )


def test_agreement_is_one_for_equal_answers_and_the_dice_of_different_ones():
    moved = torch.tensor([True, True])
    a = torch.full((2, 1, 4, 4), -1.0)
    a[:, :, :2] = 1.0
    assert_close(agreement([a, a.clone(), a], moved), torch.ones(2))
    b = a.clone()
    b[1] = -3.0  # the mean decides nothing there; a disagrees with it, b agrees
    assert_close(agreement([a, b], moved), torch.tensor([1.0, 0.5]))
    probabilities = (a + 1) / 2
    assert_close(agreement([probabilities, probabilities], moved), torch.ones(2))


def test_agreement_of_scores_is_the_share_that_chooses_as_the_mean_does():
    one, two = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert_close(agreement([one, one, two, two], torch.tensor([True])), torch.tensor([0.5]))
    assert agreement([one], torch.tensor([True])) is None and agreement([None, None], torch.tensor([True])) is None


def decided(rows):
    """Scores ``(1, 3, 1, N)`` whose largest channel is the given class."""
    return torch.nn.functional.one_hot(torch.tensor([rows]), 3).float().movedim(-1, 1)[:, :, None] * 4


def test_agreement_of_classes_is_the_mean_dice_of_the_foreground_ones():
    """The mean of one, one, other decides as one. Its Dice with other is 2 / (2 + 1) for class 1 and 2 / (1 + 3) for class 2;
    the background, where it would be 6 / (4 + 3), does not count."""
    one, other = decided([0, 0, 0, 0, 1, 1, 2]), decided([0, 0, 0, 2, 1, 2, 2])
    expected = (1 + 1 + (2 / 3 + 2 / 4) / 2) / 3
    assert_close(agreement([one, one, other], torch.tensor([True])), torch.tensor([expected]))
    end, begin, nothing = decided([0, 0, 0, 0, 0, 1]), decided([1, 0, 0, 0, 0, 0]), decided([0] * 6)
    expected = (1 + 1 + (0 + 1) / 2) / 3  # class 2, which nobody finds, is agreed on; a shared background adds nothing
    assert_close(agreement([end, end, begin], torch.tensor([True])), torch.tensor([expected]))
    assert agreement([nothing, nothing], torch.tensor([True])).isnan().all()


def test_agreement_of_an_image_does_not_depend_on_its_neighbours():
    """One image holds probabilities, which are cut at 0.5, its neighbour logits, which are cut at 0."""
    draw = torch.Generator().manual_seed(0)
    probabilities = [torch.rand(1, 1, 8, 8, generator=draw) for _ in range(4)]
    logits = [torch.randn(1, 1, 8, 8, generator=draw) for _ in range(4)]
    alone = [agreement(answers, torch.tensor([True])) for answers in (probabilities, logits)]
    both = agreement([torch.cat(pair) for pair in zip(probabilities, logits)], torch.tensor([True, True]))
    assert_close(both, torch.cat(alone))
    assert alone[0] < 0.95
    half = agreement([torch.cat(pair) for pair in zip(probabilities, logits)], torch.tensor([True, False]))
    assert_close(half[0], alone[0][0])
    assert torch.isnan(half[1])


def test_answers_that_are_empty_at_every_pose_have_no_agreement():
    answer = torch.zeros(2, 1, 8, 8)
    answer[1, :, 2:5] = 1
    found = agreement([answer, answer], torch.tensor([True, True]))
    assert found[0].isnan() and found[1] == 1
    assert prefer_motion(torch.tensor([10.0]), torch.tensor([0.97]), found[:1], {"energy": 30.0, "disagreement": 0.35})


def test_the_mean_is_over_samples_value_by_value_and_of_integers_the_most_frequent():
    answers = [torch.tensor([[1.0, 5.0], [7.0, 9.0]]), torch.tensor([[3.0, 6.0], [0.0, 0.0]])]
    moved = torch.tensor([True, False])
    assert torch.equal(mean_prediction(answers, moved), torch.tensor([[2.0, 5.5], [7.0, 9.0]]))
    labels = [torch.tensor([[k], [k]]) for k in (7, 2, 2, 1)]
    assert torch.equal(mean_prediction(labels, moved), torch.tensor([[2], [7]]))
    nested = mean_prediction([{"a": (x, None)} for x in answers], moved)
    assert torch.equal(nested["a"][0], torch.tensor([[2.0, 5.5], [7.0, 9.0]])) and nested["a"][1] is None


def test_half_precision_is_averaged_in_single():
    answers = [torch.full((1, 1), v, dtype=torch.float16) for v in (60000.0, 60000.0)]
    mean = mean_prediction(answers, torch.tensor([True]))
    assert mean.dtype == torch.float16 and mean.item() == 60000  # the sum would be infinite in half precision


def test_samples_come_as_a_map_and_then_its_inverse():
    """exp(A) and exp(-A) around the identity: each pair undoes itself, in this order for every seed."""
    image = blob(1, (64, 64))
    result = tiny_canonicalizer()(image)
    still = replace(result, forward=result.forward.identity(1, result.forward.residual.shape[2:], "cpu", torch.float32))
    still = replace(still, inverse=still.forward)
    samples = still.tta_samples(image, 5)[1:]
    for one, other in zip(samples[::2], samples[1::2]):
        assert_close(one.ddf, other.inverse_ddf)
        assert_close(other.ddf, one.inverse_ddf)
        assert (one.ddf - other.ddf).abs().mean() > 0.1
    again = still.tta_samples(image, 3)[1:]
    assert torch.equal(again[0].ddf, samples[0].ddf) and torch.equal(again[1].ddf, samples[1].ddf)


def test_the_mean_keeps_what_cannot_be_averaged():
    labels = torch.ones(1, 1, 2, 2, dtype=torch.long)
    assert torch.equal(mean_prediction([labels * 3, labels, labels], torch.tensor([True])), labels)
    assert mean_prediction(["word", "other"], torch.tensor([True])) == "word"
    with pytest.raises(ValueError, match="tta_samples"):
        DiffeoInferer(tiny_canonicalizer(), tta_samples=0)


def test_agreement_of_what_is_not_finite_is_no_number():
    good, bad = torch.rand(2, 2, 1, 4, 4).unbind(0)
    bad[1, 0, 0, 0] = torch.nan
    found = agreement([good, bad], torch.tensor([True, True]))
    assert torch.isfinite(found[0]) and torch.isnan(found[1])


def test_scores_below_zero_are_no_probabilities():
    one, other = torch.tensor([[0.4, -0.4], [0.2, -0.2]]).view(2, 1, 1, 1, 2)
    assert agreement([one, other], torch.tensor([True])).item() == 1.0  # both find the first voxel, at 0
