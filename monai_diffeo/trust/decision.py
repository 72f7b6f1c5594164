"""What a person should do about a film: the one home of the rule, calibrated where a model was fitted, else by remarks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monai_diffeo.canonicalize.acceptance import MIRRORED, NEGATIVE, UNLIKE
from monai_diffeo.canonicalize.result import NO_RESULT, NOT_JUDGED, OK, REJECTED, REVIEW, SWITCHED_OFF
from monai_diffeo.trust.model import TrustModel
from monai_diffeo.trust.signs import SIGNS

__all__ = [
    "DECISIONS", "NOT_JUDGED", "NO_RESULT", "OK", "REVIEW", "Verdict", "decision_by_remarks", "kind_of_decision", "verdict",
]  # fmt: skip

DECISIONS = (OK, NOT_JUDGED, REVIEW, NO_RESULT)
_LEAST_AGREEMENT = 0.9  # without a model; not calibrated on errors
_NO_CHEST = "the image is no chest film, or shows little of one"
_UNUSUAL = "the film is unusual"
_HEADER = r"header names (another body part|an? \w+ view|another view)"
_INTAKE = re.compile(rf"the mask is empty|{REJECTED}[^;]*|{MIRRORED}[^;]*|{NEGATIVE}[^;]*|{_HEADER}")
_DOUBTS = re.compile(rf"{_INTAKE.pattern}|{UNLIKE}[^;]*|the agreement is low")
_MOST = 3  # reasons that are told


@dataclass(frozen=True)
class Verdict:
    """What is to be done about a film.

    Attributes:
        kind: one of :data:`DECISIONS`; :data:`NOT_JUDGED` only by remarks.
        reasons: sentences, the strongest first; of a film that is ok none.
        dice: the interval in which its Dice is expected, None without a model.
        signs: what was measured, by the names of :data:`SIGNS`.
        answer: whose answer is given, one of :data:`monai_diffeo.trust.ANSWERS`; "" where nothing else was asked for.
        seen: the :class:`monai_diffeo.trust.Observation` of a judge that it is made of.
    """

    kind: str
    reasons: tuple[str, ...] = ()
    dice: tuple[float, float] | None = None
    signs: Mapping[str, float] = field(default_factory=dict)
    answer: str = ""
    seen: Any = None

    @property
    def text(self) -> str:
        """The kind, and why."""
        return f"{self.kind}: {'; '.join(self.reasons)}" if self.reasons else self.kind


def verdict(
    model: TrustModel, signs: Mapping[str, float], notes: str = "", accept_anything: bool = False, mirrored: bool = False
) -> Verdict:
    """The calibrated decision on one film; no worse sign ever makes it better.

    Args:
        signs: of :func:`film_signs`.
        notes: of reader and canonicaliser; what speaks against an ordinary frontal chest film in them asks for a review.
        accept_anything: review what has no result otherwise, for research.
        mirrored: the header states that the film is mirrored, so looking mirrored is no reason.
    """
    remarks = tuple(dict.fromkeys(match[0] for match in _INTAKE.finditer(notes)))
    remarks = tuple(remark for remark in remarks if not (mirrored and remark.startswith(MIRRORED)))
    interval, told = model.interval(signs), dict(signs)
    strange = model.value(model.foreign, signs)
    if strange >= model.foreign.threshold:
        reasons = (_NO_CHEST, *_told(model, model.foreign.weights, signs), *remarks)
        return Verdict(REVIEW if accept_anything else NO_RESULT, reasons, interval, told)
    reasons = remarks
    if strange > model.unusual:
        reasons = (_UNUSUAL, *_told(model, model.foreign.weights, signs), *reasons)
    if model.value(model.error, signs) >= model.error.threshold:
        reasons = (*_told(model, model.error.weights, signs), *reasons)
    return Verdict(REVIEW if reasons else OK, tuple(dict.fromkeys(reasons)), interval, told)


def _told(model: TrustModel, weights: Mapping[str, float], signs: Mapping[str, float]) -> tuple[str, ...]:
    """Sentences for the signs that raise a score most: those above their limits, or the first of all."""
    scaled = model.scaled(signs)
    order = sorted((name for name in scaled if weights.get(name, 0) > 0), key=lambda name: -weights[name] * scaled[name])
    high = [name for name in order if signs.get(name, 0.0) > model.limits[name]] or order[:1]
    return tuple(f"{SIGNS[n]} ({signs.get(n, float('nan')):.3g}, limit {model.limits[n]:.3g})" for n in high[:_MOST])


def decision_by_remarks(status: str, remarks: str, agreements: Sequence[float] = (), guarded: bool = False) -> Verdict:
    """The decision where no model was fitted: by status, remarks, agreements and the guard of a template; not calibrated."""
    reasons = [match[0] for match in _DOUBTS.finditer(remarks)]
    reasons += ["the agreement is low"] if min(agreements, default=1.0) < _LEAST_AGREEMENT else []
    reasons += ["the guard of the template had to act"] if guarded else []
    reasons += [status] if status.startswith(REJECTED) else []
    kind = NOT_JUDGED if status == SWITCHED_OFF else OK  # without canonicalisation nothing says that it is ok
    return Verdict(REVIEW if reasons else kind, tuple(dict.fromkeys(reasons)))


def kind_of_decision(text: Any) -> str | None:
    """The kind of a decision as a report has it, None of what is none."""
    kind = str(text or "").partition(":")[0]
    return kind if kind in DECISIONS else None
