import pytest
import torch
from torch.testing import assert_close

from docs.experiments import lungs
from docs.experiments.film_data import DEFORMATIONS, Films, deform
from docs.experiments.lungs import asked
from docs.experiments.measures import (
    answer,
    bootstrap_interval,
    dice_of,
    equivariance_error,
    evaluate,
    measure_set,
    plain,
    table_rows,
    tta_only,
    wrapped,
)
from docs.experiments.pages import Experiment, markdown_table
from monai_diffeo.flow import folding_fraction, warp
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
    assert (folding_fraction(ddf) == 0).all()


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
    moved = warp(a, shift, padding_mode="zeros")
    assert_close(equivariance_error(moved, a, shift), torch.zeros(1))
    assert_close(equivariance_error(b, a, torch.zeros_like(shift)), torch.tensor([0.5]))
    assert equivariance_error(moved, a, -shift).item() > 0.3


def test_the_interval_holds_the_mean_and_narrows_with_more_films():
    few, many = torch.rand(20), torch.rand(2000)
    for values in (few, many):
        low, high = bootstrap_interval(values)
        assert low < values.mean() < high
    assert (lambda x: x[1] - x[0])(bootstrap_interval(many)) < 0.3 * (lambda x: x[1] - x[0])(bootstrap_interval(few))
    assert bootstrap_interval(few) == bootstrap_interval(few)
    normal = 2 * 1.96 * many.std().item() / len(many) ** 0.5
    assert abs((lambda x: x[1] - x[0])(bootstrap_interval(many)) / normal - 1) < 0.1


def test_differences_are_paired_over_films():
    better = torch.tensor([0.1, 0.5, 0.9])
    measured = {
        name: {"dice": better + gain, "iou": better, "folding_fraction": 0.0, "moved": 0.0, "seconds": 0.0}
        for name, gain in (("baseline", 0.0), ("augmented baseline", 0.05))
    }
    baseline, augmented = table_rows(measured)
    assert augmented["- baseline"] == "+0.0500 [+0.050, +0.050]" and augmented["- augmented baseline"] == ""
    assert baseline["- augmented baseline"] == "-0.0500 [-0.050, -0.050]" and baseline["- baseline"] == ""


def test_tta_samples_without_moving_average_around_the_film_as_it_came():
    shown, _ = deform(films(), "TPS/2")
    one, eight = plain(Threshold())(shown.images), tta_only(Threshold())(shown.images)
    assert (one.masks != eight.masks).any() and dice_of(eight.masks, one.masks).min() > 0.9
    assert torch.equal(tta_only(Threshold(), 1)(shown.images).masks, one.masks)


@pytest.mark.parametrize("shift, met", [(0.0, "yes"), (-0.2, "**no**")])
def test_what_was_asked_is_set_beside_what_was_measured(shift, met):
    baseline = torch.full((20,), 0.8)
    rows = {
        "baseline": baseline,
        "augmented baseline": baseline + 0.1,
        "DiffeoNN single pass": baseline + 0.12 + shift,
        "augmented baseline + DiffeoNN": baseline + 0.12 + shift,
    }
    lines = asked(
        {
            (source, protocol): rows
            for source in ("shenzhen", "montgomery", "covid_gb")
            for protocol in ("plain", "TPS/2", "TPS")
        }
    )
    assert (
        [r["met"] for r in lines if "single pass" in r["what"]] == [met] * 7
        and len(lines) == 16
        and {r["met"] for r in lines} == {met}
    )
    assert "0.9150" in next(r["asked"] for r in lines if r["what"] == "DiffeoNN single pass, montgomery, TPS/2")


def test_a_command_names_what_is_not_the_default():
    defaults = {"dataset_dir": str, "weights_dir": str, "films": 6, "rows": ("a",), "rates": [float], "limit": int}
    given = ["--dataset_dir", "/secret", "--rows", "a b", "c", "--faithful", "--rates", "0.1"]
    experiment = Experiment("lungs", None, given, **defaults, seed=0, faithful=False)
    text = "python -m docs.experiments.lungs --dataset_dir DIR --rows 'a b' c --rates 0.1 --faithful"
    assert experiment.command() == text and experiment.command(seed=3) == text.replace(" --faithful", " --seed 3 --faithful")
    assert vars(experiment.options) | {"limit": None, "films": 6, "rates": [0.1]} == vars(experiment.options)
    assert Experiment("lungs", None, given[:2], **defaults).options.rates is None
    with pytest.raises(SystemExit):
        Experiment("lungs", None, [], **defaults)


def test_the_lung_page_is_written_from_a_folder(tmp_path, monkeypatch):
    image_file = pytest.importorskip("PIL.Image")
    for i, image in enumerate(films(2, (128, 128)).images[:, 0]):
        for name, values in ((f"{i}.png", image), (f"{i}_mask.png", image > 0.5)):
            image_file.fromarray((values * 255).byte().numpy()).save(tmp_path / name)
    lines = ["image,mask,split,source,id", *(f"{i}.png,{i}_mask.png,test,shenzhen,film{i}" for i in range(2))]
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    made = {
        "baseline": plain(Threshold()),
        "augmented baseline": plain(Threshold()),
        "DiffeoNN single pass": tta_only(Threshold(), 2),
        "augmented baseline + DiffeoNN": tta_only(Threshold(), 2),
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lungs, "methods", lambda bundle, rows: made)
    lungs.main(["--dataset_dir", str(tmp_path), "--sources", "shenzhen", "--protocols", *lungs.GROWING, "--output", "page.md"])
    page = (tmp_path / "page.md").read_text()
    assert (
        page.count("| augmented baseline + DiffeoNN |") == 5 and "## Asked and measured" in page and str(tmp_path) not in page
    )
    assert (tmp_path / "page.png").stat().st_size > 5000


def test_a_table_has_a_row_a_method_with_paired_differences(tmp_path):
    undeformed = {}
    methods = {"baseline": plain(Threshold()), "DiffeoNN": wrapped(Threshold(), tiny_canonicalizer(), tta_samples=2)}
    measure_set(films(), "plain", methods, undeformed)
    rows = table_rows(measure_set(films(), "TPS", methods, undeformed))
    assert [r["method"] for r in rows] == ["baseline", "DiffeoNN"]
    difference = float(rows[1]["Dice"].split()[0]) - float(rows[0]["Dice"].split()[0])
    assert rows[0]["- baseline"] == "" and abs(float(rows[1]["- baseline"].split()[0]) - difference) < 2e-4
    assert float(rows[1]["error"]) > 0 and rows[1]["moved"] == "100%"
    experiment = Experiment("x", None, ["--output", str(tmp_path / "a" / "page.md")])
    experiment.write("Title", [markdown_table(rows)], seed=3)
    text = (tmp_path / "a" / "page.md").read_text()
    assert text.startswith("# Title") and "python -m docs.experiments.x" in text
    assert "Seed 3; monai" in text and text.count("\n| ") == 3
