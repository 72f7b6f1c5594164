"""Films of MONAI's ``LoadImage``, columns x rows, for a canonicaliser and a network that know rows x columns."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.box_utils import convert_box_mode
from torch import Tensor

from monai_diffeo.canonicalize import Canonicalization
from monai_diffeo.canonicalize.answers import map_parts
from monai_diffeo.errors import ShapeError
from monai_diffeo.inferers.arguments import each_argument
from monai_diffeo.inferers.record import like_input
from monai_diffeo.radiograph.axes import FILM_AXES, film_axes, from_rows_first, to_rows_first
from monai_diffeo.radiograph.film import joined_notes
from monai_diffeo.radiograph.nifti import index_matrix

__all__ = ["axes_of_films", "infer_rows_first", "warn_of_unknown_axes"]

_log = logging.getLogger(__name__)


def axes_of_films(images: Tensor) -> str:
    """The axes of a batch of films ``(B, C, H, W)`` that are not rows x columns; ``""`` for others, and where it is not known.

    Raises:
        ShapeError: if the films of a batch have different ones.
    """
    if not isinstance(images, MetaTensor) or images.ndim != 4:
        return ""
    axes = {film_axes(images[i : i + 1]) or "" for i in range(len(images))}
    if len(axes) > 1:
        raise ShapeError("DiffeoInferer", "inputs", "films with the same axes", sorted(axes), "Give them one by one.")
    return axes.pop() if axes else ""


def infer_rows_first(
    infer: Callable[..., Any], axes: str, images: Any, network: Any, *args: Any, outputs: Any, **kwargs: Any
) -> Any:
    """The result of ``infer`` for films as rows x columns; its predictions have the axes of ``images`` again.

    Its canonicalisation is that of the films as rows x columns, and its notes say so. Arguments on their frame follow them.
    """
    films = like_input(to_rows_first(images.as_tensor(), axes), images)
    films.meta = {**films.meta, FILM_AXES: axes}
    shape = films.shape[2], films.shape[3]
    frame = tuple(images.shape[2:])

    def follow(part: Tensor, name: str) -> Tensor:
        alike = tuple(part.shape[-2:]) == frame or (name == "condition" and part.ndim >= 4)
        return to_rows_first(part, axes) if alike else part

    args, kwargs = each_argument(args, kwargs, follow)  # type: ignore[assignment]

    def back(part: Any, declared: str | None, name: str) -> Any:
        kind, _, mode = (declared or "").partition(":")
        if not isinstance(part, Tensor) or kind == "scores":
            return part
        if kind == "points":
            return _moved(part, axes, shape)
        if kind == "boxes":
            corners = torch.as_tensor(convert_box_mode(part.reshape(-1, 4), src_mode=mode or None))
            corners = _moved(corners.reshape(-1, 2, 2), axes, shape, edge=1)
            boxes = convert_box_mode(torch.cat([corners.amin(1), corners.amax(1)], 1), dst_mode=mode or None)
            return boxes.reshape(part.shape)
        if not kind and part.ndim < 4 and tuple(part.shape[1:]) != shape:
            return part  # scores
        if not isinstance(part, MetaTensor):
            return from_rows_first(part, axes)
        return like_input(from_rows_first(part.as_tensor(), axes), images)

    result = infer(films, network, *args, **kwargs)
    found, said = result.canonicalization, "rows and columns were exchanged, as the metadata say"
    if found is not None:
        found = replace(found, notes=tuple(joined_notes(said, note) for note in found.notes))
    records = tuple({**record, "notes": joined_notes(said, str(record["notes"]))} for record in result.records)
    answers = {name: getattr(result, name) for name in ("prediction", "plain", "unchosen", "averaged")}
    answers = {name: None if one is None else map_parts(one, back, outputs) for name, one in answers.items()}
    poses = tuple(map_parts(one, back, outputs) for one in result.poses)
    return replace(result, **answers, canonicalization=found, records=records, poses=poses)


def warn_of_unknown_axes(images: Tensor, found: Canonicalization) -> None:
    """A warning for films that were rotated by 90 degrees and may have had columns x rows, which no rotation corrects."""
    if images.ndim == 4 and any(re.search("rotation by (90|270) ", note) for note in found.notes) and film_axes(images) is None:
        remedy = "If they have columns x rows, as MONAI's LoadImage gives them, transpose them: no rotation does that"
        _log.warning("DiffeoInferer: images were rotated by 90 degrees, and nothing says how their axes lie. %s.", remedy)


def _moved(points: Tensor, axes: str, shape: tuple[int, int], edge: int = 0) -> Tensor:
    """Points ``(..., 2)`` of films ``shape``, rows x columns, with these axes; ``edge`` = 1 for edges of pixels."""
    matrix = torch.from_numpy(index_matrix(axes, shape)).to(points.device)
    turn, shift = matrix[:2, :2], matrix[:2, 3]
    return (points.double() @ turn.T + shift + edge * (turn.sum(1) < 0)).to(points.dtype)
