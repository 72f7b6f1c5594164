"""A decision never gets better by a worse sign, and an unknown number is never trusted."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monai_diffeo.canonicalize.acceptance import mirrored_note, negative_note
from monai_diffeo.canonicalize.result import CANONICALIZED, SWITCHED_OFF
from monai_diffeo.errors import WeightsError
from monai_diffeo.trust import (
    DECISIONS,
    NO_RESULT,
    NOT_JUDGED,
    OK,
    REVIEW,
    References,
    Score,
    TrustModel,
    decision_by_remarks,
    load_trust,
    save_trust,
    verdict,
)
from monai_diffeo.trust.decision import kind_of_decision

NAMES = ("energy", "shape", "disagreement")
MODEL = TrustModel(
    limits={"energy": 20.0, "shape": 6.0, "disagreement": 0.05},
    error=Score(-4.0, {"shape": 1.0, "disagreement": 2.0}, -1.5),
    spread=(0.7, 0.9),
    foreign=Score(-5.0, {"energy": 2.0, "shape": 2.0}, 0.0),
    unusual=-2.0,
    references=References(torch.rand(4, 4).double(), torch.rand(13).double(), torch.eye(13).double()),
    sha256="0" * 64,
    fitted_on="nothing",
)
GOOD = {"energy": 1.0, "shape": 2.0, "disagreement": 0.01}
sign = st.floats(0, 1e6)


@given(st.tuples(sign, sign, sign), st.sampled_from(NAMES), st.floats(0, 1e6))
def test_no_worse_sign_makes_a_decision_better_or_the_expected_dice_higher(values, name, worse):
    signs = dict(zip(NAMES, values))
    one, other = verdict(MODEL, signs), verdict(MODEL, {**signs, name: signs[name] + worse})
    assert DECISIONS.index(other.kind) >= DECISIONS.index(one.kind)
    assert other.dice[0] <= one.dice[0] and other.dice[1] <= one.dice[1] and 0 <= other.dice[0] <= other.dice[1] <= 1


def test_the_three_decisions_and_why():
    assert verdict(MODEL, GOOD).text == "ok"
    doubtful, foreign = verdict(MODEL, {**GOOD, "disagreement": 0.5}), verdict(MODEL, {**GOOD, "energy": 500.0})
    assert doubtful.kind == REVIEW and doubtful.reasons == ("the answers from several poses disagree (0.5, limit 0.05)",)
    assert foreign.kind == NO_RESULT and foreign.reasons[0].startswith("the image is no chest film") and "500" in foreign.text
    unusual = verdict(MODEL, {**GOOD, "energy": 60.0})
    assert unusual.text == "review: the film is unusual; the canonical film is unlike the training films (60, limit 20)"
    asked = verdict(MODEL, {**GOOD, "energy": 500.0}, accept_anything=True)
    assert asked.kind == REVIEW and asked.reasons == foreign.reasons


@given(
    st.lists(st.sampled_from(["spacing unknown", "the mask is empty", "header names another view", "looks mirrored (0.9)"])),
    st.lists(st.floats(0, 1)),
    st.booleans(),
)
def test_without_canonicalisation_no_film_is_ok_and_what_speaks_against_it_counts_all_the_same(notes, agreements, guarded):
    said = "; ".join(notes)
    usual, off = (decision_by_remarks(status, said, agreements, guarded) for status in (CANONICALIZED, SWITCHED_OFF))
    assert off.reasons == usual.reasons and off.kind == (NOT_JUDGED if usual.kind == OK else usual.kind)
    assert decision_by_remarks("left alone: looks like the training images", "").kind == OK
    assert kind_of_decision(off.text) == off.kind and decision_by_remarks(SWITCHED_OFF, "").text == "not judged"


@pytest.mark.parametrize("signs", [{}, {**GOOD, "shape": math.nan}])
def test_an_unknown_sign_counts_as_at_its_limit(signs):
    full = {**MODEL.limits, **{name: value for name, value in signs.items() if value == value}}
    assert verdict(MODEL, signs).text.partition(" (")[0] == verdict(MODEL, full).text.partition(" (")[0]
    assert (
        verdict(MODEL, signs).dice == verdict(MODEL, full).dice and verdict(MODEL, signs).dice[0] < verdict(MODEL, GOOD).dice[0]
    )


def test_what_header_and_film_say_against_a_frontal_film_asks_for_a_review():
    for note in ("header names a lateral view", "header names another body part", negative_note(2.0, 1.0, 1.6)):
        assert verdict(MODEL, GOOD, f"spacing unknown; {note}").text == f"review: {note}"
    mirrored = mirrored_note(1.0, 0.9)
    assert verdict(MODEL, GOOD, mirrored).kind == REVIEW and verdict(MODEL, GOOD, mirrored, mirrored=True).kind == OK
    assert verdict(MODEL, GOOD, "rotation by 90 degrees corrected; negative corrected").kind == OK


def test_a_rejected_deformation_asks_for_a_review():
    assert verdict(MODEL, GOOD, "note; rejected: folds").text == "review: rejected: folds"


def test_a_model_comes_back_as_it_was_written(tmp_path):
    save_trust(tmp_path / "trust.json", MODEL)
    found = load_trust(tmp_path / "trust.json")
    assert replace(found, references=MODEL.references) == MODEL
    for name in ("film", "shape_mean", "shape_precision"):
        torch.testing.assert_close(getattr(found.references, name), getattr(MODEL.references, name), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda c: c.pop("spread"), "expected"),
        (lambda c: c.update(more=1), "expected"),
        (lambda c: c["error"]["weights"].update(energy=-0.1), "at least 0"),
        (lambda c: c["error"]["weights"].update(energy="1"), "finite number"),
        (lambda c: c["foreign"].update(bias=math.nan), "finite number"),
        (lambda c: c["limits"].update(energy=0), "at least"),
        (lambda c: c["limits"].update(colour=1.0), "unknown signs"),
        (lambda c: c.update(unusual=None), "finite number"),
        (lambda c: c.update(spread=[0.1]), "spread|shorter"),
        (lambda c: c["references"]["film"].pop(), "shape"),
    ],
)
def test_a_file_is_read_strictly(tmp_path, change, said):
    save_trust(tmp_path / "trust.json", MODEL)
    content = json.loads((tmp_path / "trust.json").read_text())
    change(content)
    (tmp_path / "trust.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=f"cannot read trust.json.*({said})"):
        load_trust(tmp_path / "trust.json")
    (tmp_path / "trust.json").unlink()
    with pytest.raises(WeightsError, match="trust.json"):
        load_trust(tmp_path / "trust.json")
