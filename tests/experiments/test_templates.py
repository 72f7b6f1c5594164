import pytest
import torch
from torch import nn

from docs.experiments import template_recipes
from docs.experiments.film_data import Films
from docs.experiments.template_recipes import (
    ABLATION,
    COMPARED,
    SMOOTH,
    Recipe,
    guessed_lungs,
    trained_direct,
    trained_template,
)
from docs.experiments.templates import (
    BASELINES,
    BIASED,
    OURS,
    Found,
    differences,
    figures,
    measure_found,
    plain_masks,
    run_method,
    sureness,
    table_row,
    template_masks,
    timing,
)
from monai_diffeo.networks import ShapePrior

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = (32, 32)


def lungs(count=6):
    priors = [
        ShapePrior([[s, -0.45], [-s, 0.45]], [[0.5, 0.25], [0.55, 0.2]]) for s in torch.linspace(-0.1, 0.1, count).tolist()
    ]
    label = torch.cat([(p(SIZE) > 0.5).float() for p in priors])
    return {"image": 0.2 + 0.6 * label.amax(1, keepdim=True), "label": label}


def as_films(data):
    return Films(data["image"], data["label"].amax(1, keepdim=True), tuple(str(i) for i in range(len(data["image"]))))


class Threshold(nn.Module):
    def forward(self, image):
        return image - 0.5


SMALL = Recipe(
    lambda _: guessed_lungs("full", ("mean", "covariance", "beta")),
    {**SMOOTH, "flow_size": 16, "control_size": (3, 4, 6, 6)},
    epochs=4,
    channels=(8, 16),
    batch_size=2,
    rate=5e-3,
)


def test_a_recipe_is_trained_once_and_then_read(tmp_path):
    network, log = trained_template("small: one", SMALL, lungs(), tmp_path, 0)
    again, same = trained_template("small: one", SMALL, lungs(), tmp_path, 0)
    assert log == same and log["cpu_seconds"] > 0 and log["device"] == "CPU"
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".pt"]
    image = lungs()["image"]
    with torch.no_grad():
        assert torch.equal(network(image), again(image))
    row = run_method(template_masks(network), as_films(lungs()), 4)
    assert (row["exact"] == 1).all() and (row["folding_fraction"] == 0).all() and row["dice"].shape == (6,)
    free = run_method(template_masks(network, guard=False), as_films(lungs()))
    assert "acted" not in free and network.guard
    smaller = run_method(template_masks(network, size=16), as_films(lungs()))
    assert smaller["dice"].mean() > 0.6


def test_a_direct_network_is_trained_on_from_the_part_before(tmp_path, monkeypatch):
    calls = []

    def trained(path, build, step, data, iterations, seed, batch_size):
        network = build()
        torch.nn.init.constant_(network.weight, network.weight.item() + 1)
        calls.append((path, iterations, batch_size, step.variation[1]))
        return network

    def start():
        network = nn.Linear(1, 1)
        torch.nn.init.zeros_(network.weight)
        return network

    monkeypatch.setattr(template_recipes, "trained", trained)
    monkeypatch.setattr(template_recipes, "lung_unet", start)
    parts = [(1, {}), (2, {"intensity": 0.5})]
    assert trained_direct("U-Net", lungs(17), tmp_path, 0, parts).weight.item() == 2
    assert trained_direct("U-Net", lungs(17), tmp_path, 0, parts[1:]).weight.item() == 1
    first, second, alone = calls
    assert [call[1:] for call in calls] == [(2, 8, 0.0), (4, 8, 0.5), (4, 8, 0.5)]  # so many batches of 8 an epoch
    assert len({first[0], second[0], alone[0]}) == 3  # the file's name says what came before


def test_measures_of_perfect_and_of_torn_answers():
    films = as_films(lungs())
    row = run_method(plain_masks(Threshold()), films)
    assert (
        (row["dice"] == 1).all() and (row["hausdorff"] == 0).all() and (row["exact"] == 1).all() and (row["holes"] == 0).all()
    )
    speck = films.labels.clone()
    speck[0, 0, 0, 0] = 1
    speck[1] = 0
    row = measure_found(Found(speck > 0), films.labels)
    assert row["components"].tolist()[:2] == [3, 0] and row["exact"].tolist()[:3] == [0, 0, 1]
    assert row["hausdorff"][0] > 5 and row["hausdorff"][1] == pytest.approx(31 * 2**0.5) and row["dice"][1] == 0
    kept = plain_masks(nn.Identity(), 2)(speck * 2 - 1)
    assert kept.masks[0].sum() == films.labels[0].sum() and kept.masks[1].sum() == 0
    assert table_row("name", row)["components"] == "1.83 (0 to 3)"


def test_corners_do_not_hide_a_third_part():
    mask = torch.zeros(1, 1, 8, 8)
    mask[0, 0, 1:3, 1:3] = mask[0, 0, 3:5, 3:5] = 1
    row = measure_found(Found(mask > 0), mask)
    assert row["components"].item() == 2 and row["exact"].item() == 0  # one part across the corner


def test_every_figure_is_judged_by_itself_and_against_every_rival():
    def row(dice, hausdorff, exact=1.0, folding_fraction=0.0):
        one = torch.ones(3)
        return {
            "dice": dice * one,
            "hausdorff": hausdorff * one,
            "exact": exact * one,
            "folding_fraction": folding_fraction * one,
            "broken": folding_fraction * one,
        }

    def met(ours, ratio=1.2, **baselines):
        rows = {OURS: ours, **{baseline: row(0.955, 5.0) for baseline in BASELINES}, **baselines}
        return [line["met"] == "yes" for line in figures({("a", "plain"): rows}, ratio)]

    good, count = row(0.95, 3.0), len(BASELINES)
    asked = 2 + 2 * count + 1
    assert met(good) == [True] * asked
    assert met(row(0.95, 3.0, folding_fraction=1e-5)) == [False] + [True] * (asked - 1)
    assert met(row(0.95, 3.0, exact=0.9)) == [True, False] + [True] * (asked - 2)
    for place, baseline in enumerate(BASELINES):
        assert met(good, **{baseline: row(0.955, 3.0)}) == [i != 2 + place for i in range(asked)]  # equal is not below
        assert met(good, **{baseline: row(0.961, 5.0)}) == [i != 2 + count + place for i in range(asked)]
    assert met(good, 1.26) == [True] * (asked - 1) + [False]
    lines = figures(
        {(s, "plain"): {OURS: row(0.9, d), **{r: row(0.9, 5.0) for r in BASELINES}} for s, d in (("a", 3.0), ("b", 7.0))}, 1.0
    )
    assert lines[2]["measured"] == "below on 1 of 2 sets; above on b plain (5.0 to 7.0)"


def test_differences_are_taken_film_by_film():
    ours = torch.linspace(1, 9, 50)
    rows = {OURS: {"hausdorff": ours}, **{name: {"hausdorff": ours + 2} for name in (*BASELINES, BIASED)}}
    (line,) = differences({("a", "TPS"): rows}, "hausdorff", "+.2f")
    assert line == {"set": "a TPS", **dict.fromkeys((*BASELINES, BIASED), "-2.00 [-2.00, -2.00]")}


def test_sureness_ranks_films_by_their_agreement():
    dice = torch.linspace(0.5, 0.95, 10)
    row = sureness({"dice": dice, "agreement": dice.square()})
    assert row["rank correlation with Dice"] == "1.00" and float(row["Dice of the fifth that agrees least"]) == pytest.approx(
        0.525
    )
    assert sureness({"dice": dice, "agreement": -dice})["rank correlation with Dice"] == "-1.00"


def test_timing_takes_turns_and_the_ablation_has_every_row_of_the_paper():
    seconds = timing({"a": Threshold(), "b": lambda x: [Threshold()(x) for _ in range(200)]}, torch.rand(1, 1, 64, 64), 5)
    assert 0 < seconds["a"] < seconds["b"]
    trained = [{n for n, p in r.prior(None).named_parameters() if p.requires_grad} for r in ABLATION.values()]
    assert trained[:7] == [
        set(),
        {"mean"},
        {"log_scale"},
        {"log_scale"},
        {"mean", "log_scale"},
        {"mean", "log_scale"},
        {"mean", "log_scale", "log_beta"},
    ]


def test_files_of_weights_keep_the_names_of_earlier_runs(tmp_path, monkeypatch):
    paths = []

    def trained(path, *rest, **settings):
        paths.append(path.stem.rsplit("_", 1)[1])
        path.with_suffix(".json").write_text('{"cpu_seconds": 1}')

    monkeypatch.setattr(template_recipes, "trained", trained)
    image = torch.zeros(354, 1, 1, 1)
    for recipe in (*COMPARED.values(), ABLATION["fixed prior"]):
        trained_template("row", recipe, {"image": image, "label": image}, tmp_path, 0)
    assert paths == ["5d43ae39", "7ff85926", "7ff85926", "d3c620e3", "81f281a7"]
