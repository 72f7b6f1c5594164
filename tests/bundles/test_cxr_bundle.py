"""The bundle on the command line, as others rely on it; most runs are made in this process, which has MONAI loaded."""

import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

for package in ("ignite", "fire", "nibabel", "pydicom", "PIL", "matplotlib", "skimage", "data_store"):
    pytest.importorskip(package)

import nibabel  # noqa: E402
import pydicom  # noqa: E402
from monai.bundle import ConfigParser  # noqa: E402
from PIL import Image  # noqa: E402

from docs.experiments.lungs_product import as_the_bundle_sees  # noqa: E402
from monai_diffeo.errors import WeightsError  # noqa: E402
from monai_diffeo.radiograph.packaged import packaged_film  # noqa: E402
from monai_diffeo.radiograph.reader import read_film  # noqa: E402
from monai_diffeo.report import FolderInUseError, RunFolder  # noqa: E402
from tests.bundles.command import ROOT, lines_of, run_bundle, run_here, workflow  # noqa: E402

BUNDLE = ROOT / "bundles" / "cxr_lung_segmentation"
OFF = "left alone: canonicalisation is switched off"


def run(output, **options):
    return run_here(BUNDLE, output, **{key: str(value) for key, value in options.items()})


@pytest.fixture(scope="module")
def small_film():
    """The packaged film at a quarter of its size, uint8."""
    pixels = read_film(packaged_film()).pixels[::4, ::4]
    low, high = np.percentile(pixels, [0.5, 99.5])
    return (np.clip((pixels - low) / (high - low), 0, 1) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def one_film(small_film, tmp_path_factory):
    """A folder with one film."""
    folder = tmp_path_factory.mktemp("one")
    Image.fromarray(small_film).save(folder / "film.png")
    return folder


def test_the_packaged_film_passes_what_ci_checks(tmp_path):
    done, report = run_bundle(BUNDLE, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    check = [sys.executable, str(ROOT / ".ci" / "check_output.py"), str(tmp_path / "out")]
    checked = subprocess.run(check, capture_output=True, text=True, timeout=100)
    assert checked.returncode == 0 and "1 passed, 0 failed" in checked.stdout, checked.stdout + checked.stderr
    (line,) = report.values()
    assert line["status"] in ("canonicalized", "left alone: looks like the training images")
    assert np.allclose(nibabel.load(tmp_path / "out" / line["mask"]).affine, read_film(packaged_film()).affine[:, [1, 0, 2, 3]])
    assert line["spacing"] is None and line["spacing_source"] == "unknown" and line["spacing_doubt"]
    text = (tmp_path / "out" / "report.jsonl").read_text()
    (tmp_path / "out" / "report.jsonl").write_text(text.splitlines()[0] + "\n")  # as a killed run leaves it
    assert subprocess.run(check, capture_output=True, text=True, timeout=100).returncode != 0


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
    Image.fromarray(np.stack([small_film, small_film, 255 - small_film], -1)).save(films / "colour.png")
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(films / "constant.png")
    (films / "notes.txt").write_text("ward round at nine")
    status, report = run(tmp_path / "out", dataset_dir=films, figures="false")
    assert status == 3
    bad = {f"{name}.dcm" for name in ("empty", "text", "cut", "zeros")} | {"nan.nii.gz", "volume.nii.gz"}
    bad |= {"colour.png", "constant.png", "notes.txt"}
    assert set(report) == bad | {"ward/good.png", "good.nii.gz", "good.dcm"}
    for name in bad:
        assert report[name]["status"] == "failed" and report[name]["error"].isidentifier(), report[name]
        assert report[name]["message"].endswith(".") and str(tmp_path) not in report[name]["message"]
    errors = {"empty.dcm": "EmptyFile", "nan.nii.gz": "NotFinite", "colour.png": "ColourImage", "constant.png": "ConstantImage"}
    assert {name: report[name]["error"] for name in errors} == errors

    png = np.asarray(Image.open(tmp_path / "out" / "ward" / "good_lungs.png"))
    assert png.shape == (height, width) and set(np.unique(png)) == {0, 255}
    loaded = {p.name: nibabel.load(p) for p in (tmp_path / "out").glob("good*_lungs.nii.gz")}
    assert len(loaded) == 2
    by_shape = {np.squeeze(np.asarray(i.dataobj)).shape: i for i in loaded.values()}
    assert set(by_shape) == {(width, height), (1841, 1955)}
    assert np.allclose(by_shape[(width, height)].affine, np.diag([-0.8, -0.8, 1, 1]))
    same = np.squeeze(np.asarray(by_shape[(width, height)].dataobj)).T > 0
    overlap = 2 * (same & (png > 0)).sum() / (same.sum() + (png > 0).sum())
    assert overlap > 0.98  # one film in two formats


def test_a_small_film_on_a_black_screen_gets_the_mask_of_the_film_alone(tmp_path, small_film):
    films, (height, width) = tmp_path / "films", small_film.shape
    films.mkdir()
    screen = np.zeros((2 * height, 3 * width), np.uint8)
    place = slice(height // 2, height // 2 + height), slice(width // 3, width // 3 + width)
    screen[place] = small_film
    Image.fromarray(small_film).save(films / "film.png")
    Image.fromarray(screen).save(films / "screen.png")
    status, report = run(tmp_path / "out", dataset_dir=films, figures="false")
    assert status == 0 and "enlarged: a constant border was left out" in report["screen.png"]["notes"]
    assert "enlarged" not in (report["film.png"]["notes"] or "")
    film, whole = (np.asarray(Image.open(tmp_path / "out" / f"{name}_lungs.png")) > 0 for name in ("film", "screen"))
    assert 2 * (film & whole[place]).sum() / (film.sum() + whole.sum()) > 0.96


def test_the_patients_right_lung_stays_right_however_the_film_lies(tmp_path, small_film):
    films = tmp_path / "films"
    films.mkdir()
    for turns in range(3):
        Image.fromarray(np.rot90(small_film, turns)).save(films / f"turned{turns}.png")
    exif = Image.Exif()
    exif[274] = 2
    Image.fromarray(small_film[:, ::-1]).save(films / "exif.png", exif=exif)
    Image.fromarray(small_film[:, ::-1]).save(films / "untagged.png")
    dicom = pydicom.dcmread(packaged_film())
    for name, orientation in (("tagged", ["R", "F"]), ("contradicted", ["F", "L"])):
        dicom.PixelData, dicom.PatientOrientation = dicom.pixel_array[::4, -1::-4].tobytes(), orientation
        dicom.Rows, dicom.Columns = (-(-n // 4) for n in (dicom.Rows, dicom.Columns))
        dicom.save_as(films / f"{name}.dcm")
        dicom = pydicom.dcmread(packaged_film())
    status, report = run(tmp_path / "out", dataset_dir=films, figures="false")
    upright = report["turned0.png"]["areas"]
    assert status == 0
    right_half = {"turned0.png": np.s_[:, :230], "turned1.png": np.s_[230:], "turned2.png": np.s_[:, 230:]}
    right_half |= {"exif.png": np.s_[:, 230:], "tagged.dcm": np.s_[:, 230:]}  # where the patient's right lies
    for name, half in right_half.items():
        path, areas = tmp_path / "out" / report[name]["mask"], report[name]["areas"]
        mask = (np.asarray(Image.open(path)) if name.endswith("png") else nibabel.load(path).get_fdata()[..., 0].T) > 0
        right = mask[half].sum() / mask.size
        mirrored = name in ("exif.png", "tagged.dcm")  # the network never saw a mirrored film
        assert areas == pytest.approx(upright, abs=0.05 if mirrored else 0.02), name
        assert abs(areas["right"] - right) < abs(areas["left"] - right), (name, areas, right)
    assert report["contradicted.dcm"]["areas"]["right"] is None
    looks_mirrored = "mirrored" in report["untagged.png"]["notes"]
    assert (report["untagged.png"]["areas"]["right"] is None) == looks_mirrored


def test_borders_markers_and_negatives_are_noted_and_taken_care_of(tmp_path, small_film):
    films = tmp_path / "films"
    films.mkdir()
    detector = (200 + small_film.astype(np.uint16) * 13).astype(np.uint16)
    marked = detector.copy()
    marked[10:50, 10:60] = 65535
    pictures = {
        "film": detector,
        "framed": np.pad(detector, 40, constant_values=65535),
        "marked": marked,
        "negative": 65535 - detector,
    }
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(films / f"{name}.png")
    status, report = run(tmp_path / "out", dataset_dir=films, figures="false")
    masks = {n: np.asarray(Image.open(tmp_path / "out" / report[f"{n}.png"]["mask"])) > 0 for n in pictures}
    masks["framed"] = masks["framed"][40:-40, 40:-40]
    for name, least in (("framed", 0.95), ("marked", 0.97), ("negative", 0.95)):
        assert 2 * (masks["film"] & masks[name]).sum() / (masks["film"].sum() + masks[name].sum()) >= least, name
    notes = {name: report[f"{name}.png"]["notes"] or "" for name in pictures}
    assert (
        status == 0 and "left out" not in notes["film"] and "negative" not in notes["film"] + notes["framed"] + notes["marked"]
    )
    assert "a border of 27% of the film was left out of the grey scale" in notes["framed"]
    assert "extreme values of 0.9% of the film were left out of the grey scale" in notes["marked"]
    assert "negative corrected" in notes["negative"] and "left out" not in notes["negative"]
    _, report = run(tmp_path / "out", dataset_dir=films, figures="false", enabled="false")
    assert "negative" not in (report["negative.png"]["notes"] or "") and "border" in report["framed.png"]["notes"]


def test_switched_off_it_is_the_plain_network_and_the_next_run_removes_what_it_does_not_write(tmp_path, one_film):
    out = tmp_path / "out"
    status, report = run(out, dataset_dir=one_film, enabled="FALSE")
    line = report["film.png"]
    assert status == 0 and line["status"] == OFF and (out / line["figure"]).exists() and line["decision"] == "not judged"
    assert line["areas"]["right"] is None and line["areas"]["total"] > 0.1
    weights = BUNDLE / "models" / "baselines" / "augmented.pt"
    channels = {"network_def::channels": "$[16, 32, 64, 128, 256]"}
    options = {"mode": "refine", "network_weights": weights, "device": "cpu", "figures": "false", **channels}
    status, report = run(out, dataset_dir=one_film, **options)
    line = report["film.png"]
    assert status == 0 and line["mode"] == "refine" and line["status"] == "canonicalized" and line["figure"] is None
    assert lines_of(out)[1]["removed"] == ["film_lungs_report.png"] and not list(out.glob("*_report.png"))


def test_the_whole_lung_is_the_visible_one_and_what_lies_behind_heart_and_diaphragm(tmp_path, one_film):
    areas, settings = {}, {"dataset_dir": one_film, "figures": "false"}
    for convention in ("visible", "whole"):
        status, report = run(tmp_path / convention, convention=convention, **settings)
        assert status == 0
        areas[convention] = report["film.png"]["areas"]["total"]
    assert 1.1 * areas["visible"] < areas["whole"] < 2 * areas["visible"]
    begun = run(tmp_path / "visible", convention="whole", resume="true", **settings)[1]["film.png"]
    assert begun["areas"]["total"] == areas["whole"]  # a mask of the other convention is not taken up
    with pytest.raises(Exception) as error:
        workflow(BUNDLE, output_dir=str(tmp_path / "out"), dataset_dir=str(one_film), convention="both")
    assert "--convention must be 'visible' or 'whole', got 'both'" in str(error.value.__cause__ or error.value)


def test_a_lower_threshold_gives_a_larger_mask_also_where_the_run_goes_on_and_in_an_evaluation(tmp_path, one_film):
    areas, settings = [], {"dataset_dir": one_film, "figures": "false", "enabled": "false", "resume": "true"}
    for options in ({"mask_threshold": 0.5}, {}, {"mask_threshold": 0.1}):  # the bundle's own is in between
        areas.append(run(tmp_path / "out", **settings, **options)[1]["film.png"]["areas"]["total"])
    assert areas[0] < areas[1] < areas[2]
    for configs in (("inference.json",), ("inference.json", "evaluate.json")):
        parser = ConfigParser({})
        parser.read_config([str(BUNDLE / "configs" / name) for name in configs])
        parser.update({"mask_threshold": 0.3})
        kinds = [transform["_target_"] for transform in parser.get("postprocessing::transforms")]
        assert parser.get_parsed_content(f"postprocessing::transforms::{kinds.index('AsDiscreted')}").threshold == [0.3]


def test_a_wrong_option_keeps_the_last_report_and_results_are_not_taken_for_films(tmp_path, small_film):
    films = tmp_path / "films"
    films.mkdir()
    Image.fromarray(small_film).save(films / "film.png")
    off = {"dataset_dir": films, "enabled": "false", "figures": "false"}
    assert run(films / "res", **off)[0] == 0
    before = (films / "res" / "report.jsonl").read_bytes()
    with pytest.raises(Exception) as error:
        workflow(BUNDLE, output_dir=str(films / "res"), dataset_dir=str(films), mode="fast")
    assert "fast" in str(error.value.__cause__ or error.value)
    folder = RunFolder(films / "res")
    with pytest.raises(Exception) as error:
        workflow(BUNDLE, output_dir=str(films / "res"), dataset_dir=str(films), enabled="false")
    assert isinstance(error.value.__cause__, FolderInUseError)
    folder.release()
    assert (films / "res" / "report.jsonl").read_bytes() == before
    status, report = run(tmp_path / "again", **off)
    assert status == 0 and set(report) == {"film.png"}
    with pytest.raises(Exception) as error:
        workflow(BUNDLE, output_dir=str(films), dataset_dir=str(films))
    assert "--output_dir" in str(error.value.__cause__ or error.value)


@pytest.mark.parametrize("bundle", ["cxr_lung_segmentation", "cxr_lung_template"])
def test_a_run_is_resumed_under_pseudonyms_and_another_option_does_all_again(tmp_path, small_film, bundle):
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    for name in ("mustermann_a.png", "mustermann_b.png"):
        Image.fromarray(small_film[len(list(films.iterdir())) :]).save(films / name)
    options = {"dataset_dir": str(films), "enabled": "false", "figures": "false", "pseudonymize_names": "true"}
    status, before = run_here(ROOT / "bundles" / bundle, out, **options)
    report, (first, second) = (out / "report.jsonl").read_bytes(), (out / line["mask"] for line in before.values())
    others = {p.name for p in out.iterdir()} - {first.name, second.name}
    assert status == 0 and others == {"report.jsonl", "audit.jsonl", "run.log", "pseudonyms.csv"}
    assert all(b"mustermann" not in (out / name).read_bytes() for name in others - {"pseudonyms.csv"})
    second.unlink()
    made = first.stat().st_mtime_ns
    status, after = run_here(ROOT / "bundles" / bundle, out, resume="true", **options)
    assert status == 0 and first.stat().st_mtime_ns == made and second.exists() and list(after) == list(before)
    assert (out / "report.jsonl").read_bytes().splitlines()[0] == report.splitlines()[0]
    run_here(ROOT / "bundles" / bundle, out, resume="true", **{**options, "tta_samples": 2})
    assert first.stat().st_mtime_ns > made


def test_evaluate_runs_on_a_manifest(tmp_path, small_film, capsys):
    Image.fromarray(small_film).save(tmp_path / "a.png")
    Image.fromarray(small_film[::-1]).save(tmp_path / "b.png")
    Image.fromarray(((small_film < 128) * 255).astype(np.uint8)).save(tmp_path / "m.png")
    (tmp_path / "manifest.csv").write_text("image,mask,split,source\na.png,m.png,test,x\nb.png,m.png,test,x\n")
    flow = workflow(
        BUNDLE, "inference.json", "evaluate.json", dataset_dir=str(tmp_path), output_dir=str(tmp_path / "eval"), sources=["x"]
    )
    flow.run()
    assert "mean Dice" in capsys.readouterr().out


def test_an_empty_folder_and_a_missing_one_are_said(tmp_path, capsys):
    (tmp_path / "films").mkdir()
    assert run(tmp_path / "out", dataset_dir=tmp_path / "films") == (4, {})
    assert "film" in capsys.readouterr().out and lines_of(tmp_path / "out")[1]["films"] == 0
    with pytest.raises(Exception) as error:
        workflow(BUNDLE, output_dir=str(tmp_path / "out"), dataset_dir=str(tmp_path / "nowhere"))
    assert "nowhere" in str(error.value.__cause__ or error.value)


def test_noise_has_no_result_and_a_negative_is_corrected(tmp_path, small_film):
    films, draw = tmp_path / "films", np.random.default_rng(0)
    films.mkdir()
    Image.fromarray(draw.integers(0, 256, (200, 200), dtype=np.uint8)).save(films / "noise.png")
    status, report = run(tmp_path / "alone", dataset_dir=films, figures="false")
    assert status == 3 and not list((tmp_path / "alone").glob("*.png"))  # the film was read, and has no mask
    for name, shown in (("film", small_film), ("negative", 255 - small_film), ("mirrored", small_film[:, ::-1])):
        Image.fromarray(np.ascontiguousarray(shown)).save(films / f"{name}.png")
    status, report = run(tmp_path / "out", dataset_dir=films, figures="false")
    assert status == 3 and report["noise.png"]["mask"] is None and not (tmp_path / "out" / "noise_lungs.png").exists()
    assert report["noise.png"]["decision"].startswith("no result: the image is no chest film")
    film, negative, mirrored = (report[f"{name}.png"] for name in ("film", "negative", "mirrored"))
    assert (
        film["decision"].partition(":")[0] in ("ok", "review")
        and 0 <= film["predicted_dice"][0] < film["predicted_dice"][1] <= 1
    )
    assert "negative corrected" in negative["notes"] and "looks mirrored" in mirrored["decision"]
    status, report = run(tmp_path / "asked", dataset_dir=films, figures="false", accept_anything="true")
    assert status == 0 and report["noise.png"]["decision"].startswith("review: the image is no chest film")
    assert (tmp_path / "asked" / "noise_lungs.png").is_file()


def parsed(folder, **options):
    """The bundle's configuration in a folder like its own."""
    parser = ConfigParser({})
    parser.read_config(str(folder / "configs" / "inference.json"))
    parser.update({"bundle_root": str(folder), "root": str(folder), **options})
    return parser


def test_of_three_parts_the_bundle_keeps_those_where_lungs_lie():
    """The corner is larger than one lung; what lies between the thresholds of the product and of the baselines is a part."""
    inferer = parsed(BUNDLE).get_parsed_content("inferer")
    film = as_the_bundle_sees(torch.as_tensor(read_film(packaged_film()).pixels).float()[None, None], (128, 128))
    inferer.canonicalizer = partial(inferer.canonicalizer.at_rest, found=inferer.canonicalizer(film), rotated=False)
    logits = torch.full((1, 1, 128, 128), -4.0)
    lungs, corner = torch.zeros(1, 1, 128, 128, dtype=torch.bool), torch.zeros(1, 1, 128, 128, dtype=torch.bool)
    lungs[..., 40:90, 25:50] = lungs[..., 50:70, 80:95] = corner[..., 108:, 40:] = True
    logits[lungs], logits[corner] = -0.05, 4.0  # a probability of 0.4875
    kept = inferer(film, lambda image: logits)
    assert torch.equal(kept[lungs], logits[lungs]) and (kept[corner] < -4).all()


def test_switched_off_the_bundle_needs_no_files_of_the_canonicaliser(tmp_path):
    shutil.copytree(BUNDLE / "configs", tmp_path / "configs")
    assert parsed(tmp_path, enabled=False).get_parsed_content("inferer").parts is None
    with pytest.raises(RuntimeError) as error:
        parsed(tmp_path).get_parsed_content("inferer#parts")
    assert isinstance(error.value.__cause__, WeightsError) and "label_atlas.pt" in str(error.value.__cause__)
