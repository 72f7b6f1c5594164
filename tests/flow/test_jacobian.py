import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import folding_fraction, jacobian, jacobian_determinant, nonpositive_cell_fraction
from tests.flow.flows import AFFINE, Affine, coordinates, linear


def linear_map(matrix, spatial_size):
    grid = coordinates(spatial_size)
    return (linear(torch.tensor(matrix, dtype=torch.float64), grid) - grid)[None]


@pytest.mark.parametrize("spatial_size", [(2, 2), (7, 5), (4, 5, 6)])
def test_the_identity_keeps_volume(spatial_size):
    ddf = torch.zeros(2, len(spatial_size), *spatial_size)
    assert (jacobian_determinant(ddf) == 1).all()
    assert folding_fraction(ddf).tolist() == [0, 0]


@pytest.mark.parametrize(
    "matrix",
    [
        [[1.2, 0.3], [-0.4, 0.9]],
        [[0.0, -1.0], [1.0, 0.0]],
        [[-1.0, 0.0], [0.0, 1.0]],
        [[1.1, 0.2, -0.3], [0.4, 0.8, 0.1], [-0.2, 0.5, 1.3]],
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    ],
)
def test_a_linear_map_has_its_matrix_and_its_determinant_everywhere(matrix):
    size = (7, 8, 5)[: len(matrix)]
    ddf, exact = linear_map(matrix, size), torch.tensor(matrix, dtype=torch.float64)
    slopes = jacobian(ddf)[0].flatten(2) + torch.eye(len(matrix)).unsqueeze(-1)
    assert_close(slopes, exact.unsqueeze(-1).expand_as(slopes), atol=1e-12, rtol=0)
    determinant = jacobian_determinant(ddf)
    assert_close(determinant, torch.full_like(determinant, torch.linalg.det(exact).item()), atol=1e-12, rtol=0)


def test_a_flow_of_a_traceless_velocity_keeps_area():
    flow = Affine(((0.04, -0.1), (0.1, -0.04)), (32, 32))
    determinant = jacobian_determinant(flow.ddf_exact)
    assert_close(determinant, torch.ones_like(determinant), atol=1e-12, rtol=0)
    assert_close(jacobian_determinant(AFFINE.ddf_exact).mean().log().item(), 0.02, atol=1e-9, rtol=0)  # det expm = exp trace


def test_all_derivatives_are_taken_at_the_same_voxel():
    grid = coordinates((9, 9))
    ddf = torch.stack([0.02 * grid[0] ** 2, 0.1 * grid[0] * grid[1]])[None]  # phi = (i + i²/50, j + ij/10)
    i, j = grid
    exact = (1 + 0.04 * i) * (1 + 0.1 * i)
    assert_close(jacobian_determinant(ddf)[0, 1:-1, 1:-1], exact[1:-1, 1:-1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_folded_voxels_are_counted_exactly(dims):
    size = (20, 16, 12)[:dims]
    ddf = torch.zeros(2, dims, *size, dtype=torch.float64)
    row = torch.arange(20.0, dtype=torch.float64)
    path = torch.where(row < 8, row, torch.where(row < 13, 15 - row, row - 10))  # forward, back from 7.. to 3, forward
    ddf[1, 0] = (path - row).view(-1, *[1] * (dims - 1))
    slope = torch.gradient(path)[0]
    assert slope.tolist()[6:14] == [1.0, 0.5, -0.5, -1.0, -1.0, -1.0, -0.5, 0.5]
    wanted = (slope <= 0).nonzero().flatten()
    determinant = jacobian_determinant(ddf)
    folded = (determinant[1] <= 0).nonzero()
    assert len(wanted) == 5 and len(folded) == 5 * torch.tensor(size[1:]).prod()
    assert set(folded[:, 0].tolist()) == set(wanted.tolist())
    assert_close(folding_fraction(ddf), torch.tensor([0.0, 5 / 20]))


def test_a_mirror_folds_everywhere_and_a_crush_too():
    assert folding_fraction(linear_map([[-1.0, 0.0], [0.0, 1.0]], (6, 6))).item() == 1
    assert folding_fraction(linear_map([[0.0, 0.0], [0.0, 1.0]], (6, 6))).item() == 1  # determinant 0 counts as folded


def test_shapes_that_are_no_displacement_are_named():
    for call in (jacobian, jacobian_determinant, folding_fraction):
        with pytest.raises(ShapeError, match="'ddf'"):
            call(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("share", [folding_fraction, nonpositive_cell_fraction])
@pytest.mark.parametrize("size", [(8, 6), (6, 5, 4)])
def test_what_is_not_finite_counts_as_folded(bad, share, size):
    ddf = torch.zeros(3, len(size), *size)
    ddf[1], ddf[2, 0, 0, 0] = bad, bad
    folded = share(ddf)
    assert folded[0] == 0 and folded[1] == 1 and 0 < folded[2] < 1


@pytest.mark.parametrize("size", [(8, 6), (6, 5, 4)])
def test_a_volume_that_overflows_counts_as_folded(size):
    ddf = 3e38 * torch.stack(torch.meshgrid(*[torch.arange(float(n)) / 8 for n in size], indexing="ij"))[None]
    assert folding_fraction(ddf).item() == 1 == nonpositive_cell_fraction(ddf).item()


def test_the_determinant_is_that_of_the_matrix_of_derivatives():
    matrix = torch.tensor([[0.5, 2.0, -0.3], [0.1, -0.2, 0.7], [-0.4, 0.9, 0.25]])
    for dims in (2, 3):
        grid = torch.stack(torch.meshgrid(*[torch.arange(5.0)] * dims, indexing="ij"))
        ddf = torch.einsum("ij,j...->i...", matrix[:dims, :dims], grid)[None]
        expected = torch.linalg.det(torch.eye(dims) + matrix[:dims, :dims])
        assert_close(jacobian_determinant(ddf), expected.expand(1, *[5] * dims), atol=1e-5, rtol=0)
