"""How uncertain each voxel of a prediction is, from all answers that a run has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monai_diffeo.inferers.aggregation import first_tensor
from monai_diffeo.inferers.diffeo import DiffeoResult

__all__ = ["uncertainty_map"]


def uncertainty_map(result: DiffeoResult, outputs: Any = None) -> Tensor | None:
    """0 where all answers are certain and the same, 1 where they leave every class as likely; ``(B, 1, *S)``, float32.

    The probabilities of three kinds of answers are averaged, each kind counting alike: those from the poses, that without
    canonicalisation, that of a second network. What is missing is left out. Of one channel, twice the probability of the less
    likely side is the uncertainty. Of several, it is the probability of all classes but the likeliest, in shares of the largest
    that this can be. It is no probability of an error: answers that are wrong alike are certain.

    Args:
        result: of an inferer with ``keep_poses``; without poses, the prediction stands for them.
        outputs: what the predictions are, see :class:`DiffeoInferer`.

    Returns:
        The map; None where a prediction has no map.
    """
    kinds = [result.poses or (result.prediction,), (result.plain,), (result.second,)]
    maps = [
        [_probabilities(t) for one in kind if (t := first_tensor(one, outputs)) is not None and t.ndim > 3] for kind in kinds
    ]
    if not maps[0]:
        return None
    shape = maps[0][0].shape
    means = [torch.stack(some).mean(0) for kind in maps if (some := [one for one in kind if one.shape == shape])]
    mean = torch.stack(means).mean(0)
    if shape[1] == 1:
        return 2 * torch.minimum(mean, 1 - mean)
    return (1 - mean.amax(1, keepdim=True)) * shape[1] / (shape[1] - 1)


def _probabilities(scores: Tensor) -> Tensor:
    """Of logits or probabilities ``(B, K, *S)``; what lies in [0, 1] is taken as probabilities, image by image."""
    scores = torch.Tensor.as_subclass(scores, Tensor).detach().float()
    low, high = scores.flatten(1).aminmax(dim=1)
    given = ((low >= 0) & (high <= 1)).view(-1, *[1] * (scores.ndim - 1))
    return torch.where(given, scores, scores.sigmoid() if scores.shape[1] == 1 else scores.softmax(1))
