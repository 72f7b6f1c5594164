"""The option ``--dicom_output true`` of the bundles for chest films."""

import pytest

for package in ("highdicom", "ignite", "nibabel", "skimage"):
    pytest.importorskip(package)

import pydicom  # noqa: E402

from tests.bundles.command import ROOT, run_here  # noqa: E402
from tests.dicom_output.films import film  # noqa: E402


@pytest.mark.parametrize("bundle", ["cxr_lung_segmentation", "cxr_lung_template"])
def test_a_bundle_writes_dicom_results_and_a_run_without_the_option_removes_them(tmp_path, bundle):
    (tmp_path / "films").mkdir()
    path, out = film(tmp_path / "films" / "a.dcm"), tmp_path / "out"
    options = {"dataset_dir": str(path.parent), "enabled": "false", "figures": "false"}
    status, lines = run_here(ROOT / "bundles" / bundle, out, dicom_output="true", **options)
    assert status == 0 and lines["a.dcm"]["dicom"] == ["a_lungs.seg.dcm", "a_lungs.sr.dcm"]
    report = out / "a_lungs.sr.dcm"
    assert pydicom.dcmread(report).PatientID == "4711"
    assert lines["a.dcm"]["weights_sha256"].encode() in report.read_bytes()
    run_here(ROOT / "bundles" / bundle, out, **options)
    assert not list(out.glob("*.dcm")) and (out / "a_lungs.nii.gz").exists()
