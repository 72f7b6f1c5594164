import itertools
import math
import pickle

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.errors import ShapeError
from monai_diffeo.families.cpab import Tessellation, grid_tessellation
from tests.families.cpab.shapes import delaunay

GRIDS = [(5,), (3, 4), (1, 1), (2, 3, 2)]


def volumes(tessellation):
    corners = tessellation.vertices[tessellation.cells]
    return torch.linalg.det(corners[:, 1:] - corners[:, :1]).abs() / math.factorial(tessellation.spatial_dims)


@pytest.mark.parametrize("cells", GRIDS)
@pytest.mark.parametrize("margins", [(), (0.5,), (1.0, 2.0)])
def test_the_cells_fill_the_frame_and_its_margin_once(cells, margins):
    tessellation = grid_tessellation(cells, margins)
    per_box = {1: 1, 2: 4, 3: 5}[len(cells)]
    assert tessellation.frame_cells == per_box * math.prod(cells)
    assert_close(volumes(tessellation)[: tessellation.frame_cells].sum().item(), 1.0)
    side = 1 + 2 * sum(margins)
    assert_close(volumes(tessellation).sum().item(), float(side ** len(cells)))
    inside = tessellation.vertices[: tessellation.frame_vertices]
    assert inside.min() == 0 and inside.max() == 1
    assert tessellation.cells[: tessellation.frame_cells].max() < tessellation.frame_vertices
    for shell, width in zip(tessellation.shells[1:], (sum(margins[: k + 1]) for k in range(len(margins)))):
        assert tessellation.vertices[:shell].amin() == -width and tessellation.vertices[:shell].amax() == 1 + width


@pytest.mark.parametrize("cells", GRIDS)
def test_every_face_within_is_shared_by_two_cells_and_every_face_on_the_border_is_not(cells):
    tessellation = grid_tessellation(cells, (1.0,))
    for c, vertices in enumerate(tessellation.cells.tolist()):
        for j, n in enumerate(tessellation.neighbours[c].tolist()):
            face = tessellation.vertices[vertices[:j] + vertices[j + 1 :]]
            on_border = bool(((face == -1).all(0) | (face == 2).all(0)).any())
            assert (n < 0) == on_border
            if n >= 0:
                back = tessellation.neighbours[n].tolist().index(c)
                there = tessellation.cells[n].tolist()
                assert set(there[:back] + there[back + 1 :]) == set(vertices[:j] + vertices[j + 1 :])


@pytest.mark.parametrize("cells", GRIDS)
def test_coordinates_carried_over_a_face_mean_the_same_point(cells):
    tessellation = grid_tessellation(cells)
    count = len(cells) + 1
    draw = torch.Generator().manual_seed(0)
    some = torch.randint(len(tessellation.cells), (60,), generator=draw).tolist()
    for c, j in itertools.product(some, range(count)):
        n = int(tessellation.neighbours[c, j])
        coordinates = torch.rand(count, generator=draw, dtype=torch.float64)
        coordinates[j] = 0
        coordinates /= coordinates.sum()
        carried = coordinates[tessellation.slots[c, j]]
        if n >= 0:
            here = coordinates @ tessellation.vertices[tessellation.cells[c]]
            assert_close(carried @ tessellation.vertices[tessellation.cells[n]], here)
        assert torch.equal(coordinates[tessellation.slots[c, -1]], coordinates)  # staying changes nothing


@pytest.mark.parametrize("cells", GRIDS)
@pytest.mark.parametrize("margins", [(), (0.2, 0.3)])
def test_points_are_found_in_the_grid_as_by_looking_at_every_cell(cells, margins):
    tessellation = grid_tessellation(cells, margins)
    every = Tessellation(tessellation.vertices, tessellation.cells)
    points = torch.rand(300, len(cells), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.6 - 0.3
    (cell, coordinates), (_, wanted) = tessellation.locate(points), every.locate(points)
    inside = (points.min(1).values > 0) & (points.max(1).values < 1) if not margins else torch.ones(300, dtype=torch.bool)
    assert_close(coordinates[inside].amin(1), wanted[inside].amin(1))
    assert (coordinates[inside].amin(1) >= -1e-12).all()
    assert_close(torch.einsum("nj,njd->nd", coordinates, tessellation.vertices[tessellation.cells[cell]]), points)
    assert_close(coordinates.sum(1), torch.ones(300, dtype=torch.float64))
    batch, _ = tessellation.locate(points.view(3, 100, -1))
    assert torch.equal(batch.flatten(), cell)


def test_four_triangles_meet_at_the_centre_and_tetrahedra_are_five_a_box():
    square = grid_tessellation((1, 1), ())
    center = int((square.vertices == 0.5).all(1).nonzero())
    assert (square.cells == center).any(1).all() and len(square.cells) == 4
    box = grid_tessellation((1, 1, 1), ())
    assert len(box.cells) == 5
    assert_close(volumes(box).sort().values, torch.tensor([1 / 6] * 4 + [1 / 3], dtype=torch.float64))


def test_a_point_outside_belongs_to_a_cell_on_the_border():
    tessellation = delaunay(12, 2)
    outside = 3 * torch.rand(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    outside = outside[((outside < 0) | (outside > 1)).any(1)]
    cell, coordinates = tessellation.locate(outside)
    assert (tessellation.neighbours[cell] < 0).any(1).all() and (coordinates.amin(1) < 0).all()


def test_it_survives_pickling():
    tessellation = grid_tessellation((2, 3))
    again = pickle.loads(pickle.dumps(tessellation))
    assert torch.equal(again.vertices, tessellation.vertices) and torch.equal(again.neighbours, tessellation.neighbours)
    assert again.frame_cells == tessellation.frame_cells
    points = torch.rand(20, 2)
    assert torch.equal(again.locate(points)[0], tessellation.locate(points)[0])


def test_errors_say_what_is_wrong():
    corners = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [2.0, 0.0]]
    with pytest.raises(ShapeError, match=r"'vertices' must have shape \(V, D\)"):
        Tessellation(torch.zeros(3, 4), torch.zeros(1, 5))
    with pytest.raises(ShapeError, match=r"'cells' must have shape \(C, 3\)"):
        Tessellation(corners, [[0, 1, 2, 3]])
    with pytest.raises(ValueError, match="vertices 0 to 3, got 0 to 4"):
        Tessellation(corners, [[0, 1, 4]])
    with pytest.raises(ValueError, match="cell 1 is flat"):
        Tessellation(corners, [[0, 1, 2], [0, 2, 3]])
    fan = Tessellation([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.3, 2.0]], [[0, 1, 2], [0, 1, 3], [0, 1, 4]])
    with pytest.raises(ValueError, match=r"face of vertices \(0, 1\) belongs to 3 cells"):
        _ = fan.neighbours
    with pytest.raises(ValueError, match="1 to 3 numbers"):
        grid_tessellation((2, 0))
    with pytest.raises(ShapeError, match=r"\(..., 2\)"):
        grid_tessellation((2, 2)).locate(torch.zeros(5, 3))
