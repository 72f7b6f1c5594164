"""The inferer of template transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.inferers import Inferer
from torch import Tensor

from monai_diffeo.inferers.diffeo import DiffeoResult
from monai_diffeo.inferers.record import like_input
from monai_diffeo.networks import TemplateTransformer, WarpedTemplate, compress_logits

__all__ = ["TemplateInferer"]


class TemplateInferer(Inferer):
    """Run a :class:`TemplateTransformer` and give log-odds that can be averaged and resampled.

    They are the log-odds of the network, compressed by :func:`compress_logits`: the sign of every voxel is kept, and values are
    nearly linear across the edge. It can be the inner inferer of a ``DiffeoInferer``.

    Args:
        on_result: called with each :class:`WarpedTemplate`; nothing else is kept.
    """

    def __init__(self, on_result: Callable[[WarpedTemplate], None] | None = None) -> None:
        super().__init__()
        self.on_result = on_result

    def __call__(self, inputs: Tensor, network: TemplateTransformer, *args: Any, **kwargs: Any) -> Tensor:
        """Compressed log-odds ``(B, K, *S)`` of each shape for images ``(B, C, *S)``."""
        return self.infer(inputs, network, *args, **kwargs).prediction

    def infer(
        self, inputs: Tensor, network: TemplateTransformer, *args: Any, plain: bool = False, **kwargs: Any
    ) -> DiffeoResult:
        """The log-odds of a call as ``prediction``, and the :class:`WarpedTemplate` in ``templates``."""
        result = network.segment(inputs, *args, **kwargs)
        if self.on_result is not None:
            self.on_result(result)
        answer = like_input(compress_logits(result.log_odds), inputs)
        return DiffeoResult(answer, plain=answer if plain else None, templates=(result,))
