"""The Baker-Campbell-Hausdorff series: one velocity whose flow is that of several, one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow.grid import check_field
from monai_diffeo.flow.jacobian import jacobian
from monai_diffeo.flow.sequence import check_sequence, reduce_sequence
from monai_diffeo.flow.warp import _float

__all__ = ["bch", "bch_sequence", "lie_bracket", "series"]

Field = TypeVar("Field", bound=Any)


def lie_bracket(v: Tensor, w: Tensor) -> Tensor:
    r"""How far the flows of two velocities are from commuting: :math:`[v, w] = (\mathrm{D}v)\,w - (\mathrm{D}w)\,v`.

    The sign is the one of the group: for :math:`v = Ax` and :math:`w = Bx` it is :math:`(AB - BA)x`, so that flows multiply as
    matrices do, ``compose(exp(v), exp(w)) = exp(v + w + [v, w] / 2 + ...)``. (The bracket of derivations, as most books on
    geometry have it, is minus this one.) Derivatives are central differences, one-sided at the frame, exact for affine fields.

    Args:
        v: velocity, shape ``(B, D, *S)``, voxels per unit time.
        w: velocity, same shape, which is that of the result.

    Raises:
        ShapeError: if the shapes differ or are no velocities.

    Example:
        >>> turn, shift = torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 5, 5)
        >>> turn[0, 0], turn[0, 1], shift[0, 0] = -torch.arange(5.0), torch.arange(5.0)[:, None], 1.0
        >>> lie_bracket(turn, shift)[0, :, 2, 2].tolist()       # a turned shift: turn applied to (1, 0)
        [0.0, 1.0]
    """
    check_field("lie_bracket()", "v", v)
    if v.shape != w.shape:
        raise ShapeError("lie_bracket()", "w", f"{tuple(v.shape)} as 'v'", w.shape)
    v, w = _float(v), _float(w)
    with torch.autocast(v.device.type, enabled=False):
        return torch.einsum("bij...,bj...->bi...", jacobian(v), w) - torch.einsum("bij...,bj...->bi...", jacobian(w), v)


def bch(v: Tensor, w: Tensor, order: int = 2) -> Tensor:
    r"""Velocity ``z`` with ``exp(z)`` nearly ``compose(exp(v), exp(w))``, to a given order in the size of the fields.

    .. math:: z = v + w + \tfrac12 [v, w] + \tfrac1{12} \left([v, [v, w]] + [w, [w, v]]\right) - \tfrac1{24} [w, [v, [v, w]]] +
        \dots

    The error falls with the order where the derivatives of both fields stay well below 1, and grows with it where they do
    not; each order also costs one more numerical derivative. ``docs/results/bch.md`` has the numbers. Where the exact
    composition is wanted, compose the flows.

    Args:
        v: velocity whose flow comes last, shape ``(B, D, *S)``, voxels per unit time.
        w: velocity whose flow comes first; this one and the result have the shape and unit of ``v``.
        order: 1 (the sum) to 4.

    Raises:
        ShapeError: if the shapes differ or are no velocities.
        ValueError: if ``order`` is not 1, 2, 3 or 4.

    Reference: Van-Brunt and Visser (2016), https://doi.org/10.1063/1.4939929; Bossa, Hernandez and Olmos (2007), MICCAI,
    https://doi.org/10.1007/978-3-540-75757-3_81. The words of appendix A of "Diffeomorphic Template Transformers" are
    products that fields do not have, and some are misprinted; see ``docs/results/bch.md``.

    Example:
        >>> shift = torch.ones(1, 2, 6, 6)          # flows of constant velocities commute: the series stops at the sum
        >>> torch.equal(bch(shift, 2 * shift, order=4), 3 * shift)
        True
    """
    return series(v, w, order, lie_bracket)


def series(v: Field, w: Field, order: int, bracket: Callable[[Field, Field], Field]) -> Field:
    """:func:`bch` in any Lie algebra: of whatever can be added, subtracted and divided by numbers, and has a bracket."""
    if order not in (1, 2, 3, 4):
        raise ValueError(f"bch(): 'order' must be 1, 2, 3 or 4, got {order}. Beyond that, compose the flows.")
    once = bracket(v, w)  # also at order 1: it checks both fields
    z = v + w if order == 1 else v + w + once / 2
    if order >= 3:
        twice = bracket(v, once)
        z = z + (twice - bracket(w, once)) / 12
    if order >= 4:
        z = z - bracket(w, twice) / 24
    return z


def bch_sequence(fields: Tensor, order: int = 2, scheme: str = "tree") -> Tensor:
    """One velocity for the flows of T velocities, ``exp(v_1) after exp(v_2) after ... exp(v_T)``, by repeated :func:`bch`.

    Args:
        fields: velocities, shape ``(B, T, D, *S)``, voxels per unit time; the result has the shape ``(B, D, *S)``.
        order: of each application of the series, 1 to 4.
        scheme: ``"tree"`` pairs neighbours, so that no field goes through the series more than ``ceil(log2 T)`` times;
            ``"chain"`` adds one after another, up to ``T - 1`` times.

    Raises:
        ShapeError: if ``fields`` has another shape.
        ValueError: for an unknown order or scheme.
    """
    check_sequence("bch_sequence()", "fields", fields)
    return reduce_sequence(fields, lambda a, b: bch(a, b, order), scheme)
