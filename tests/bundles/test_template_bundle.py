"""The template bundle: two lungs, always."""

import warnings

import numpy as np
import pytest
import torch

for package in ("ignite", "fire", "nibabel", "pydicom", "PIL", "matplotlib", "scipy", "data_store"):
    pytest.importorskip(package)

import nibabel  # noqa: E402
from monai.bundle import ConfigParser, ConfigWorkflow  # noqa: E402
from PIL import Image  # noqa: E402

from monai_diffeo.metrics import betti_numbers, connected_components  # noqa: E402
from monai_diffeo.networks import load_weights  # noqa: E402
from monai_diffeo.radiograph.lungs import split_lungs  # noqa: E402
from monai_diffeo.radiograph.packaged import packaged_film  # noqa: E402
from monai_diffeo.radiograph.reader import read_film  # noqa: E402
from tests.bundles.command import ROOT, run_here  # noqa: E402

BUNDLE = ROOT / "bundles" / "cxr_lung_template"


def bundle_template(weights=BUNDLE / "models" / "model.pt"):
    parser = ConfigParser(ConfigParser.load_config_file(str(BUNDLE / "configs" / "inference.json")))
    return load_weights(parser.get_parsed_content("network_def"), weights)


def two_lungs(mask):
    assert betti_numbers(mask) == (2, 0) and connected_components(mask, "full")[1] == 2
    return split_lungs(mask)[:2]


@pytest.fixture(scope="module")
def small_film():
    """The packaged film at an eighth of its size, uint8."""
    pixels = read_film(packaged_film()).pixels[::8, ::8]
    low, high = np.percentile(pixels, [0.5, 99.5])
    return (np.clip((pixels - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def test_the_packaged_film_gives_two_lungs_in_its_own_frame(tmp_path):
    status, report = run_here(BUNDLE, tmp_path / "out")
    assert status == 0
    (line,) = report.values()
    image = nibabel.load(tmp_path / "out" / line["mask"])
    mask = np.asarray(image.dataobj)[..., 0].T
    assert mask.shape == (1955, 1841) and np.allclose(image.affine, read_film(packaged_film()).affine[:, [1, 0, 2, 3]])
    right, left = two_lungs(mask)
    assert 0.1 < right.nonzero()[1].mean() / 1841 < 0.5 < left.nonzero()[1].mean() / 1841 < 0.9
    assert 0.05 < right.mean() < 0.3 and 0.05 < left.mean() < 0.3
    assert line["template"]["components"] == 2 and line["template"]["holes"] == 0 and line["template"]["folding_fraction"] == 0
    assert (tmp_path / "out" / line["figure"]).stat().st_size > 50_000


def test_films_that_are_no_chest_films_give_two_parts_too_and_it_can_be_wrapped(tmp_path, small_film):
    films = tmp_path / "films"
    films.mkdir()
    draw = np.random.default_rng(0)
    pictures = {"turned": np.rot90(small_film), "noise": (draw.random((90, 130)) * 255).astype(np.uint8), "good": small_film}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(films / f"{name}.png")
    (films / "broken.png").write_bytes(b"no film")
    options = {"dataset_dir": str(films), "deform": "TRUE", "tta_samples": 2, "figures": "false"}
    status, report = run_here(BUNDLE, tmp_path / "out", **options)
    assert status == 3
    for name, pixels in pictures.items():
        mask = np.asarray(Image.open(tmp_path / "out" / f"{name}_lungs.png"))
        assert mask.shape == pixels.shape
        two_lungs(mask)
        assert report[f"{name}.png"]["template"]["components"] == 2
    assert report["good.png"]["status"] in ("canonicalized", "left alone: looks like the training images")
    assert report["broken.png"]["status"] == "failed" and "template" not in report["broken.png"]


def test_a_rotated_film_gives_the_mask_of_the_upright_one_rotated_and_no_film_is_deformed(tmp_path, small_film):
    films = tmp_path / "films"
    films.mkdir()
    for turns in range(4):
        Image.fromarray(np.rot90(small_film, turns)).save(films / f"{turns}.png")
    status, report = run_here(BUNDLE, tmp_path / "out", dataset_dir=str(films), figures="false")
    masks = [np.asarray(Image.open(tmp_path / "out" / f"{turns}_lungs.png")) for turns in range(4)]
    plain = run_here(BUNDLE, tmp_path / "plain", dataset_dir=str(films), figures="false", enabled="false")
    upright, wrong = masks[0], np.asarray(Image.open(tmp_path / "plain" / "1_lungs.png"))
    assert status == plain[0] == 0 and (np.asarray(Image.open(tmp_path / "plain" / "0_lungs.png")) == upright).all()
    for turns in range(1, 4):
        assert (np.rot90(upright, turns) == masks[turns]).mean() > 0.999
        assert f"rotation by {90 * turns} degrees corrected" in report[f"{turns}.png"]["notes"]
    assert (masks[1] != wrong).mean() > 0.02
    assert {line["decision"].partition(":")[0] for line in plain[1].values()} <= {"not judged", "review"}


def test_any_image_gives_two_components():
    network = bundle_template()
    draw = torch.Generator().manual_seed(0)
    shapes = torch.nn.functional.interpolate(torch.rand(6, 1, 5, 5, generator=draw), (128, 128), mode="bicubic").clamp(0, 1)
    images = torch.cat(
        [shapes, torch.rand(2, 1, 128, 128, generator=draw), torch.zeros(1, 1, 128, 128), torch.ones(1, 1, 128, 128)]
    )
    with torch.no_grad():
        result = network.segment(images)
    assert result.intact.all() and result.folding_fraction.max() == 0 and result.nonpositive_cell_fraction.max() == 0
    for answer in result.log_odds:
        two_lungs((answer > 0).any(0).numpy())


def test_all_parts_of_the_training_run_and_their_means_are_what_inference_reads(tmp_path, small_film):
    y, x = np.mgrid[0:64, 0:64]
    for k in range(2):
        lungs = (((y - 30) / 20) ** 2 + ((x - 18 + k) / 9) ** 2 < 1) | (((y - 32) / 20) ** 2 + ((x - 46) / 9) ** 2 < 1)
        Image.fromarray((lungs * 255).astype(np.uint8)).save(tmp_path / f"m{k}.png")
        Image.fromarray((255 - lungs * 180).astype(np.uint8)).save(tmp_path / f"a{k}.png")
    (tmp_path / "manifest.csv").write_text("image,mask,split,source\na0.png,m0.png,train,x\na1.png,m1.png,train,x\n")
    configs, models = BUNDLE / "configs", tmp_path / "models"

    def train(*files, **settings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            workflow = ConfigWorkflow(
                [str(configs / f) for f in files],
                workflow_type="train",
                logging_file=False,
                bundle_root=str(tmp_path),
                dataset_dir=str(tmp_path),
                sources=["x"],
                epochs=2,
                batch_size=2,
                **{"val_interval": 0, **settings},
            )
            workflow.initialize()
            workflow.run()

    def mean(*files):
        parser = ConfigParser(ConfigParser.load_config_files([str(configs / f) for f in files]))
        parser["bundle_root"] = str(tmp_path)
        parser.get_parsed_content("run")

    def shift(path):
        torch.save({k: v + 0.1 for k, v in torch.load(path, weights_only=True).items()}, path)

    def alike(a, b):
        return all(torch.allclose(x, y, atol=1e-6) for x, y in zip(a.values(), b.values()))

    train("train.json")
    assert (
        (tmp_path / "docs" / "curves" / "first.csv")
        .read_text()
        .startswith("epoch,loss,segmentation,direct,outline,folding,seconds")
    )
    train("train.json", "train_second.json", seed=1, learning_rate=1e-9)
    shift(models / "parts" / "second.pt")
    mean("mean.json")
    train("train.json", "train_third.json", seed=1, learning_rate=1e-9)
    shift(models / "parts" / "third.pt")
    mean("mean.json", "mean_third.json")
    first, between, last = (
        torch.load(models / name, weights_only=True) for name in ("parts/first.pt", "parts/mean.pt", "model.pt")
    )
    assert alike({k: v + 0.07 for k, v in first.items()}, between)  # another seed: the second went on from the first
    assert alike(
        {k: v + 0.0825 for k, v in between.items()}, last
    )  # and the third from their mean; the last is of second and third
    assert bundle_template(models / "model.pt").state_dict().keys() == last.keys()
    network = bundle_template(models / "parts" / "first.pt")
    assert network.prior.mean[0, 1] < -0.3 and network.prior.mean[1, 1] > 0.3  # fitted to the masks
