"""A network that gets more than one image: what is declared moves along, what is not is refused, at every pose and row."""

import pytest
import torch
from monai.bundle import ConfigParser
from monai.inferers import DiffusionInferer, SlidingWindowInferer
from monai.networks.schedulers import DDPMScheduler
from torch.testing import assert_close

from monai_diffeo.errors import ConfigError, ShapeError
from monai_diffeo.flow import rotate_axes
from monai_diffeo.inferers import DiffeoInferer, overlay_path
from tests.canonicalize.test_working_size import OBLONG, Turned, anatomy, build
from tests.helpers import blob, tiny_canonicalizer


@pytest.fixture
def seen():
    return {}


@pytest.fixture
def network(seen):
    def record(x, *args, **kwargs):
        seen.update(kwargs | {str(i): value for i, value in enumerate(args)})
        return x

    return record


PRIOR, LABELS = torch.rand(2, 3, 32, 32), (torch.rand(2, 1, 32, 32) * 5).long()


@pytest.mark.parametrize("images", [["prior", 0], ("0", "prior"), {"prior": "map", 0: "map"}, {"prior": "map", "0": "map"}])
def test_declared_images_follow_by_name_and_by_position(images, network, seen):
    found = tiny_canonicalizer()(blob(2))
    DiffeoInferer(tiny_canonicalizer(), images=images)(blob(2), network, PRIOR * 2, "word", prior=PRIOR, scale=3)
    assert_close(seen["prior"], found.warp_input(PRIOR))
    assert_close(seen["0"], 2 * seen["prior"])
    assert seen["1"] == "word" and seen["scale"] == 3


def test_labels_keep_their_values_and_what_is_declared_no_image_stays(network, seen):
    images = {"organs": "labels", "sure": "labels", "noise": "scores"}
    found = tiny_canonicalizer()(blob(2))
    DiffeoInferer(tiny_canonicalizer(), images=images)(blob(2), network, organs=LABELS, sure=LABELS.float(), noise=PRIOR)
    assert torch.equal(seen["organs"], found.warp_input(LABELS)) and seen["noise"] is PRIOR
    assert torch.equal(seen["sure"], seen["organs"].float()) and not torch.equal(seen["organs"], LABELS)


def test_images_within_lists_and_dictionaries_follow_and_other_lists_stay_the_callers(network, seen):
    log = []
    DiffeoInferer(tiny_canonicalizer(), images="pair")(blob(2), network, pair=[PRIOR, {"a": PRIOR}], log=log)
    assert_close(seen["pair"][1]["a"], tiny_canonicalizer()(blob(2)).warp_input(PRIOR))
    assert torch.equal(seen["pair"][0], seen["pair"][1]["a"]) and seen["log"] is log


@pytest.mark.parametrize(
    "given", [PRIOR, PRIOR[:, 0], PRIOR[0], PRIOR[0, 0], [PRIOR]], ids=["BCHW", "BHW", "CHW", "HW", "list"]
)
def test_an_undeclared_tensor_on_the_images_frame_is_refused(given, network):
    inferer = DiffeoInferer(tiny_canonicalizer(), images=["other"])
    with pytest.raises(ConfigError, match=r"argument 'prior' must be declared.*images=\['prior'\].*'scores'"):
        inferer(blob(2), network, prior=given)
    with pytest.raises(ConfigError, match=r"argument '0' must be declared.*images=\[0\]"):
        inferer(blob(2), network, given)


def test_what_is_no_image_needs_no_word(network, seen):
    other = {"timesteps": torch.tensor([1, 2]), "text": torch.rand(2, 7, 12), "spacing": torch.rand(2, 2), "condition": None}
    DiffeoInferer(tiny_canonicalizer())(blob(2), network, **other)
    assert all(seen[name] is value for name, value in other.items())
    DiffeoInferer(tiny_canonicalizer())(blob(2), network, condition=other["text"])
    assert seen["condition"] is other["text"]


@pytest.mark.parametrize("given", [PRIOR[:1], PRIOR[:, :, 0], torch.rand(2)], ids=["batch", "line", "numbers"])
def test_a_declared_argument_that_is_no_image_of_the_batch_is_refused(given, network):
    with pytest.raises(ShapeError, match=r"'prior' must have shape \(2, ..., 32, 32\)"):
        DiffeoInferer(tiny_canonicalizer(), images=["prior"])(blob(2), network, prior=given)
    if given.ndim == 4:
        with pytest.raises(ShapeError, match="'condition' must have shape"):
            DiffeoInferer(tiny_canonicalizer())(blob(2), network, condition=given)


@pytest.mark.parametrize("images", [1.5, [1.5], True, {"prior": "image"}, [None], {"prior": None}, [True]])
def test_other_declarations_are_refused(images):
    with pytest.raises(ConfigError, match="'images' must name arguments"):
        DiffeoInferer(tiny_canonicalizer(), images=images)


def test_every_pose_has_its_own_image_and_the_plain_network_the_one_given(network):
    calls = []
    inferer = DiffeoInferer(tiny_canonicalizer(), images=["prior"], tta_samples=3)
    inferer.infer(blob(2), lambda x, prior: calls.append(prior) or x, plain=True, prior=PRIOR)
    poses = tiny_canonicalizer()(blob(2)).tta_samples(blob(2), 3)
    assert len(calls) == 4 and calls[3] is PRIOR
    for prior, pose in zip(calls, poses):
        assert_close(prior, pose.warp_input(PRIOR))
    off = DiffeoInferer(None, enabled=False)
    assert off(blob(2), lambda x, prior: prior, prior=PRIOR) is PRIOR  # nothing moves, nothing needs a word


def test_windows_see_the_condition_at_the_pose_of_the_image():
    inferer = DiffeoInferer(tiny_canonicalizer(), SlidingWindowInferer((16, 16), 2))
    sums = inferer(blob(2), lambda x, condition: x - condition, condition=blob(2))
    assert sums.abs().max() < 1e-6


def test_oblong_images_that_may_change_their_frame_take_their_own_rows_along():
    """Each image, its prior and its number go together, or the network sees a difference."""
    image = rotate_axes(anatomy(OBLONG[2]), 1)
    images, seen = torch.cat([image, 0.9 * image]), []

    def network(x, number, prior):
        assert x.shape == prior[0].shape == (1, 1, *OBLONG[2]) and number.shape == (1,)
        seen.append(number.item())
        return x - prior[0]

    inferer = DiffeoInferer(build(2, OBLONG[2], Turned(1, 4)), images=["prior"])
    out = inferer(images, network, torch.tensor([7.0, 9.0]), prior=[images])
    assert seen == [7.0, 9.0] and out.shape == images.shape and out.abs().max() < 1e-6


def test_a_diffusion_model_may_be_given_by_the_keyword_of_its_inferer():
    class Model(torch.nn.Module):
        def forward(self, x, timesteps, context=None):
            return x

    plain = DiffusionInferer(DDPMScheduler(num_train_timesteps=10))
    image, steps, noise = blob(2), torch.tensor([3, 3]), torch.randn(2, 1, 32, 32)
    inferer = DiffeoInferer(tiny_canonicalizer(), plain, images={"noise": "map"})
    out = inferer(inputs=image, diffusion_model=Model(), noise=noise, timesteps=steps, mode="concat", condition=image)
    found = tiny_canonicalizer()(image)
    expected = plain(found.image, Model(), found.warp_input(noise), steps, condition=found.image, mode="concat")
    assert out.shape[1] == 2
    assert_close(out, found.warp_back(expected))
    off = DiffeoInferer(None, plain, enabled=False)(inputs=image, diffusion_model=Model(), noise=noise, timesteps=steps)
    assert torch.equal(off, plain(image, Model(), noise, steps))
    with pytest.raises(ConfigError, match="'noise' must be declared"):
        DiffeoInferer(tiny_canonicalizer(), plain)(image, Model(), noise=noise, timesteps=steps)
    with pytest.raises(TypeError, match="'network' must be a network"):
        inferer(image, noise=noise, timesteps=steps)


def test_a_configuration_declares_them_in_words_and_numbers(network, seen):
    config = {"_target_": "monai_diffeo.inferers.DiffeoInferer", "canonicalizer": tiny_canonicalizer(), "images": ["prior", 0]}
    ConfigParser({"inferer": config}).get_parsed_content("inferer")(blob(2), network, PRIOR, prior=PRIOR)
    assert_close(seen["prior"], tiny_canonicalizer()(blob(2)).warp_input(PRIOR))
    overlay = ConfigParser.load_config_file(overlay_path())
    assert overlay["inferer"]["images"] == "@diffeo_images" and overlay["diffeo_images"] == []
