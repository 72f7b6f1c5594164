"""The bundle on the command line, as others rely on it."""

import os
import subprocess
import sys

import numpy as np
import pytest

for package in ("ignite", "fire", "nibabel", "pydicom", "PIL", "matplotlib", "skimage", "data_store"):
    pytest.importorskip(package)

import nibabel  # noqa: E402
from PIL import Image  # noqa: E402
from skimage.measure import label  # noqa: E402

from monai_diffeo.radiograph.packaged import packaged_film  # noqa: E402
from monai_diffeo.radiograph.reader import read_film  # noqa: E402
from tests.bundles.command import ROOT, run_bundle  # noqa: E402

BUNDLE = ROOT / "bundles" / "cxr_lung_segmentation"


def run(output, *options):
    return run_bundle(BUNDLE, output, *options)


@pytest.fixture(scope="module")
def small_film():
    """The packaged film at a quarter of its size, uint8."""
    pixels = read_film(packaged_film()).pixels[::4, ::4]
    low, high = np.percentile(pixels, [0.5, 99.5])
    return (np.clip((pixels - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def test_the_packaged_film_gives_two_lungs_where_lungs_are(tmp_path):
    done, report = run(tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = report.values()
    assert line["status"] in ("canonicalized", "left alone: looks like the training images") and line["folding_fraction"] == 0
    image = nibabel.load(tmp_path / "out" / line["mask"])
    mask = np.squeeze(np.asarray(image.dataobj))
    assert mask.shape == (1955, 1841) and set(np.unique(mask)) == {0, 1}
    parts = label(mask)
    assert parts.max() == 2
    left, right = sorted(np.argwhere(parts == k).mean(0)[1] / 1841 for k in (1, 2))
    assert 0.1 < left < 0.5 < right < 0.9
    assert np.allclose(image.affine, read_film(packaged_film()).affine)
    assert (tmp_path / "out" / line["figure"]).stat().st_size > 50_000


def test_good_films_are_segmented_beside_bad_ones_and_every_bad_one_is_a_line(tmp_path, small_film):
    films = tmp_path / "films"
    (films / "ward").mkdir(parents=True)
    height, width = small_film.shape
    Image.fromarray(small_film).save(films / "ward" / "good.png")
    nibabel.save(nibabel.Nifti1Image(small_film.T.astype(np.float32), np.diag([-0.8, -0.8, 1, 1])), films / "good.nii.gz")
    original = packaged_film().read_bytes()
    (films / "good.dcm").write_bytes(original)
    (films / "empty.dcm").write_bytes(b"")
    (films / "text.dcm").write_text("not a film\n" * 50)
    (films / "cut.dcm").write_bytes(original[: len(original) // 2])
    (films / "zeros.dcm").write_bytes(bytes(4096))
    with_nan = small_film.T.astype(np.float32)
    with_nan[3, 4] = np.nan
    nibabel.save(nibabel.Nifti1Image(with_nan, np.eye(4)), films / "nan.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((64, 64, 5), np.float32), np.eye(4)), films / "volume.nii.gz")
    Image.fromarray(np.stack([small_film] * 3, -1)).save(films / "colour.png")
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(films / "constant.png")
    (films / "notes.txt").write_text("ward round at nine")

    done, report = run(tmp_path / "out", "--dataset_dir", films, "--figures", "false")
    assert done.returncode == 3, done.stdout + done.stderr
    bad = {
        "empty.dcm",
        "text.dcm",
        "cut.dcm",
        "zeros.dcm",
        "nan.nii.gz",
        "volume.nii.gz",
        "colour.png",
        "constant.png",
        "notes.txt",
    }
    assert set(report) == bad | {"ward/good.png", "good.nii.gz", "good.dcm"}
    for name in bad:
        assert report[name]["status"] == "failed" and report[name]["error"].isidentifier(), report[name]
        assert report[name]["message"].endswith(".") and str(tmp_path) not in report[name]["message"]
    assert {report[n]["error"] for n in ("empty.dcm", "nan.nii.gz", "colour.png", "constant.png")} == {
        "EmptyFile",
        "NotFinite",
        "ColourImage",
        "ConstantImage",
    }

    png = np.asarray(Image.open(tmp_path / "out" / "ward" / "good_lungs.png"))
    assert png.shape == (height, width) and set(np.unique(png)) == {0, 255}
    loaded = {p.name: nibabel.load(p) for p in (tmp_path / "out").glob("good*_lungs.nii.gz")}
    assert len(loaded) == 2
    by_shape = {np.squeeze(np.asarray(i.dataobj)).shape: i for i in loaded.values()}
    assert set(by_shape) == {(width, height), (1955, 1841)}
    assert np.allclose(by_shape[(width, height)].affine, np.diag([-0.8, -0.8, 1, 1]))
    same = np.squeeze(np.asarray(by_shape[(width, height)].dataobj)).T > 0
    overlap = 2 * (same & (png > 0)).sum() / (same.sum() + (png > 0).sum())
    assert overlap > 0.98  # one film in two formats


def test_switched_off_it_is_the_plain_network_and_writes_no_deformation(tmp_path, small_film):
    films = tmp_path / "films"
    films.mkdir()
    Image.fromarray(np.rot90(small_film, 1)[:, ::-1]).save(films / "film.png")
    off, report_off = run(tmp_path / "off", "--dataset_dir", films, "--enabled", "FALSE")
    on, report_on = run(tmp_path / "on", "--dataset_dir", films)
    assert off.returncode == on.returncode == 0, off.stdout + off.stderr + on.stderr
    assert report_off["film.png"]["status"] == "left alone: canonicalisation is switched off"
    assert report_on["film.png"]["status"] != "left alone: canonicalisation is switched off"
    assert all((tmp_path / d / r["film.png"]["figure"]).exists() for d, r in (("off", report_off), ("on", report_on)))
    without, report = run(tmp_path / "without", "--dataset_dir", films, "--figures", "false")
    assert (
        without.returncode == 0
        and report["film.png"]["figure"] is None
        and not list((tmp_path / "without").glob("*_report.png"))
    )


@pytest.mark.parametrize("mode", ["single_pass", "refine"])
def test_modes_and_other_weights_run_from_the_command_line(tmp_path, small_film, mode):
    films = tmp_path / "films"
    films.mkdir()
    Image.fromarray(small_film).save(films / "film.png")
    weights = BUNDLE / "models" / "baselines" / "augmented.pt"
    done, report = run(
        tmp_path / "out", "--dataset_dir", films, "--mode", mode, "--network_weights", weights, "--device", "cpu"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["film.png"]["mode"] == mode


def test_a_wrong_option_keeps_the_last_report_and_results_are_not_taken_for_films(tmp_path, small_film):
    films = tmp_path / "films"
    films.mkdir()
    Image.fromarray(small_film).save(films / "film.png")
    done, report = run(films / "res", "--dataset_dir", films)
    assert done.returncode == 0 and set(report) == {"film.png"}
    done, report = run(films / "res", "--dataset_dir", films, "--mode", "fast")
    assert done.returncode == 1 and set(report) == {"film.png"} and "fast" in done.stderr
    done, report = run(tmp_path / "again", "--dataset_dir", films)
    assert done.returncode == 0 and set(report) == {"film.png"}
    done, _ = run(films, "--dataset_dir", films)
    assert done.returncode == 1 and "--output_dir" in done.stderr


def test_evaluate_runs_on_a_manifest(tmp_path, small_film):
    Image.fromarray(small_film).save(tmp_path / "a.png")
    Image.fromarray(small_film[::-1]).save(tmp_path / "b.png")
    Image.fromarray(((small_film < 128) * 255).astype(np.uint8)).save(tmp_path / "m.png")
    (tmp_path / "manifest.csv").write_text("image,mask,split,source\na.png,m.png,test,x\nb.png,m.png,test,x\n")
    configs = [str(BUNDLE / "configs" / name) for name in ("inference.json", "evaluate.json")]
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        str(configs),
        "--bundle_root",
        str(BUNDLE),
        "--workflow_type",
        "infer",
        "--dataset_dir",
        str(tmp_path),
        "--output_dir",
        str(tmp_path / "eval"),
        "--sources",
        "['x']",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0 and "mean Dice" in done.stdout, done.stdout + done.stderr


def test_an_empty_folder_and_a_missing_one_are_said(tmp_path):
    (tmp_path / "films").mkdir()
    done, _ = run(tmp_path / "out", "--dataset_dir", tmp_path / "films")
    assert done.returncode == 4 and "film" in done.stdout + done.stderr
    done, _ = run(tmp_path / "out", "--dataset_dir", tmp_path / "nowhere")
    assert done.returncode not in (0, 3) and "nowhere" in done.stderr
