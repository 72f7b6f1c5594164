"""Whether a sampled map is one-to-one between its samples too: orientation of every triangle or tetrahedron of the lattice."""

from __future__ import annotations

from itertools import permutations, product

import torch
from torch import Tensor

from monai_diffeo.flow.grid import check_field

__all__ = ["breaks", "simplex_determinants"]


def simplex_determinants(ddf: Tensor) -> Tensor:
    r"""Volume of the image of every simplex of the lattice, relative to the simplex; at most 0 where it is turned over.

    In the plane each cell gives the four triangles at its corners: both triangles of either diagonal. The determinant of the
    bilinear map through a cell is linear along both axes and takes just these four values at the corners, so that all of them
    positive means that the interpolated map is nowhere folded, not only that its samples look so. In space each cell gives the
    six tetrahedra around its main diagonal, the pieces of the piecewise linear map.

    Args:
        ddf: displacement, shape ``(B, D, *S)``, voxels, at least two voxels along every axis.

    Returns:
        Shape ``(B, n, *(S - 1))``, ``n`` = 4 triangles or 6 tetrahedra a cell.

    Raises:
        ShapeError: if ``ddf`` is no displacement.

    Example:
        >>> simplex_determinants(torch.zeros(1, 2, 3, 3)).unique().tolist()
        [1.0]
    """
    check_field("simplex_determinants()", "ddf", ddf)
    dims = ddf.shape[1]
    slopes = [ddf.diff(dim=2 + axis) for axis in range(dims)]

    def edge(axis: int, corner: tuple[int, ...]) -> list[Tensor]:
        """Components of the map's difference along an axis, from the corner of each cell that ``corner`` (0 or 1 an axis) names."""
        where = [slice(None) if a == axis else slice(c, n - 1 + c) for a, (c, n) in enumerate(zip(corner, ddf.shape[2:]))]
        return [slopes[axis][(slice(None), i, *where)] + (i == axis) for i in range(dims)]

    if dims == 2:
        return torch.stack([_determinant([edge(0, (0, j)), edge(1, (i, 0))]) for i, j in product((0, 1), (0, 1))], dim=1)
    found = []
    for order in permutations(range(3)):
        corner, columns = [0, 0, 0], [[], [], []]
        for axis in order:
            columns[axis] = edge(axis, tuple(corner))
            corner[axis] = 1
        found.append(_determinant(columns))
    return torch.stack(found, dim=1)


def breaks(ddf: Tensor) -> Tensor:
    """Share of simplices that are turned over or flat, of each image, shape ``(B,)``; 0 for an interpolated map without folds.

    Stricter than :func:`folding`, which looks at central differences at the voxels.
    """
    return (simplex_determinants(ddf) <= 0).flatten(1).float().mean(1)


def _determinant(columns: list[list[Tensor]]) -> Tensor:
    if len(columns) == 2:
        (a, c), (b, d) = columns
        return a * d - b * c
    (a, d, p), (b, e, q), (c, f, r) = columns
    return a * (e * r - f * q) - b * (d * r - f * p) + c * (d * q - e * p)
