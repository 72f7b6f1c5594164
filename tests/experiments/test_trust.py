"""What the page on trust computes: rates, areas and intervals with known values."""

import numpy as np
import pytest

pytest.importorskip("scipy")

import torch

from docs.experiments.reverse_accuracy import reverse_accuracy
from docs.experiments.trust import (
    ERROR,
    FOREIGN,
    area_under_risk,
    auroc,
    conformal,
    decision_row,
    disagreement,
    fit_least_squares,
    fit_logistic,
    fit_trust,
    gap_closed,
)
from monai_diffeo.trust import References


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


def test_networks_disagree_by_one_minus_the_mean_dice_of_their_pairs():
    film = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 2, 2)
    networks = [lambda x, least=least: x - least for least in (0.0, 2.0, 3.0)]  # masks of 4, 2 and 1 voxels
    assert disagreement(networks, film) == pytest.approx(1 - np.mean([2 * 2 / 6, 2 * 1 / 5, 2 * 1 / 3]), abs=1e-6)


def test_fits_find_what_made_the_data_and_no_weight_is_below_zero():
    draw = np.random.default_rng(3)
    x, even = draw.random((4000, 3)), np.full(4000, 1 / 4000)
    bias, weights = fit_least_squares(x, 2 + x @ [1.5, 0.0, -1.0] + 0.1 * draw.normal(size=4000), even, ridge=0)
    assert weights[0] == pytest.approx(1.5, abs=0.05) and abs(weights[1]) < 0.05 and weights[2] == 0
    truth = draw.random(4000) < 1 / (1 + np.exp(2 - x @ [3.0, 1.0, 0.0]))
    bias, weights = fit_logistic(x, truth.astype(float), even, ridge=0)
    assert bias == pytest.approx(-2, abs=0.3) and weights[:2] == pytest.approx([3, 1], abs=0.4) and min(weights) >= 0


def made_films(source, condition, count, level, draw):
    """Films whose signs lie around a level; their error grows with it."""
    films = []
    for i in range(count):
        signs = {name: float(level * draw.uniform(0.5, 1.5)) for name in (*ERROR, *FOREIGN)}
        dice = 0.0 if source == "foreign" else 1 - 0.05 * signs[ERROR[0]]
        shared = {"source": source, "condition": condition, "id": f"{source}{i}", "notes": "", "dice_prediction": dice}
        films.append({"signs": signs, "bad": dice < 0.9, **shared})
    return films


def test_no_good_film_of_the_fit_is_withheld_and_what_is_far_off_is():
    draw = np.random.default_rng(4)
    films = [f for s in ("shenzhen", "covid_gb") for f in made_films(s, "plain", 40, 1.0, draw)]
    halves = made_films("shenzhen", "left half", 8, 1.2, draw)
    foreign = made_films("foreign", "noise", 20, 12.0, draw)
    references = References(torch.zeros(4, 4).double(), torch.zeros(13).double(), torch.eye(13).double())
    model = fit_trust([*films, *halves], foreign, references, "0" * 64)
    row = decision_row("", [*films, *halves], model)
    assert row["good films without result"] == "0"
    assert decision_row("", [{**f, "bad": True} for f in foreign], model)["failures without result"] == "20"
    assert min(*model.error.weights.values(), *model.foreign.weights.values()) >= 0


def test_the_reverse_accuracy_of_the_right_mask_is_1_and_the_best_film_counts():
    mask = torch.zeros(1, 16, 16)
    mask[0, 4:12, 3:9] = 1
    rest = torch.zeros(2, 16, 16)
    film = {"prediction": mask - 0.5, "ddf": rest}
    near, far = ({"label": label, "inverse_ddf": rest} for label in (mask, mask.roll(4, 2)))
    assert reverse_accuracy(film, [far, near]) == pytest.approx(1) and reverse_accuracy(film, [far]) < 0.6
