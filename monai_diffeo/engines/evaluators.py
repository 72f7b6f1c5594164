"""Evaluators that hand on how each prediction came about, and go on after a film that fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from monai.engines import SupervisedEvaluator

from monai_diffeo.command_line import parse_switch
from monai_diffeo.errors import NumericalError
from monai_diffeo.inferers import DiffeoResult, uncertainty_map
from monai_diffeo.inferers.aggregation import first_tensor
from monai_diffeo.inferers.record import like_input, mark, records_of
from monai_diffeo.radiograph.failsafe import FAILURE, root_cause
from monai_diffeo.trust import NO_RESULT, WithheldError

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

        def infer(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            def ask(images: Any) -> DiffeoResult:
                if hasattr(inferer, "infer"):
                    return inferer.infer(images, *args, plain=self.plain, **kwargs)
                return DiffeoResult(inferer(images, *args, **kwargs))

            self.state.result = self.decide(inputs, ask)
            return self.state.result.prediction

        self.inferer = infer  # type: ignore[assignment] # MONAI's iteration asks for a prediction; keep the whole result
        try:
            return super()._iteration(engine, batchdata)
        finally:
            self.inferer = inferer

    def decide(self, inputs: Any, ask: Callable[[Any], DiffeoResult]) -> DiffeoResult:
        """The result for a batch, before its prediction is processed or saved; ``ask`` asks the inferer. A subclass may ask
        otherwise, or refuse the batch by an error."""
        return ask(inputs)


class FilmEvaluator(DiffeoEvaluator):
    """:class:`DiffeoEvaluator` for a :class:`FailSafeDataset`: a film that fails anywhere is reported, and the next one runs.

    Args:
        reporter: told of each film by ``reporter.done(path, batch, output, result, seconds)`` or
            ``reporter.failed(path, error)``; ``reporter.wants_plain`` says whether it shows the prediction without
            canonicalisation. Where ``reporter.stopped`` is set, nothing more can be reported and the run ends. See
            :class:`monai_diffeo.report.FilmReporter`.
        judge: a :class:`monai_diffeo.trust.FilmJudge`, which decides on each film; None decides nothing. Of a film that has no
            result by decision no mask is written: ``reporter.withheld(path, batch, result, seconds)`` is told of it.
        uncertainty: the output of each film also holds its :func:`~monai_diffeo.inferers.uncertainty_map`, ``"uncertainty"``.
            Give the inferer ``keep_poses`` too. Also as a string.
        args, kwargs: of ``SupervisedEvaluator``.
    """

    def __init__(
        self, *args: Any, reporter: Any, judge: Callable | None = None, uncertainty: bool | str = False, **kwargs: Any
    ) -> None:
        self.uncertainty = parse_switch(uncertainty)
        super().__init__(*args, plain=reporter.wants_plain or judge is not None or self.uncertainty, **kwargs)
        self.reporter, self.judge = reporter, judge

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
        except WithheldError as withheld:
            self.reporter.withheld(path, batchdata, withheld.result, time.perf_counter() - began)
            return {}
        except Exception as error:  # one film must not stop the night's run
            self.reporter.failed(path, root_cause(error))
            return {}

    def decide(self, inputs: Any, ask: Callable[[Any], DiffeoResult]) -> DiffeoResult:
        """Refuse a prediction that is not finite, and a film that has no result by decision, before a mask is made of it."""
        result = ask(inputs) if self.judge is None else self.judge(inputs, ask)
        if result.verdicts and result.canonicalization is not None:  # of the film that counts, which may be the inverted one
            mark(records_of(result.canonicalization), inputs, result.prediction)
        tensor = first_tensor(result.prediction)
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise NumericalError("FilmEvaluator: the network's prediction is not finite. Check its weights and the film.")
        if any(verdict.kind == NO_RESULT for verdict in result.verdicts):
            raise WithheldError(result)
        if self.uncertainty and (doubt := uncertainty_map(result)) is not None:
            self.state.output["uncertainty"] = like_input(doubt, inputs)
        return result
