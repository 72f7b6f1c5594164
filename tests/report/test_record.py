import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monai_diffeo.errors import FilmError, ShapeError
from monai_diffeo.report import SCHEMA, failure_record, film_record, versions
from monai_diffeo.report.record import json_safe
from tests.report.helpers import known_result

PATIENT = "DOE^JANE 1950-01-02 MRN 4711"


def through_json(record):
    return json.loads(json.dumps(record, allow_nan=False))


def test_each_film_gets_its_own_row_of_the_result():
    moved, still = (film_record("a/b.dcm", "00ff", known_result(), index) for index in (0, 1))
    assert moved["status"] == "canonicalized" and still["status"] == "left alone: looks like the training images"
    assert (moved["largest_displacement"], still["largest_displacement"]) == (3.0, 0.0)
    assert moved["displacement_share"] == pytest.approx(3 / 7, rel=1e-6)  # the shorter side has 8 voxels, 7 steps
    assert (moved["steps"], still["steps"]) == (0, 1)
    assert moved["energy_terms"] == {"vae": 0.5, "critic": 0.0} and still["energy_terms"]["critic"] == 1.0
    assert moved["seconds"] == 2.0  # two films shared four seconds
    assert (moved["energy_before"], moved["energy_after"]) == (2.5, 1.25)
    assert (moved["inverse_error"], moved["folding_fraction"]) == (0.125, 0.0)


def test_a_record_survives_json_unchanged_and_carries_what_an_audit_asks_for():
    record = film_record(
        Path("ward") / "film.png",
        "00ff",
        known_result(),
        seconds=0.5,
        mode="refine",
        mask=Path("ward") / "film_lungs.png",
        figure="ward/film_report.png",
        agreement=0.75,
        areas={"total": 0.0, "right": None},
        weights_sha256={"network": "ab"},
        device=torch.device("cpu"),
    )
    assert through_json(record) == record
    assert (record["schema"], record["input"], record["sha256"]) == (SCHEMA, "ward/film.png", "00ff")
    assert (record["mask"], record["figure"]) == ("ward/film_lungs.png", "ward/film_report.png")
    assert (record["mode"], record["agreement"], record["seconds"], record["device"]) == ("refine", 0.75, 0.5, "cpu")
    assert record["weights_sha256"] == {"network": "ab"} and record["frame"] == [8, 11]
    assert record["areas"] == {"total": 0.0, "right": None}
    assert set(versions()) == {"monai_diffeo", "monai", "torch", "numpy", "python"} and record["versions"] == versions()
    assert all(record["versions"].values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_become_null(bad):
    record = through_json(film_record("a.png", None, known_result(energy=bad), agreement=bad))
    assert record["energy_before"] is None and record["agreement"] is None and record["energy_after"] == 1.25


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.floats(width=32).map(np.float32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_json_safe_makes_anything_acceptable_and_a_second_time_changes_nothing(value):
    safe = json_safe(value)
    assert json.loads(json.dumps(safe, allow_nan=False)) == safe == json_safe(safe)


def test_a_run_that_is_switched_off_has_the_same_fields():
    off, on = film_record("a.png", None, None, seconds=1.0), film_record("a.png", None, known_result())
    assert list(off) == list(on)
    assert off["status"].startswith("left alone: ") and off["energy_before"] is None and off["seconds"] == 1.0


def test_a_row_that_is_not_there_is_refused():
    with pytest.raises(IndexError, match="2 rows, got 2"):
        film_record("a.png", None, known_result(), 2)


@pytest.mark.parametrize("name", ["/home/jane/films/a.png", "../jane/a.png", "x/../../jane/a.png"])
def test_names_tell_nothing_about_the_machine(name):
    assert film_record(name, None, known_result(), mask=name)["mask"] == "a.png"
    assert failure_record(name, ValueError())["input"] == "a.png"


def test_a_film_error_gives_its_code_and_its_sentence():
    record = failure_record("a.dcm", FilmError("MultiFrame", "Expected one frame, got 3."), "00ff")
    assert (record["status"], record["error"]) == ("failed", "MultiFrame")
    assert record["message"] == "Expected one frame, got 3."
    assert through_json(record) == record and record["sha256"] == "00ff" and record["schema"] == SCHEMA


def test_a_film_error_is_found_inside_what_monai_wraps_around_it():
    try:
        try:
            raise FilmError("Empty", "The file holds nothing.")
        except FilmError as cause:
            raise RuntimeError(f"applying transform to {PATIENT}") from cause
    except RuntimeError as error:
        record = failure_record("a.dcm", error)
    assert (record["error"], record["message"]) == ("Empty", "The file holds nothing.")


@pytest.mark.parametrize(
    "kind",
    [
        ValueError,
        KeyError,
        OSError,
        FileNotFoundError,
        MemoryError,
        RuntimeError,
        ShapeError,
        torch.cuda.OutOfMemoryError,
        UnicodeDecodeError,
    ],
)
def test_the_text_of_other_errors_stays_out(kind):
    arguments = {ShapeError: (PATIENT,) * 3 + ((1,),), UnicodeDecodeError: (PATIENT, PATIENT.encode(), 0, 1, PATIENT)}
    record = failure_record("a.dcm", kind(*arguments.get(kind, (PATIENT,))))
    written = json.dumps(record)
    assert not any(word in written for word in ("DOE", "JANE", "1950", "4711"))
    assert record["error"] == kind.__name__ and record["message"].endswith(".")


def test_a_circle_of_causes_ends():
    a, b = ValueError(PATIENT), KeyError(PATIENT)
    a.__cause__, b.__cause__ = b, a
    assert failure_record("a.dcm", a)["error"] == "KeyError"
