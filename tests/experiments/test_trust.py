"""What the page on trust computes: rates, areas and intervals with known values."""

import numpy as np
import pytest

pytest.importorskip("scipy")

from docs.experiments.trust import area_under_risk, auroc, conformal, fit_least_squares, fit_logistic, gap_closed


def test_auroc_counts_pairs_and_ties_as_half():
    draw = np.random.default_rng(0)
    score, bad = draw.integers(0, 5, 40).astype(float), draw.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in score[bad] for b in score[~bad]]
    assert auroc(score, bad) == pytest.approx(np.mean(pairs)) and auroc(bad.astype(float), bad) == 1
    assert np.isnan(auroc(score, np.zeros(40, bool)))


def test_the_best_order_closes_the_gap_and_a_constant_closes_none_of_it():
    dice = np.random.default_rng(1).random(30)
    assert gap_closed(-dice, dice) == pytest.approx(1) and gap_closed(np.zeros(30), dice) == pytest.approx(0)
    assert gap_closed(dice, dice) < 0
    assert area_under_risk([0, 1, 2], [0.1, 0.3, 0.8]) == pytest.approx(np.mean([0.1, 0.2, 0.4]))


def test_intervals_cover_exchangeable_numbers_as_often_as_they_promise():
    draw, inside = np.random.default_rng(2), []
    for _ in range(3000):
        numbers = draw.exponential(size=180) - 0.3
        below, above = conformal(numbers[:120])
        inside.append(np.mean((numbers[120:] >= -below) & (numbers[120:] <= above)))
    assert 0.949 <= np.mean(inside) < 0.955  # 118 of 121 lie above the lower end, and as many below the upper one


def test_fits_find_what_made_the_data_and_no_weight_is_below_zero():
    draw = np.random.default_rng(3)
    x, even = draw.random((4000, 3)), np.full(4000, 1 / 4000)
    bias, weights = fit_least_squares(x, 2 + x @ [1.5, 0.0, -1.0] + 0.1 * draw.normal(size=4000), even, ridge=0)
    assert weights[0] == pytest.approx(1.5, abs=0.05) and abs(weights[1]) < 0.05 and weights[2] == 0
    truth = draw.random(4000) < 1 / (1 + np.exp(2 - x @ [3.0, 1.0, 0.0]))
    bias, weights = fit_logistic(x, truth.astype(float), even, ridge=0)
    assert bias == pytest.approx(-2, abs=0.3) and weights[:2] == pytest.approx([3, 1], abs=0.4) and min(weights) >= 0
