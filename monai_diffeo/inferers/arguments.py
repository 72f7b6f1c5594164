"""Further images that a network gets beside the first, brought to the canonical pose with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from monai_diffeo.canonicalize import Canonicalization
from monai_diffeo.canonicalize.answers import map_parts
from monai_diffeo.errors import ConfigError, ShapeError

__all__ = ["check_images", "each_argument", "move_arguments"]

_MODES = {"map": "bilinear", "labels": "nearest", "scores": ""}


def check_images(images: Any) -> dict[str, str]:
    """What ``images`` of :class:`DiffeoInferer` declares, by name or by position in digits; anything else is a ConfigError."""
    names = [images] if isinstance(images, (str, int, float)) else images or ()
    declared = names if isinstance(names, Mapping) else dict.fromkeys(names, "map")
    for name, kind in declared.items():
        if type(name) not in (str, int) or kind not in _MODES:
            remedy = "Write images=['prior', 0], or images={'prior': 'map', 'organs': 'labels', 'noise': 'scores'}."
            came = f"got {name!r}: {kind!r}"
            raise ConfigError(f"DiffeoInferer: 'images' must name arguments, with one of {list(_MODES)}, {came}. {remedy}")
    return {str(name): kind for name, kind in declared.items()}


def each_argument(
    args: Sequence[Any], kwargs: Mapping[str, Any], function: Callable[[Any, str], Any]
) -> tuple[list[Any], dict[str, Any]]:
    """``function(tensor, name)`` in place of each tensor of further arguments, in dictionaries, lists and tuples too."""

    def over(value: Any, name: str) -> Any:
        changed = []

        def each(part: Any, *_: Any) -> Any:
            new = function(part, name) if isinstance(part, Tensor) else part
            changed.append(new is not part)
            return new

        new = map_parts(value, each)
        return new if any(changed) else value  # a list that the network fills stays the caller's

    return [over(value, str(i)) for i, value in enumerate(args)], {name: over(value, name) for name, value in kwargs.items()}


def move_arguments(
    pose: Canonicalization, declared: Mapping[str, str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments with every image at the pose.

    Raises:
        ConfigError: for a tensor on the frame of the images that is not declared.
        ShapeError: for one that is declared and has another shape.
    """
    batch, frame = len(pose.image), tuple(pose.inverse_ddf.shape[2:])
    dims = len(frame)

    def move(part: Tensor, name: str) -> Tensor:
        kind, shape = declared.get(name), tuple(part.shape)
        on_frame = shape[-dims:] == frame
        if not kind and name == "condition":  # which may be a text or a class
            kind = "map" if on_frame or (len(shape) >= dims + 2 and shape[0] == batch) else "scores"
        if kind == "scores" or not (kind or on_frame):
            return part
        if not kind:
            remedy = f"Declare images={[int(name) if name.isdigit() else name]} to move it, or {{{name!r}: 'scores'}} not to."
            came = f"it has the frame of the images, shape {shape}"
            raise ConfigError(f"DiffeoInferer: argument {name!r} must be declared, since {came}. {remedy}")
        if shape[:1] != (batch,) or not (len(shape) >= dims + 2 or shape[1:] == frame):
            remedy = "Expand its batch; all channels of an image move with it."
            raise ShapeError("DiffeoInferer", name, f"({batch}, ..., {', '.join(map(str, frame))})", shape, remedy)
        return pose.warp_input(part, _MODES[kind])

    return each_argument(args, kwargs, move)
