"""Landmarks and boxes follow what the images show."""

from itertools import product

import pytest
import torch
from monai.data.box_utils import convert_box_mode
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.canonicalize.points import move_boxes, move_points
from monai_diffeo.errors import ShapeError
from monai_diffeo.families import ControlGrid, DiffeomorphicAffine
from monai_diffeo.flow import axis_rotations, rotate_axes
from monai_diffeo.inferers import DiffeoInferer
from tests.canonicalize.test_working_size import OBLONG, Turned, anatomy, build
from tests.helpers import Brightness, FixedTheta, blob, some_theta, tiny_canonicalizer

SIZES = [(48, 64), (20, 24, 28)]


def moving(dims, scale=0.08):
    """A strong fixed deformation of any image."""
    family = ControlGrid(dims, controls=4)
    return Canonicalizer(Brightness(), family, predictor=FixedTheta(some_theta(family, scale)), max_energy_increase=None)


def painted(points, size, sigma=1.2):
    """One channel a landmark, a small Gaussian around it, ``(1, N, *size)``."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in size], indexing="ij"))
    away = (grid - points.view(-1, len(size), *[1] * len(size))).square().sum(1)
    return torch.exp(-away / 2 / sigma**2)[None]


def centres(image):
    """Centre of mass of every channel, ``(N, D)``."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in image.shape[2:]], indexing="ij"))
    return (image[0, :, None] * grid).flatten(2).sum(2) / image[0].flatten(1).sum(1, keepdim=True)


def inner_points(size, count=12):
    spread = torch.rand(count, len(size), generator=torch.Generator().manual_seed(0))
    return (0.25 + 0.5 * spread) * (torch.tensor(size) - 1)


@pytest.mark.parametrize("size", SIZES)
def test_a_point_follows_the_blob_that_is_painted_around_it_both_ways(size):
    found, points = moving(len(size))(torch.rand(1, 1, *size)), inner_points(size)
    for to, picture in (
        ("input", found.warp_back(painted(points, size))),
        ("canonical", found.warp_input(painted(points, size))),
    ):
        there = found.warp_points(points[None], to)[0]
        assert torch.linalg.vector_norm(there - points, dim=1).max() > 1.3  # it does move
        assert torch.linalg.vector_norm(there - centres(picture), dim=1).max() < 0.5


@pytest.mark.parametrize("size", SIZES)
def test_there_and_back_within_the_inverse_error(size):
    found, points = tiny_canonicalizer(len(size))(torch.rand(1, 1, *size)), inner_points(size)[None]
    for first, then in (("input", "canonical"), ("canonical", "input")):
        assert (found.warp_points(found.warp_points(points, first), then) - points).abs().max() < 0.1


def test_rows_left_alone_are_the_same_bits_and_a_batch_is_its_images():
    images = torch.cat([blob(1, (48, 48)), torch.full((1, 1, 48, 48), 0.5), blob(1, (48, 48), shift=0.3)])
    found, points = moving(2)(images), torch.rand(3, 4, 2) * 47
    boxes = torch.cat([points, points + 3.3], 2)
    for move, given in (
        ("warp_points", points),
        ("warp_boxes", boxes),
        ("warp_points", points.half()),
        ("warp_boxes", boxes.half()),
    ):
        together = getattr(found, move)(given)
        assert together.dtype == given.dtype and torch.equal(together[1], given[1]) and not torch.equal(together[0], given[0])
        for i in range(3):
            alone = getattr(moving(2)(images[i : i + 1]), move)(given[i : i + 1])
            assert_close(alone[0], together[i], atol=1e-4, rtol=1e-3)


def test_between_frames_points_are_measured_from_the_centres():
    ddf = torch.zeros(1, 2, 5, 9)
    there = move_points(torch.tensor([[[2.0, 4.0], [0.0, 0.0]]]), ddf, (9, 5), torch.tensor([True]))
    assert torch.equal(there, torch.tensor([[[4.0, 2.0], [2.0, -2.0]]]))


@pytest.mark.parametrize(("dims", "rotation"), [(2, 1), (2, 3), (3, 4), (3, 15)])
def test_points_and_boxes_of_a_canonical_image_on_another_frame_lie_on_that_of_the_input(dims, rotation):
    size, count = OBLONG[dims], len(axis_rotations(dims))
    turned = rotate_axes(anatomy(size), rotation)
    found, points = build(dims, size, Turned(rotation, count))(turned), inner_points(size)
    assert found.image.shape[2:] == size != turned.shape[2:]
    for to, given, picture in (
        ("input", points, found.warp_back(painted(points, size))),
        (
            "canonical",
            inner_points(turned.shape[2:]),
            found.warp_input(painted(inner_points(turned.shape[2:]), turned.shape[2:])),
        ),
    ):
        assert torch.linalg.vector_norm(found.warp_points(given[None], to)[0] - centres(picture), dim=1).max() < 0.5
    still = FixedTheta(torch.zeros(1, ControlGrid(dims, 4).num_parameters))
    straight = build(dims, size, Turned(rotation, count), predictor=still)(turned)  # a rotation alone keeps boxes boxes
    boxes = torch.cat([points, points + 3], 1)[None]
    moved = straight.warp_boxes(boxes)
    low, high = moved.split(dims, 2)
    assert_close((high - low).prod(2), torch.full((1, len(points)), 3.0**dims), atol=1e-2, rtol=0)
    assert_close(straight.warp_boxes(moved, "canonical"), boxes, atol=2e-3, rtol=0)


def test_integers_become_float_and_double_precision_stays():
    ddf = torch.full((1, 2, 8, 8), 0.7)
    moved = torch.tensor([True])
    assert_close(move_points(torch.tensor([[[2, 3]]]), ddf, (8, 8), moved), torch.tensor([[[2.7, 3.7]]]))
    still = torch.tensor([[[2, 3]]])
    assert move_points(still, ddf, (8, 8), ~moved) is still
    both, first = torch.tensor([[[2.0, 3.0]]]).repeat(2, 1, 1), torch.tensor([True, False])
    assert_close(move_points(both, ddf.repeat(2, 1, 1, 1), (8, 8), first), torch.tensor([[[2.7, 3.7]], [[2.0, 3.0]]]))
    both = torch.cat([both, both + 2], 2)
    assert_close(
        move_boxes(both, ddf.repeat(2, 1, 1, 1), (8, 8), first) - both, torch.tensor([0.7, 0.0]).view(2, 1, 1).expand(2, 1, 4)
    )
    exact = torch.tensor([[[2.0 + 1e-12, 3.0]]], dtype=torch.float64)
    there = move_points(exact, torch.full((1, 2, 8, 8), 0.5), (8, 8), moved)  # coordinates are more exact than fields
    assert there.dtype == torch.float64 and (there - exact - 0.5).abs().max() < 1e-14
    assert_close(move_boxes(torch.tensor([[[2, 3, 5, 6]]]), ddf, (8, 8), moved), torch.tensor([[[2.7, 3.7, 5.7, 6.7]]]))


def test_a_box_under_a_rotation_is_the_box_of_its_rotated_corners():
    """Rotated by 30 degrees around the centre of the frame, which in MONAI's boxes is half the number of voxels."""
    family, angle = DiffeomorphicAffine(2), torch.tensor(torch.pi / 6)
    theta = torch.tensor([[0.0, -angle, 0.0, angle, 0.0, 0.0]])
    found = Canonicalizer(Brightness(), family, predictor=FixedTheta(theta), max_energy_increase=None)(torch.rand(1, 1, 65, 65))
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    box = torch.tensor([24.0, 28.0, 36.0, 44.0])
    corners = torch.tensor([[box[a], box[b]] for a, b in product((0, 2), (1, 3))])
    there = (corners - 32.5) @ turn.T + 32.5
    expected = torch.cat([there.amin(0), there.amax(0)])
    assert_close(found.warp_boxes(box.view(1, 1, 4))[0, 0], expected, atol=2e-3, rtol=0)


def test_a_box_holds_what_bulges_between_its_corners():
    grid = torch.linspace(-1, 1, 65)
    bump = 6 * torch.exp(-(grid[:, None] ** 2 + grid**2) / 0.1)
    ddf = torch.stack([bump, torch.zeros_like(bump)])[None]
    box = torch.tensor([[[22.0, 12.0, 33.0, 54.0]]])
    low0, low1, high0, high1 = move_boxes(box, ddf, (65, 65), torch.tensor([True]))[0, 0]
    corner = move_points(torch.tensor([[[32.5, 11.5]]]), ddf, (65, 65), torch.tensor([True]))[0, 0, 0] + 0.5
    assert high0 > corner + 4 and abs(high0 - (32.5 + bump[32:34, 32].mean() + 0.5)) < 0.05
    assert (low1, high1) == (12.0, 54.0) and low0 > 22.0 - 1e-6


@pytest.mark.parametrize("mode", ["xyxy", "xxyy", "xywh", "ccwh", "xyzxyz", "xxyyzz", "xyxyzz", "xyzwhd", "cccwhd"])
def test_boxes_of_every_mode_of_monai_are_the_same_boxes(mode):
    dims = 3 if len(mode) == 6 else 2
    found = tiny_canonicalizer(dims)(torch.rand(2, 1, *[24] * dims))
    low = torch.rand(2, 5, dims, generator=torch.Generator().manual_seed(1)) * 10 + 3
    boxes = torch.cat([low, low + 7], 2)
    given = convert_box_mode(boxes.flatten(0, 1), dst_mode=mode).view_as(boxes)
    expected = convert_box_mode(found.warp_boxes(boxes).flatten(0, 1), dst_mode=mode).view_as(boxes)
    assert_close(found.warp_boxes(given, box_mode=mode), expected, atol=1e-4, rtol=1e-4)
    assert (found.warp_boxes(given, box_mode=mode) - given).abs().max() > 0.2


def test_no_points_and_no_boxes_come_back_empty():
    found = tiny_canonicalizer()(blob(2))
    assert found.warp_points(torch.zeros(2, 0, 2)).shape == (2, 0, 2) and found.warp_boxes(torch.zeros(2, 0, 4)).shape == (
        2,
        0,
        4,
    )


def test_a_missing_landmark_stays_missing_and_disturbs_no_other():
    found, points = tiny_canonicalizer()(blob(1)), torch.rand(1, 3, 2) * 31
    expected = found.warp_points(points)
    points[0, 1] = torch.nan
    there = found.warp_points(points)
    assert there[0, 1].isnan().all() and torch.equal(there[0, ::2], expected[0, ::2])


@pytest.mark.parametrize("shape", [(5, 2), (2, 5, 2), (1, 5, 3), (1, 2)])
def test_points_and_boxes_of_another_shape_are_refused(shape):
    found = tiny_canonicalizer()(blob(1))
    with pytest.raises(ShapeError, match=r"'points' must have shape \(1, N, 2\)"):
        found.warp_points(torch.zeros(shape))
    with pytest.raises(ShapeError, match=r"'boxes' must have shape \(1, N, 4\)"):
        found.warp_boxes(torch.zeros(shape))
    with pytest.raises(ValueError, match="'to' must be 'input' or 'canonical', got 'back'"):
        found.warp_points(torch.zeros(1, 1, 2), "back")


@pytest.mark.parametrize("poses", [1, 4])
@pytest.mark.parametrize("landmark", [(20.0, 44.0), (41.0, 17.0)])
def test_the_landmark_that_a_network_finds_comes_back_to_where_it_is(landmark, poses):
    """The network sees a spot at the canonical pose and says where; whole numbers come back as what they are, not cut."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    image = torch.exp(-((rows - landmark[0]) ** 2 + (columns - landmark[1]) ** 2) / 8)[None, None]

    def centre(x):
        return torch.stack([(x * axis).sum((1, 2, 3)) / x.sum((1, 2, 3)) for axis in (rows, columns)], 1)[:, None]

    def brightest(x):
        found = x.flatten(1).argmax(1)
        return torch.stack([found // 64, found % 64], 1)[:, None]

    inferer, true = DiffeoInferer(tiny_canonicalizer(), outputs="points", tta_samples=poses), torch.tensor([[landmark]])
    assert (centre(tiny_canonicalizer()(image).image) - true).abs().max() > 0.7
    assert_close(inferer(image, centre), true, atol=0.15, rtol=0)
    found = inferer(image, brightest)
    assert found.dtype == torch.float32 and not torch.equal(found, found.round())
    assert_close(found, true, atol=0.8, rtol=0)  # half a voxel either way at the canonical pose
