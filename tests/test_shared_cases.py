"""Small films with known faults, made by ``shared/cases/make_films.py`` beside the repository: each is answered as promised."""

import csv
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

for package in ("ignite", "fire", "nibabel", "pydicom", "SimpleITK", "data_store"):
    pytest.importorskip(package)

import nibabel  # noqa: E402
import SimpleITK as sitk  # noqa: E402

from tests.bundles.command import ROOT, run_here  # noqa: E402

MAKER = Path(os.environ.get("MONAI_DIFFEO_CASES") or ROOT.parent / "shared" / "cases") / "make_films.py"
BUNDLE = ROOT / "bundles" / "cxr_lung_segmentation"


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    if not MAKER.is_file():
        pytest.skip(f"no cases: {MAKER} is missing")
    spec = importlib.util.spec_from_file_location("make_films", MAKER)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    maker.main(folder := tmp_path_factory.mktemp("cases"))
    return folder


@pytest.fixture(scope="module")
def run(films, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    status, report = run_here(BUNDLE, output, dataset_dir=str(films), figures="false")
    assert status == 3  # the CT slice fails
    return output, report


def shown(output, line):
    """The mask as rows x columns of the film's file."""
    volume = np.asarray(nibabel.load(output / line["mask"]).dataobj)
    assert volume.ndim == 3 and volume.shape[2] == 1
    return volume[..., 0].T > 0


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.fixture(scope="module")
def reference(run):
    output, report = run
    return shown(output, report["v00_base.dcm"])


def test_every_case_is_a_line(films, run):
    with open(films / "expected.csv", newline="") as stream:
        names = [row["file"] for row in csv.DictReader(stream)]
    assert sorted(set(names) - set(run[1])) == []


def test_sides_of_a_turned_film(run, reference):
    line = run[1]["v01_turned_180.dcm"]
    assert dice(shown(run[0], line)[::-1, ::-1], reference) >= 0.98
    assert line["areas"]["right"] > line["areas"]["left"]
    assert run[1]["v00_base.dcm"]["areas"]["right"] > run[1]["v00_base.dcm"]["areas"]["left"]


GREY = [("v02_window_128_256", "window"), ("v03_white_table_good_window", "table"), ("v04_overlay_bit_j2k", "")]


@pytest.mark.parametrize("name, note", [*GREY, ("v12_nifti_rows_up", "")])
def test_grey_scale_high_bits_and_rows(run, reference, name, note):
    line = next(line for file, line in run[1].items() if file.startswith(name))
    mask = shown(run[0], line)
    assert dice(mask[::-1] if "rows_up" in name else mask, reference) >= 0.97
    assert note in line["notes"] and ("not used" in line["notes"] if note else True)


def test_a_film_without_codes(run, reference):
    assert dice(shown(run[0], run[1]["v11_nifti_no_codes.nii.gz"]), reference) >= 0.97


def test_a_border_counts_for_nothing(run, reference):
    assert dice(shown(run[0], run[1]["v07_mono1_border_0.dcm"])[60:-60, 60:-60], reference) >= 0.95


@pytest.mark.parametrize("name", ["v00_base", "v05_position_orientation"])
def test_a_mask_lies_on_its_film(films, run, name):
    film, mask = sitk.ReadImage(str(films / f"{name}.dcm")), sitk.ReadImage(str(run[0] / run[1][f"{name}.dcm"]["mask"]))
    assert mask.GetSize() == film.GetSize() == (614, 652, 1)
    for corner in ((0, 0, 0), (613, 0, 0), (0, 651, 0), (613, 651, 0)):
        apart = np.subtract(mask.TransformIndexToPhysicalPoint(corner), film.TransformIndexToPhysicalPoint(corner))
        assert np.abs(apart).max() < 0.01


@pytest.mark.parametrize("name", ["v11_nifti_no_codes.nii.gz", "v12_nifti_rows_up.nii.gz"])
def test_a_nifti_mask_has_the_codes_and_the_affine_of_its_film(films, run, name):
    film, mask = nibabel.load(films / name), nibabel.load(run[0] / run[1][name]["mask"])
    assert [int(mask.header[code]) for code in ("sform_code", "qform_code")] == [
        int(film.header[code]) for code in ("sform_code", "qform_code")
    ]
    assert mask.shape == film.shape and np.array_equal(mask.affine, film.affine)


def test_an_unknown_spacing_is_said(run):
    line, known = run[1]["v06_no_spacing.dcm"], run[1]["v00_base.dcm"]
    assert line["spacing"] is None and line["spacing_source"] == "unknown" and line["spacing_doubt"]
    assert (
        known["spacing"] == [0.6, 0.6] and known["spacing_source"] == "PixelSpacing" and "1 x 1 mm" in known["spacing_doubt"]
    )  # ITK reads no PixelSpacing of DX


def test_what_the_header_excludes(run):
    assert run[1]["v08_ct_slice.dcm"]["status"] == "failed" and "radiograph" in run[1]["v08_ct_slice.dcm"]["message"]
    assert "another body part" in run[1]["v09_knee.dcm"]["notes"] and "lateral" in run[1]["v10_lateral.dcm"]["notes"]


@pytest.mark.parametrize("name", ["1e5", "a,b", "earlier"])
def test_folders_with_any_name(films, run, tmp_path, name):
    assert run[1][f"{name}/film.dcm"]["mask"]
    status, report = run_here(BUNDLE, tmp_path / "out", dataset_dir=str(films / name))
    assert report["film.dcm"]["mask"] and status == (3 if name == "earlier" else 0)
