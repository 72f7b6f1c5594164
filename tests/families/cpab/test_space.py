import numpy as np
import pytest
import scipy.linalg
import torch
from torch.testing import assert_close

from monai_diffeo.families.cpab import BOUNDARIES, Tessellation, cpa_space, cpa_velocity, grid_tessellation
from tests.families.cpab.shapes import delaunay

GRIDS = [(4,), (2, 3), (3, 3), (1, 2, 2)]


def constraints(tessellation, boundary, volume_preserving):
    """The papers' way: linear conditions on the entries of all the cells' matrices, one row each."""
    dims, count = tessellation.spatial_dims, tessellation.frame_cells
    homogeneous = torch.cat([tessellation.vertices, torch.ones(len(tessellation.vertices), 1)], 1).numpy()
    rows = []

    def row(*entries):
        matrix = np.zeros((count, dims, dims + 1))
        for cell, component, vector in entries:
            matrix[cell, component] += vector
        rows.append(matrix.ravel())

    neighbours = tessellation.neighbours[:count].tolist()
    for c, around in enumerate(neighbours):
        for j, n in enumerate(around):
            face = [v for k, v in enumerate(tessellation.cells[c].tolist()) if k != j]
            for v in face:
                if 0 <= n < count:
                    for d in range(dims):
                        row((c, d, homogeneous[v]), (n, d, -homogeneous[v]))
                elif boundary == "fixed":
                    for d in range(dims):
                        row((c, d, homogeneous[v]))
                elif boundary == "slide":
                    axis = next(d for d in range(dims) if len({float(tessellation.vertices[u, d]) for u in face}) == 1)
                    row((c, axis, homogeneous[v]))
        if volume_preserving:
            row(*[(c, d, np.eye(dims + 1)[d]) for d in range(dims)])
    return np.stack(rows)


@pytest.mark.parametrize("cells", GRIDS)
@pytest.mark.parametrize("boundary", ["free", "slide", "fixed"])
@pytest.mark.parametrize("volume_preserving", [False, True])
def test_the_basis_spans_the_null_space_of_the_papers_constraints(cells, boundary, volume_preserving):
    tessellation = grid_tessellation(cells)
    conditions = constraints(tessellation, boundary, volume_preserving)
    wanted = scipy.linalg.null_space(conditions)
    if not wanted.shape[1]:
        with pytest.raises(ValueError, match="no field but zero"):
            cpa_space(tessellation, boundary, volume_preserving)
        return
    space = cpa_space(tessellation, boundary, volume_preserving)
    assert space.num_parameters == wanted.shape[1]
    basis = space.matrices(torch.eye(space.num_parameters, dtype=torch.float64)).flatten(1)
    assert np.abs(conditions @ basis.numpy().T).max() < 1e-9
    assert_close(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_dimensions_are_those_of_the_papers_and_of_libcpab():
    tessellation = grid_tessellation((4, 4))
    assert [cpa_space(tessellation, b).num_parameters for b in BOUNDARIES] == [82, 58, 62, 50]


def test_the_basis_is_the_same_each_time_it_is_made():
    for boundary in BOUNDARIES:
        spaces = []
        for _ in range(2):
            cpa_space.cache_clear()
            spaces.append(cpa_space(grid_tessellation((2, 2)), boundary, volume_preserving=boundary == "free"))
        assert torch.equal(spaces[0].nodal, spaces[1].nodal)
    # Gram-Schmidt: the first coefficient moves the first vertex the way the first component goes
    assert cpa_space(grid_tessellation((3, 3)), "free").nodal[0, 0, 0] > 0


@pytest.mark.parametrize("cells", GRIDS)
@pytest.mark.parametrize("boundary", ["free", "linear"])
def test_an_affine_velocity_is_one_of_the_fields_and_stays_affine_outside(cells, boundary):
    dims = len(cells)
    space = cpa_space(grid_tessellation(cells), boundary)
    matrix = torch.randn(dims, dims + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = space.coefficients(matrix.expand(1, space.tessellation.frame_cells, -1, -1))
    assert_close(space.matrices(theta), matrix.expand(1, space.tessellation.frame_cells, -1, -1))
    x = torch.rand(100, dims, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 - 1
    wanted = x @ matrix[:, :dims].T + matrix[:, dims]
    assert_close(cpa_velocity(space.tessellation, space.velocities(theta), x)[0], wanted)


def edge_points(dims, side, draw):
    points = torch.rand(50, dims, generator=draw, dtype=torch.float64)
    points[:, 0] = side
    return points


def moved_out(points, side, distance):
    out = points.clone()
    out[:, 0] += distance if side else -distance
    return out


@pytest.mark.parametrize("cells", [(4,), (3, 3), (2, 2, 2)])
@pytest.mark.parametrize("side", [0.0, 1.0])
def test_what_holds_at_the_border_of_the_frame_and_beyond(cells, side):
    draw = torch.Generator().manual_seed(0)
    at = edge_points(len(cells), side, draw)
    ways = [at, *(moved_out(at, side, distance) for distance in (0.3, 0.6, 1.5, 3.0))]
    for boundary in BOUNDARIES:
        space = cpa_space(grid_tessellation(cells), boundary)
        velocities = space.velocities(torch.randn(2, space.num_parameters, generator=draw, dtype=torch.float64))
        here, near, far, beyond, away = (cpa_velocity(space.tessellation, velocities, x) for x in ways)
        if boundary == "fixed":
            assert max(v.abs().max() for v in (here, near, far, beyond, away)) < 1e-12
            continue
        if boundary == "slide":
            assert max(v[..., 0].abs().max() for v in (here, near, far, beyond, away)) < 1e-12
        else:
            assert here[..., 0].abs().max() > 0.01
        if (
            len(cells) == 3
        ):  # the margin's tetrahedra cut the sides along the other diagonal: what follows holds at its vertices alone
            continue
        assert_close(beyond, away)  # beyond the first layer the velocity stays as it is
        if boundary == "slide":
            assert_close(near, here)
        elif boundary == "linear":  # one slope for the whole side
            assert_close(near - here, far - near)
            assert_close(near - here, (near - here)[:, :1].expand_as(near))
            assert (near - here).abs().max() > 0.01


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("cells", [(4,), (3, 2), (2, 2, 2)])
def test_velocities_are_continuous_everywhere(cells, boundary):
    space = cpa_space(grid_tessellation(cells), boundary)
    draw = torch.Generator().manual_seed(0)
    velocities = space.velocities(torch.randn(1, space.num_parameters, generator=draw, dtype=torch.float64))
    x = torch.rand(500, len(cells), generator=draw, dtype=torch.float64) * 5 - 2
    step = 1e-4 * torch.randn(500, len(cells), generator=draw, dtype=torch.float64)
    change = cpa_velocity(space.tessellation, velocities, x + step) - cpa_velocity(space.tessellation, velocities, x)
    assert change.abs().max() < 0.01 and velocities.abs().max() > 0.1


def test_coefficients_of_a_field_that_is_not_in_the_space_are_those_of_the_nearest():
    space = cpa_space(grid_tessellation((2, 2)), "slide")
    matrices = torch.randn(1, 16, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = space.coefficients(matrices)
    rest = (matrices - space.matrices(theta)).flatten()
    basis = space.matrices(torch.eye(space.num_parameters, dtype=torch.float64)).flatten(1)
    assert (basis @ rest).abs().max() < 1e-12


@pytest.mark.parametrize("dims", [2, 3])
def test_any_tessellation_has_its_space(dims):
    tessellation = delaunay(12, dims)
    border = {v for c, j in tessellation.frame_faces for k, v in enumerate(tessellation.cells[c].tolist()) if k != j}
    free, fixed, slide = (cpa_space(tessellation, b) for b in ("free", "fixed", "slide"))
    assert free.num_parameters == dims * len(tessellation.vertices)
    assert fixed.num_parameters == dims * (len(tessellation.vertices) - len(border))
    for c, j in tessellation.frame_faces:
        normal = tessellation.barycentric[c, j, :dims]
        across = torch.einsum("d,vdp->vp", normal, slide.nodal)
        assert across[[v for k, v in enumerate(tessellation.cells[c].tolist()) if k != j]].abs().max() < 1e-9
    assert slide.num_parameters > fixed.num_parameters


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="'boundary' must be one of"):
        cpa_space(grid_tessellation((2, 2)), "zero")
    with pytest.raises(ValueError, match="needs a tessellation with a margin"):
        cpa_space(grid_tessellation((2, 2), ()), "linear")
    with pytest.raises(ValueError, match="Take more cells"):
        cpa_space(Tessellation([[0.0], [1.0]], [[0, 1]]), "fixed")
