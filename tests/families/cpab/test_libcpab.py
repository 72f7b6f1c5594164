"""Parity with libcpab (PyPI 0.1.3), which steps through time and puts x first."""

import contextlib
import io
import warnings

import pytest
import torch
from torch.testing import assert_close

from docs.experiments.cpab_speed import rotation_from_libcpab
from monai_diffeo.families import CPAB
from monai_diffeo.families.cpab import cpa_flow

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")
    libcpab = pytest.importorskip("libcpab")

GRIDS = [((6,), True), ((6,), False), ((4, 4), True), ((4, 4), False), ((3, 2), True), ((2, 1, 1), True)]


def both(cells, zero_boundary):
    """Theirs, ours, and the rotation from their coefficients to ours."""
    theirs = libcpab.Cpab(list(cells[::-1]), zero_boundary=zero_boundary)
    ours = CPAB(cells, "slide" if zero_boundary else "linear")
    return theirs, ours, rotation_from_libcpab(theirs, ours)


@pytest.mark.parametrize("cells, zero_boundary", GRIDS)
def test_both_have_the_same_space_of_fields(cells, zero_boundary):
    theirs, ours, rotation = both(cells, zero_boundary)
    assert theirs.params.d == ours.num_parameters
    centers = torch.from_numpy(theirs.tesselation.get_cell_centers()).flip(-1)
    number, inside = ours.space.tessellation.locate(centers)
    assert inside.min() > 0.2 and torch.equal(number.sort().values, torch.arange(len(centers)))  # the same cells
    assert_close(rotation @ rotation.T, torch.eye(ours.num_parameters, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("cells, zero_boundary", GRIDS)
def test_both_move_the_same_points_to_the_same_places(cells, zero_boundary):
    theirs, ours, rotation = both(cells, zero_boundary)
    torch.manual_seed(0)
    theta = theirs.sample_transformation_with_prior(2, length_scale=0.5, output_variance=0.2)
    theirs.set_solver_params(nstepsolver=50)
    grid = theirs.uniform_meshgrid([9] * len(cells))
    wanted = theirs.transform_grid(grid.clone(), theta).flip(1).transpose(1, 2)
    moved = cpa_flow(ours.space.tessellation, ours.space.velocities(theta.double() @ rotation), grid.flip(0).T.double())
    stays = ((wanted > 0.002) & (wanted < 0.998)).all(-1) & ((grid.T > 0) & (grid.T < 1)).all(-1)
    assert_close(moved[stays].float(), wanted[stays], atol=1e-4, rtol=0)
    assert (moved - grid.flip(0).T).abs().max() > 0.02 and stays.float().mean() > 0.3


@pytest.mark.parametrize("zero_boundary", [True, False])
def test_both_have_the_same_gradient(zero_boundary):
    theirs, ours, rotation = both((3, 3), zero_boundary)
    torch.manual_seed(0)
    theta = theirs.sample_transformation_with_prior(1, length_scale=0.5, output_variance=0.2).requires_grad_()
    theirs.set_solver_params(nstepsolver=50)
    grid = theirs.uniform_meshgrid([12, 12], [0.2, 0.2], [0.8, 0.8])
    weight = torch.randn(1, 2, 144, generator=torch.Generator().manual_seed(1))
    (theirs.transform_grid(grid, theta) * weight).sum().backward()
    own = (theta.detach().double() @ rotation).requires_grad_()
    moved = cpa_flow(ours.space.tessellation, ours.space.velocities(own), grid.flip(0).T.double())
    (moved.flip(-1).transpose(1, 2) * weight).sum().backward()
    assert_close((own.grad @ rotation.T).float(), theta.grad, atol=2e-3 * float(theta.grad.abs().max()), rtol=0)
