"""Films one after another: each gives a mask, a line in the report and a picture, or a line that says why not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.engines import SupervisedEvaluator

from monai_diffeo.canonicalize import Canonicalization
from monai_diffeo.radiograph.failsafe import FAILURE, root_cause

__all__ = ["FilmEvaluator"]


class FilmEvaluator(SupervisedEvaluator):
    """``SupervisedEvaluator`` for a :class:`FailSafeDataset`: a film that fails anywhere is reported, and the next one runs.

    Args:
        reporter: told of each film: ``reporter.done(path, batch, output, result, plain, seconds)`` and
            ``reporter.failed(path, error)``.
        kwargs: of ``SupervisedEvaluator``.
    """

    def __init__(self, *args: Any, reporter: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reporter = reporter
        self._result: Canonicalization | None = None
        self._also: Callable[[Canonicalization], None] | None = None
        if hasattr(self.inferer, "on_result"):
            self._also = self.inferer.on_result
            self.inferer.on_result = self._remember

    def _remember(self, result: Canonicalization) -> None:
        self._result = result
        if self._also is not None:
            self._also(result)

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> dict | Sequence:
        path = batchdata["path"] if isinstance(batchdata["path"], str) else batchdata["path"][0]
        if FAILURE in batchdata:
            self.reporter.failed(path, batchdata[FAILURE])
            return {}
        began, self._result = time.perf_counter(), None
        try:
            output = super()._iteration(engine, batchdata)
            seconds = time.perf_counter() - began
            self.reporter.done(path, batchdata, engine.state.output[0], self._result, self._plain(batchdata), seconds)
            return output
        except Exception as error:  # one film must not stop the night's run
            self.reporter.failed(path, root_cause(error))
            return {}

    def _plain(self, batchdata: dict[str, Any]) -> torch.Tensor | None:
        """What the network answers without canonicalisation, for the picture."""
        inner: Callable = getattr(self.inferer, "inferer", None)
        if self._result is None or inner is None or not self.reporter.wants_plain:
            return None
        with self.mode(self.network):
            return inner(batchdata["image"].to(self.state.device), self.network)
