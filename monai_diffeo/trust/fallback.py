"""Which of several answers is given: the wrapped network's, the bare one's or another network's, by signs without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from monai_diffeo.inferers import DiffeoResult
from monai_diffeo.inferers.aggregation import choose_rows
from monai_diffeo.inferers.record import like_input
from monai_diffeo.trust.decision import NO_RESULT, REVIEW, Verdict
from monai_diffeo.trust.model import TrustModel
from monai_diffeo.trust.signs import film_signs

__all__ = ["ANSWERS", "FALLBACKS", "best_answers"]

FALLBACKS = ("identity", "raise", "best")
WRAPPED, BARE, OTHER = ANSWERS = ("wrapped", "bare network", "second network")
"""Whose answer a film may get."""

_COMPARED = ("shape", "parts", "blur", "second")  # signs that an answer has without poses


def best_answers(model: TrustModel, result: DiffeoResult, verdicts: Sequence[Verdict]) -> tuple[DiffeoResult, list[Verdict]]:
    """The result with the best answer of each image, and verdicts that say which one it is.

    Another answer is given only for a film whose expected error is high. That of the bare network must be at least as good by
    each sign that it has, and better by one. That of the second network counts if it alone has the shape of training masks, and
    is unlike the others. A film with another answer is to be reviewed.

    Args:
        model: what was fitted.
        result: of a judge, with the ``plain`` prediction and that of the ``second`` network, if there is one.
        verdicts: one an image.
    """
    others = {BARE: result.plain, OTHER: result.second}
    others = {name: answer for name, answer in others.items() if answer is not None}
    seen = {
        name: film_signs(replace(result, prediction=answer), model.references, result.second if name == BARE else None)
        for name, answer in others.items()
    }
    chosen = []
    for i, one in enumerate(verdicts):
        doubtful = model.value(model.error, one.signs) >= model.error.threshold
        signs = {name: {sign: float(values[i]) for sign, values in own.items()} for name, own in seen.items()}
        chosen.append(_preferred(model, one.signs, signs) if doubtful else WRAPPED)
    prediction = result.prediction
    for name, answer in others.items():
        if name in chosen:
            rows = torch.tensor([each == name for each in chosen], device=prediction.device)
            prediction = like_input(choose_rows(rows, torch.as_tensor(answer).to(prediction), prediction), prediction)
    return replace(result, prediction=prediction), [_with_answer(*pair) for pair in zip(verdicts, chosen)]


def _preferred(model: TrustModel, wrapped: Mapping[str, float], others: Mapping[str, Mapping[str, float]]) -> str:
    """One of :data:`ANSWERS`, by the signs of the wrapped answer and of the others."""
    bare, other = others.get(BARE, {}), others.get(OTHER, {})
    pairs = [(bare[name], wrapped[name]) for name in _COMPARED if name in bare and name in wrapped]
    if pairs and all(new <= old for new, old in pairs) and any(new < old for new, old in pairs):
        return BARE
    odd = [signs.get("shape", 0.0) > model.limits.get("shape", float("inf")) for signs in (wrapped, bare)]
    unlike = wrapped.get("second", 0.0) > model.limits.get("second", float("inf"))
    return OTHER if other and all(odd) and unlike and other["shape"] <= model.limits["shape"] else WRAPPED


def _with_answer(verdict: Verdict, answer: str) -> Verdict:
    """The verdict, which says whose answer is given; nothing is known of the Dice of others than the wrapped one."""
    if answer == WRAPPED:
        return replace(verdict, answer=answer)
    kind = verdict.kind if verdict.kind == NO_RESULT else REVIEW
    reasons = (f"the answer is that of the {answer}", *verdict.reasons)
    return replace(verdict, kind=kind, reasons=reasons, dice=None, answer=answer)
