"""What a network's answer consists of, declared or seen by its shape, and how each part returns to the input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from monai.utils import BoxModeName
from torch import Tensor

from monai_diffeo.canonicalize.points import move_boxes, move_points
from monai_diffeo.errors import ConfigError, ShapeError

__all__ = ["check_outputs", "declared_part", "map_parts", "return_answers"]

_KINDS = {"map", "labels", "scores", "points", "boxes", *(f"boxes:{mode.value}" for mode in BoxModeName)}
_WORDS = "'map', 'labels', 'scores', 'points', 'boxes', or 'boxes:' and a box mode of MONAI"
_REMEDY = f"Declare what it is: outputs={_WORDS}; of a dictionary by key, outputs={{'seg': 'map', 'landmarks': 'points'}}."


def check_outputs(outputs: Any) -> Any:
    """A declaration as it came: None, one of ``"map"``, ``"labels"``, ``"scores"``, ``"points"``, ``"boxes"``,
    ``"boxes:ccwh"`` (any of MONAI's box modes), or a dictionary or list of declarations.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(outputs, (Mapping, list, tuple)):
        for part in outputs.values() if isinstance(outputs, Mapping) else outputs:
            check_outputs(part)
    elif outputs is not None and outputs not in _KINDS:
        remedy = "By key: outputs={'seg': 'map', 'landmarks': 'points'}."
        raise ConfigError(f"DiffeoInferer: 'outputs' must be {_WORDS}, or of such, got {outputs!r}. {remedy}")
    return outputs


def declared_part(outputs: Any, key: Any) -> Any:
    """The declaration of one part of an answer, by key or index; a single word or None holds for all parts."""
    if isinstance(outputs, Mapping):
        return outputs.get(key)
    return outputs[key] if isinstance(outputs, (list, tuple)) else outputs


def map_parts(
    answer: Any, function: Callable[[Any, str | None, str], Any], outputs: Any = None, name: str = "prediction"
) -> Any:
    """``function(part, declaration, name)`` of every part of dictionaries, lists and tuples, in the same structure.

    Raises:
        ConfigError: if the structure of ``outputs`` is not that of the answer.
    """
    who, have = f"DiffeoInferer: 'outputs' must %s of '{name}', got %s for", type(answer).__name__
    if isinstance(outputs, Mapping) and not (isinstance(answer, Mapping) and set(outputs) <= set(answer)):
        have = f"the keys {sorted(map(str, answer))}" if isinstance(answer, Mapping) else have
        raise ConfigError(f"{who % ('name keys', list(outputs))} {have}. Correct 'outputs'.")
    if isinstance(outputs, (list, tuple)) and not (isinstance(answer, (list, tuple)) and len(answer) == len(outputs)):
        have = f"{len(answer)} parts" if isinstance(answer, (list, tuple)) else have
        raise ConfigError(f"{who % ('have one declaration for each part', len(outputs))} {have}. Correct 'outputs'.")
    if isinstance(answer, Mapping):
        return {k: map_parts(part, function, declared_part(outputs, k), f"{name}[{k!r}]") for k, part in answer.items()}
    if isinstance(answer, (list, tuple)):
        parts = [map_parts(part, function, declared_part(outputs, i), f"{name}[{i}]") for i, part in enumerate(answer)]
        return type(answer)(*parts) if hasattr(answer, "_fields") else type(answer)(parts)
    return function(answer, outputs, name)


def return_answers(found: Any, prediction: Any, mode: str, outputs: Any) -> Any:
    """The body of :meth:`Canonicalization.warp_back`."""
    size, there, dims = tuple(found.image.shape[2:]), tuple(found.inverse_ddf.shape[2:]), found.ddf.shape[1]
    batch, lengths = len(found.image), {"points": dims, "boxes": 2 * dims}

    def back(part: Any, declared: str | None, name: str) -> Any:
        if declared == "scores" or part is None or not (isinstance(part, Tensor) or declared):
            return part
        if not isinstance(part, Tensor):
            came = f"got {type(part).__name__}. Return a tensor, or declare it 'scores' to leave it as it is."
            raise TypeError(f"DiffeoInferer: '{name}' is declared {declared!r} and must be a torch.Tensor, {came}")
        kind, _, box_mode = (declared or _kind_by_shape(part, batch, size, name)).partition(":")
        if kind == "scores":
            return part
        shape, length = tuple(part.shape), lengths.get(kind)
        expected, remedy = f"({batch}, N, {length})", "Coordinates are voxels, in the order of the axes."
        right = len(shape) >= 2 and shape[0] == batch and shape[-1] == length
        if length is None:
            expected = f"({batch}, ..., {', '.join(map(str, size))}), or whole fractions of its axes,"
            remedy = "A map covers the whole image; pad what the network crops."
            right = not declared or (len(shape) > dims and shape[0] == batch and _tiles(shape[-dims:], size))
        if not right:
            raise ShapeError("DiffeoInferer", name, f"{expected} as {declared!r}", shape, remedy)
        if length is None:
            return found.warp_map(part, found.inverse_ddf, size, "nearest" if kind == "labels" else mode)
        rows = part.reshape(batch, -1, shape[-1])
        way = (found.ddf, there, found.moved)
        return (move_points(rows, *way) if kind == "points" else move_boxes(rows, *way, box_mode or None)).view(shape)

    return map_parts(prediction, back, outputs)


def _kind_by_shape(part: Tensor, batch: int, size: tuple[int, ...], name: str) -> str:
    """``"map"`` or ``"scores"``; a ShapeError where it could be either, or points."""
    dims, shape = len(size), tuple(part.shape)
    map_like = len(shape) >= dims + 2 or shape[1:] == size
    factors = [n / m for n, m in zip(size, shape[-dims:]) if m]
    alike = len(factors) == dims and max(factors) <= 1.3 * min(factors)  # the frame at another resolution
    if not shape or shape[0] != batch:
        doubtful, map_like = shape[-dims:] == size, False  # a map without its batch
    elif map_like:
        doubtful = shape[-1] in (dims, 2 * dims) and not alike  # points of several kinds
    else:
        whole = len(shape) == dims + 1 and alike and all(f % 1 == 0 for f in factors)  # a small map without channels
        doubtful = len(shape) >= 3 and (shape[-1] in (dims, 2 * dims) or whole)
    if doubtful:
        expected = f"that fits one kind of answer for {batch} images of {size}: (B, K, *S) of maps, (B, K) of scores"
        raise ShapeError("DiffeoInferer", name, expected, shape, _REMEDY)
    return "map" if map_like else "scores"


def _tiles(shape: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Whether a map is the image's size times or divided by whole numbers, within a voxel."""
    pairs = [(max(n, m), min(n, m)) for n, m in zip(size, shape)]
    return all(low > 0 and abs(low - high / max(round(high / low), 1)) <= 1 for high, low in pairs)
