from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from monai_diffeo.augmentation.deformations import random_svf
from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import cell_determinants, exp, folding_fraction, nonpositive_cell_fraction, simplex_determinants
from tests.flow.flows import coordinates, linear


@pytest.mark.parametrize("size", [(5, 6), (4, 5, 6)])
def test_an_affine_map_has_its_determinant_on_every_simplex(size):
    matrix = torch.randn(len(size), len(size), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grid = coordinates(size)
    displacement = (linear(matrix, grid) - grid)[None]
    found = simplex_determinants(displacement)
    assert_close(
        cell_determinants(displacement), torch.linalg.det(matrix).expand(1, 4 if len(size) == 2 else 27, *[n - 1 for n in size])
    )
    assert_close(found, torch.linalg.det(matrix).expand(found.shape))
    assert found.shape == (1, 4 if len(size) == 2 else 6, *[n - 1 for n in size])


@pytest.mark.parametrize("size", [(3, 3), (3, 3, 3)])
def test_the_simplices_of_a_cell_fill_it(size):
    """Moving the inner vertex keeps the whole volume, and with it the mean of the determinants."""
    ddf = torch.zeros(1, len(size), *size, dtype=torch.float64)
    ddf[(0, slice(None), *[1] * len(size))] = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)[: len(size)]
    assert_close(simplex_determinants(ddf).mean(), torch.tensor(1.0, dtype=torch.float64))


def test_a_fold_between_voxels_is_seen_that_central_differences_miss():
    ddf = torch.zeros(1, 2, 7, 7)
    ddf[0, 0, 3, 3] = 1.2  # one voxel jumps past its neighbour
    assert folding_fraction(ddf).item() == 0 and nonpositive_cell_fraction(ddf).item() > 0


def test_corner_determinants_bound_the_determinant_inside_the_cell():
    draw = torch.Generator().manual_seed(0)
    ddf = torch.randn(50, 2, 2, 2, generator=draw, dtype=torch.float64) * 0.6
    corners = simplex_determinants(ddf).flatten(1)
    s, t = torch.rand(2, 40, generator=draw, dtype=torch.float64)
    a, b, c, d = (ddf[:, :, i, j, None] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)))
    down = (1 - t) * (c - a) + t * (d - b) + torch.tensor([1.0, 0.0]).view(1, 2, 1)
    right = (1 - s) * (b - a) + s * (d - c) + torch.tensor([0.0, 1.0]).view(1, 2, 1)
    inside = down[:, 0] * right[:, 1] - down[:, 1] * right[:, 0]
    assert (inside >= corners.amin(1, keepdim=True) - 1e-9).all() and (inside <= corners.amax(1, keepdim=True) + 1e-9).all()


def test_coefficients_bound_the_determinant_inside_a_cell_of_space():
    """Against derivatives of the trilinear map by autograd; all coefficients positive means no fold in the cell."""
    draw = torch.Generator().manual_seed(0)
    ddf = torch.randn(30, 3, 2, 2, 2, generator=draw, dtype=torch.float64) * 0.25
    bounds = cell_determinants(ddf).flatten(1)
    assert bounds.shape == (30, 27)
    points = torch.rand(60, 3, generator=draw, dtype=torch.float64)

    def placed(point, corners):
        weights = torch.stack([1 - point, point])
        return torch.einsum("i,j,k,cijk->c", weights[:, 0], weights[:, 1], weights[:, 2], corners) + point

    for corners, low in zip(ddf, bounds):
        inside = torch.stack(
            [torch.linalg.det(torch.autograd.functional.jacobian(partial(placed, corners=corners), p)) for p in points]
        )
        assert inside.min() >= low.min() - 1e-9 and inside.max() <= low.max() + 1e-9
    eighth = [0, 2, 6, 8, 18, 20, 24, 26]  # the corners' coefficients are the corners' determinants
    at_corners = [
        torch.linalg.det(torch.autograd.functional.jacobian(lambda p: placed(p, ddf[0]), torch.tensor(c).double()))
        for c in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1))
    ]
    assert_close(bounds[0, eighth], torch.stack(at_corners))


def test_a_trilinear_fold_is_seen_that_the_six_tetrahedra_miss():
    draw = torch.Generator().manual_seed(1)
    ddf = torch.randn(2000, 3, 2, 2, 2, generator=draw, dtype=torch.float64) * 0.3
    whole = (simplex_determinants(ddf) > 0).flatten(1).all(1)
    corners = cell_determinants(ddf)[:, [0, 2, 6, 8, 18, 20, 24, 26]].flatten(1)
    missed = whole & (corners <= 0).any(1)  # a corner of the trilinear map is turned over
    assert missed.sum() > 10 and (nonpositive_cell_fraction(ddf[missed]) > 0).all()


@given(st.integers(0, 100), st.sampled_from([(20, 23), (10, 12, 11)]))
def test_gentle_flows_break_nothing_and_wild_fields_do(seed, size):
    draw = torch.Generator().manual_seed(seed)
    assert nonpositive_cell_fraction(exp(random_svf(1, size, draw, amplitude=0.06, sigma=0.1))).item() == 0
    assert nonpositive_cell_fraction(3 * torch.randn(1, len(size), *size, generator=draw)).item() > 0.1


def test_a_map_that_is_not_finite_is_not_proved():
    ddf = torch.zeros(1, 2, 5, 5)
    ddf[0, 0, 2, 2] = float("nan")
    assert nonpositive_cell_fraction(ddf).item() > 0


def test_each_image_has_its_own_share():
    ddf = torch.zeros(3, 2, 6, 6)
    ddf[1, 0, 2, 2] = 3.0
    assert (nonpositive_cell_fraction(ddf) > 0).tolist() == [False, True, False]
    with pytest.raises(ShapeError, match="cell_determinants"):
        nonpositive_cell_fraction(torch.zeros(1, 3, 6, 6))
