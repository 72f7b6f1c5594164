import pytest
import torch
from monai.networks import nets
from torch.testing import assert_close

from monai_diffeo.flow import folding_fraction, inverse_error, warp
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.inferers.aggregation import agreement, mean_prediction
from tests.helpers import blob, tiny_canonicalizer


def test_views_lie_around_the_canonical_pose_in_pairs_and_lead_back():
    image = blob(2, (64, 64))
    result = tiny_canonicalizer()(image)
    views = result.tta_samples(image, 8)
    assert len(views) == 8
    centre = torch.stack([v.ddf for v in views]).mean(0) - result.ddf
    for view in views:
        assert 0.3 < (view.ddf - result.ddf).abs().mean() < 8
        assert (folding_fraction(view.ddf) == 0).all()
        assert inverse_error(view.ddf, view.inverse_ddf, 16).mean() < 0.1
        assert_close(view.image, warp(image, view.ddf))
    assert centre[..., 8:-8, 8:-8].abs().mean() < 0.4  # maps and their inverses cancel to first order


def test_an_odd_number_begins_with_the_canonical_pose_and_views_are_the_same_for_every_image():
    image = blob(3, (64, 64))
    result = tiny_canonicalizer()(image)
    views = result.tta_samples(image, 3)
    assert views[0] is result
    alone = tiny_canonicalizer()(image[:1]).tta_samples(image[:1], 3)
    assert_close(alone[2].ddf[0], views[2].ddf[1], atol=1e-4, rtol=0)


def test_the_inferer_gives_the_mean_over_views_mapped_back():
    torch.manual_seed(0)
    network, image, canonicalizer = nets.UNet(2, 1, 2, (4, 8), (2,)).eval(), torch.rand(2, 1, 32, 32), tiny_canonicalizer()
    with torch.no_grad():
        out = DiffeoInferer(canonicalizer, tta_samples=4)(image, network)
        views = canonicalizer(image).tta_samples(image, 4)
        expected = torch.stack([warp(network(v.image), v.inverse_ddf) for v in views]).mean(0)
    assert_close(out, expected)


def test_an_image_left_alone_gets_the_plain_answer_bit_for_bit_with_views_too():
    image = torch.rand(2, 1, 32, 32)
    image[0] *= 0.1
    results = []
    inferer = DiffeoInferer(tiny_canonicalizer(skip_below=0.2), tta_samples=6, on_result=results.append)
    network = nets.UNet(2, 1, 2, (4, 8), (2,)).eval()
    with torch.no_grad():
        out, plain = inferer(image, network), network(image)
    assert torch.equal(out[0], plain[0]) and not torch.equal(out[1], plain[1])
    assert torch.isnan(results[0].agreement[0]) and 0 <= results[0].agreement[1] <= 1


def test_three_dimensional_views_and_structured_answers():
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


def test_the_mean_keeps_what_cannot_be_averaged():
    labels = torch.ones(1, 1, 2, 2, dtype=torch.long)
    assert torch.equal(mean_prediction([labels * 3, labels, labels], torch.tensor([True])), labels)
    assert mean_prediction(["word", "other"], torch.tensor([True])) == "word"
    with pytest.raises(ValueError, match="tta_samples"):
        DiffeoInferer(tiny_canonicalizer(), tta_samples=0)
