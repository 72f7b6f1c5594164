"""Evaluators that hand on how each prediction came about, and go on after a film that fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from monai.engines import SupervisedEvaluator

from monai_diffeo.errors import NumericalError
from monai_diffeo.inferers import DiffeoResult
from monai_diffeo.inferers.aggregation import first_tensor
from monai_diffeo.radiograph.failsafe import FAILURE, root_cause

__all__ = ["DiffeoEvaluator", "FilmEvaluator"]


class DiffeoEvaluator(SupervisedEvaluator):
    """``SupervisedEvaluator`` whose ``state.result`` is the :class:`DiffeoResult` of the batch, for handlers and reporters.

    Any inferer will do; one without a method ``infer`` gives a result that holds the prediction alone.

    Args:
        args, kwargs: of ``SupervisedEvaluator``.
        plain: the result also holds the prediction without canonicalisation; it costs one more run of the network.
    """

    def __init__(self, *args: Any, plain: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plain = plain

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> dict:
        inferer: Any = self.inferer
        self.state.result = None

        def infer(*args: Any, **kwargs: Any) -> Any:
            rich = hasattr(inferer, "infer")
            result = inferer.infer(*args, plain=self.plain, **kwargs) if rich else DiffeoResult(inferer(*args, **kwargs))
            self.check(result)
            self.state.result = result
            return result.prediction

        self.inferer = infer  # type: ignore[assignment] # MONAI's iteration asks for a prediction; keep the whole result
        try:
            return super()._iteration(engine, batchdata)
        finally:
            self.inferer = inferer

    def check(self, result: DiffeoResult) -> None:
        """Told of each result before its prediction is processed or saved; a subclass may refuse it by an error."""


class FilmEvaluator(DiffeoEvaluator):
    """:class:`DiffeoEvaluator` for a :class:`FailSafeDataset`: a film that fails anywhere is reported, and the next one runs.

    Args:
        reporter: told of each film by ``reporter.done(path, batch, output, result, seconds)`` or
            ``reporter.failed(path, error)``; ``reporter.wants_plain`` says whether it shows the prediction without
            canonicalisation. Where ``reporter.stopped`` is set, nothing more can be reported and the run ends. See
            :class:`monai_diffeo.report.FilmReporter`.
        args, kwargs: of ``SupervisedEvaluator``.
    """

    def __init__(self, *args: Any, reporter: Any, **kwargs: Any) -> None:
        super().__init__(*args, plain=reporter.wants_plain, **kwargs)
        self.reporter = reporter

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> dict | Sequence:
        output = self._film(engine, batchdata)
        if getattr(self.reporter, "stopped", None):
            self.terminate()
        return output

    def _film(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> dict | Sequence:
        path = batchdata["path"] if isinstance(batchdata["path"], str) else batchdata["path"][0]
        if FAILURE in batchdata:
            self.reporter.failed(path, batchdata[FAILURE])
            return {}
        began = time.perf_counter()
        try:
            output = super()._iteration(engine, batchdata)
            self.reporter.done(path, batchdata, engine.state.output[0], self.state.result, time.perf_counter() - began)
            return output
        except Exception as error:  # one film must not stop the night's run
            self.reporter.failed(path, root_cause(error))
            return {}

    def check(self, result: DiffeoResult) -> None:
        """Refuse a prediction that is not finite, before a mask is made of it."""
        tensor = first_tensor(result.prediction)
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise NumericalError("FilmEvaluator: the network's prediction is not finite. Check its weights and the film.")
