"""Simplices that tile a domain: intervals, triangles, tetrahedra."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow.kept import keep_tensors

__all__ = ["Tessellation", "grid_tessellation"]


class Tessellation:
    r"""Any conforming set of simplices in 1, 2 or 3 dimensions: two cells share a whole face, or less than a face.

    A point of a cell is written in barycentric coordinates :math:`\lambda`, one for each vertex of the cell, which sum to one;
    it lies in the cell where none is negative, and on the face opposite to vertex j where :math:`\lambda_j = 0`.

    Args:
        vertices: shape ``(V, D)``, any unit.
        cells: indices of each cell's vertices, shape ``(C, D + 1)``.
        shells: how many of the first vertices make up the frame, the frame with the first layer of the margin around it, and so
            on. Velocities in a margin follow from those of the frame. All by default.
        frame_cells: how many of the first cells make up the frame. All by default.
        boxes: for grids, which of the cells lie in each box, and the coordinates at which boxes begin and end along each axis;
            makes :meth:`locate` independent of the number of cells.

    Raises:
        ShapeError: if ``vertices`` or ``cells`` has another shape.
        ValueError: if a cell is flat, a face belongs to more than two cells, or an index is out of range.

    Example:
        >>> square = Tessellation([[0, 0], [0, 1], [1, 0], [1, 1]], [[0, 1, 2], [1, 2, 3]])
        >>> square.neighbours.tolist()                  # across the face opposite to each vertex; -1 is the outside
        [[1, -1, -1], [-1, -1, 0]]
    """

    def __init__(
        self,
        vertices: Tensor | Sequence,
        cells: Tensor | Sequence,
        shells: Sequence[int] | None = None,
        frame_cells: int | None = None,
        boxes: tuple[tuple[Tensor, ...], Tensor] | None = None,
    ) -> None:
        vertices = torch.as_tensor(vertices, dtype=torch.float64, device="cpu")
        cells = torch.as_tensor(cells, dtype=torch.long, device="cpu")
        if vertices.ndim != 2 or vertices.shape[1] not in (1, 2, 3):
            raise ShapeError("Tessellation", "vertices", "(V, D) with D = 1, 2 or 3", vertices.shape)
        if cells.ndim != 2 or cells.shape[1] != vertices.shape[1] + 1 or not len(cells):
            raise ShapeError("Tessellation", "cells", f"(C, {vertices.shape[1] + 1}), vertices of each simplex", cells.shape)
        low, high = cells.aminmax()
        if low < 0 or high >= len(vertices):
            raise ValueError(f"Tessellation: 'cells' must name vertices 0 to {len(vertices) - 1}, got {low} to {high}.")
        self.vertices, self.cells = vertices, cells.sort(1).values
        self.spatial_dims = vertices.shape[1]
        self.shells = (len(vertices),) if shells is None else tuple(shells)
        self.frame_cells = len(cells) if frame_cells is None else frame_cells
        self.boxes = boxes
        corners = vertices[self.cells]
        volume = torch.linalg.det(corners[:, 1:] - corners[:, :1]).abs()
        extent = (corners.amax(1) - corners.amin(1)).amax(1) ** self.spatial_dims
        if bool((volume <= 1e-9 * extent).any()):
            raise ValueError(f"Tessellation: cell {int((volume / extent).argmin())} is flat. Leave it out or move a vertex.")

    def __reduce__(self):
        return Tessellation, (self.vertices, self.cells, self.shells, self.frame_cells, self.boxes)

    @property
    def frame_vertices(self) -> int:
        """How many of the first vertices make up the frame."""
        return self.shells[0]

    @cached_property
    def barycentric(self) -> Tensor:
        """Matrices W with ``lambda = W (x, 1)``, shape ``(C, D + 1, D + 1)``."""
        corners = self.vertices[self.cells].transpose(1, 2)
        return torch.linalg.inv(torch.cat([corners, torch.ones_like(corners[:, :1])], 1))

    @cached_property
    def neighbours(self) -> Tensor:
        """The cell across the face opposite to each vertex, shape ``(C, D + 1)``; -1 where there is none."""
        found = torch.full_like(self.cells, -1)
        sides: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for c, vertices in enumerate(self.cells.tolist()):
            for j in range(len(vertices)):
                sides.setdefault(tuple(vertices[:j] + vertices[j + 1 :]), []).append((c, j))
        for face, owners in sides.items():
            if len(owners) > 2:
                raise ValueError(f"Tessellation: the face of vertices {face} belongs to {len(owners)} cells, more than two.")
            if len(owners) == 2:
                (a, i), (b, j) = owners
                found[a, i], found[b, j] = b, a
        return found

    @cached_property
    def slots(self) -> Tensor:
        """Where barycentric coordinates go when a point leaves a cell, shape ``(C, D + 2, D + 1)``.

        Entry ``[c, j, k]`` is the coordinate of cell c that becomes coordinate k of its neighbour opposite to vertex j; that of
        the vertex left behind, zero by then, goes to the vertex that is new. The last row, ``j = D + 1``, is for staying.
        """
        count = self.spatial_dims + 1
        table = torch.arange(count).repeat(len(self.cells), count + 1, 1)
        for c, (vertices, neighbours) in enumerate(zip(self.cells.tolist(), self.neighbours.tolist())):
            for j, n in enumerate(neighbours):
                if n >= 0:
                    table[c, j] = torch.tensor([vertices.index(v) if v in vertices else j for v in self.cells[n].tolist()])
        return table

    @cached_property
    def frame_faces(self) -> list[tuple[int, int]]:
        """Cell and vertex opposite to each face on the border of the frame."""
        around = self.neighbours[: self.frame_cells]
        return [tuple(pair) for pair in ((around < 0) | (around >= self.frame_cells)).nonzero().tolist()]

    def coordinates(self, points: Tensor, cells: Tensor) -> Tensor:
        """Barycentric coordinates ``(..., D + 1)`` of ``points`` ``(..., D)`` in ``cells`` ``(...,)``."""
        matrix = _to(self, "barycentric", points.device, points.dtype)[cells]
        return (matrix[..., :-1] @ points.unsqueeze(-1)).squeeze(-1) + matrix[..., -1]

    def locate(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The cell ``(...,)`` of each point ``(..., D)`` and the barycentric coordinates there, ``(..., D + 1)``.

        For a point outside it is the border cell of which the point is least outside; its least coordinate is negative.
        """
        if points.shape[-1] != self.spatial_dims:
            raise ShapeError("Tessellation.locate()", "points", f"(..., {self.spatial_dims})", points.shape)
        flat = points.detach().reshape(-1, self.spatial_dims)
        if self.boxes is None:
            every = torch.arange(len(self.cells), device=flat.device)
            parts = [self._among(p, every.expand(len(p), -1)) for p in flat.split(max(2**22 // len(every), 1))]
            cell = torch.cat(parts) if parts else every[:0]
        else:
            axes, members = self.boxes
            box = torch.zeros(len(flat), dtype=torch.long, device=flat.device)
            for axis, x in zip(axes, flat.unbind(-1)):
                inner = axis[1:-1].to(x)
                box = box * (len(axis) - 1) + torch.searchsorted(inner, x.contiguous(), right=True)
            cell = self._among(flat, members.to(flat.device)[box])
        lost = (self.coordinates(flat, cell).amin(1) < -1e-6).nonzero().squeeze(1)
        if len(lost):
            border = (self.neighbours < 0).any(1).nonzero().squeeze(1).to(flat.device)
            parts = [self._among(p, border.expand(len(p), -1)) for p in flat[lost].split(max(2**22 // len(border), 1))]
            cell[lost] = torch.cat(parts)
        return cell.view(points.shape[:-1]), self.coordinates(flat, cell).view(*points.shape[:-1], points.shape[-1] + 1)

    def _among(self, points: Tensor, candidates: Tensor) -> Tensor:
        """Of the ``candidates`` (N, M), the cell whose least barycentric coordinate at each point (N, D) is largest."""
        if candidates.shape[1] == 1:
            return candidates[:, 0]
        least = self.coordinates(points.unsqueeze(1).expand(*candidates.shape, -1), candidates).amin(-1)
        return candidates.gather(1, least.argmax(1, keepdim=True)).squeeze(1)


@keep_tensors
def _to(owner: Hashable, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor that ``owner`` holds under a name, on a device; moved once."""
    return getattr(owner, name).to(device=device, dtype=dtype)


def _splits(corners: dict[tuple[int, ...], int], center: int | None, index: Sequence[int]) -> list[list[int]]:
    """Simplices of one box, from the vertex at each of its corners."""
    if len(index) == 1:
        return [[corners[0,], corners[1,]]]
    if center is not None:
        ring = [corners[0, 0], corners[0, 1], corners[1, 1], corners[1, 0]]
        return [[center, a, b] for a, b in zip(ring, ring[1:] + ring[:1])]
    even = {bits: v for bits, v in corners.items() if (sum(bits) + sum(index)) % 2 == 0}
    cut = [
        [corners[bits]] + [v for other, v in even.items() if sum(a != b for a, b in zip(bits, other)) == 1]
        for bits in corners
        if bits not in even
    ]
    return [list(even.values()), *cut]


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def grid_tessellation(cells: tuple[int, ...], margins: tuple[float, ...] = (1.0, 64.0)) -> Tessellation:
    """The frame [0, 1]^D cut into boxes, each box into simplices, and layers of more boxes around it.

    An interval is one cell. A rectangle becomes four triangles around its centre. A box becomes five tetrahedra, the middle one
    between the corners whose grid indices sum to an even number, so that the faces of neighbouring boxes match.

    Args:
        cells: boxes along each of the 1, 2 or 3 axes.
        margins: width of each layer around the frame, in frames, from the inside outwards; the last is so wide that nothing
            comes to its end. None of them: ``()``.

    Raises:
        ValueError: unless there are 1 to 3 axes with at least one box each.

    Example:
        >>> tessellation = grid_tessellation((4, 4), margins=())
        >>> len(tessellation.cells), len(tessellation.vertices)        # 16 x 4 triangles, 25 corners and 16 centres
        (64, 41)
    """
    cells = tuple(int(n) for n in cells)
    if len(cells) not in (1, 2, 3) or min(cells) < 1:
        raise ValueError(f"grid_tessellation(): 'cells' must be 1 to 3 numbers, each at least 1, got {cells}.")
    layers = len(margins)
    reach = [sum(margins[: k + 1]) for k in range(layers)]
    axes = [[-r for r in reversed(reach)] + [i / n for i in range(n + 1)] + [1 + r for r in reach] for n in cells]

    def layer(name: tuple[str, tuple[int, ...]]) -> int:
        """0 in the frame, else the number of the layer."""
        kind, index = name
        last = [n if kind == "corner" else n - 1 for n in cells]
        return max(max(-i, i - n, 0) for i, n in zip(index, last))

    def place(kind: str, index: Sequence[int]) -> list[float]:
        low = [axis[i + layers] for axis, i in zip(axes, index)]
        return low if kind == "corner" else [(a + axis[i + layers + 1]) / 2 for a, axis, i in zip(low, axes, index)]

    boxes = list(itertools.product(*(range(-layers, n + layers) for n in cells)))
    corners = itertools.product(*(range(-layers, n + 1 + layers) for n in cells))
    named = [("corner", i) for i in corners] + ([("center", i) for i in boxes] if len(cells) == 2 else [])
    named.sort(key=layer)  # within a layer the order stays: corners, then centres
    number = {name: k for k, name in enumerate(named)}
    simplices: list[list[int]] = []
    members = {}
    for index in sorted(boxes, key=lambda i: layer(("box", i))):
        around = {
            bits: number["corner", tuple(i + b for i, b in zip(index, bits))]
            for bits in itertools.product((0, 1), repeat=len(cells))
        }
        parts = _splits(around, number.get(("center", index)), index)
        members[index] = list(range(len(simplices), len(simplices) + len(parts)))
        simplices += parts
    return Tessellation(
        [place(*name) for name in named],
        simplices,
        [sum(layer(name) <= k for name in named) for k in range(layers + 1)],
        len(members[boxes[0]]) * math.prod(cells),
        (tuple(torch.tensor(axis, dtype=torch.float64) for axis in axes), torch.tensor([members[i] for i in boxes])),
    )
