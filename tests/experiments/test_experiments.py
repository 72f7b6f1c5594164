import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.experiments.films import DEFORMATIONS, Films, deform
from monai_diffeo.experiments.lungs import table
from monai_diffeo.experiments.measures import answer, bootstrap_interval, dice_of, equivariance_error, evaluate, plain, wrapped
from monai_diffeo.experiments.tables import markdown_table, write_page
from monai_diffeo.flow import folding, warp
from tests.helpers import blob, tiny_canonicalizer


def films(count=4, size=(48, 48)):
    images = blob(count, size, shift=torch.linspace(-0.1, 0.1, count), width=0.3)
    return Films(images, (images > 0.5).float(), tuple(f"film{i}" for i in range(count)))


class Threshold(torch.nn.Module):
    def forward(self, image):
        return (image - 0.5) * 20


@pytest.mark.parametrize("name", DEFORMATIONS)
def test_a_film_is_deformed_the_same_way_whatever_is_beside_it(name):
    every, ddf = deform(films(), name)
    one = films()
    some, part = deform(Films(one.images[2:3], one.labels[2:3], one.ids[2:3]), name)
    assert torch.equal(ddf[2:3], part) and torch.equal(every.images[2:3], some.images)
    assert (ddf.abs().max() > 1) == (name != "plain")


def test_half_strength_is_half_the_displacement_and_another_seed_another_one():
    full, half, other = deform(films(), "TPS")[1], deform(films(), "TPS/2")[1], deform(films(), "TPS", seed=1)[1]
    assert_close(half, full / 2)
    assert (other - full).abs().max() > 1


def test_a_turn_is_rot90():
    shown, ddf = deform(films(), "turned 90°")
    assert_close(shown.images, torch.rot90(films().images, 1, (2, 3)), atol=1e-4, rtol=0)
    assert (folding(ddf) == 0).all()


def test_a_perfect_network_has_dice_one_and_no_equivariance_error():
    shown, ddf = deform(films(), "TPS")
    method = plain(Threshold())
    undeformed = answer(method, films().images).masks
    row = evaluate(method, films(), torch.zeros(4, 2, 48, 48), undeformed)
    assert_close(row["dice"], torch.ones(4))
    assert row["error"].max() == 0
    moved = evaluate(method, shown, ddf, undeformed)
    assert moved["error"].mean() < 0.1 and moved["iou"].max() <= moved["dice"].max()


def test_measures_are_those_of_the_definition():
    a, b = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    a[..., :2, :], b[..., 1:3, :] = 1, 1
    assert_close(dice_of(a, b), torch.tensor([0.5]))
    shift = torch.zeros(1, 2, 4, 4)
    shift[:, 0] = -1
    assert_close(equivariance_error(warp(a, shift, padding_mode="zeros"), a, shift), torch.zeros(1))


def test_the_interval_holds_the_mean_and_narrows_with_more_films():
    few, many = torch.rand(20), torch.rand(2000)
    for values in (few, many):
        low, high = bootstrap_interval(values)
        assert low < values.mean() < high
    assert (lambda x: x[1] - x[0])(bootstrap_interval(many)) < 0.3 * (lambda x: x[1] - x[0])(bootstrap_interval(few))
    assert bootstrap_interval(few) == bootstrap_interval(few)


def test_a_table_has_a_row_a_method_with_paired_differences(tmp_path):
    undeformed = {}
    methods = {"naive": plain(Threshold()), "DiffeoNN": wrapped(Threshold(), tiny_canonicalizer(), views=2)}
    table(films(), "plain", methods, undeformed)
    rows = table(films(), "TPS", methods, undeformed)
    assert [r["method"] for r in rows] == ["naive", "DiffeoNN"]
    assert rows[0]["- naive"] == "" and rows[1]["- naive"][0] in "+-" and rows[1]["error"] and rows[1]["moved"] == "100%"
    write_page(tmp_path / "a" / "page.md", "Title", "python -m x", [markdown_table(rows)], seed=3)
    text = (tmp_path / "a" / "page.md").read_text()
    assert text.startswith("# Title") and "python -m x" in text and "Seed 3; monai" in text and text.count("\n| ") == 3
