"""A site's own films: at most the asked share is flagged, bad ones among them do not count, and the shipped file stays."""

import math
import random
from dataclasses import replace

import pytest

from monai_diffeo.errors import ConfigError
from monai_diffeo.trust import NO_RESULT, OK, Observation, check_films, load_trust, recalibrated, save_trust, verdict
from tests.trust.test_decision import GOOD, MODEL

TIMES = 6.0  # how much larger the signs of this site are


def films_of(count, bad=0, times=TIMES, seed=0):
    """Films whose signs spread about those of good ones, and some of noise at the end."""
    draw = random.Random(seed)
    good = [Observation({n: v * times * math.exp(draw.gauss(0, 0.3)) for n, v in GOOD.items()}) for _ in range(count - bad)]
    return good + [Observation({"energy": 400.0, "shape": 60.0, "disagreement": 0.9}) for _ in range(bad)]


def flagged(model, films):
    return sum(verdict(model, film.signs, film.said).kind != OK for film in films)


@pytest.mark.parametrize("share", [0.02, 0.03, 0.1])
def test_at_most_the_share_of_the_sites_films_is_flagged_and_nearly_so_of_its_next_films(share):
    films = films_of(200)
    new = recalibrated(MODEL, films, share)
    assert flagged(MODEL, films) > 0.2 * 200 and 0.5 * share * 200 <= flagged(new, films) <= share * 200
    assert flagged(new, films_of(2000, seed=1)) < 2 * share * 2000 + 20
    for name in GOOD:
        assert new.limits[name] == pytest.approx(TIMES * GOOD[name] * math.exp(0.3 * 2.33), rel=0.35)
    assert new.error.weights == MODEL.error.weights and new.foreign.weights == MODEL.foreign.weights
    assert new.spread is None and verdict(new, GOOD).dice is None and "200 unlabelled films" in new.fitted_on


def test_a_few_bad_films_hardly_move_a_limit_and_are_flagged():
    clean, dirty = (recalibrated(MODEL, films_of(150, bad)) for bad in (0, 3))
    for name in GOOD:
        assert dirty.limits[name] == pytest.approx(clean.limits[name], rel=0.25)
    assert flagged(dirty, films_of(150, 3)[-3:]) == 3 and verdict(dirty, films_of(1, 1)[0].signs).kind == NO_RESULT


def test_no_more_films_than_the_share_have_no_result_and_the_threshold_never_falls():
    strict = replace(MODEL, foreign=replace(MODEL.foreign, threshold=-3.5))
    films = films_of(200, times=2.0)
    new = recalibrated(strict, films)
    assert sum(verdict(strict, film.signs).kind == NO_RESULT for film in films) < 100 and flagged(new, films) <= 6
    assert sum(verdict(new, film.signs).kind == NO_RESULT for film in films) > 0
    assert recalibrated(MODEL, films).foreign.threshold == MODEL.foreign.threshold


def test_the_order_of_the_films_does_not_count():
    films = films_of(100, 2)
    assert recalibrated(MODEL, films) == recalibrated(MODEL, films[::-1])


def test_a_sign_that_no_film_has_keeps_its_limit_and_equal_films_are_all_kept():
    films = [Observation({**GOOD, "shape": math.nan, "energy": 3.0})] * 80
    new = recalibrated(MODEL, films)
    assert new.limits["shape"] == MODEL.limits["shape"] and new.limits["energy"] == 3.0 and flagged(new, films) == 0


def test_a_sign_that_was_asked_of_no_film_is_not_needed_any_more():
    films = [Observation({n: v for n, v in film.signs.items() if n != "shape"}) for film in films_of(100)]
    new = recalibrated(MODEL, films)
    assert MODEL.weighs("shape") and not new.weighs("shape") and "shape" not in new.limits and flagged(new, films) <= 3


@pytest.mark.parametrize(
    "films, share, said",
    [
        (films_of(66), 0.03, "be 67 films .* got 66.*or --share 3.1."),
        (films_of(49), 0.2, "be 50 films .* got 49. Give more"),
        (films_of(100), 0.0, "the share must be"),
        (films_of(100), 0.6, "the share must be"),
        (films_of(100, 60), 0.03, "60 of 100 are none"),
    ],
)
def test_what_cannot_be_calibrated_on_is_said(films, share, said):
    with pytest.raises(ConfigError, match=said):
        recalibrated(MODEL, films, share)


@pytest.mark.parametrize("count", range(50, 67))
def test_a_share_that_is_suggested_is_accepted(count):
    with pytest.raises(ConfigError) as error:
        check_films(count, 0.03)
    check_films(count, float(str(error.value).rpartition("--share ")[2].rstrip(".")) / 100)


def test_a_model_without_an_interval_comes_back(tmp_path):
    new = recalibrated(MODEL, films_of(80))
    save_trust(tmp_path / "trust.json", new)
    assert replace(load_trust(tmp_path / "trust.json"), references=MODEL.references) == replace(
        new, references=MODEL.references
    )
