import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.families import ControlGrid, PiecewiseStationary
from monai_diffeo.flow import exp_affine
from tests.flow.flows import interior
from tests.helpers import some_theta

SIZE = (40, 44)


def family(affine=True, spatial_dims=2):
    return ControlGrid(spatial_dims, controls=4, affine=affine, steps=8)


def test_one_piece_is_the_family_itself():
    one = PiecewiseStationary(family(), pieces=1)
    theta = some_theta(one)
    assert_close(one(theta, SIZE).ddf(SIZE), family()(theta, SIZE).ddf(SIZE))


@pytest.mark.parametrize("size", [SIZE, (14, 16, 15)])
def test_pieces_act_one_after_another_and_the_inverse_backwards(size):
    inner = family(spatial_dims=len(size))
    three = PiecewiseStationary(inner, pieces=3)
    theta = some_theta(three, 0.03)
    rows = theta.view(3, -1)
    flows = [inner(row[None], size) for row in rows]
    there = three(theta, size)
    assert_close(there.ddf(size), flows[0].after(flows[1]).after(flows[2]).ddf(size))
    assert interior(there.after(three.inverse(theta, size)).ddf(size), 2).abs().max() < 0.12


@pytest.mark.parametrize("affine", [True, False])
def test_the_series_comes_closer_with_each_order(affine):
    theta = some_theta(PiecewiseStationary(family(affine), pieces=4), 0.1)
    exact = PiecewiseStationary(family(affine), pieces=4)(theta, SIZE).ddf(SIZE)
    errors = []
    for order in (1, 2, 3):
        series = PiecewiseStationary(family(affine), pieces=4, order=order)
        errors.append(interior(series(theta, SIZE).ddf(SIZE) - exact, 4).norm(dim=1).mean().item())
        assert interior(series(theta, SIZE).after(series.inverse(theta, SIZE)).ddf(SIZE), 4).abs().max() < 0.2
    assert errors[1] < 0.5 * errors[0] and errors[2] < 0.7 * errors[1]


def test_affine_parts_go_through_the_series_as_matrices():
    affine_only = torch.zeros(1, 2, 2, 3, dtype=torch.float64)
    affine_only[0, 0, 0, 1], affine_only[0, 1, 1, 2] = -0.2, 3.0
    from monai_diffeo.families.piecewise_stationary import _bch_velocity

    generator, field = _bch_velocity(affine_only, torch.zeros(1, 2, 2, 21, 24, dtype=torch.float64), 4)
    assert field.abs().max() < 1e-10
    exact = exp_affine(affine_only[:, 0], field[:, 0]).after(exp_affine(affine_only[:, 1], field[:, 0]))
    assert_close(exp_affine(generator[:, 0], field[:, 0]).matrix, exact.matrix, atol=2e-3, rtol=0)


def test_identity_and_gradients():
    series = PiecewiseStationary(family(), pieces=2, order=2)
    assert series(series.identity(2), SIZE).ddf(SIZE).abs().max() == 0
    theta = some_theta(series).requires_grad_()
    series(theta, SIZE).ddf(SIZE).square().sum().backward()
    assert (theta.grad.view(2, -1).abs().amax(1) > 0).all()
    with pytest.raises(ValueError, match="'pieces' must be at least 1"):
        PiecewiseStationary(family(), pieces=0)
