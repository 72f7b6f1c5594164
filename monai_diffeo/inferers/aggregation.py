"""Predictions for several poses of one image: their mean, and how much they agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_diffeo.canonicalize.answers import declared_part, map_parts
from monai_diffeo.errors import ShapeError

__all__ = ["agreement", "choose_rows", "join_predictions", "mask_dice", "mean_prediction", "overlap", "rows_of"]


def mean_prediction(answers: Sequence[Any], moved: Tensor, outputs: Any = None) -> Any:
    """Mean of predictions of one structure, tensor by tensor; of integers and labels the most frequent, the smaller of two.

    Rows of images that were not moved, and everything that cannot be averaged, are those of the first prediction, bit for bit.

    Args:
        answers: tensors ``(B, ...)``, or dictionaries, lists and tuples of such.
        moved: which images were moved, shape ``(B,)``.
        outputs: what the predictions are, see :class:`DiffeoInferer`.

    Raises:
        ShapeError: if predictions have different shapes, as lists of found objects have.
    """

    def mean(parts: Sequence[Any], kind: Any) -> Any:
        first = parts[0]
        if not isinstance(first, Tensor) or first.ndim == 0 or first.shape[0] != len(moved):
            return first
        _check_same([a.shape for a in parts], "Use tta_samples=1, or a network that gives a fixed number of points or boxes.")
        if kind == "labels":
            value = torch.stack(list(parts)).mode(0).values
        elif first.is_floating_point():
            value = torch.stack([a.float() for a in parts]).mean(0).to(first.dtype)
        else:
            value = torch.stack([a.long() for a in parts]).mode(0).values.to(first.dtype)
        return torch.where(moved.to(first.device).view(-1, *[1] * (first.ndim - 1)), value, first)

    return answers[0] if len(answers) == 1 else _part_by_part(mean, answers, outputs)


def choose_rows(keep: Tensor, first: Any, second: Any) -> Any:
    """Predictions of one structure: rows of the first where ``keep`` ``(B,)``, bool, and of the second elsewhere."""

    def choose(parts: Sequence[Any], _: Any) -> Any:
        one, other = parts
        rows = isinstance(one, Tensor) and one.ndim and len(one) == len(keep)
        return torch.where(keep.to(one.device).view(-1, *[1] * (one.ndim - 1)), one, other) if rows else one

    return _part_by_part(choose, (first, second))


def rows_of(answer: Any, first: int, count: int, batch: int) -> Any:
    """The part of a prediction for a batch, in any structure, that belongs to ``count`` images from the ``first`` on."""

    def own(part: Any, *_: Any) -> Any:
        return part[first : first + count] if isinstance(part, Tensor) and part.ndim and len(part) == batch else part

    return map_parts(answer, own)


def join_predictions(answers: Sequence[Any]) -> Any:
    """Predictions for single images, tensors ``(1, ...)`` in any structure, or batches, as one for the batch ``(B, ...)``."""

    def join(parts: Sequence[Any], _: Any) -> Any:
        if not isinstance(parts[0], Tensor) or not parts[0].ndim:
            return parts[0]
        remedy = "Give images one by one, or use a network that gives a fixed number of points or boxes."
        _check_same([(1, *a.shape[1:]) for a in parts], remedy)
        return torch.cat(list(parts))

    return _part_by_part(join, answers)


def _part_by_part(function: Callable[[Sequence[Any], Any], Any], answers: Sequence[Any], outputs: Any = None) -> Any:
    """``function(parts, kind)`` of what stands at each place of predictions of one structure, and what that is declared as."""
    first = answers[0]
    if isinstance(first, Mapping):
        return {key: _part_by_part(function, [a[key] for a in answers], declared_part(outputs, key)) for key in first}
    if isinstance(first, (list, tuple)):
        parts = [_part_by_part(function, items, declared_part(outputs, i)) for i, items in enumerate(zip(*answers))]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return function(answers, outputs)


def _check_same(shapes: Sequence[tuple[int, ...]], remedy: str) -> None:
    if odd := [shape for shape in shapes if shape != shapes[0]]:
        expected = f"{tuple(shapes[0])} at every pose and for every image"
        raise ShapeError("DiffeoInferer", "prediction", expected, odd[0], remedy)


def agreement(answers: Sequence[Any], moved: Tensor, outputs: Any = None) -> Tensor | None:
    """How much predictions agree with their mean, 0 to 1, shape ``(B,)``; NaN for images that were not moved, for which a
    prediction is not finite, or where none finds anything.

    For maps ``(B, K, *S)`` it is the Dice between the mask of each prediction and the mask of their mean. It is averaged over
    predictions and foreground classes. One channel is thresholded at 0, or at 0.5 if all values of that image lie in [0, 1].
    Of several channels the largest counts, and class 0 is the background. For scores ``(B, K)`` it is the share of predictions
    that choose the class that the mean chooses. The first tensor of a prediction counts that is declared neither labels, points
    nor boxes. None for a single prediction or one without such a tensor.
    """
    tensors = [t for t in (first_tensor(answer, outputs) for answer in answers) if t is not None]
    if len(tensors) < 2 or tensors[0].ndim < 2:
        return None
    stack = torch.stack([t.detach().float() for t in tensors])
    mean = stack.mean(0, keepdim=True)
    if stack.ndim == 3:
        same = (stack.argmax(2) == mean.argmax(2)).float().mean(0)
    else:
        threshold = _threshold(stack)
        same = _mean_dice(_decide(stack, threshold), _decide(mean, threshold))
    finite = stack.transpose(0, 1).flatten(1).isfinite().all(1)
    return torch.where(moved.to(same.device) & finite, same, torch.nan)


def overlap(one: Any, other: Any, outputs: Any = None) -> Tensor | None:
    """Dice of the masks of two predictions, as :func:`agreement` has it with the mean, shape ``(B,)``; NaN where both are
    empty. None for predictions without a map."""
    first, second = (first_tensor(answer, outputs) for answer in (one, other))
    if first is None or second is None or first.ndim < 3:
        return None
    stack = torch.stack([first.detach().float(), second.detach().float()])
    masks = _decide(stack, _threshold(stack))
    return _mean_dice(masks[:1], masks[1:])


def _threshold(stack: Tensor) -> Tensor:
    """For scores ``(A, B, K, *S)`` of one channel, ``(B, 1, ...)``: of each image, whatever its neighbours."""
    low, high = stack.transpose(0, 1).flatten(1).aminmax(dim=1)
    return torch.where((low >= 0) & (high <= 1), 0.5, 0.0).view(-1, *[1] * (stack.ndim - 2))


def mask_dice(one: Tensor, other: Tensor, first: int = 1) -> Tensor:
    """Dice of masks, bool, over their axes from ``first`` on; 1 for two empty ones."""
    common, size = (one & other).flatten(first).sum(first), one.flatten(first).sum(first) + other.flatten(first).sum(first)
    return torch.where(size > 0, 2 * common / size.clamp(min=1), 1.0)


def _mean_dice(each: Tensor, other: Tensor) -> Tensor:
    """Dice of masks ``(A, B, K, *S)`` with others, over ``A`` and the classes ``K``; NaN where nothing is found at any pose."""
    found = (each | other).transpose(0, 1).flatten(1).any(1)
    return torch.where(found, mask_dice(each, other, 3).mean((0, 2)), torch.nan)


def _decide(scores: Tensor, threshold: Tensor) -> Tensor:
    """Foreground classes ``(A, B, K', *S)`` of scores ``(A, B, K, *S)``; the threshold ``(B, 1, ...)`` is for one channel."""
    if scores.shape[2] == 1:
        return scores > threshold
    classes = torch.arange(1, scores.shape[2], device=scores.device).view(1, 1, -1, *[1] * (scores.ndim - 3))
    return scores.argmax(2, keepdim=True) == classes


def first_tensor(answer: Any, outputs: Any = None) -> Tensor | None:
    """The first tensor of floating point numbers in a prediction of any structure, without labels, points and boxes."""
    if isinstance(answer, Tensor):
        return answer if answer.is_floating_point() and outputs in (None, "map", "scores") else None
    items = answer.items() if isinstance(answer, Mapping) else enumerate(answer if isinstance(answer, (list, tuple)) else ())
    return next((t for t in (first_tensor(part, declared_part(outputs, key)) for key, part in items) if t is not None), None)
