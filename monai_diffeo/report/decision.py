"""The decision on a film as a line of the report has it, its colours and its words; :mod:`monai_diffeo.trust` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_diffeo.radiograph.film import joined_notes
from monai_diffeo.report.record import FAILED, SWITCHED_OFF
from monai_diffeo.trust import NO_RESULT, NOT_JUDGED, OK, REVIEW, decision_by_remarks
from monai_diffeo.trust.decision import kind_of_decision

__all__ = ["ACTIONS", "DECISION_COLOURS", "decision", "decision_of", "least_agreement", "outcome", "remarks"]

ACTIONS = {OK: "nothing to do", NOT_JUDGED: "not judged", REVIEW: "look at this film", NO_RESULT: "no result"}
DECISION_COLOURS = {OK: "#3ddc97", NOT_JUDGED: "#c5cad1", REVIEW: "#ffb000", NO_RESULT: "#ff5d73"}


def decision(record: Mapping[str, Any]) -> str | None:
    """One of :data:`monai_diffeo.trust.DECISIONS` for a :func:`film_record`, None where it has no status."""
    return kind_of_decision(decision_of(record))


def decision_of(record: Mapping[str, Any]) -> str | None:
    """The decision and why: the field ``decision`` of the record, or without one that by its remarks."""
    given, status, template = record.get("decision"), str(record.get("status") or ""), record.get("template") or {}
    if kind_of_decision(given):
        return given
    if status.startswith(FAILED):
        return NO_RESULT
    guarded = template.get("factor", 1) != 1 or template.get("level", 0) != 0
    agreements = () if (least := least_agreement(record)) is None else (least,)
    found = decision_by_remarks(status, str(record.get("notes") or ""), agreements, guarded)
    return found.text if status or found.kind != OK else None


def outcome(record: Mapping[str, Any]) -> tuple[str, str]:
    """Status without its reason, and the reason; a film of a run without canonicalisation was segmented, not left alone."""
    status, _, reason = str(record.get("status") or "").partition(": ")
    if record.get("status") == SWITCHED_OFF:
        return "segmented", "without canonicalisation"
    return status, reason or str(record.get("message") or "")


def remarks(record: Mapping[str, Any]) -> str:
    """Why the decision is as it is, and the notes that do not say it already."""
    status, notes = str(record.get("status") or ""), str(record.get("notes") or "").split("; ")
    why = [reason for reason in (decision_of(record) or "").partition(": ")[2].split("; ") if reason != status]
    return joined_notes(*why, *(note for note in notes if not any(reason and reason in note for reason in why)))


def least_agreement(record: Mapping[str, Any]) -> float | None:
    """The agreement of the poses, or of a template with the direct mask; the lower of both, None where neither is known."""
    both = (record.get("agreement"), (record.get("template") or {}).get("agreement"))
    return min((value for value in both if value is not None), default=None)
