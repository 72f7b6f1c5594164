"""The application of MONAI Deploy: a folder of studies in, DICOM results out, with the SDK's own scheduler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("highdicom", "ignite", "nibabel", "pydicom", "skimage"):
    pytest.importorskip(package)
pytest.importorskip(
    "monai.deploy.core", reason="needs monai-deploy-app-sdk, in an environment of its own", exc_type=ImportError
)

import highdicom as hd  # noqa: E402
import pydicom  # noqa: E402

from tests.dicom_output.films import film  # noqa: E402

ROOT = Path(__file__).parents[2]
RUN = """
import runpy, sys
app = runpy.run_path(sys.argv.pop(1))["LungFilmsApp"]
app.settings = {"enabled": False, "figures": True}
app().run()
"""


def run(studies, results):
    app = str(ROOT / "docs" / "how-to" / "monai_deploy_app.py")
    command = [
        "bash",
        "-c",
        'ulimit -s 32768; exec "$@"',
        "bash",
        sys.executable,
        "-c",
        RUN,
        app,
        "-i",
        str(studies),
        "-o",
        str(results),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=studies)


def test_studies_go_in_and_results_come_out(tmp_path):
    studies = tmp_path / "studies"
    (studies / "ward").mkdir(parents=True)
    film(studies / "ward" / "a.dcm", modality="DX")
    film(studies / "ct.dcm", Modality="CT")
    done = run(studies, tmp_path / "out")
    assert done.returncode == 0, done.stderr[-2000:]
    made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert made == [f"ward/a_lungs.{kind}.dcm" for kind in ("sc", "seg", "sr")]
    seg = hd.seg.segread(tmp_path / "out" / "ward" / "a_lungs.seg.dcm")
    source = pydicom.dcmread(studies / "ward" / "a.dcm", stop_before_pixels=True)
    assert seg.StudyInstanceUID == source.StudyInstanceUID and (seg.Rows, seg.Columns) == (source.Rows, source.Columns)
    (studies / "ward" / "a.dcm").unlink()
    done = run(studies, tmp_path / "none")
    assert done.returncode == 1 and "No result for 0 films" in done.stderr + done.stdout
