"""What a network answers, declared or by its shape, returns to the input as what it is."""

import json

import pytest
import torch
from monai.bundle import ConfigParser
from torch.nn.functional import avg_pool2d
from torch.testing import assert_close

from monai_diffeo.canonicalize.answers import check_outputs
from monai_diffeo.errors import ConfigError, ShapeError
from monai_diffeo.flow import rotate_axes
from monai_diffeo.inferers import DiffeoInferer, overlay_path
from tests.canonicalize.test_working_size import OBLONG, Turned, anatomy, build
from tests.helpers import blob, tiny_canonicalizer

POINTS = torch.tensor([[[8.0, 9.0], [20.0, 22.5]], [[15.0, 16.0], [3.0, 28.0]]])
BOXES = torch.cat([POINTS, POINTS + 3], 2)


def answers(x):
    """Everything at once: a class, a map, labels, landmarks and boxes."""
    scores = x.flatten(1).mean(1, keepdim=True).repeat(1, 3)
    return {"class": scores, "seg": x * 2, "labels": (x > 0.3).float() * 3, "landmarks": POINTS, "boxes": BOXES}


DECLARED = {"class": "scores", "seg": "map", "labels": "labels", "landmarks": "points", "boxes": "boxes"}


def test_every_kind_comes_back_as_the_canonicalisation_maps_it():
    image, canonicalizer = blob(2), tiny_canonicalizer()
    found, out = canonicalizer(image), DiffeoInferer(canonicalizer, outputs=DECLARED)(image, answers)
    seen = answers(found.image)
    assert torch.equal(out["class"], seen["class"])
    assert torch.equal(out["seg"], found.warp_back(seen["seg"])) and not torch.equal(out["seg"], seen["seg"])
    assert torch.equal(out["labels"], found.warp_back(seen["labels"], "nearest")) and set(out["labels"].unique().tolist()) == {
        0,
        3,
    }
    assert torch.equal(out["landmarks"], found.warp_points(POINTS)) and not torch.equal(out["landmarks"], POINTS)
    assert torch.equal(out["boxes"], found.warp_boxes(BOXES)) and not torch.equal(out["boxes"], BOXES)


def test_a_class_and_a_map_need_no_declaration():
    image, canonicalizer = blob(2), tiny_canonicalizer()
    out = DiffeoInferer(canonicalizer)(image, lambda x: {"class": x.flatten(1)[:, :2], "seg": x, "name": "film", "none": None})
    found = canonicalizer(image)
    assert torch.equal(out["class"], found.image.flatten(1)[:, :2]) and torch.equal(out["seg"], found.warp_back(found.image))
    assert out["name"] == "film" and out["none"] is None


def test_lists_tuples_nested_parts_and_one_word_for_all():
    image, canonicalizer = blob(2), tiny_canonicalizer()
    found = canonicalizer(image)
    out = DiffeoInferer(canonicalizer, outputs=["points", {"a": None, "b": "scores"}])(
        image, lambda x: (POINTS, {"a": x, "b": POINTS, "c": x})
    )
    assert torch.equal(out[0], found.warp_points(POINTS)) and torch.equal(out[1]["a"], found.warp_back(found.image))
    assert torch.equal(out[1]["b"], POINTS) and torch.equal(out[1]["c"], out[1]["a"])
    assert all(
        torch.equal(p, out[0]) for p in DiffeoInferer(canonicalizer, outputs="points")(image, lambda x: [POINTS, POINTS])
    )
    one = DiffeoInferer(canonicalizer, outputs="points")(image, lambda x: POINTS[:, 0])  # one landmark an image
    assert torch.equal(one, out[0][:, 0])
    several = DiffeoInferer(canonicalizer, outputs="points")(image, lambda x: POINTS.view(2, 2, 1, 2))  # of several classes
    assert torch.equal(several.view(2, 2, 2), out[0])


def test_boxes_in_another_order_of_the_numbers():
    image, canonicalizer = blob(2), tiny_canonicalizer()
    out = DiffeoInferer(canonicalizer, outputs="boxes:ccwh")(image, lambda x: BOXES)
    assert torch.equal(out, canonicalizer(image).warp_boxes(BOXES, box_mode="ccwh"))


def test_eight_poses_average_points_and_boxes_where_they_lie_in_the_input_and_vote_on_labels():
    image, canonicalizer = blob(2), tiny_canonicalizer()
    poses = canonicalizer(image).tta_samples(image, 8)
    inferer = DiffeoInferer(canonicalizer, outputs=DECLARED, tta_samples=8)
    result = inferer.infer(image, answers)
    assert_close(result.prediction["landmarks"], torch.stack([pose.warp_points(POINTS) for pose in poses]).mean(0))
    assert_close(result.prediction["boxes"], torch.stack([pose.warp_boxes(BOXES) for pose in poses]).mean(0))
    assert set(result.prediction["labels"].unique().tolist()) == {0, 3}
    votes = torch.stack([pose.warp_back(answers(pose.image)["labels"], "nearest") for pose in poses])
    assert torch.equal(result.prediction["labels"] > 0, (votes > 0).sum(0) > 4)
    for outputs, network in (("points", lambda x: POINTS), ("boxes", lambda x: BOXES), ("labels", lambda x: x.round())):
        alone = DiffeoInferer(canonicalizer, outputs=outputs, tta_samples=8).infer(image, network)
        assert alone.canonicalization.agreement is None
    both = DiffeoInferer(canonicalizer, outputs=["points", "map"], tta_samples=8).infer(image, lambda x: (POINTS, x))
    alone = DiffeoInferer(canonicalizer, tta_samples=8).infer(image, lambda x: x)
    assert torch.equal(both.canonicalization.agreement, alone.canonicalization.agreement)


def test_another_number_of_boxes_at_every_pose_is_refused_in_words():
    counts = iter(range(1, 9))
    with pytest.raises(ShapeError, match="at every pose and for every image.*tta_samples=1"):
        DiffeoInferer(tiny_canonicalizer(), outputs="boxes", tta_samples=4)(blob(1), lambda x: torch.zeros(1, next(counts), 4))


def test_an_image_left_alone_gives_the_plain_answer_bit_for_bit():
    images = torch.rand(2, 1, 32, 32)
    images[0] *= 0.1
    for count in (1, 8):
        out = DiffeoInferer(tiny_canonicalizer(skip_below=0.2), outputs=DECLARED, tta_samples=count)(images, answers)
        plain = answers(images)
        for key in DECLARED:
            assert torch.equal(out[key][0], plain[key][0]) and (key == "class" or not torch.equal(out[key][1], plain[key][1]))
    off = DiffeoInferer(None, enabled=False, outputs=DECLARED)(images, answers)
    assert all(torch.equal(off[key], answers(images)[key]) for key in DECLARED)


CLEAR = {  # shape of an answer to two images of 32 x 32, and whether it is a map
    "map": ((2, 3, 32, 32), True),
    "stacked heads": ((2, 4, 3, 32, 32), True),
    "map without channels": ((2, 32, 32), True),
    "low resolution": ((2, 3, 16, 16), True),
    "two voxels": ((2, 3, 2, 2), True),
    "unpadded": ((2, 3, 31, 15), True),
    "scores": ((2, 5), False),
    "two scores": ((2, 2), False),
    "one number": ((2,), False),
    "tokens": ((2, 16, 24), False),
    "a number of the network": ((), False),
    "codebook": ((7, 8), False),
}


@pytest.mark.parametrize("name", CLEAR)
def test_clear_shapes_need_no_declaration(name):
    shape, is_map = CLEAR[name]
    found = tiny_canonicalizer()(blob(2))
    given = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.warp_back(given), given) == (not is_map)


DOUBTFUL = {
    "points": ((2, 7, 2), (32, 32)),
    "boxes": ((2, 7, 4), (32, 32)),
    "points of several kinds": ((2, 5, 7, 2), (32, 32)),
    "points in a volume": ((2, 7, 3), (16, 16, 16)),
    "boxes in a volume": ((2, 7, 6), (16, 16, 16)),
    "points of several kinds in a volume": ((2, 5, 7, 3), (16, 16, 16)),
    "a small map without channels": ((2, 16, 16), (32, 32)),
    "a map without its batch": ((3, 32, 32), (32, 32)),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_doubtful_shapes_ask_for_a_declaration_and_get_one(name):
    shape, size = DOUBTFUL[name]
    image, canonicalizer, given = blob(2, size), tiny_canonicalizer(len(size)), torch.rand(shape) + 3
    with pytest.raises(ShapeError, match=r"DiffeoInferer: 'prediction\['x'\]' must have shape .*Declare what it is: outputs="):
        DiffeoInferer(canonicalizer)(image, lambda x: {"x": given})
    assert torch.equal(DiffeoInferer(canonicalizer, outputs={"x": "scores"})(image, lambda x: {"x": given})["x"], given)
    kind = "points" if "points" in name else "boxes" if "boxes" in name else "map"
    if shape[0] == 2:
        assert not torch.equal(DiffeoInferer(canonicalizer, outputs=kind)(image, lambda x: given), given)


def test_a_small_map_without_channels_is_warped_as_one_with_a_channel():
    image, canonicalizer = blob(2), tiny_canonicalizer()
    small, large = (
        DiffeoInferer(canonicalizer, outputs="map")(image, lambda x, k=k: avg_pool2d(x, 2)[:, k]) for k in (0, slice(None))
    )
    assert torch.equal(small, large[:, 0]) and small.shape == (2, 16, 16)


@pytest.mark.parametrize(("kind", "shape"), [
    ("map", (2, 1, 26, 26)), ("map", (2, 1, 32, 40)), ("labels", (2, 24, 32)), ("map", (2, 5)), ("map", (4, 1, 32, 32)),
    ("points", (2, 7, 3)), ("points", (14, 2)), ("boxes", (2, 7, 2)), ("boxes:ccwh", (2, 7, 5)),
])  # fmt: skip
def test_an_answer_of_another_shape_than_declared_is_refused(kind, shape):
    with pytest.raises(ShapeError, match="DiffeoInferer: 'prediction' must have shape") as caught:
        DiffeoInferer(tiny_canonicalizer(), outputs=kind)(blob(2), lambda x: torch.zeros(shape))
    assert caught.value.actual == shape


def test_a_declaration_that_is_not_the_answers_structure_is_refused():
    image, canonicalizer = blob(1), tiny_canonicalizer()
    for outputs, given, words in (
        ({"segg": "map"}, {"seg": image}, r"must name keys of 'prediction', got \['segg'\] for the keys \['seg'\]"),
        ({"seg": "map"}, image, "must name keys of 'prediction'"),
        (["map", "map"], (image,), "one declaration for each part of 'prediction', got 2 for 1 parts"),
        (["map"], image, "one declaration for each part"),
        ({"a": ["map"]}, {"a": [image, image]}, r"each part of 'prediction\['a'\]'"),
    ):
        with pytest.raises(ConfigError, match=words):
            DiffeoInferer(canonicalizer, outputs=outputs)(image, lambda x, given=given: given)
    with pytest.raises(TypeError, match="'prediction' is declared 'map' and must be a torch.Tensor, got list|ndarray"):
        DiffeoInferer(canonicalizer, outputs="map")(image, lambda x: x.numpy())
    for wrong in ("maps", 3, {"a": "point"}, ["boxes:cwh"], "map:ccwh"):
        with pytest.raises(ConfigError, match="'outputs' must be 'map', 'labels'"):
            check_outputs(wrong)


def test_oblong_images_rotated_differently_keep_their_own_answers():
    """Their canonical images have one frame, the inputs two poses; points are averaged over poses and joined over images."""
    images = torch.cat([rotate_axes(anatomy(OBLONG[2]), 1)] * 2)
    outputs = {"seg": "map", "landmarks": "points", "boxes": "boxes"}
    inferer = DiffeoInferer(build(2, OBLONG[2], Turned(1, 4)), outputs=outputs, tta_samples=2)
    points = torch.tensor([[[8.0, 20.0], [12.0, 30.0]]])

    def network(x):
        return {
            "seg": x,
            "landmarks": points.expand(len(x), -1, -1),
            "boxes": torch.cat([points, points + 2], 2).expand(len(x), -1, -1),
        }

    together, alone = inferer(images, network), inferer(images[1:], network)
    assert all(torch.equal(together[key][1:], alone[key]) and len(together[key]) == 2 for key in outputs)
    counts = iter(range(1, 9))
    with pytest.raises(ShapeError, match="for every image.*one by one"):
        DiffeoInferer(build(2, OBLONG[2], Turned(1, 4)), outputs="boxes")(images, lambda x: torch.zeros(1, next(counts), 4))


def test_the_overlay_hands_the_declaration_on():
    overlay = json.loads(open(overlay_path()).read())
    overlay["diffeo_outputs"] = {"class": "scores", "landmarks": "points"}
    parser = ConfigParser({**overlay, "diffeo_inner": None, "diffeo_enabled": False, "bundle_root": "."})
    parser["inferer"]["canonicalizer"] = None
    assert parser.get_parsed_content("inferer").outputs == {"class": "scores", "landmarks": "points"}
