import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bundles.mnist_genus.scripts.digits import Digits
from docs.experiments import digits, distorted_mnist, learning_rates, rotated_mnist
from docs.experiments.digits import (
    DISTORTIONS,
    PAGES,
    DenseField,
    compared,
    digit_network,
    digit_step,
    distort,
    fit,
    measure_digits,
    narrowed,
    parameter_count,
)
from docs.experiments.measures import student_interval
from docs.experiments.training import kept
from monai_diffeo.errors import NumericalError
from monai_diffeo.families import AffineMatrix, ThinPlateSpline
from monai_diffeo.flow import folding_fraction, jacobian_determinant, warp
from monai_diffeo.flow.grid import centered_grid
from monai_diffeo.networks import SpatialTransformerLayer
from tests.helpers import FixedTheta, blob


def some_digits(count=6):
    images = blob(count, (28, 28), shift=torch.linspace(-0.3, 0.3, count), width=0.2)
    return Digits(images, torch.arange(count) % 10, tuple(f"digit{i}" for i in range(count)))


def test_a_quarter_turn_is_rot90_and_a_shift_a_roll():
    image = some_digits().images
    turned = digits._rigid(torch.full((6,), math.pi / 2), torch.ones(6), torch.zeros(6, 2), (28, 28)).ddf()
    assert min((warp(image, turned) - torch.rot90(image, k, (2, 3))).abs().max() for k in (1, 3)) < 1e-4
    moved = digits._rigid(torch.zeros(6), torch.ones(6), torch.tensor([[3.0, -2.0]]).expand(6, 2), (28, 28)).ddf()
    assert_close(warp(image, moved)[..., 4:-4, 4:-4], image.roll((3, -2), (2, 3))[..., 4:-4, 4:-4], atol=1e-5, rtol=0)


def test_an_enlarged_digit_has_more_ink_by_the_square_of_the_scale():
    image = blob(1, (42, 42), width=0.12)
    larger = warp(image, digits._rigid(torch.zeros(1), torch.tensor([1.2]), torch.zeros(1, 2), (42, 42)).ddf())
    assert_close(larger.sum() / image.sum(), torch.tensor(1.44), atol=0.01, rtol=0)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_distortions_come_from_the_seed_and_never_fold(name):
    one, again, other = (distort(some_digits(), name, 42, seed)["image"] for seed in (0, 0, 1))
    assert one.shape == (6, 1, 42, 42) and one.dtype == torch.uint8
    assert torch.equal(one, again) and not torch.equal(one, other)
    maps = DISTORTIONS[name](50, (42, 42), torch.Generator().manual_seed(0)).ddf()
    assert folding_fraction(maps).sum() == 0 and maps.abs().max() > 3


def test_rotations_keep_areas_and_the_flows_do_not():
    maps = {name: make(20, (42, 42), torch.Generator().manual_seed(0)) for name, make in DISTORTIONS.items()}
    determinants = {name: jacobian_determinant(some.ddf()) for name, some in maps.items()}
    assert_close(determinants["rotated"], torch.ones(20, 42, 42), atol=1e-4, rtol=0)
    assert determinants["RTS"].std((1, 2)).max() < 1e-3 and determinants["RTS"][:, 0, 0].std() > 0.1  # one determinant an image
    assert determinants["CPAB"].std((1, 2)).min() > 0.05


def test_networks_of_equal_size():
    page = PAGES["distorted_mnist"]
    built = {row: parameter_count(digit_network("distorted_mnist", row)) for row in page.rows}
    assert page.parameters == 60_000 and all(abs(count / page.parameters - 1) < 0.01 for count in built.values())
    assert parameter_count(narrowed(lambda width: nn.Linear(width, 3), 303)) == 303


def test_networks_of_the_papers_sizes():
    """Table 1: 27 100 for the classifier; for the transformers 26 998, 27 508, 29 140, 41 278, 52 702; 29 552 for the field."""
    built = {row: parameter_count(digit_network("rotated_mnist", row)) - 27100 for row in PAGES["rotated_mnist"].rows}
    assert list(built.values())[:6] == [0, 26998, 27508, 29140, 41278, 52702]
    assert all(abs(count - 29552) <= 3 for count in list(built.values())[6:])


@pytest.mark.parametrize(
    "name, side, row",
    [
        ("distorted_mnist", 42, "ST-Affine FCN"),
        ("distorted_mnist", 42, "ST-Affine+CPAB CNN"),
        ("rotated_mnist", 28, "TPS-STN, 5 x 5"),
        ("rotated_mnist", 28, "dense field, diffeomorphic"),
        ("learning_rates", 28, "CPAB, 4 x 4"),
    ],
)
def test_a_transformer_begins_with_the_identity_and_every_part_learns(name, side, row):
    network = digit_network(name, row, seed=3)
    image = torch.rand(4, 1, side, side)
    assert_close(network(image), network[1](image), atol=1e-4, rtol=0)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(2):  # the first moves the localiser's last layer off zero
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(image), torch.arange(4)).backward()
        optimizer.step()
    assert all(p.grad.abs().sum() > 0 for p in network[0].parameters())
    assert torch.equal(next(digit_network(name, row, 3).parameters()), next(digit_network(name, row, 3).parameters()))


def test_a_dense_field_displaces_or_flows():
    x = centered_grid((28, 28)) / 13.5
    angle = 0.8
    spin = angle * torch.stack([-x[1], x[0]]).flatten()[None]
    still, turned = DenseField((28, 28), 0)(spin, (28, 28)).ddf(), DenseField((28, 28), 6)(spin, (28, 28)).ddf()
    assert_close(still, 13.5 * spin.view(1, 2, 28, 28))
    matrix = torch.tensor([[math.cos(angle) - 1, -math.sin(angle)], [math.sin(angle), math.cos(angle) - 1]])
    exact = 13.5 * torch.einsum("ij,jhw->ihw", matrix, x)[None]
    assert (turned - exact)[..., 7:-7, 7:-7].abs().max() < 0.1 < (still - exact)[..., 7:-7, 7:-7].abs().max()


def test_the_penalty_is_the_mean_square_of_the_slopes():
    stretch = torch.tensor([[0.5, 0.0, 0.0, 0.0, 0.0, 0.0]])
    network = nn.Sequential(
        SpatialTransformerLayer(FixedTheta(stretch), AffineMatrix()), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    )
    batch = {"image": torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "label": torch.zeros(1, dtype=torch.long)}
    plain, penal = digit_step(network, batch), digit_step(network, batch, 10.0)
    assert_close(plain["cross_entropy"], penal["cross_entropy"])
    assert_close(penal["smoothness"], torch.tensor(10 * 0.5**2 / 2))  # along one of the axes, one of two components


def test_folded_voxels_and_digits_are_counted():
    class Reads(nn.Module):
        def forward(self, image):
            return nn.functional.one_hot((image.mean((1, 2, 3)) > 0.5).long(), 10).float()

    data = {
        "image": torch.tensor([0, 255, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 9, 9),
        "label": torch.tensor([0, 1, 0]),
    }
    assert measure_digits(Reads(), data) == {"accuracy": pytest.approx(2 / 3)}
    family = ThinPlateSpline(2, 2)
    torn = torch.zeros(3, 8)
    torn[2, :4] = torch.tensor([3.0, 3.0, -3.0, -3.0])  # upside down
    found = measure_digits(
        nn.Sequential(SpatialTransformerLayer(FixedTheta(torn), family, padding_mode="border"), Reads()), data
    )
    assert found["folded"] == pytest.approx(1 / 3) and found["folded_samples"] == 1 and found["samples"] == 3


def test_a_run_is_kept_under_all_its_settings(tmp_path):
    calls = []

    def run():
        calls.append(1)
        return {"accuracy": len(calls)}

    settings = {"experiment": "a", "rate": 0.1}
    assert [kept(tmp_path, settings, run)["accuracy"] for _ in range(2)] == [1, 1]
    assert kept(tmp_path, {**settings, "rate": 0.2}, run)["accuracy"] == 2
    assert kept(None, settings, run)["accuracy"] == 3


def test_students_interval():
    low, high = student_interval([0.0, 1.0, 2.0])
    assert (low, high) == pytest.approx((1 - 4.3027 / math.sqrt(3), 1 + 4.3027 / math.sqrt(3)), abs=1e-4)
    assert student_interval([1.0]) == (-math.inf, math.inf)
    inside = [low <= 0 <= high for low, high in map(student_interval, np.random.default_rng(0).normal(size=(2000, 4)))]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    "first, holds",
    [
        ([0.9, 0.91, 0.92], "yes"),
        ([0.8, 0.81, 0.85], "undecided, ahead in the mean"),
        ([0.7, 0.71, 0.7], "**no**"),
        ([0.8, 0.8, 0.8], "undecided, equal in the mean"),
        ([0.79, 0.81, 0.75], "undecided, behind in the mean"),
        ([0.9], "undecided, ahead in one run"),
    ],
)
def test_a_comparison_says_whether_it_holds(first, holds):
    assert compared("a before b", first, [0.8, 0.8, 0.8])["holds"] == holds


def test_a_training_that_breaks_counts_as_chance_where_the_page_says_so(monkeypatch):
    def breaks(*arguments):
        raise NumericalError("points are still under way")

    monkeypatch.setattr(digits, "train", breaks)
    given = (torch.nn.Linear(1, 1), digit_step, {}, {}, 1, 0, 0.1)
    assert fit(PAGES["learning_rates"], *given) == {"accuracy": 0.1, "failed": "points are still under way"}
    with pytest.raises(NumericalError, match="still under way"):
        fit(PAGES["rotated_mnist"], *given)


@pytest.fixture
def few_digits(monkeypatch):
    """Stripes in place of MNIST: 30 digits to train on, 20 to choose on, 40 to test on."""
    counts = {"train": 30, "val": 20, "test": 40}

    def read(folder, split):
        images = torch.zeros(counts[split], 1, 28, 28)
        labels = torch.arange(counts[split]) % 10
        images[torch.arange(counts[split]), 0, 4 + 2 * labels, 6:22] = 1
        return Digits(images, labels, tuple(f"{split}{i}" for i in range(counts[split])))

    monkeypatch.setattr(digits, "read_digits", read)


def run_page(module, page, *options):
    module.main(["--dataset_dir", "/mnist", "--digits", "30", "--output", str(page), *options])
    return page.read_text()


@pytest.mark.parametrize(
    "module, rates, rows",
    [
        (distorted_mnist, ["1e-3"], ["FCN", "ST-CPAB FCN"]),
        (rotated_mnist, ["1e-3", "1e-2"], ["CNN", "TPS-STN, 2 x 2", "dense field, diffeomorphic"]),
        (learning_rates, ["1e-3", "1e-2"], ["no transformer", "CPAB, 4 x 4"]),
    ],
)
def test_an_experiment_writes_its_page_and_takes_up_what_is_there(module, rates, rows, few_digits, tmp_path, monkeypatch):
    page, keep = tmp_path / "page.md", tmp_path / "keep"
    options = ["--weights_dir", str(keep), "--seeds", "2", "--iterations", "2", "--rates", *rates, "--rows", *rows]
    text = run_page(module, page, *options)
    assert f"experiments.{module.__name__.split('.')[-1]} --dataset_dir DIR --weights_dir KEEP" in text
    assert all(f"| {row} |" in text for row in rows) and str(keep) not in text and "/mnist" not in text
    page.unlink()
    monkeypatch.setattr(digits, "fit", lambda *a, **b: pytest.fail("trained again"))
    assert run_page(module, page, *options) == text
    assert learning_rates is not module or page.with_suffix(".png").stat().st_size > 5000


@pytest.fixture
def likes_another_rate_on_test(few_digits, monkeypatch):
    """A network that likes a rate of 0.004 on `val` and of 0.002 on `test`; what it was asked."""
    asked = []

    def fit(page, network, step, data, shown, iterations, seed, rate):
        split, likes = ("val", 0.004) if len(shown["label"]) == 20 else ("test", 0.002)
        asked.append((split, len(shown["label"]), seed, rate, iterations))
        return {"accuracy": 1 - abs(rate - likes), "parameters": 1, "seconds": 1.0}

    monkeypatch.setattr(digits, "fit", fit)
    return asked


@pytest.mark.parametrize(
    "given, asked_for",
    [
        ([], [0.002, 0.004, 0.008]),
        (["--rates", "0.001", "0.004", "0.01"], [0.001, 0.004, 0.01]),
        (["--rates", "0.001", "0.004", "0.01", "0.0041"], [0.001, 0.004, 0.01]),  # not asked beyond the first that is no better
    ],
)
def test_rates_are_chosen_on_val_whatever_test_says(given, asked_for, likes_another_rate_on_test, tmp_path):
    options = ["--rows", "CNN", "--distortions", "CPAB", "--seeds", "1", "--iterations", "10", *given]
    text = run_page(distorted_mnist, tmp_path / "page.md", *options)
    choosing = [("val", 20, seed, rate, 10) for rate in asked_for for seed in (1000, 1001)]
    assert likes_another_rate_on_test == [*choosing, ("test", 160, 0, 0.004, 20)]  # each digit of test four times
    assert "| CNN | 1 | 0.004 |" in text
    assert "after trainings of 10 iterations with the seeds 1000 and 1001" in text


def test_the_rates_of_rotated_digits_are_chosen_on_val_too(likes_another_rate_on_test, tmp_path):
    options = ["--rows", "CNN", "--seeds", "2", "--iterations", "10", "--rates", "0.002", "0.004", "0.008"]
    text = run_page(rotated_mnist, tmp_path / "page.md", *options)
    choosing = [("val", 20, 1000, rate, 10) for rate in (0.002, 0.004, 0.008)]
    assert likes_another_rate_on_test == [*choosing, ("test", 40, 0, 0.004, 10), ("test", 40, 1, 0.004, 10)]
    assert "| CNN | 1 | 0.004 |" in text
