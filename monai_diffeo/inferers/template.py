"""The inferer of template transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from monai_diffeo.networks import TemplateTransformer, WarpedTemplate, compress_logits

__all__ = ["TemplateInferer"]


class TemplateInferer(Inferer):
    """Ask a :class:`TemplateTransformer`, tell what its guard did, and answer with log-odds that can be averaged and resampled.

    The log-odds are those of the network with their size tamed (:func:`compress_logits`): the same sign at every voxel, and nearly
    linear across the edge. It can be the inner inferer of a ``DiffeoInferer``.

    Args:
        on_result: called with each :class:`WarpedTemplate`; nothing else is kept.
    """

    def __init__(self, on_result: Callable[[WarpedTemplate], None] | None = None) -> None:
        super().__init__()
        self.on_result = on_result

    def __call__(self, inputs: Tensor, network: TemplateTransformer, *args: Any, **kwargs: Any) -> Tensor:
        """Tamed log-odds ``(B, K, *S)`` of each shape for images ``(B, C, *S)``."""
        result = network.segment(inputs, *args, **kwargs)
        if self.on_result is not None:
            self.on_result(result)
        answer = compress_logits(result.log_odds)
        if isinstance(inputs, MetaTensor):
            answer = MetaTensor(answer)
            answer.copy_meta_from(inputs, copy_attr=False)
        return answer
