import warnings

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.augmentation.deformations import random_svf
from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import compose, exp, jacobian_determinant, warp, warp_points
from tests.flow.flows import coordinates, interior, smooth_image

SIZES = [(8, 8), (9, 9), (8, 13), (1, 7), (6, 7, 5), (8, 8, 8)]


def flow(seed, spatial_size, voxels, batch=1):
    return exp(random_svf(batch, spatial_size, torch.Generator().manual_seed(seed), amplitude=voxels / min(spatial_size)))


def normal(*shape, seed=0, scale=1.0):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (scale * values).requires_grad_()


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])
@pytest.mark.parametrize("dtype, rounding", [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("spatial_size", SIZES)
def test_no_displacement_returns_the_image(spatial_size, dtype, rounding, padding, mode):
    image = torch.rand(2, 3, *spatial_size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    moved = warp(image, torch.zeros(2, len(spatial_size), *spatial_size, dtype=dtype), mode, padding)
    assert moved.dtype == dtype
    assert_close(moved, image, atol=rounding, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_component_d_pulls_along_axis_d(axis):
    image = torch.rand(1, 1, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    ddf = torch.zeros(1, 3, 5, 6, 7)
    ddf[:, axis] = 2
    moved = warp(image, ddf, padding_mode="zeros")
    wanted = torch.zeros_like(image)
    n = image.shape[2 + axis]
    wanted.narrow(2 + axis, 0, n - 2).copy_(image.narrow(2 + axis, 2, n - 2))
    assert_close(moved, wanted, atol=1e-5, rtol=0)


def test_border_repeats_the_frame_and_zeros_do_not():
    image, ddf = torch.full((1, 1, 6, 6), 3.0), torch.full((1, 2, 6, 6), 4.0)
    assert_close(warp(image, ddf), image)
    outside = warp(image, ddf, padding_mode="zeros")
    assert_close(outside[..., :2, :2], image[..., :2, :2])
    assert outside[..., 2:, :].abs().max() == 0 and outside[..., 2:].abs().max() == 0


@pytest.mark.parametrize("spatial_size, voxels", [((64, 64), 5.0), ((49, 72), 5.0), ((24, 20, 28), 2.0)])
def test_two_warps_are_one_warp_of_the_composition(spatial_size, voxels):
    image = smooth_image(spatial_size, channels=2)
    a, b = flow(1, spatial_size, voxels), flow(2, spatial_size, voxels)
    twice, once = warp(warp(image, a), b), warp(image, compose(a, b))
    assert_close(interior(twice, 3), interior(once, 3), atol=0.05, rtol=0)  # values in [-3, 3]; what two interpolations cost
    wrong = warp(image, compose(b, a))
    assert interior(twice - wrong, 3).abs().max() > 0.1  # and the order matters


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
def test_label_maps_keep_their_dtype_and_their_labels(dtype):
    label = (smooth_image((40, 40)) > 0.3).to(dtype)
    if dtype != torch.bool:
        label = label * 7
    moved = warp(label, flow(0, (40, 40), 4.0), mode="nearest")
    assert moved.dtype == dtype
    assert set(moved.unique().tolist()) == set(label.unique().tolist())
    assert not torch.equal(moved, label)


def test_an_integer_image_is_rounded_not_cut():
    image = torch.tensor([[[[0, 10], [0, 10]]]], dtype=torch.uint8)
    ddf = torch.zeros(1, 2, 2, 2)
    ddf[:, 1, :, 0] = 0.96
    assert warp(image, ddf).tolist() == [[[[10, 10], [10, 10]]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_are_sampled_in_single_precision(dtype):
    image, ddf = smooth_image((96, 96)), flow(0, (96, 96), 6.0)
    moved = warp(image.to(dtype), ddf)
    assert moved.dtype == dtype
    assert_close(moved, warp(image.to(dtype).float(), ddf).to(dtype), atol=0, rtol=0)
    with torch.autocast("cpu", dtype=dtype):
        assert_close(warp(image, ddf), warp(image, ddf), atol=0, rtol=0)
        assert warp(image, ddf).dtype == torch.float32


def test_image_and_field_may_differ_in_precision():
    image, ddf = smooth_image((24, 24), dtype=torch.float64), flow(0, (24, 24), 2.0)
    assert warp(image, ddf).dtype == torch.float64
    assert warp(image.float(), ddf.double()).dtype == torch.float32
    assert_close(warp(image, ddf).float(), warp(image.float(), ddf), atol=1e-5, rtol=0)


def test_a_batch_gives_what_its_images_give_one_by_one():
    image, ddf = smooth_image((30, 41), channels=2, batch=3), flow(0, (30, 41), 4.0, batch=3)
    points = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(0)) * 29
    for i in range(3):
        row = slice(i, i + 1)
        assert_close(warp(image, ddf)[row], warp(image[row], ddf[row]), atol=1e-6, rtol=0)
        assert_close(warp_points(points, ddf)[row], warp_points(points[row], ddf[row]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("field_too", [False, True])
def test_a_metatensor_goes_in_and_the_same_values_come_out(field_too):
    from monai.data import MetaTensor

    image, ddf = smooth_image((16, 18)), flow(0, (16, 18), 2.0)
    moved = warp(MetaTensor(image), MetaTensor(ddf) if field_too else ddf)
    assert_close(torch.as_tensor(moved).as_subclass(torch.Tensor), warp(image, ddf))
    assert_close(warp(image, ddf), warp(image, ddf).as_subclass(torch.Tensor))  # and nothing cached became a MetaTensor
    assert type(warp(image, ddf)) is torch.Tensor


@pytest.mark.parametrize("spatial_size, start", [((64, 64), (25.0, 38.0)), ((32, 36, 30), (14.0, 20.0, 13.0))])
def test_a_landmark_moves_with_the_image_by_the_inverse(spatial_size, start):
    voxels = 0.1 * min(spatial_size)
    v = random_svf(1, spatial_size, torch.Generator().manual_seed(0), amplitude=voxels / min(spatial_size), sigma=0.15)
    center = torch.tensor(start)
    middle = torch.tensor([(n - 1) / 2 for n in spatial_size]).view(-1, *[1] * len(start))
    grid = coordinates(spatial_size, torch.float32) + middle
    distance = (grid - center.view(-1, *[1] * len(start))).square().sum(0)
    blob = warp(torch.exp(-distance / 4)[None, None], exp(v), padding_mode="zeros")[0, 0]
    seen = (grid * blob).flatten(1).sum(1) / blob.sum()
    inverse, wrong = (warp_points(center.view(1, 1, -1), exp(sign * v))[0, 0] for sign in (-1, 1))
    assert torch.linalg.vector_norm(seen - inverse) <= 0.25  # the blob has a width, the point has none
    assert torch.linalg.vector_norm(seen - wrong) > 1
    assert_close(warp_points(inverse.view(1, 1, -1), exp(v))[0, 0], center, atol=0.05, rtol=0)


def test_points_between_voxels_are_interpolated():
    ddf = torch.zeros(1, 2, 4, 4)
    ddf[0, 0, 2], ddf[0, 1, :, 3] = 1.0, -2.0
    points = torch.tensor([[[1.5, 0.0], [0.0, 2.25], [2.0, 3.0]]])
    assert_close(warp_points(points, ddf), torch.tensor([[[2.0, 0.0], [0.0, 1.75], [3.0, 1.0]]]))


def test_gradients_of_warp_are_right_in_image_and_field():
    assert torch.autograd.gradcheck(warp, (normal(2, 2, 5, 5), normal(2, 2, 5, 5, seed=1)))
    zeros = lambda image, ddf: warp(image, ddf, padding_mode="zeros")  # noqa: E731
    assert torch.autograd.gradcheck(zeros, (normal(1, 1, 3, 4, 3), normal(1, 3, 3, 4, 3, seed=1)))


def test_gradients_of_compose_points_and_determinant_are_right():
    assert torch.autograd.gradcheck(compose, (normal(1, 2, 5, 5), normal(1, 2, 5, 5, seed=1)))
    points = (torch.rand(1, 4, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 4).requires_grad_()
    assert torch.autograd.gradcheck(warp_points, (points, normal(1, 2, 5, 5)))
    assert torch.autograd.gradcheck(jacobian_determinant, normal(1, 2, 5, 5))
    assert torch.autograd.gradcheck(jacobian_determinant, normal(1, 3, 4, 3, 4))


@pytest.mark.parametrize(
    "image, ddf, guilty",
    [
        ((1, 1, 8, 8), (1, 2, 8, 9), "image"),
        ((2, 1, 8, 8), (1, 2, 8, 8), "image"),
        ((8, 8), (1, 2, 8, 8), "image"),
        ((1, 8, 8), (1, 2, 8, 8), "image"),
        ((1, 1, 8, 8), (1, 3, 8, 8), "ddf"),
        ((1, 1, 8, 8), (1, 8, 8, 2), "ddf"),
    ],
)
def test_shapes_that_do_not_fit_are_named(image, ddf, guilty):
    with pytest.raises(ShapeError, match=f"warp\\(\\): '{guilty}'") as caught:
        warp(torch.zeros(image), torch.zeros(ddf))
    assert caught.value.actual == (image if guilty == "image" else ddf)


@pytest.mark.parametrize("points", [(1, 4, 3), (2, 4, 2), (4, 2)])
def test_points_that_do_not_fit_are_named(points):
    with pytest.raises(ShapeError, match="'points'") as caught:
        warp_points(torch.zeros(points), torch.zeros(1, 2, 8, 8))
    assert caught.value.actual == points and caught.value.expected == "(1, N, 2)"


def test_it_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warp(torch.zeros(1, 1, 5, 5), torch.zeros(1, 2, 5, 5))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_labels_of_any_size_keep_their_value(dtype, dims, padding):
    """Each label is one of those that were there, at the voxel where a small label of the same place is."""
    size, info = (7, 6, 5)[:dims], torch.iinfo(dtype)
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(info.min, info.max, (2, 3, *size), generator=draw, dtype=dtype)
    labels[0, 0].view(-1)[:6] = torch.tensor([info.min, info.max, 2**24 + 1, -(2**24) - 1, -1, 0], dtype=dtype)
    ddf = torch.randn(2, dims, *size, generator=draw) * 2
    where = torch.arange(labels[0, 0].numel(), dtype=torch.float32).view(size).expand(2, 1, *size) + 1
    index = warp(where, ddf, "nearest", padding).long().flatten(2).expand(-1, 3, -1)
    expected = torch.cat([torch.zeros(2, 3, 1, dtype=dtype), labels.flatten(2)], 2).gather(2, index).view(labels.shape)
    moved = warp(labels, ddf, "nearest", padding)
    assert moved.dtype == dtype and torch.equal(moved, expected)
