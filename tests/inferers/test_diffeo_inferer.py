import pickle
import warnings

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import PatchInferer, SimpleInferer, SliceInferer, SlidingWindowInferer, SlidingWindowSplitter
from monai.networks import nets
from torch.testing import assert_close

from monai_diffeo.flow import warp
from monai_diffeo.inferers import DiffeoInferer, DiffeoResult, parse_switch
from tests.helpers import blob, tiny_canonicalizer

NETWORKS_2D = {
    "UNet": lambda: nets.UNet(2, 1, 2, (4, 8, 8), (2, 2)),
    "BasicUNet": lambda: nets.BasicUNet(2, 1, 2, (4, 4, 8, 8, 8, 4)),
    "AttentionUnet": lambda: nets.AttentionUnet(2, 1, 2, (4, 8, 8), (2, 2)),
    "SegResNet": lambda: nets.SegResNet(2, init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 1), blocks_up=(1,)),
    "DynUNet": lambda: nets.DynUNet(2, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 8)),
    "SwinUNETR": lambda: nets.SwinUNETR(
        in_channels=1, out_channels=2, feature_size=12, spatial_dims=2, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)
    ),
    "UNETR": lambda: nets.UNETR(1, 2, (64, 64), feature_size=4, hidden_size=24, mlp_dim=24, num_heads=2, spatial_dims=2),
    "FlexibleUNet": lambda: nets.FlexibleUNet(1, 2, "efficientnet-b0", spatial_dims=2, decoder_channels=(16, 8, 8, 8, 8)),
}
NETWORKS_3D = {
    "UNet": lambda: nets.UNet(3, 1, 2, (4, 8), (2,)),
    "SegResNet": lambda: nets.SegResNet(3, init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 1), blocks_up=(1,)),
}


def answer_by_hand(canonicalizer, image, network, inner):
    result = canonicalizer(image)
    return warp(inner(result.image, network), result.inverse_ddf)


@pytest.mark.parametrize("name", NETWORKS_2D)
def test_wraps_a_two_dimensional_monai_network_without_a_line_of_change(name, canonicalizer):
    torch.manual_seed(0)
    network, image = NETWORKS_2D[name]().eval(), torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        wrapped = DiffeoInferer(canonicalizer)(image, network)
        assert_close(wrapped, answer_by_hand(canonicalizer, image, network, SimpleInferer()))
        assert wrapped.shape == (2, 2, 64, 64)
        assert (wrapped - network(image)).abs().max() > 1e-3
        assert torch.equal(DiffeoInferer(canonicalizer, enabled="False")(image, network), network(image))


@pytest.mark.parametrize("name", NETWORKS_3D)
def test_wraps_a_three_dimensional_monai_network(name):
    network, image, canonicalizer = NETWORKS_3D[name]().eval(), torch.rand(1, 1, 16, 24, 32), tiny_canonicalizer(3)
    with torch.no_grad():
        wrapped = DiffeoInferer(canonicalizer)(image, network)
        assert_close(wrapped, answer_by_hand(canonicalizer, image, network, SimpleInferer()))


def test_a_classifiers_scores_are_those_of_the_canonical_image(canonicalizer):
    network, image = nets.DenseNet121(2, 1, 3).eval(), torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        scores = DiffeoInferer(canonicalizer)(image, network)
        assert torch.equal(scores, network(canonicalizer(image).image)) and scores.shape == (2, 3)


@pytest.mark.parametrize(
    "inner",
    [
        SlidingWindowInferer((32, 32), sw_batch_size=2, overlap=0.5),
        PatchInferer(SlidingWindowSplitter((32, 32), overlap=0.0)),
    ],
    ids=["sliding window", "patch"],
)
def test_windows_and_patches_see_the_canonical_image(inner, canonicalizer):
    network, image = NETWORKS_2D["UNet"]().eval(), torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        wrapped = DiffeoInferer(canonicalizer, inner)(image, network)
        assert_close(wrapped, answer_by_hand(canonicalizer, image, network, inner))


def test_slices_of_a_volume_that_was_canonicalised_as_a_whole():
    network, image, canonicalizer = NETWORKS_2D["UNet"]().eval(), torch.rand(1, 1, 32, 32, 8), tiny_canonicalizer(3)
    inner = SliceInferer(roi_size=(32, 32), spatial_dim=2, sw_batch_size=8)
    with torch.no_grad():
        wrapped = DiffeoInferer(canonicalizer, inner)(image, network)
        assert_close(wrapped, answer_by_hand(canonicalizer, image, network, inner))


def test_tuples_dictionaries_none_and_low_resolution_heads_come_back_in_kind(canonicalizer):
    image = blob(2)

    def network(x):
        return {"seg": x * 2, "aux": (torch.nn.functional.avg_pool2d(x, 2), None), "score": x.flatten(1).mean(1, keepdim=True)}

    result, out = canonicalizer(image), DiffeoInferer(canonicalizer)(image, network)
    assert_close(out["seg"], warp(result.image * 2, result.inverse_ddf))
    assert out["aux"][0].shape == (2, 1, 16, 16) and out["aux"][1] is None and out["score"].shape == (2, 1)


def test_more_arguments_reach_the_network_and_a_condition_image_moves_along(canonicalizer):
    image, seen = blob(1), {}

    def network(x, factor, condition=None):
        seen.update(factor=factor, condition=condition)
        return x

    DiffeoInferer(canonicalizer)(inputs=image, network=network, factor=3, condition=image)
    assert seen["factor"] == 3
    assert_close(seen["condition"], canonicalizer(image).image)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
def test_works_as_evaluators_call_it(context, canonicalizer):
    network, image = NETWORKS_2D["UNet"]().eval(), torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        expected = DiffeoInferer(canonicalizer)(image, network)
    with context():
        out = DiffeoInferer(canonicalizer)(image, network)
    assert_close(out.float(), expected, atol=0.05, rtol=0.05)


def test_metadata_reaches_the_inner_inferer(canonicalizer):
    image = MetaTensor(torch.rand(1, 1, 32, 32), meta={"filename_or_obj": "film"})
    seen = []
    DiffeoInferer(canonicalizer)(image, lambda x: seen.append(x) or x)
    assert isinstance(seen[0], MetaTensor) and seen[0].meta["filename_or_obj"] == "film"


def test_an_image_left_alone_gives_the_plain_answer_bit_for_bit_beside_one_that_moves():
    network = NETWORKS_2D["UNet"]().eval()
    images = torch.rand(2, 1, 64, 64)
    images[0] *= 0.1
    inferer = DiffeoInferer(tiny_canonicalizer(skip_below=0.2))
    with torch.no_grad():
        out, plain = inferer(images, network), network(images)
    assert torch.equal(out[0], plain[0]) and not torch.equal(out[1], plain[1])


def test_each_rejected_image_is_a_line_of_the_log_every_time_and_falls_back_or_raises(canonicalizer, caplog):
    images = torch.stack([torch.rand(1, 32, 32), torch.zeros(1, 32, 32), torch.full((1, 32, 32), torch.nan)])
    for _ in range(2):
        caplog.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            out = DiffeoInferer(canonicalizer)(images, lambda x: x)
        assert [r.name for r in caplog.records] == ["monai_diffeo.inferers.diffeo"] * 2
        assert {r.levelname for r in caplog.records} == {"WARNING"}
        first, second = caplog.messages
        assert "image 2 of 3: rejected: the image is constant" in first and "image 3 of 3: rejected" in second
    assert torch.equal(out[1], images[1])
    with pytest.raises(RuntimeError, match="constant"):
        DiffeoInferer(canonicalizer, fallback="raise")(images, lambda x: x)


def test_the_result_goes_to_whoever_asked_and_nothing_stays_behind(canonicalizer):
    results = []
    inferer = DiffeoInferer(canonicalizer, on_result=results.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inferer(blob(1), lambda x: x)
    assert results[0].status == ("canonicalized",)
    assert not any(isinstance(v, torch.Tensor) for v in vars(inferer).values())


def test_pickles_and_answers_the_same():
    inferer = DiffeoInferer(tiny_canonicalizer())
    expected = inferer(blob(1), torch.nn.Identity())
    assert torch.equal(pickle.loads(pickle.dumps(inferer))(blob(1), torch.nn.Identity()), expected)


@pytest.mark.parametrize(
    ("word", "value"), [("false", False), ("False", False), ("TRUE", True), (0, False), ("on", True), (None, False)]
)
def test_switch_words(word, value):
    assert parse_switch(word) is value


def test_wrong_settings_are_refused_in_words(canonicalizer):
    with pytest.raises(ValueError, match="maybe"):
        parse_switch("maybe")
    with pytest.raises(ValueError, match="fallback"):
        DiffeoInferer(canonicalizer, fallback="none")
    with pytest.raises(ValueError, match="mode"):
        DiffeoInferer(canonicalizer, mode="cubic")
