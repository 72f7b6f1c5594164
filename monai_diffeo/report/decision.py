"""What a person should do about a film: the one place that reads it from a line of the report, and its colours and words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from monai_diffeo.canonicalize.result import REJECTED
from monai_diffeo.radiograph.film import joined_notes
from monai_diffeo.report.record import FAILED, SWITCHED_OFF

__all__ = ["ACTIONS", "DECISION_COLOURS", "NO_RESULT", "OK", "REVIEW", "decision", "least_agreement", "outcome", "remarks"]

OK, REVIEW, NO_RESULT = "ok", "review", "no result"
ACTIONS = {OK: "nothing to do", REVIEW: "look at this film", NO_RESULT: "no result"}
DECISION_COLOURS = {OK: "#3ddc97", REVIEW: "#ffb000", NO_RESULT: "#ff5d73"}
_LEAST_AGREEMENT = 0.9  # means of the sets of docs/results/templates.md are 0.93 to 0.98; not calibrated on errors
_LOW = "the agreement is low"
_DOUBTS = re.compile(
    rf"{_LOW}|the mask is empty|looks mirrored|looks like a negative|remains unlike the training images"
    r"|header names (another body part|an? \w+ view|another view)"
)


def decision(record: Mapping[str, Any]) -> str | None:
    """:data:`OK`, :data:`REVIEW` or :data:`NO_RESULT` of a :func:`film_record`; None where it has no status.

    A field ``decision`` of the record counts before all else. Otherwise a film that failed has no result. A film is to be
    reviewed if it was rejected, if a remark speaks against its mask, or if the guard of a template transformer had to act.
    """
    if (given := record.get("decision")) in ACTIONS:
        return given
    status, template = str(record.get("status") or ""), record.get("template") or {}
    if status.startswith(FAILED):
        return NO_RESULT
    guarded = template.get("factor", 1) != 1 or template.get("level", 0) != 0
    if status.startswith(REJECTED) or guarded or _DOUBTS.search(remarks(record)):
        return REVIEW
    return OK if status else None


def outcome(record: Mapping[str, Any]) -> tuple[str, str]:
    """Status without its reason, and the reason; a film of a run without canonicalisation was segmented, not left alone."""
    status, _, reason = str(record.get("status") or "").partition(": ")
    if record.get("status") == SWITCHED_OFF:
        return "segmented", "without canonicalisation"
    return status, reason or str(record.get("message") or "")


def remarks(record: Mapping[str, Any]) -> str:
    """The notes, and a low agreement."""
    low = (least := least_agreement(record)) is not None and least < _LEAST_AGREEMENT
    return joined_notes(str(record.get("notes") or ""), _LOW if low else "")


def least_agreement(record: Mapping[str, Any]) -> float | None:
    """The agreement of the poses, or of a template with the direct mask; the lower of both, None where neither is known."""
    both = (record.get("agreement"), (record.get("template") or {}).get("agreement"))
    return min((value for value in both if value is not None), default=None)
