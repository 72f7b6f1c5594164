import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import Deformation, axis_rotations, mirror, rotate_axes, warp
from monai_diffeo.flow.axis_rotations import inverse_rotation

SIZES = {2: (5, 8), 3: (4, 6, 7)}


@pytest.mark.parametrize("dims, count", [(2, 4), (3, 24)])
def test_they_are_the_group_of_rotations_of_a_square_or_cube(dims, count):
    maps = axis_rotations(dims)
    assert len({tuple(m.flatten().tolist()) for m in maps}) == count and torch.equal(maps[0], torch.eye(dims))
    assert torch.equal(maps @ maps.transpose(1, 2), torch.eye(dims).expand(count, -1, -1))
    assert_close(torch.linalg.det(maps), torch.ones(count))


@pytest.mark.parametrize("k", range(4))
def test_in_2d_they_are_quarter_turns_counter_clockwise(k):
    image = torch.rand(2, 3, *SIZES[2])
    assert torch.equal(rotate_axes(image, k), torch.rot90(image, k, (2, 3)))


@pytest.mark.parametrize("dims, k", [(2, 1), (2, 3), (3, 5), (3, 16), (3, 23)])
def test_rotating_pulls_back_along_the_matrix_and_the_inverse_undoes_it(dims, k):
    image = torch.rand(1, 2, *SIZES[dims])
    turned = rotate_axes(image, k)
    matrix = F.pad(axis_rotations(dims)[k], (0, 1))[None]
    ddf = Deformation(matrix, torch.zeros(1, dims, *turned.shape[2:])).ddf()
    assert_close(warp(image, ddf, centered=True), turned, atol=1e-4, rtol=0)
    assert torch.equal(rotate_axes(turned, inverse_rotation(dims)[k]), image)


def test_left_and_right_are_the_last_axis_of_a_picture_and_the_first_of_a_volume():
    picture, volume = torch.rand(1, 1, 3, 4), torch.rand(1, 1, 3, 4, 5)
    assert torch.equal(mirror(picture), picture.flip(3)) and torch.equal(mirror(volume), volume.flip(2))


def test_what_has_no_2_or_3_axes_is_refused():
    with pytest.raises(ShapeError, match=r"rotate_axes\(\): 'image' must have shape"):
        rotate_axes(torch.rand(3, 4, 5), 1)
    with pytest.raises(ValueError, match="must be 2 or 3"):
        axis_rotations(4)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_map_on_another_lattice_moves_the_same_points(dims):
    size, new = SIZES[dims], tuple(3 * n for n in SIZES[dims])
    matrix = torch.cat([torch.eye(dims) + 0.1 * torch.randn(dims, dims), torch.randn(dims, 1)], 1)[None]
    maps = Deformation(matrix, torch.zeros(1, dims, *size))
    fine = maps.resized(size, new).ddf(new)[(slice(None), slice(None), *[slice(1, None, 3)] * dims)]  # the middle of three
    assert_close(fine / 3, maps.ddf(), atol=1e-4, rtol=1e-4)


def test_a_residual_on_a_wider_grid_keeps_its_place_on_another_lattice():
    residual = torch.zeros(1, 2, 12, 12)
    residual[..., 6, :] = 1.0
    fine = Deformation(torch.eye(2, 3)[None], residual).resized((8, 8), (16, 16)).ddf((16, 16))
    assert fine[0, 0, :, 0].argmax().item() in (8, 9) and fine.amax() > 1.4  # row 4 of 8 is rows 8 and 9 of 16
    assert fine[0, 0, :6].abs().max() == 0


@pytest.mark.parametrize("dims, k", [(2, 1), (3, 10)])
def test_maps_before_and_after_a_rotation_invert_each_other(dims, k):
    size = (6, 6, 6)[:dims]
    shift = torch.cat([torch.eye(dims), torch.arange(1.0, dims + 1)[:, None]], 1)[None]
    there, back = (
        Deformation(shift, torch.zeros(1, dims, *size)),
        Deformation(2 * torch.eye(dims, dims + 1) - shift, torch.zeros(1, dims, *size)),
    )
    whole = there.turned(k).after(back.turned(k, back=True))
    assert_close(whole.ddf(), torch.zeros(1, dims, *size), atol=1e-5, rtol=0)
    assert_close(there.turned(k).matrix[0, :, :-1], axis_rotations(dims)[k])
