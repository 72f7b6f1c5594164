import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from monai_diffeo.data.deformations import random_svf
from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import breaks, exp, folding, simplex_determinants
from tests.flow.flows import coordinates, linear


@pytest.mark.parametrize("size", [(5, 6), (4, 5, 6)])
def test_an_affine_map_has_its_determinant_on_every_simplex(size):
    matrix = torch.randn(len(size), len(size), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grid = coordinates(size)
    found = simplex_determinants((linear(matrix, grid) - grid)[None])
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
    assert folding(ddf).item() == 0 and breaks(ddf).item() > 0


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


@given(st.integers(0, 100), st.sampled_from([(20, 23), (10, 12, 11)]))
def test_gentle_flows_break_nothing_and_wild_fields_do(seed, size):
    draw = torch.Generator().manual_seed(seed)
    assert breaks(exp(random_svf(1, size, draw, amplitude=0.06, sigma=0.1))).item() == 0
    assert breaks(3 * torch.randn(1, len(size), *size, generator=draw)).item() > 0.1


def test_each_image_has_its_own_share():
    ddf = torch.zeros(3, 2, 6, 6)
    ddf[1, 0, 2, 2] = 3.0
    assert (breaks(ddf) > 0).tolist() == [False, True, False]
    with pytest.raises(ShapeError, match="simplex_determinants"):
        breaks(torch.zeros(1, 3, 6, 6))
