import math
import pickle

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.augmentation.deformations import random_svf
from monai_diffeo.flow import Deformation, compose, exp_affine, warp
from monai_diffeo.flow.deformation import crop_or_pad
from tests.flow.flows import coordinates, interior, linear, smooth_image


def random_deformation(seed, spatial_size=(48, 56), voxels=3.0, batch=1):
    draw, dims = torch.Generator().manual_seed(seed), len(spatial_size)
    generator = 0.1 * torch.randn(batch, dims, dims + 1, generator=draw)
    generator[..., -1] = torch.randn(batch, dims, generator=draw)
    return exp_affine(generator, random_svf(batch, spatial_size, draw, amplitude=voxels / min(spatial_size), sigma=0.12))


def shift(*components, size=(9, 9)):
    matrix = torch.eye(len(size), len(size) + 1)
    matrix[:, -1] = torch.tensor(components)
    return Deformation(matrix[None], torch.zeros(1, len(size), *size))


@pytest.mark.parametrize("spatial_size", [(6, 9), (4, 5, 6)])
def test_the_identity_moves_nothing_and_is_neutral(spatial_size):
    unit = Deformation.identity(2, spatial_size)
    assert unit.ddf().abs().max() == 0
    a = random_deformation(0, spatial_size, 0.5, batch=2)
    for same in (a.after(unit), unit.after(a)):
        assert_close(same.ddf(), a.ddf(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("spatial_size", [(48, 56), (20, 22, 19)])
def test_after_is_associative(spatial_size):
    a, b, c = (random_deformation(seed, spatial_size, 1.5) for seed in range(3))
    left, right = a.after(b).after(c), a.after(b.after(c))
    assert_close(left.matrix, right.matrix, atol=1e-5, rtol=0)
    margin = 8 if len(spatial_size) == 2 else 5
    assert_close(interior(left.ddf(), margin), interior(right.ddf(), margin), atol=0.12, rtol=0)  # measured .09
    assert interior(a.after(b).ddf() - b.after(a).ddf(), margin).abs().max() > 0.3


def test_after_agrees_with_compose_in_the_interior():
    a, b = random_deformation(0), random_deformation(1)
    assert_close(interior(a.after(b).ddf(), 12), interior(compose(a.ddf(), b.ddf()), 12), atol=0.02, rtol=0)


def test_two_warps_are_one_warp_along_a_after_b():
    image, a, b = smooth_image((64, 64)), random_deformation(0, (64, 64)), random_deformation(1, (64, 64))
    twice = warp(warp(image, a.ddf()), b.ddf())
    assert_close(interior(twice, 16), interior(warp(image, a.after(b).ddf()), 16), atol=0.05, rtol=0)


def test_affine_parts_compose_without_loss():
    turn = torch.tensor([[[0.0, -math.pi / 2, 0.0], [math.pi / 2, 0.0, 0.0]]], dtype=torch.float64)
    quarter = exp_affine(turn, torch.zeros(1, 2, 30, 40, dtype=torch.float64))
    full = quarter.after(quarter).after(quarter).after(quarter)
    assert full.ddf().abs().max() <= 1e-7  # torch's matrix exponential is good to 1e-10


def test_the_inner_map_is_applied_first():
    stretch = Deformation(torch.tensor([[[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), torch.zeros(1, 2, 9, 9))
    assert stretch.after(shift(1.0, 0.0)).matrix[0, :, 2].tolist() == [2.0, 0.0]
    assert shift(1.0, 0.0).after(stretch).matrix[0, :, 2].tolist() == [1.0, 0.0]


def test_a_residual_beyond_the_inner_frame_is_not_forgotten():
    wide = torch.zeros(1, 2, 17, 17)
    wide[0, 0, :4] = 5.0  # above the 9x9 frame, whose first row is row 4
    outer = Deformation(torch.eye(2, 3)[None], wide)
    assert_close(outer.after(shift(-3.0, 0.0)).ddf()[0, 0, 0], torch.full((9,), 2.0))


@pytest.mark.parametrize("center_size", [(8, 8), (7, 9)])
def test_the_map_is_the_same_on_every_frame_around_the_centre(center_size):
    a = random_deformation(0, (20, 20) if center_size == (8, 8) else (21, 21), 1.0)
    inside = [slice((n - m) // 2, (n + m) // 2) for n, m in zip(a.residual.shape[2:], center_size)]
    assert_close(a.ddf(center_size), a.ddf()[(..., *inside)], atol=0, rtol=0)


def test_points_are_measured_from_the_centre():
    matrix = torch.tensor([[[1.5, 0.2, 1.0], [-0.3, 0.7, -2.0]]], dtype=torch.float64)
    ddf = Deformation(matrix, torch.zeros(1, 2, 6, 9, dtype=torch.float64)).ddf()[0]
    grid = coordinates((6, 9))
    assert_close(ddf, linear(matrix[0, :, :2], grid) + matrix[0, :, 2].view(2, 1, 1) - grid, atol=1e-12, rtol=0)


def test_crop_or_pad_keeps_the_centre_and_repeats_the_border():
    field = torch.arange(35.0).view(1, 1, 5, 7)
    assert torch.equal(crop_or_pad(field, (3, 3)), field[..., 1:4, 2:5])
    padded = crop_or_pad(field, (9, 7))
    assert torch.equal(padded[..., 2:7, :], field)
    assert torch.equal(padded[..., 0, :], field[..., 0, :]) and torch.equal(padded[..., -1, :], field[..., -1, :])
    assert torch.equal(crop_or_pad(field, (3, 11))[..., 2:9], field[..., 1:4, :])
    assert crop_or_pad(field, (5, 7)) is field
    volume = torch.rand(2, 3, 4, 5, 6)
    assert torch.equal(crop_or_pad(crop_or_pad(volume, (8, 5, 8)), (4, 5, 6)), volume)


def test_crop_or_pad_refuses_frames_without_a_common_centre():
    with pytest.raises(ValueError, match="centre"):
        crop_or_pad(torch.zeros(1, 1, 5, 7), (4, 7))


def test_where_picks_rows():
    a, b = random_deformation(0, (8, 8), 0.5, batch=3), random_deformation(1, (8, 8), 0.5, batch=3)
    picked = a.where(torch.tensor([True, False, True]), b)
    for i, source in enumerate((a, b, a)):
        assert torch.equal(picked.ddf()[i], source.ddf()[i])


def test_detach_keeps_the_map_and_drops_the_graph():
    v = torch.zeros(1, 2, 8, 8, requires_grad=True)
    a = exp_affine(torch.full((1, 2, 3), 0.1), v)
    assert a.ddf().requires_grad and not a.detach().ddf().requires_grad
    assert torch.equal(a.detach().ddf(), a.ddf())


def test_a_deformation_survives_pickling():
    a = random_deformation(0, (8, 9), 0.5)
    assert torch.equal(pickle.loads(pickle.dumps(a)).ddf(), a.ddf())


def test_a_batch_gives_what_its_maps_give_one_by_one():
    a, b = random_deformation(0, batch=3), random_deformation(1, batch=3)
    together = a.after(b).ddf((32, 40))
    for i in range(3):
        row = slice(i, i + 1)
        alone = Deformation(a.matrix[row], a.residual[row]).after(Deformation(b.matrix[row], b.residual[row]))
        assert_close(together[row], alone.ddf((32, 40)), atol=1e-5, rtol=0)


def test_on_a_larger_frame_the_affine_part_goes_on_and_the_residual_keeps_its_border():
    residual = torch.zeros(1, 2, 9, 9)
    residual[0, 1, :, 0] = 0.5  # along axis 1, at its first column
    double = Deformation(torch.tensor([[[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]), residual)
    ddf = double.ddf((17, 13))
    assert_close(ddf[0, 0], (torch.arange(17.0)[:, None] - 8 + 1).expand(17, 13))  # x -> 2 x + 1
    assert_close(ddf[0, 1], torch.tensor([0.5] * 3 + [0.0] * 10).expand(17, 13))
    for size in ((9, 9), (5, 13), (17, 3), (3, 5)):
        inside = [slice((17 - size[0]) // 2, (17 + size[0]) // 2), slice((13 - size[1]) // 2, (13 + size[1]) // 2)]
        assert_close(double.ddf(size), ddf[:, :, inside[0], inside[1]], atol=0, rtol=0)
    assert_close(double.ddf(), double.ddf((9, 9)), atol=0, rtol=0)
