"""Bundles on the command line: every file that is given is a line of the report, and every option acts or is refused."""

import json

import pytest

for package in ("ignite", "fire", "nibabel", "pydicom", "PIL", "matplotlib", "skimage"):
    pytest.importorskip(package)

from PIL import Image  # noqa: E402

from tests.bundles.command import ROOT, run_bundle  # noqa: E402
from tests.radiograph.dicom_factory import corner_film, save  # noqa: E402

BUNDLES = ROOT / "bundles"


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(corner_film(64, 80, bits=8)).save(path)


def test_every_file_of_a_folder_called_none_is_a_line(tmp_path):
    """Run twice into a folder of foreign films below the films, named by a link. MONAI drops the word None, we do not."""
    films = tmp_path / "None"
    (films / "res").mkdir(parents=True)
    (tmp_path / "out").symlink_to(films / "res")
    given = {"b.png", "b_lungs.png", "b.dcm", "link/c.png", "res/b_lungs.png", "earlier/old.png"}
    for name in ("b.png", "b_lungs.png", "res/b_lungs.png", "earlier/old.png", "earlier/old_lungs.png"):
        picture(films / name)
    save(films / "b.dcm", corner_film(64, 80))
    picture(tmp_path / "elsewhere" / "c.png")
    (films / "link").symlink_to(tmp_path / "elsewhere")
    (films / "res" / "up").symlink_to(films)
    (films / "sub").mkdir()
    (films / "sub" / "report.jsonl").write_text("a report of somebody else\n")
    (films / ".hidden.png").touch()
    before = {name: (films / name).read_bytes() for name in given}
    old = {"schema": 1, "input": "old.png", "mask": "old_lungs.png", "figure": None, "status": "canonicalized"}
    (films / "earlier" / "report.jsonl").write_text(json.dumps(old) + "\n")
    for figures in ("true", "false"):
        options = ("--dataset_dir", "None", "--enabled", "false", "--figures", figures)
        done, report = run_bundle(BUNDLES / "cxr_lung_segmentation", tmp_path / "out", *options)
        assert done.returncode == 3 and set(report) == given | {"sub/report.jsonl"}, done.stdout + done.stderr
        assert report["sub/report.jsonl"]["error"] == "UnsupportedFile" and "1 hidden" in done.stdout + done.stderr
        outputs = [report[name][kind] for name in given for kind in ("mask", "figure") if report[name][kind]]
        assert len(set(outputs)) == len(outputs) == 6 * (2 if figures == "true" else 1)
        assert all((films / "res" / name).is_file() for name in outputs)
        assert {name: (films / name).read_bytes() for name in given} == before  # no output replaced a film


@pytest.mark.parametrize(
    "bundle", ["cxr_lung_segmentation", "cxr_lung_template", "mnist_genus", "cxr_lung_segmentation, unset"]
)
def test_a_typo_and_an_empty_option_stop_the_run_before_it_begins(tmp_path, bundle):
    name, _, unset = bundle.partition(", ")
    options, says = (("--dataset_dir", ""), "unset") if unset else (("--datasetdir", "films"), "did you mean --dataset_dir")
    done, report = run_bundle(BUNDLES / name, tmp_path / "out", *options)
    assert done.returncode == 1 and says in done.stderr and not report and not (tmp_path / "out").exists()
