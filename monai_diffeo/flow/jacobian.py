"""Local volume change and folding of a displacement, at the voxels and between them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from math import comb, prod

import torch
from torch import Tensor

from monai_diffeo.flow.grid import check_field

__all__ = [
    "cell_determinants", "folding_fraction", "jacobian", "jacobian_determinant", "nonpositive_cell_fraction",
    "simplex_determinants",
]  # fmt: skip


def jacobian(ddf: Tensor) -> Tensor:
    """Derivatives of a displacement, all at the same voxel: central differences, one-sided at the frame.

    Args:
        ddf: shape ``(B, D, *S)``, voxels. Along an axis of one voxel the derivative is zero.

    Returns:
        Shape ``(B, D, D, *S)``; entry ``[:, i, j]`` is the derivative of component i along axis j.

    Raises:
        ShapeError: if ``ddf`` is no displacement.
    """
    check_field("jacobian()", "ddf", ddf)
    return torch.stack([_slope(ddf, axis) for axis in range(2, ddf.ndim)], dim=2)


def _slope(field: Tensor, axis: int) -> Tensor:
    """As ``torch.gradient``, which fixes the size of the batch in an export."""
    if (n := field.shape[axis]) == 1:
        return torch.zeros_like(field)
    inner = (field.narrow(axis, 2, n - 2) - field.narrow(axis, 0, n - 2)) / 2
    ends = (field.narrow(axis, k + 1, 1) - field.narrow(axis, k, 1) for k in (0, n - 2))
    return torch.cat([next(ends), inner, next(ends)], axis)


def jacobian_determinant(ddf: Tensor) -> Tensor:
    """Determinant of ``I + grad ddf`` at every voxel; 1 where volume is kept, at most 0 where the map folds.

    Argument and error as for :func:`jacobian`. Returns the shape ``(B, *S)``.

    Example:
        >>> jacobian_determinant(torch.zeros(1, 2, 4, 4)).unique().tolist()
        [1.0]
    """
    check_field("jacobian_determinant()", "ddf", ddf)
    slopes = [_slope(ddf, axis).unbind(1) for axis in range(2, ddf.ndim)]
    return _determinant([[s + 1 if i == j else s for i, s in enumerate(column)] for j, column in enumerate(slopes)])


def _determinant(columns: list[list[Tensor]]) -> Tensor:
    """Determinant of matrices 2 x 2 or 3 x 3, each entry a tensor."""
    if len(columns) == 2:
        (a, c), (b, d) = columns
        return a * d - b * c
    (a, d, p), (b, e, q), (c, f, r) = columns
    return a * (e * r - f * q) - b * (d * r - f * p) + c * (d * q - e * p)


def folding_fraction(ddf: Tensor) -> Tensor:
    """Share of folded voxels of each image, shape ``(B,)``: Jacobian determinant at most 0, or not finite."""
    return _not_positive(jacobian_determinant(ddf))


def _not_positive(volume: Tensor) -> Tensor:
    """Share of numbers in each row that are not positive or not finite."""
    return (~((volume > 0) & (volume < torch.inf))).flatten(1).float().mean(1)


def simplex_determinants(ddf: Tensor) -> Tensor:
    r"""Volume of the image of every simplex of the lattice, relative to the simplex; at most 0 where it is turned over.

    In the plane each cell gives the four triangles at its corners: both triangles of either diagonal. The determinant of the
    bilinear map through a cell is linear along both axes and takes just these four values at the corners, so that all of them
    positive means that the interpolated map is nowhere folded, not only that its samples look so. In space each cell gives the
    six tetrahedra around its main diagonal, the pieces of the piecewise linear map.

    Argument and error as for :func:`jacobian`. Returns the shape ``(B, n, *(S - 1))``, ``n`` = 4 triangles or 6 tetrahedra a
    cell.

    Example:
        >>> simplex_determinants(torch.zeros(1, 2, 3, 3)).unique().tolist()
        [1.0]
    """
    check_field("simplex_determinants()", "ddf", ddf)
    edge = _edges(ddf)
    if ddf.shape[1] == 2:
        return torch.stack([_determinant([edge(0, (0, j)), edge(1, (i, 0))]) for i, j in product((0, 1), (0, 1))], dim=1)
    found = []
    for order in permutations(range(3)):
        corner, columns = [0, 0, 0], [list[Tensor]() for _ in range(3)]
        for axis in order:
            columns[axis] = edge(axis, tuple(corner))
            corner[axis] = 1
        found.append(_determinant(columns))
    return torch.stack(found, dim=1)


def cell_determinants(ddf: Tensor) -> Tensor:
    r"""Bernstein coefficients of the Jacobian determinant of the multilinear map through each cell of the lattice.

    The determinant within a cell is a mean of its coefficients with positive weights, so that all of them positive proves that
    the interpolated map is nowhere folded. In the plane they are the four corner triangles of :func:`simplex_determinants`, and
    the converse holds too; in space the determinant has degree two along every axis, and what the 27 coefficients prove is a
    little stricter.

    Argument and error as for :func:`jacobian`. Returns the shape ``(B, n, *(S - 1))``, ``n`` = 4 or 27 coefficients a cell.

    Reference: Farouki (2012), The Bernstein polynomial basis, https://doi.org/10.1016/j.cagd.2012.03.001.
    """
    check_field("cell_determinants()", "ddf", ddf)
    if ddf.ndim == 4:
        return simplex_determinants(ddf)
    edge, found = _edges(ddf), dict[tuple[int, ...], Tensor]()
    # along each axis two of the three edges vary, each linearly: their coefficients multiply, and equal sums fall together
    for (a, b), (c, d), (e, f) in product(product((0, 1), repeat=2), repeat=3):
        index = (a + b, c + d, e + f)
        part = _determinant([edge(0, (0, c, e)), edge(1, (a, 0, f)), edge(2, (b, d, 0))]) / prod(comb(2, i) for i in index)
        found[index] = found[index] + part if index in found else part
    return torch.stack([found[index] for index in sorted(found)], dim=1)


def nonpositive_cell_fraction(ddf: Tensor) -> Tensor:
    """Share of :func:`cell_determinants` that are not positive, shape ``(B,)``; 0 proves an interpolated map without folds.

    Numbers that are not finite count as folds. Stricter than :func:`folding_fraction`, which looks at central differences at
    the voxels.
    """
    return _not_positive(cell_determinants(ddf))


def _edges(ddf: Tensor) -> Callable[[int, tuple[int, ...]], list[Tensor]]:
    """Components of the map's difference along an axis, from the corner of each cell that ``corner`` (0 or 1 an axis) names."""
    dims = ddf.shape[1]
    for axis in range(2, ddf.ndim):  # a cell over a single voxel goes on as the voxel
        ddf = torch.cat([ddf, ddf], axis) if ddf.shape[axis] == 1 else ddf
    unit = torch.eye(dims, dtype=ddf.dtype, device=ddf.device)
    slopes = [ddf.diff(dim=2 + axis) + unit[axis].view(-1, *[1] * dims) for axis in range(dims)]

    def edge(axis: int, corner: tuple[int, ...]) -> list[Tensor]:
        where = [slice(None) if a == axis else slice(c, n - 1 + c) for a, (c, n) in enumerate(zip(corner, ddf.shape[2:]))]
        return [slopes[axis][(slice(None), i, *where)] for i in range(dims)]

    return edge
