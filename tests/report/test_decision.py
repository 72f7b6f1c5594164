"""What to do about a film is decided in one place."""

import pytest
import torch

from monai_diffeo.inferers import DiffeoResult
from monai_diffeo.report import SWITCHED_OFF
from monai_diffeo.report.decision import ACTIONS, DECISION_COLOURS, decision, least_agreement, outcome, remarks
from monai_diffeo.report.reporter import decided as fields_of
from monai_diffeo.report.writer import ALL_WRITTEN, ReportWriter
from monai_diffeo.trust import DECISIONS, Verdict

FINE, ALONE = {"status": "canonicalized"}, {"status": "left alone: looks like the training images"}


@pytest.mark.parametrize(
    "record, expected",
    [
        (FINE, "ok"),
        (ALONE, "ok"),
        ({"status": SWITCHED_OFF}, "not judged"),
        ({"status": SWITCHED_OFF, "notes": "spacing unknown; the mask is empty"}, "review"),
        ({"status": SWITCHED_OFF, "notes": "header names a lateral view"}, "review"),
        ({"status": SWITCHED_OFF, "decision": "review: odd shape"}, "review"),
        ({**FINE, "notes": "rotation by 90 degrees corrected; spacing unknown"}, "ok"),
        ({**FINE, "notes": "header names a body part by no defined term"}, "ok"),
        ({"status": "rejected: energy rose from 1 to 2"}, "review"),
        ({**FINE, "notes": "spacing unknown; the mask is empty"}, "review"),
        ({**FINE, "notes": "looks mirrored (probability 0.99) and is not changed"}, "review"),
        ({**FINE, "notes": "remains unlike the training images (energy 12)"}, "review"),
        ({**ALONE, "notes": "looks like a negative (inverted, its energy is multiplied by 0.5) and is not changed"}, "review"),
        ({**FINE, "notes": "header names a lateral view"}, "review"),
        ({**FINE, "notes": "header names another body part"}, "review"),
        ({"status": SWITCHED_OFF, "template": {"factor": 1, "level": 0, "agreement": 0.9}}, "not judged"),
        ({"status": SWITCHED_OFF, "template": {"factor": 0.5, "level": 0}}, "review"),
        ({"status": SWITCHED_OFF, "template": {"factor": 1, "level": -0.5}}, "review"),
        ({**FINE, "agreement": 0.89}, "review"),
        ({**FINE, "agreement": 0.91}, "ok"),
        ({**FINE, "agreement": 0.98, "template": {"factor": 1, "level": 0, "agreement": 0.48}}, "review"),
        ({**FINE, "agreement": None, "template": {"factor": 1, "level": 0, "agreement": None}}, "ok"),
        ({"status": "failed", "error": "EmptyFile"}, "no result"),
        ({}, None),
        ({**FINE, "decision": "review"}, "review"),  # a decision that the record holds counts before all else
        ({"status": "rejected: x", "decision": "ok"}, "ok"),
        ({**FINE, "decision": "perhaps"}, "ok"),
        ({**FINE, "decision": "review: the edges are uncertain"}, "review"),
    ],
)
def test_decision(record, expected):
    assert decision(record) == expected


def test_a_reason_to_look_is_said():
    assert remarks({**FINE, "notes": "spacing unknown", "agreement": 0.5}) == "the agreement is low; spacing unknown"
    assert remarks({**FINE, "notes": None, "agreement": 0.95}) == "" and least_agreement(FINE) is None
    assert least_agreement({"agreement": 0.9, "template": {"agreement": 0.4}}) == 0.4


def test_why_a_decision_was_made_stands_before_the_notes_and_once():
    record = {
        **FINE,
        "decision": "review: header names a lateral view; odd shape",
        "notes": "inverted; header names a lateral view",
    }
    assert remarks(record) == "header names a lateral view; odd shape; inverted"
    assert remarks({"status": "rejected: energy rose"}) == ""  # the status says it


def test_every_decision_has_words_and_a_colour_of_its_own():
    assert list(ACTIONS) == list(DECISION_COLOURS) == list(DECISIONS) == ["ok", "not judged", "review", "no result"]
    assert len(set(DECISION_COLOURS.values())) == len(set(ACTIONS.values())) == 4


def test_the_notes_that_ask_for_a_look_are_those_that_canonicaliser_and_reader_write():
    from monai_diffeo.canonicalize import acceptance

    notes = [acceptance.mirrored_note(1.0, 0.5), acceptance.negative_note(4.0, 1.0, 0.9), acceptance.high_energy_note(2.0, 1.0)]
    assert [decision({**FINE, "notes": note}) for note in notes] == ["review"] * 3


def test_nothing_is_left_alone_where_nothing_could_be_moved(tmp_path):
    assert outcome({"status": SWITCHED_OFF}) == ("segmented", "without canonicalisation")
    assert outcome(ALONE) == ("left alone", "looks like the training images")
    assert outcome({"status": "failed", "message": "The file is empty."}) == ("failed", "The file is empty.")
    report = ReportWriter(tmp_path / "report.jsonl")
    for record in [{"status": SWITCHED_OFF}] * 3 + [{"status": SWITCHED_OFF, "notes": "the mask is empty"}, ALONE]:
        report.write(record)
    assert report.summary() == f"5 films: 4 segmented, 1 left alone. 3 not judged. Look at 1 of them. Report: {report.path}"
    assert report.counts["left alone"] == 5 and report.exit_status() == ALL_WRITTEN  # the report keeps its own words


def test_a_film_beyond_the_limits_of_a_fit_is_to_be_reviewed_for_it_has_a_mask():
    def decided(*verdicts, **record):
        return fields_of(DiffeoResult(torch.zeros(1), records=(record,), verdicts=verdicts))

    assert decided() == decided(decision="ok") == fields_of(DiffeoResult(torch.zeros(1))) == {}  # remarks decide
    assert decided(decision="review: x (3)") == decided(decision="no result: x (3)") == {"decision": "review: x (3)"}
    assert decided(Verdict("ok", signs={"energy": 1.0}), decision="review: x")["decision"] == "ok"
    assert decided(Verdict("review", answer="bare network"))["answer"] == "bare network" and "answer" not in decided(
        Verdict("ok")
    )


def test_a_result_that_holds_nothing_is_to_be_reviewed_unless_that_was_decided():
    def decided(*verdicts, **record):
        return fields_of(DiffeoResult(torch.zeros(1), records=(record,), verdicts=verdicts), "no label was found")["decision"]

    assert decided() == decided(decision="ok") == decided(Verdict("ok")) == "review: no label was found"
    assert decided(decision="review: x") == decided(Verdict("review", ("x",))) == "review: x"
