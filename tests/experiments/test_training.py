"""Trainings inside experiments, and the experiments that rest on them, on a toy world."""

import csv
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from docs.experiments import data_efficiency, shapes, training
from docs.experiments.ablation import Ablation, digest_of, match_grey_values, measured, restarts
from docs.experiments.film_data import Films
from docs.experiments.measures import Answer, dice_of
from docs.experiments.pages import line_plot, paired_histogram, scatter_plot
from docs.experiments.shapes import nested_shapes
from docs.experiments.training import fit_canonicalizers, fit_published, trained
from monai_diffeo.augmentation.deformations import tps_protocol
from monai_diffeo.energies import Energy
from monai_diffeo.flow import warp
from tests.helpers import blob, tiny_canonicalizer

BUNDLE = Path(__file__).parents[2] / "bundles" / "cxr_lung_segmentation"


class Distance:
    """Loss of a linear layer that should answer with its input."""

    def __call__(self, network, batch):
        return {"distance": (network(batch["image"]) - batch["image"]).square().mean()}


Linear = partial(torch.nn.Linear, 4, 4)
MODES = dict.fromkeys(("single pass", "refine"), tiny_canonicalizer())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Nested shapes as a folder of films: two sources, all splits."""
    image_file = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("films")
    images, labels = nested_shapes(8, 128, torch.Generator().manual_seed(0))
    rows = []
    for i, split in enumerate(["train"] * 4 + ["test"] * 4):
        source = "shenzhen" if split == "train" or i % 2 else "montgomery"
        for name, values in ((f"{i}.png", images[i, 0]), (f"{i}_mask.png", labels[i, 0])):
            image_file.fromarray((values * 255).byte().numpy()).save(folder / name)
        rows.append({"id": f"film{i}", "image": f"{i}.png", "mask": f"{i}_mask.png", "split": split, "source": source})
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_training_lowers_the_loss_and_the_same_seed_gives_the_same_weights():
    data = {"image": torch.randn(32, 4, generator=torch.Generator().manual_seed(0))}

    def run(seed=0):
        return trained(None, Linear, Distance(), data, 60, seed, rate=0.05)

    network = run()
    torch.randn(7)  # whatever was drawn before
    assert Distance()(network, data)["distance"] < 0.05 and not network.training
    assert torch.equal(network.weight, run().weight) and not torch.equal(network.weight, run(1).weight)


def test_what_was_trained_is_taken_up_again(tmp_path):
    data, path = {"image": torch.randn(8, 4)}, tmp_path / "a" / "linear.pt"
    first = trained(path, Linear, Distance(), data, 3)
    again = trained(path, Linear, Distance(), data, 3000)
    assert torch.equal(first.weight, again.weight)
    path.unlink()
    assert not torch.equal(trained(path, Linear, Distance(), data, 4).weight, first.weight)
    trained(None, Linear, Distance(), data, 1)


@pytest.mark.slow
def test_a_fitted_canonicaliser_brings_moved_shapes_back():
    draw = torch.Generator().manual_seed(0)
    images, labels = nested_shapes(64, 32, draw)
    fitted = fit_canonicalizers(images, labels, 120, size=(32, 32), controls=4, channels=(16, 32))
    assert list(fitted) == ["single pass", "refine"]
    ddf = tps_protocol(16, (32, 32), draw)
    moved = warp(images[:16], ddf, padding_mode="border")
    result = fitted["single pass"](moved)
    back = warp(labels[:16], ddf, padding_mode="zeros")
    before = dice_of((back > 0.5).float(), labels[:16]).mean()
    after = dice_of((warp(back, result.ddf) > 0.5).float(), labels[:16]).mean()
    assert after > before + 0.05
    assert fitted["refine"](moved[:1]).steps.item() > 0


def test_a_fitted_canonicaliser_has_its_settings_and_its_level_is_that_of_the_training_images(tmp_path):
    images, labels = nested_shapes(8, 16, torch.Generator().manual_seed(0))
    given = {"size": (16, 16), "controls": 3, "channels": (4, 8), "keep": str(tmp_path / "a")}
    single, refine = fit_canonicalizers(images, labels, 2, **given).values()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_predictor.pt", "a_vae.pt"]
    assert (single.steps, refine.steps, single.iterations, single.tta_samples) == (0, 30, 3, 8)
    values = refine.energy.energies["vae"](images)
    assert_close(values.mean(), torch.tensor(0.0), atol=5e-3, rtol=0)
    assert_close(values.std(), torch.tensor(1.0), atol=5e-3, rtol=0)


def test_the_published_canonicaliser_has_the_published_settings():
    images = nested_shapes(16, 16, torch.Generator().manual_seed(0))[0]
    canonicalizer = fit_published(images, 10)
    assert canonicalizer.steps == 100 and canonicalizer.learning_rate == 0.0039 and canonicalizer.predictor is None
    assert canonicalizer.energy.weights == {"vae": 0.01, "critic": 0.001} and canonicalizer.tta_samples == 1


def test_data_efficiency_writes_rows_for_every_number_of_films_and_takes_weights_up(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "fit_canonicalizers", lambda *a, **settings: MODES)
    weights = tmp_path / "w"
    options = ["--dataset_dir", str(dataset), "--weights_dir", str(weights), "--output", str(tmp_path / "page.md")]
    options += ["--iterations", "2", "--protocols", "plain", "--sources", "montgomery", "--slow_films", "0", "--counts"]
    data_efficiency.main([*options, "2", "4"])
    page = (tmp_path / "page.md").read_text()
    assert page.count("| baseline |") == page.count("| DiffeoNN single pass |") == 2 and "4 training films: montgomery" in page
    assert (tmp_path / "page.png").stat().st_size > 5000
    stamps = {path: path.stat().st_mtime_ns for path in weights.iterdir()}
    assert {path.name.split("_seed0_")[1] for path in stamps} == {"naive.pt", "augmented.pt"}
    assert len(stamps) == 4
    data_efficiency.main([*options, "2"])
    assert {path: path.stat().st_mtime_ns for path in weights.iterdir()} == stamps


def test_shapes_writes_tables_and_the_invariance_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "fit_canonicalizers", lambda *a, **settings: dict(MODES))
    monkeypatch.setattr(training, "fit_published", lambda *a: tiny_canonicalizer())
    shapes.main(["--iterations", "4", "--shapes", "2", "--deformations", "1", "--output", str(tmp_path / "shapes.md")])
    page = (tmp_path / "shapes.md").read_text()
    assert page.count("| DiffeoNN faithful |") == 3 and "ratio of the medians" in page and "shapes_invariance.png" in page
    assert (tmp_path / "shapes_invariance.png").is_file()


def test_every_method_wraps_the_network_of_its_name(monkeypatch):
    images, labels = nested_shapes(4, 32, torch.Generator().manual_seed(0))
    calls = []

    def trained(path, build, step, *rest):
        network = torch.nn.Conv2d(1, 1, 1)
        torch.nn.init.constant_(network.weight, 0.0)
        torch.nn.init.constant_(network.bias, -1.0 if step.variation[0] is None else 1.0)
        calls.append((path, step.variation[0], rest[1]))
        return network

    monkeypatch.setattr(training, "trained", trained)
    monkeypatch.setattr(
        training, "fit_canonicalizers", lambda *a, **settings: dict.fromkeys(("single pass", "refine"), tiny_canonicalizer())
    )
    rows, modes = training.fit_methods({"image": images, "label": labels}, None, (9, 3), keep="a")
    assert calls == [("a_naive.pt", None, 3), ("a_augmented.pt", 1.0, 6)] and list(modes) == ["single pass", "refine"]
    found = {name: row(images).masks.mean().item() for name, row in rows.items()}
    single = {"baseline": 0, "augmented baseline": 1, "DiffeoNN refine": 0, "DiffeoNN single pass": 0}
    assert found == {**single, "augmented baseline + DiffeoNN": 1}


def test_grey_values_move_to_the_wanted_quantiles_without_changing_their_order():
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) ** 2
    wanted = torch.linspace(0.2, 0.8, 33)
    moved = match_grey_values(image, wanted, 1.0)
    assert_close(torch.quantile(moved.flatten(1), torch.linspace(0, 1, 33), dim=1).mean(1), wanted, atol=0.02, rtol=0)
    order = image.flatten(1).argsort(1)
    assert (moved.flatten(1).gather(1, order).diff(dim=1) >= -1e-6).all()
    assert_close(match_grey_values(image, wanted, 0.0), image, atol=1e-3, rtol=0)


def test_of_four_starts_the_turn_of_lowest_energy_wins():
    class FromUpright(Energy):
        def forward(self, image):
            return (image - upright).square().flatten(1).sum(1)

    upright = blob(1, (32, 32), shift=-0.4)
    canonicalizer = tiny_canonicalizer()
    canonicalizer.energy = FromUpright()

    class Mask(torch.nn.Module):
        def forward(self, image):
            return (image - 0.5) * 20

    turned = torch.rot90(upright, 1, (2, 3))
    got = restarts(Mask(), canonicalizer)(torch.cat([upright, turned]))
    assert_close(got.masks[1], torch.rot90(got.masks[0], 1, (1, 2)))
    assert dice_of(got.masks, (torch.cat([upright, turned]) > 0.5).float()).min() > 0.85


def test_figures_are_written(tmp_path):
    line_plot(
        tmp_path / "a" / "line.png", {"set": {"baseline": {20: (0.5, 0.4, 0.6), 50: (0.6, 0.5, 0.7)}}}, "films", log_x=True
    )
    scatter_plot(
        tmp_path / "scatter.png",
        {"modes": {"baseline": (0.01, 0.8), "refine": (2.0, 0.9)}},
        "seconds",
        "Dice",
        ["baseline"],
    )
    paired_histogram(
        tmp_path / "histogram.png", {"mode": {"before": torch.rand(20) * 10, "after": torch.rand(20)}}, "difference"
    )
    assert all((tmp_path / name).stat().st_size > 3000 for name in ("a/line.png", "scatter.png", "histogram.png"))


def test_every_row_of_the_ablation_can_be_built(tmp_path):
    images, labels = nested_shapes(4, 128, torch.Generator().manual_seed(0))
    rows = [
        item
        for group in Ablation(BUNDLE, Films(images, labels, tuple("abcd")), str(tmp_path), 1).rows().values()
        for item in group.items()
    ]
    assert len({name for name, _ in rows}) == len(rows) > 30
    methods = {name: build() for name, build in rows}
    assert methods["2 iterations, 1 TTA sample"](images).masks.shape == labels.shape
    canonicalizer = Ablation(BUNDLE, Films(images, labels, tuple("abcd")), None, 1)._grey_vae({"predictor": None})
    assert (canonicalizer.search, canonicalizer.steps, canonicalizer.regularizer.smooth) == (None, 50, 100.0)


def test_a_row_is_measured_anew_with_other_weights(tmp_path):
    shape = Films(*nested_shapes(2, 32, torch.Generator().manual_seed(0)), ("a", "b"))

    def constant(value):
        return lambda: lambda images: Answer(torch.full_like(images, value), torch.zeros(len(images)), torch.zeros(len(images)))

    first = measured("row", constant(1.0), {"shenzhen plain": shape}, "stamp", str(tmp_path))
    assert measured("row", constant(0.0), {"shenzhen plain": shape}, "stamp", str(tmp_path)) == first
    assert measured("row", constant(0.0), {"shenzhen plain": shape}, "other", str(tmp_path))["dice"] != first["dice"]
    digests = []
    for text in ("a", "b"):
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / "canonicalizer.json").write_text(text)
        digests.append(digest_of(tmp_path))
    assert digests[0] != digests[1]


def test_shapes_are_nested_reproducible_and_narrow():
    draw = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    images, masks = nested_shapes(30, 48, draw())
    again, _ = nested_shapes(30, 48, draw())
    assert torch.equal(images, again) and images.shape == masks.shape == (30, 1, 48, 48)
    assert images.min() >= 0 and images.max() <= 1 and set(masks.unique().tolist()) == {0.0, 1.0}
    inside, outside = (images * masks).sum() / masks.sum(), images[..., :4, :4].mean()
    assert (
        abs(inside - 0.3) < 0.05 and abs(outside - 0.15) < 0.02
    )  # the box is darker than the ellipse, lighter than the ground
    areas = masks.mean((1, 2, 3))
    assert (areas > 0.02).all() and areas.std() < areas.mean() / 2
    wide, _ = nested_shapes(30, 48, draw(), spread=0.1)
    assert wide.std(0).mean() > images.std(0).mean()
