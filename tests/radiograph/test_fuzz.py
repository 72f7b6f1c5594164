"""Mutated films, for a few seconds; ``python -m tests.radiograph.fuzz --cases 100000`` does the rest by hand."""

import random
import sys
import time

import pytest

for package in ("pydicom", "nibabel", "PIL", "rle", "openjpeg", "libjpeg"):
    pytest.importorskip(package)

from monai_diffeo.errors import FilmError  # noqa: E402
from monai_diffeo.radiograph.isolation import IsolatedReader  # noqa: E402
from tests.radiograph import fuzz  # noqa: E402


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked and limited on Linux")
def test_mutated_films_give_a_film_or_a_film_error_soon_and_the_next_film_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SLOW", 30.0)  # by the clock of a machine that may be busy: by hand it is 5 seconds
    reader = IsolatedReader()
    try:
        counts, wrong = fuzz.fuzz(range(10**6), reader, tmp_path, until=time.monotonic() + 12)
    finally:
        reader.close()
    assert not any(wrong[name] for name in ("foreign", "slow", "large", "next film")), wrong
    assert sum(counts.values()) > 50
    assert len({outcome for _, outcome in counts}) > 4  # mutations reach many checks, and some films stay films
    assert any(outcome == "film" for _, outcome in counts)


def test_what_must_not_be_is_seen(tmp_path, monkeypatch):
    class Reader:
        def __call__(self, path):
            if path.name.startswith("good"):
                raise FilmError("DamagedFile", "x")
            raise random.choice([KeyError, FilmError])(*("a", "b"))

    monkeypatch.setattr(fuzz, "SLOW", -1.0)
    _, wrong = fuzz.fuzz(range(40), Reader(), tmp_path)
    assert {number for number, name in wrong["foreign"] if name == "KeyError"} and len(wrong["slow"]) == 40
    assert wrong["next film"] == [0]


def test_a_case_is_the_same_for_the_same_number_and_differs_from_its_seed():
    for number in range(200):
        kind, suffix, content = fuzz.case(number)
        assert (kind, suffix, content) == fuzz.case(number)
    assert sum(fuzz.case(n)[2] != fuzz.seeds()[fuzz.case(n)[0]][1] for n in range(200)) > 150
