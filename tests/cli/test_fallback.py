"""`segment --fallback` and `--uncertainty` on films, as a user types them."""

import shutil

import pytest

for package in ("ignite", "nibabel", "pydicom", "PIL", "matplotlib", "skimage"):
    pytest.importorskip(package)

import nibabel  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from tests.bundles.command import lines_of, run_bundle  # noqa: E402
from tests.cli.test_segment import invoke  # noqa: E402
from tests.radiograph.dicom_factory import corner_film, save  # noqa: E402


def segmented(site, output, *words):
    status, _, lines = invoke("segment", "--bundle_root", site[0], "--dataset_dir", site[1], "--output_dir", output, *words)
    return status, lines, lines_of(output)[0]


def test_best_says_whose_answer_each_mask_is_and_identity_writes_the_same_bytes_as_without_it(site, tmp_path):
    given = ("--figures", "false")
    plain, same, best = (
        segmented(site, tmp_path / name, *given, *words)
        for name, words in (("plain", ()), ("same", ("--fallback", "identity")), ("best", ("--fallback", "best")))
    )
    assert plain[0] == same[0] == best[0] == 0
    for name in ("000", "001"):
        masks = [(tmp_path / run / f"{name}_lungs.png").read_bytes() for run in ("plain", "same")]
        assert masks[0] == masks[1] and "answer" not in plain[2][f"{name}.png"]
        line = best[2][f"{name}.png"]
        assert line["answer"] in ("wrapped", "bare network")
        assert (f"the answer is that of the {line['answer']}" in line["decision"]) == (line["answer"] != "wrapped")
    status, lines, _ = segmented(site, tmp_path / "no", "--fallback", "best", "--convention", "whole")
    assert status == 1 and "calibrate" in lines[-1]
    assert segmented(site, tmp_path / "no", "--fallback", "good")[1][-1].endswith("is not one of 'identity', 'raise', 'best'.")


def test_raise_gives_no_mask_of_a_film_that_is_rejected(site, tmp_path):
    root, film = shutil.copytree(site[0], tmp_path / "bundle"), site[1] / "000.png"
    settings = root / "models" / "energy" / "canonicalizer.json"
    settings.write_text(settings.read_text().replace('"max_energy_increase": null', '"max_energy_increase": -1e9'))
    (root / "configs" / "metadata.json").write_text('{"name": "tiny"}')
    status, _, report = segmented((root, film), tmp_path / "out", "--fallback", "identity")
    assert status == 0 and report["000.png"]["status"].startswith("rejected") and report["000.png"]["mask"]
    status, _, report = segmented((root, film), tmp_path / "raise", "--fallback", "raise")
    assert status == 4 and report["000.png"]["error"] == "RejectedError" and "--fallback raise" in report["000.png"]["message"]
    assert not list((tmp_path / "raise").glob("*.png"))


@pytest.mark.parametrize("option", [("--fallback", "raise"), ("--accept_anything", "true"), ("--trust_model", "ours.json")])
@pytest.mark.parametrize("door", ["segment", "bulk", "watch"])
def test_an_option_about_decisions_is_refused_where_nothing_is_decided(site, tmp_path, door, option):
    if door == "bulk":
        pytest.importorskip("distributed")
    words = (door, "--bundle_root", site[0], "--dataset_dir", site[1], "--output_dir", tmp_path / "out", "--enabled", "false")
    status, _, lines = invoke(*words, *option, *(["--once"] if door == "watch" else []))
    assert status == 1 and f"got {option[0]} with --enabled false" in lines[-1], lines
    assert not (tmp_path / "out").exists() or not [*(tmp_path / "out").rglob("*_lungs*")]


def test_the_line_of_monai_refuses_it_too(site, tmp_path):
    done, lines = run_bundle(site[0], tmp_path / "out", "--dataset_dir", site[1], "--enabled", "false", "--fallback", "raise")
    assert done.returncode == 1 and not lines and "got --fallback with --enabled false" in done.stderr.splitlines()[-1]


def test_a_map_of_uncertainty_lies_on_the_film_and_is_written_only_if_asked(site, tmp_path):
    root, films = site
    (tmp_path / "films").mkdir()
    save(tmp_path / "films" / "film.dcm", corner_film(40, 48))
    (tmp_path / "films" / "a.png").write_bytes((films / "000.png").read_bytes())
    nibabel.save(
        nibabel.Nifti1Image(np.random.default_rng(0).random((30, 36, 1), dtype=np.float32), np.diag([2.0, 3, 1, 1])),
        tmp_path / "films" / "n.nii.gz",
    )
    given = (root, tmp_path / "films"), tmp_path / "out"
    status, _, report = segmented(*given, "--uncertainty", "true")
    assert status == 0
    for name, end in (("film.dcm", "nii.gz"), ("a.png", "png"), ("n.nii.gz", "nii.gz")):
        stem, line = name.partition(".")[0], report[name]
        assert line["mask"] == f"{stem}_lungs.{end}" and line["uncertainty"] == f"{stem}_lungs_uncertainty.nii.gz"
        found = nibabel.load(tmp_path / "out" / line["uncertainty"])
        values = found.get_fdata()
        assert found.get_data_dtype() == np.float32 and 0 <= values.min() and values.max() <= 1 and values.std() > 0.001
        if end == "png":
            assert values.shape == (*Image.open(tmp_path / "out" / line["mask"]).size, 1)  # columns x rows
        else:
            mask = nibabel.load(tmp_path / "out" / line["mask"])
            assert found.shape == mask.shape and np.array_equal(found.affine, mask.affine)
    masks = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*_lungs.*")}
    assert segmented(*given, "--uncertainty", "true", "--resume", "true")[0] == 0
    assert len(list((tmp_path / "out").glob("*_uncertainty.nii.gz"))) == 3  # those of the lines that are kept
    assert segmented(*given, "--resume", "true")[0] == 0  # another question: done again, and the maps go
    assert not list((tmp_path / "out").glob("*uncertainty*")) and "uncertainty" not in lines_of(tmp_path / "out")[0]["a.png"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*_lungs.*")} == masks
