import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from monai.data import DataLoader, MetaTensor, decollate_batch
from monai.inferers import PatchInferer, SimpleInferer, SliceInferer, SlidingWindowInferer, SlidingWindowSplitter
from monai.networks import nets
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalization
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


def test_metadata_of_a_batch_that_is_asked_one_by_one_is_of_each_image():
    """Oblong images whose canonical frames may differ."""
    data = [{"image": MetaTensor(torch.rand(1, 24, 32), meta={"filename_or_obj": name})} for name in "ab"]
    (batch,) = DataLoader(data, batch_size=2)
    canonicalizer = tiny_canonicalizer()
    canonicalizer.may_change_frame = lambda size: True
    items = decollate_batch({"pred": DiffeoInferer(canonicalizer)(batch["image"], lambda x: x * 2)})
    assert [item["pred"].meta["filename_or_obj"] for item in items] == ["a", "b"]
    assert [item["pred"].meta["diffeo"]["status"] for item in items] == ["canonicalized"] * 2


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


def test_scores_are_mapped_back_by_the_mode_that_was_chosen():
    """Labels as floating-point numbers: nearest keeps them whole, bilinear mixes them; each is exactly its own warp."""
    image, canonicalizer = blob(2), tiny_canonicalizer()
    result = canonicalizer(image)
    labels = (result.image > 0.3).float() * 3
    for mode, other in (("nearest", "bilinear"), ("bilinear", "nearest")):
        out = DiffeoInferer(canonicalizer, mode=mode)(image, lambda x: (x > 0.3).float() * 3)
        assert torch.equal(out, warp(labels, result.inverse_ddf, mode))
        assert not torch.equal(out, warp(labels, result.inverse_ddf, other))
    assert torch.equal(DiffeoInferer(canonicalizer)(image, lambda x: (x > 0.3).float() * 3), out)  # bilinear unless told


def test_labels_as_integers_stay_labels_in_either_mode():
    image = blob(2)
    for mode in ("nearest", "bilinear"):
        out = DiffeoInferer(tiny_canonicalizer(), mode=mode)(image, lambda x: (x > 0.3).long() * 3)
        assert out.dtype == torch.long and set(out.unique().tolist()) == {0, 3}


def test_the_network_runs_under_the_callers_autocast_and_fields_never_do(monkeypatch):
    seen: dict[str, bool] = {}

    def watched(name, real):
        def call(*args, **kwargs):
            seen[name] = torch.is_autocast_enabled("cpu")
            return real(*args, **kwargs)

        return call

    fields = ("warp_back", "warp_input", "tta_samples")
    for name in fields:
        monkeypatch.setattr(Canonicalization, name, watched(name, getattr(Canonicalization, name)))
    image, network = blob(1), torch.nn.Conv2d(1, 1, 3, padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        out = DiffeoInferer(tiny_canonicalizer(), tta_samples=2)(
            image, watched("network", lambda x, condition: network(x)), condition=image.clone()
        )
    assert seen == {"network": True, **dict.fromkeys(fields, False)} and out.dtype == torch.bfloat16
    DiffeoInferer(tiny_canonicalizer())(image, watched("network", lambda x: x))
    assert seen["network"] is False


def test_what_a_call_returns_is_the_prediction_of_infer_which_tells_the_rest():
    images, network = torch.rand(2, 1, 32, 32), torch.nn.Conv2d(1, 2, 3, padding=1)
    images[0] *= 0.1
    asked = []
    inferer = DiffeoInferer(tiny_canonicalizer(skip_below=0.2), tta_samples=3, on_result=asked.append)
    with torch.no_grad():
        result, prediction, plain = inferer.infer(images, network, plain=True), inferer(images, network), network(images)
    assert isinstance(result, DiffeoResult) and torch.equal(result.prediction, prediction) and torch.equal(result.plain, plain)
    found = result.canonicalization
    assert [s.split(":")[0] for s in found.status] == ["left alone", "canonicalized"]
    assert torch.isnan(found.agreement[0]) and found.agreement[1] > 0
    assert len(asked) == 2 and asked[0] is found and result.templates == ()
    with torch.no_grad():
        assert inferer.infer(images, network).plain is None
        off = DiffeoInferer(None, enabled=False).infer(images, network, plain=True)
    assert off.canonicalization is None and torch.equal(off.prediction, plain) and off.plain is off.prediction


def test_the_network_is_not_run_again_for_the_plain_prediction_of_images_that_were_not_moved():
    runs = []
    inferer = DiffeoInferer(tiny_canonicalizer(skip_below=9.0), tta_samples=4)
    result = inferer.infer(blob(2), lambda x: runs.append(len(x)) or x * 2, plain=True)
    assert runs == [2] and torch.equal(result.plain, blob(2) * 2)


def test_threads_share_one_inferer_and_each_gets_its_own_result():
    inferer = DiffeoInferer(tiny_canonicalizer(), tta_samples=2)
    images = [blob(1, shift=s) for s in (-0.4, 0.0, 0.4)] * 3
    alone = [inferer.infer(image, torch.nn.Identity(), plain=True) for image in images]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda image: inferer.infer(image, torch.nn.Identity(), plain=True), images))
    for one, other in zip(alone, together):
        assert torch.equal(one.prediction, other.prediction) and torch.equal(one.plain, other.plain)
        assert torch.equal(one.canonicalization.image, other.canonicalization.image)
    assert not any(isinstance(v, (torch.Tensor, DiffeoResult)) for v in vars(inferer).values())


def test_arguments_reach_the_network_at_every_pose_in_their_order():
    calls = []

    def network(x, *args, condition=None, **kwargs):
        calls.append((args, kwargs, condition))
        return x

    image = blob(1)
    result = tiny_canonicalizer()(image)
    inferer = DiffeoInferer(tiny_canonicalizer(), tta_samples=3)
    inferer.infer(image, network, 1, "two", plain=True, condition=image * 2, factor=3)
    assert all(args == (1, "two") and kwargs == {"factor": 3} for args, kwargs, _ in calls)
    poses = result.tta_samples(image, 3)
    for (_, _, condition), pose in zip(calls, poses):
        assert_close(condition, warp(image * 2, pose.ddf))
    assert len(calls) == 4 and torch.equal(calls[3][2], image * 2)  # the plain prediction sees the condition as given


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
