import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from monai_diffeo.augmentation.deformations import random_elastic, random_homography, random_svf, tps_protocol
from monai_diffeo.flow import exp, folding_fraction, inverse_error, warp_points

PROFILE = settings(deadline=None, derandomize=True, max_examples=20, database=None)
KINDS = [tps_protocol, random_svf, random_elastic, random_homography]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("draw", KINDS)
def test_seeds_fix_everything(draw):
    state = torch.get_rng_state()
    first = draw(3, (32, 40), seeded(1))
    assert torch.equal(torch.get_rng_state(), state)  # the caller's generator is left alone
    torch.rand(5)
    assert torch.equal(draw(3, (32, 40), seeded(1)), first)
    assert not torch.equal(draw(3, (32, 40), seeded(2)), first)
    assert (first[0] - first[1]).abs().max() > 0.1  # each image its own draw


@pytest.mark.parametrize("draw", KINDS)
def test_without_a_generator_the_global_seed_fixes_everything(draw):
    torch.manual_seed(3)
    first = draw(1, (16, 16))
    torch.manual_seed(3)
    assert torch.equal(draw(1, (16, 16)), first)


@given(st.integers(1, 3), st.lists(st.integers(8, 24), min_size=2, max_size=3), st.integers(0, 99))
@PROFILE
def test_smooth_fields_have_the_shape_asked_for_vanish_at_the_frame_and_reach_their_amplitude(batch, size, seed):
    for draw in (random_svf, random_elastic):
        field = draw(batch, size, seeded(seed), amplitude=0.1)
        assert field.shape == (batch, len(size), *size) and field.dtype == torch.float32
        assert torch.isfinite(field).all()
        for axis in range(2, field.ndim):
            assert field.select(axis, 0).abs().max() == 0 and field.select(axis, -1).abs().max() <= 1e-6
        largest = torch.linalg.vector_norm(field, dim=1).flatten(1).amax(1)
        assert_close(largest, torch.full((batch,), 0.1 * min(size)), rtol=1e-4, atol=0)


@given(st.integers(1, 3), st.tuples(st.integers(2, 40), st.integers(2, 40)), st.integers(0, 99))
@PROFILE
def test_plane_maps_have_the_shape_asked_for(batch, size, seed):
    for draw in (tps_protocol, random_homography):
        ddf = draw(batch, size, seeded(seed))
        assert ddf.shape == (batch, 2, *size) and ddf.dtype == torch.float32
        assert torch.isfinite(ddf).all()


@given(st.integers(8, 48), st.integers(8, 48), st.integers(0, 99))
@PROFILE
def test_fold_free_splines_never_fold_on_any_frame(height, width, seed):
    assert folding_fraction(tps_protocol(4, (height, width), seeded(seed), fold_free=True)).max() == 0


@pytest.mark.parametrize("size", [(65, 65), (61, 101)])
def test_control_points_land_where_the_protocol_says(size):
    """Angle only: 0.9 R(theta) p, at the nine points 0.6 * {-0.5, 0, 0.5}², in units of the frame."""
    ddf = tps_protocol(5, size, seeded(0), jitter=0.0)
    axis = torch.tensor([-0.3, 0.0, 0.3])
    p = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2)
    extent = torch.tensor([n - 1.0 for n in size])
    landed = (warp_points(((p + 0.5) * extent).expand(5, -1, -1), ddf) / extent) - 0.5
    turns = (torch.rand(5, generator=seeded(0)) * 2 - 1) * math.radians(30)
    assert turns.abs().max() > 0.3
    for row, turn in zip(landed, turns.tolist()):
        rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        assert_close(row, 0.9 * p @ rotation.T, atol=2e-4, rtol=0)


def test_the_jitter_is_bounded_and_clipped_to_the_frame():
    points = ((torch.tensor([[-0.3, -0.3], [0.0, 0.0], [0.3, 0.3]]) + 0.5) * 100).expand(200, -1, -1)
    landed = warp_points(points, tps_protocol(200, (101, 101), seeded(0), angle=0.0, scale=1.0)) / 100 - 0.5
    away = (landed - (points / 100 - 0.5)).abs()
    assert 0.115 < away.max() <= 0.1205
    clipped = warp_points(points, tps_protocol(200, (101, 101), seeded(0), angle=0.0, scale=1.0, jitter=0.6)) / 100 - 0.5
    assert 0.49 < clipped.abs().max() <= 0.503


def test_half_strength_is_half_the_displacement():
    full = tps_protocol(3, (32, 32), seeded(0))
    assert_close(tps_protocol(3, (32, 32), seeded(0), strength=0.5), full / 2, atol=0, rtol=0)
    own = tps_protocol(3, (32, 32), seeded(0), strength=torch.tensor([0.0, 0.5, 1.0]))
    for row, wanted in zip(own, (0 * full[0], full[1] / 2, full[2])):
        assert_close(row, wanted, atol=0, rtol=0)


def test_many_fold_free_splines_do_not_fold():
    plain = folding_fraction(tps_protocol(400, (40, 40), seeded(0)))
    assert 0.02 < (plain > 0).float().mean() < 0.3  # without the remedy about one in ten does
    ddf = tps_protocol(400, (40, 40), seeded(0), fold_free=True)
    assert folding_fraction(ddf).max() == 0
    kept = (tps_protocol(400, (40, 40), seeded(0)) == ddf).flatten(1).all(1)
    assert torch.equal(kept, plain == 0)  # and only those that folded were touched


def test_even_wild_splines_are_tamed():
    wild = {"jitter": 0.3, "angle": 45.0}
    assert (folding_fraction(tps_protocol(100, (40, 40), seeded(0), **wild)) > 0).float().mean() > 0.8
    assert folding_fraction(tps_protocol(100, (40, 40), seeded(0), fold_free=True, **wild)).max() == 0  # takes several halvings


def test_many_smooth_flows_do_not_fold():
    assert folding_fraction(exp(random_svf(400, (32, 32), seeded()))).max() == 0


def test_elastic_fields_may_fold_and_are_no_flows():
    assert folding_fraction(random_elastic(20, (64, 64), seeded(0), amplitude=0.15)).max() > 0


def test_smooth_flows_invert_by_sign_at_each_amplitude():
    amplitude = torch.tensor([0.02, 0.06, 0.1])
    v = random_svf(3, (64, 64), seeded(0), amplitude=amplitude)
    assert_close(torch.linalg.vector_norm(v, dim=1).flatten(1).amax(1), 64 * amplitude, rtol=1e-4, atol=0)
    assert inverse_error(exp(v), exp(-v)).mean() <= 0.02


def test_homographies_move_the_corners_as_drawn_and_keep_lines_straight():
    size, shift = (33, 49), 0.15
    ddf = random_homography(6, size, seeded(0), shift=shift)
    drawn = (torch.rand(6, 4, 2, generator=seeded(0)) * 2 - 1) * shift * torch.tensor([32.0, 48.0])
    corners = ddf[:, :, [0, 0, -1, -1], [0, -1, -1, 0]].transpose(1, 2)
    assert_close(corners, drawn, atol=1e-3, rtol=0)
    grid = torch.stack(torch.meshgrid(torch.arange(33.0), torch.arange(49.0), indexing="ij"))
    line = (grid + ddf)[:, :, 16]  # the middle row, (B, 2, 49)
    along, chord = line - line[..., :1], line[..., -1:] - line[..., :1]
    assert (along[:, 0] * chord[:, 1] - along[:, 1] * chord[:, 0]).abs().max() / 48 <= 1e-2
    assert (line.diff(n=2).abs().max()) > 1e-3  # straight, though not evenly spaced: a true perspective
    assert folding_fraction(ddf).max() == 0


def test_in_space_the_control_points_are_turned_about_all_axes():
    """Angle only: 0.9 R p at the 27 points, R a rotation by 30 degrees at most about an axis of any direction."""
    ddf = tps_protocol(40, (21, 21, 21), seeded(), jitter=0.0)
    axis = torch.tensor([-0.3, 0.0, 0.3])
    p = torch.cartesian_prod(axis, axis, axis)
    landed = warp_points(((p + 0.5) * 20).expand(40, -1, -1), ddf) / 20 - 0.5
    rotation = torch.linalg.lstsq(0.9 * p.expand(40, -1, -1), landed).solution.mT
    assert_close(landed, 0.9 * p @ rotation.mT, atol=1e-4, rtol=0)
    assert_close(rotation @ rotation.mT, torch.eye(3).expand(40, 3, 3), atol=1e-4, rtol=0)
    assert_close(torch.linalg.det(rotation), torch.ones(40), atol=1e-4, rtol=0)
    degrees = torch.rad2deg(torch.arccos((rotation.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2))
    assert 25 < degrees.max() <= 30.1 and degrees.min() < 5 and 10 < degrees.mean() < 20
    skew = (rotation - rotation.mT)[:, [1, 0, 0], [2, 2, 1]]
    assert (skew.square().mean(0) > 0.15 * skew.square().mean(0).sum()).all()  # no axis is left out


@pytest.mark.parametrize("size", [(16, 16, 16), (24, 12, 17)])
def test_splines_in_space_fold_where_jitter_is_large_and_never_if_asked(size):
    settings = {"angle": 45.0, "jitter": 0.2}
    assert folding_fraction(tps_protocol(8, size, seeded(), **settings)).max() > 0
    ddf = tps_protocol(8, size, seeded(), **settings, fold_free=True)
    assert folding_fraction(ddf).max() == 0 and ddf.shape == (8, 3, *size) and ddf.flatten(1).abs().amax(1).min() > 1


def test_splines_of_the_plane_stay_those_that_trained_the_bundles():
    ddf = tps_protocol(3, (32, 40), seeded(0), fold_free=True, angle=45.0, jitter=0.15)
    assert ddf.double().abs().sum().item() == pytest.approx(23948.85, rel=1e-4)
