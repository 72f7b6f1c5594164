import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import compose, compose_sequence, exp, exp_affine_sequence, exp_sequence
from monai_diffeo.flow.grid import voxel_grid
from monai_diffeo.flow.sequence import reduce_sequence
from tests.flow.exact_flows import SmoothVelocity, exact_flow
from tests.flow.flows import interior


def velocities(count, size=(48, 48), speed=3.0, shortest=20.0):
    draw = torch.Generator().manual_seed(count)
    return [SmoothVelocity.random(size, draw, shortest) * speed for _ in range(count)]


def sampled(fields, size=(48, 48)):
    grid = voxel_grid(size, dtype=torch.float64)
    return torch.stack([v(grid) for v in fields])[None]


@pytest.mark.parametrize("scheme", ["tree", "chain"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_both_schemes_multiply_in_order(scheme, count):
    matrices = torch.randn(2, count, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = matrices[:, 0]
    for t in range(1, count):
        expected = expected @ matrices[:, t]
    assert_close(reduce_sequence(matrices, torch.matmul, scheme), expected)


@pytest.mark.parametrize("scheme", ["tree", "chain"])
@pytest.mark.parametrize("count", [2, 4, 5])
def test_composed_flows_are_the_flow_of_the_whole_time(scheme, count):
    fields = velocities(count)
    exact = exact_flow(fields, voxel_grid((48, 48), dtype=torch.float64))[None]
    error = interior(exp_sequence(sampled(fields), 9, scheme) - exact, 6).norm(dim=1)
    assert error.mean() < 0.05 and exact.norm(dim=1).max() > 2  # measured 0.007 to 0.02 voxels


def test_the_tree_interpolates_less_than_the_chain():
    fields = velocities(8)
    exact = exact_flow(fields, voxel_grid((48, 48), dtype=torch.float64))[None]
    chain, tree = (interior(exp_sequence(sampled(fields), 9, s) - exact, 6).norm(dim=1).mean() for s in ("chain", "tree"))
    assert tree < chain


def test_it_is_the_chain_of_the_affine_module_without_affine_parts():
    fields = sampled(velocities(3)).float()
    chain = exp_affine_sequence(torch.zeros(1, 3, 2, 3), fields, 6).ddf()
    assert_close(exp_sequence(fields, 6, "chain"), chain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(24, 31), (12, 13, 11)])
def test_the_reversed_sequence_of_minus_the_fields_is_the_inverse(size):
    fields = sampled(velocities(3, size, 1.0, 12.0), size)
    there, back = exp_sequence(fields), exp_sequence(-fields.flip(1))
    error = interior(compose(there, back), 2).norm(dim=1)
    assert error.max() < 0.15 and error.mean() < 0.02 and interior(there, 2).norm(dim=1).max() > 0.7


def test_one_field_and_zero_fields():
    fields = sampled(velocities(1))
    assert_close(exp_sequence(fields), exp(fields[:, 0]))
    assert exp_sequence(torch.zeros(2, 4, 2, 9, 9)).abs().max() == 0


def test_a_batch_gives_what_its_rows_give_alone():
    ddfs = torch.cat([sampled(velocities(4, (16, 16), s)) for s in (1.0, 2.0, 3.0)], 0)[:, :, :, ::3, ::3].float()
    assert torch.equal(compose_sequence(ddfs)[1:2], compose_sequence(ddfs[1:2]))


def test_what_is_no_sequence_is_refused():
    with pytest.raises(ShapeError, match=r"'fields' must have shape \(B, T, D"):
        exp_sequence(torch.zeros(1, 2, 8, 8))
    with pytest.raises(ShapeError, match="ddfs"):
        compose_sequence(torch.zeros(1, 0, 2, 8, 8))
    with pytest.raises(ValueError, match="scheme"):
        exp_sequence(torch.zeros(1, 2, 2, 8, 8), scheme="both")
