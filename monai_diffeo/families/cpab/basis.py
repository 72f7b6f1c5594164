"""Orthonormal bases of continuous piecewise-affine velocity fields."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from monai_diffeo.families.cpab.tessellation import Tessellation, _to

__all__ = ["BOUNDARIES", "CPASpace", "cpa_space"]

BOUNDARIES = ("free", "linear", "slide", "fixed")


@dataclass(frozen=True, eq=False)
class CPASpace:
    """Velocity fields that are continuous, and affine on every cell of a tessellation.

    Attributes:
        tessellation: of the frame, and perhaps of a margin around it.
        boundary: what holds at the border of the frame, see :func:`cpa_space`.
        nodal: velocities at the vertices of each field of the basis, shape ``(V, D, P)``, frames per unit time; they determine
            the field.
    """

    tessellation: Tessellation
    boundary: str
    nodal: Tensor

    @property
    def num_parameters(self) -> int:
        """P, the dimension of the space."""
        return self.nodal.shape[-1]

    def velocities(self, theta: Tensor) -> Tensor:
        """Velocities at the vertices ``(B, V, D)`` of the fields with coefficients ``theta`` ``(B, P)``; linear."""
        nodal = _to(self, "nodal", theta.device, theta.dtype)
        return (theta @ nodal.flatten(0, 1).T).unflatten(1, nodal.shape[:2])

    def matrices(self, theta: Tensor) -> Tensor:
        """The affine maps ``v(x) = A (x, 1)`` of the frame's cells, shape ``(B, C, D, D + 1)``, as the papers write fields."""
        return cell_matrices(self.tessellation, self.velocities(theta))

    def coefficients(self, matrices: Tensor) -> Tensor:
        """The ``theta`` (B, P) of the field with these ``matrices`` ``(B, C, D, D + 1)`` of its cells, or of the nearest field.

        The basis is orthonormal as a set of vectors of all the cells' matrix entries, as in the papers, whence a plain scalar
        product.
        """
        unit = torch.eye(self.num_parameters, dtype=torch.float64)
        basis = self.matrices(unit).flatten(1).to(matrices)
        return matrices.flatten(1) @ basis.T


def cell_matrices(tessellation: Tessellation, velocities: Tensor) -> Tensor:
    """``A`` of ``v(x) = A (x, 1)`` in each cell, ``(B, C, D, D + 1)``, from velocities at the vertices ``(B, V, D)``."""
    count = tessellation.frame_cells
    at_corners = velocities[:, tessellation.cells[:count].to(velocities.device)]
    return at_corners.transpose(-1, -2) @ tessellation.barycentric[:count].to(velocities)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def cpa_space(tessellation: Tessellation, boundary: str = "free", volume_preserving: bool = False) -> CPASpace:
    r"""The space of continuous piecewise-affine velocity fields on a tessellation, with an orthonormal basis.

    Fields are orthonormal as vectors of the entries of all the frame's cells' matrices, as in the papers. The continuity
    constraints have as null space the fields that velocities at the vertices determine; what else is asked for is a null space
    within it. The basis is unique: Gram-Schmidt over the vertices' velocities in their order.

    Args:
        tessellation: from :func:`grid_tessellation`, or any other.
        boundary: what holds at the border of the frame and in the margin around it.
            ``"free"``: nothing; outside, the affine fields of the nearest cells go on for one frame's width (where several are
            nearest, their mean), and from there on the velocity stays as it is.
            ``"linear"``: as ``"free"``, and the slope across each side of the frame is one, so that the cells' own affine
            fields fit together outside; the papers' choice, 58 parameters on 4 x 4 rectangles.
            ``"slide"``: no velocity across the border; the frame is mapped onto itself. The "zero boundary" of libcpab.
            Outside, the velocity is that of the border.
            ``"fixed"``: no velocity at the border; points outside stay where they are.
        volume_preserving: whether every cell's matrix has trace zero.

    Raises:
        ValueError: if ``boundary`` is unknown or has no meaning without a margin, or no field but zero is left.

    Reference: Freifeld et al. (2017), https://doi.org/10.1109/TPAMI.2016.2646685

    Example:
        >>> from monai_diffeo.families.cpab import grid_tessellation
        >>> [cpa_space(grid_tessellation((4, 4)), b).num_parameters for b in ("free", "linear", "slide", "fixed")]
        [82, 58, 62, 50]
    """
    if boundary not in BOUNDARIES:
        raise ValueError(f"cpa_space(): 'boundary' must be one of {BOUNDARIES}, got {boundary!r}.")
    if boundary == "linear" and len(tessellation.shells) == 1:
        raise ValueError("cpa_space(): boundary='linear' needs a tessellation with a margin; use 'free' without one.")
    dims, count, whole = tessellation.spatial_dims, tessellation.frame_vertices, len(tessellation.vertices)
    allowed = _unconstrained(tessellation, boundary)  # (V_frame D, K): orthonormal directions at the vertices
    unit = allowed.T.reshape(-1, count, dims)
    fields = cell_matrices(tessellation, torch.cat([unit, unit.new_zeros(len(unit), whole - count, dims)], 1))
    gram = fields.flatten(1) @ fields.flatten(1).T
    whiten = torch.linalg.inv(torch.linalg.cholesky(gram)).T if len(unit) else gram
    coordinates = allowed @ whiten  # Gram-Schmidt; orthonormal as matrices
    constraints = []
    if volume_preserving:
        constraints.append(fields[..., :dims].diagonal(dim1=-2, dim2=-1).sum(-1).T @ whiten)
    if boundary == "linear":
        constraints.append(_kinks(tessellation) @ coordinates)
    if constraints and coordinates.shape[1]:
        coordinates = coordinates @ _null_space(torch.cat(constraints))
    if not coordinates.shape[1]:
        raise ValueError(
            f"cpa_space(): no field but zero is left with boundary={boundary!r}, volume_preserving={volume_preserving}. "
            "Take more cells."
        )
    inside = coordinates.unflatten(0, (count, dims))
    return CPASpace(tessellation, boundary, torch.einsum("vw,wdp->vdp", _continuation(tessellation, boundary), inside))


def _unconstrained(tessellation: Tessellation, boundary: str) -> Tensor:
    """Directions in which the frame's vertices may move, as orthonormal columns ``(V D, K)``, each of one vertex."""
    dims, count = tessellation.spatial_dims, tessellation.frame_vertices
    normals: dict[int, list[Tensor]] = {}
    if boundary in ("slide", "fixed"):
        for c, j in tessellation.frame_faces:
            slope = tessellation.barycentric[c, j, :dims]  # a coordinate's gradient is normal to the face where it vanishes
            for k, v in enumerate(tessellation.cells[c].tolist()):
                if k != j:
                    normals.setdefault(v, []).append(slope / slope.norm())
    columns = []
    for v in range(count):
        free = torch.eye(dims, dtype=torch.float64)
        if v in normals:
            free = free[:, :0] if boundary == "fixed" else _null_space(torch.stack(normals[v]))
        block = torch.zeros(count, dims, free.shape[1], dtype=torch.float64)
        block[v] = free
        columns.append(block.flatten(0, 1))
    return torch.cat(columns, 1)


def _null_space(matrix: Tensor) -> Tensor:
    """Orthonormal columns that span the null space, unique: Gram-Schmidt over the projected unit vectors in their order."""
    _, values, rows = torch.linalg.svd(matrix, full_matrices=True)
    rank = int((values > 1e-9 * values.amax().clamp(min=1e-30)).sum()) if len(values) else 0
    kernel = rows[rank:].T
    chosen = kernel.new_zeros(kernel.shape[1], 0)
    for projection in kernel:
        for _ in range(2):  # twice is enough
            projection = projection - chosen @ (chosen.T @ projection)
        if projection.norm() > 1e-6:
            chosen = torch.cat([chosen, (projection / projection.norm())[:, None]], 1)
        if chosen.shape[1] == kernel.shape[1]:
            break
    return kernel @ chosen


def _outside(tessellation: Tessellation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What lies nearest to each vertex of the margin's first layer.

    Returns:
        The nearest points of the frame, ``(V_margin, D)``; the cells with a face on the border of the frame, ``(F,)``; whether
        that face holds the nearest point and the vertex is across from it, ``(V_margin, F)``; across how many sides the vertex
        lies, ``(V_margin,)``.
    """
    first, second = tessellation.shells[:2]
    frame, margin = tessellation.vertices[:first], tessellation.vertices[first:second]
    nearest = torch.minimum(torch.maximum(margin, frame.amin(0)), frame.amax(0))
    beyond = margin - nearest
    cells, opposite = torch.tensor(tessellation.frame_faces).T
    outward = -tessellation.barycentric[cells, opposite, :-1]  # a coordinate falls across the face where it vanishes
    axis = outward.abs().argmax(1)
    across = (beyond @ outward.T > 0) & (beyond[:, axis] != 0)
    values = tessellation.coordinates(nearest[:, None].expand(-1, len(cells), -1), cells.expand(len(margin), -1))
    return nearest, cells, across & (values.amin(-1) > -1e-9), (beyond != 0).sum(1)


def _continuation(tessellation: Tessellation, boundary: str) -> Tensor:
    """Weights ``(V, V_frame)`` of the frame's vertices in the velocity of each vertex, those of the margin included."""
    vertices, shells = tessellation.vertices, tessellation.shells
    weights = torch.zeros(len(vertices), shells[0], dtype=torch.float64)
    weights[: shells[0]] = torch.eye(shells[0])
    if boundary == "fixed" or len(shells) == 1:
        return weights
    nearest, cells, related, _ = _outside(tessellation)
    for v, (point, near) in enumerate(zip(nearest, related), shells[0]):
        where = point if boundary == "slide" else vertices[v]
        values = tessellation.coordinates(where.expand(int(near.sum()), -1), cells[near])
        weights[v].index_add_(0, tessellation.cells[cells[near]].flatten(), values.flatten() / len(values))
    for before, after in zip(shells[1:], shells[2:]):
        low, high = vertices[:before].amin(0), vertices[:before].amax(0)
        points = torch.minimum(torch.maximum(vertices[before:after], low), high)
        candidates = (tessellation.cells < before).all(1).nonzero().squeeze(1)
        cell = tessellation._among(points, candidates.expand(len(points), -1))
        values = tessellation.coordinates(points, cell)
        weights[before:after] = torch.einsum("nj,njw->nw", values, weights[tessellation.cells[cell]])
    return weights


def _kinks(tessellation: Tessellation) -> Tensor:
    """Differences between what neighbouring cells would give the margin's vertices right across from them, as a matrix on
    the velocities of the frame's vertices ``(., V_frame D)``."""
    dims, count = tessellation.spatial_dims, tessellation.frame_vertices
    _, cells, related, sides = _outside(tessellation)
    rows = []
    for x, near in zip(tessellation.vertices[count : tessellation.shells[1]][sides == 1], related[sides == 1]):
        values = torch.zeros(int(near.sum()), count, dtype=torch.float64)
        values.scatter_(1, tessellation.cells[cells[near]], tessellation.coordinates(x.expand(len(values), -1), cells[near]))
        rows.append(values[1:] - values[:1])
    return torch.einsum("rv,de->rdve", torch.cat(rows), torch.eye(dims, dtype=torch.float64)).reshape(-1, count * dims)
