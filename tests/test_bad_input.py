"""The page on bad input: each of its rows has tests that exist, and those of them that have no better place are here."""

import gzip
import importlib
import io
import logging
import os
import pickle
import re
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

for package in ("ignite", "nibabel", "pydicom", "PIL", "matplotlib", "skimage", "click", "libjpeg", "openjpeg"):
    pytest.importorskip(package)

import nibabel  # noqa: E402
import torch  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402

from monai_diffeo.cli.bundle import bundle_parser  # noqa: E402
from monai_diffeo.errors import ConfigError, FilmError, WeightsError  # noqa: E402
from monai_diffeo.networks import load_weights  # noqa: E402
from monai_diffeo.radiograph.reader import read_film  # noqa: E402
from monai_diffeo.report import FilmReporter  # noqa: E402
from tests.radiograph.dicom_factory import corner_film, dataset, save  # noqa: E402
from tests.report.runs import lines_of, run  # noqa: E402

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "bad-input.md"
FILM = corner_film()
COMPRESSED = ["1.2.840.10008.1.2.5", *(f"1.2.840.10008.1.2.4.{end}" for end in (50, 51, 57, 70, 80, 81, 90, 91, 201))]


def rows(text):
    """Number of each row, and the tests that it names."""
    found = re.findall(r"^\| (\d+) \|(?: .+ \|){2} (.+) \|$", text, re.M)
    return [(int(number), re.findall(r"`(tests/\S+\.py::[^`]+)`", tests)) for number, tests in found]


def exists(test):
    """Whether a file has this test and, if a parameter is named, whether it is one of the test's parameters."""
    file, name, parameter = re.fullmatch(r"(tests/\S+)\.py::(\w+)(?:\[(.+)\])?", test).groups()
    function = getattr(importlib.import_module(file.replace("/", ".")), name, None)
    marks = [mark for mark in getattr(function, "pytestmark", ()) if mark.name == "parametrize"]
    return callable(function) and (parameter is None or any(parameter in map(str, mark.args[1]) for mark in marks))


def test_each_row_names_tests_that_exist():
    found = rows(PAGE.read_text())
    assert [number for number, _ in found] == list(range(1, 38)) and all(tests for _, tests in found)
    assert [test for _, tests in found for test in tests if not exists(test)] == []


def test_a_test_that_does_not_exist_is_noticed():
    here, there = "tests/test_bad_input.py::test_no_zip_is_unpacked", "tests/radiograph/test_reader.py::test_bad_files"
    assert rows(f"| 7 | `a` | b | `{here}` `{there}[y z]` |\n| x | a | b | `{here}` |\n") == [(7, [here, f"{there}[y z]"])]
    assert exists(here) and exists(f"{there}_have_a_code[empty.dcm]")
    assert not any(map(exists, (there, f"{here}[empty.dcm]", f"{there}_have_a_code[empty]")))


# ---- one film ------------------------------------------------------------------------------------------------------


def refused(path, content):
    path.write_bytes(content)
    with pytest.raises(FilmError) as caught:
        read_film(path)
    return caught.value


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_pixels_that_are_not_compressed_as_the_header_says(tmp_path, syntax):
    """Entry 17: raw pixels, and a meta header that names a compression."""
    content = save(tmp_path / "a.dcm", FILM).read_bytes()
    stated = b"\x02\0\x10\0UI\x14\x00" + b"1.2.840.10008.1.2.1\0"
    assert content.count(stated) == 1
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    error = refused(tmp_path / "a.dcm", content.replace(stated, stated[:6] + len(uid).to_bytes(2, "little") + uid))
    assert error.code == "UnreadablePixels"


@pytest.mark.parametrize("axes, code", [(3, "VolumeNotFilm"), (2, "TooLarge")])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_a_nifti_of_the_largest_size_takes_no_memory(tmp_path, axes, code, suffix):
    """Entry 22."""
    content = nibabel.Nifti1Image(FILM.T, np.eye(4)).to_bytes()
    content = content[:40] + np.array([axes, *[32767] * axes], "<i2").tobytes() + content[42 + 2 * axes :]
    tracemalloc.start()
    error = refused(tmp_path / f"a.{suffix}", gzip.compress(content) if suffix.endswith("gz") else content)
    assert error.code == code and tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.diag([0, 0.3, 1, 1]), np.diag([0.3, 0.3, 1, 1])[[0, 0, 2, 3]]])
def test_an_affine_that_is_zero_or_singular(tmp_path, affine):
    """Entry 25."""
    image = nibabel.Nifti1Image(FILM.T, None)
    image.header.set_sform(affine, code=1)
    nibabel.save(image, tmp_path / "a.nii")
    film = read_film(tmp_path / "a.nii")
    np.testing.assert_array_equal(film.pixels, FILM)
    assert (film.spacing, film.spacing_source) == ((1.0, 1.0), "unknown") and film.details["affine_unit"] == "unknown"
    assert film.details["spacing_doubt"] == "the affine is singular" and np.linalg.matrix_rank(film.affine) == 4


# ---- runs over a folder --------------------------------------------------------------------------------------------


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def save_invalid(path, pixels, **elements):
    """A film with values that pydicom warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dataset(pixels, **elements)
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.save_as(path, enforce_file_format=True)
    return path


def listen(capfd, caplog):
    """From here on; what was heard before is forgotten."""
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    capfd.readouterr()


def printed(output, capfd, caplog):
    """All that a run wrote, as one text: contents of files, their names, the terminal and the log."""
    contents = [path.read_bytes() for path in output.rglob("*") if path.is_file()]
    contents += [gzip.decompress(content) for content in contents if content.startswith(b"\x1f\x8b")]
    texts = [content.decode("latin-1") for content in contents]
    return "\n".join([*texts, *files_below(output), *capfd.readouterr(), caplog.text])


def test_an_identifier_that_is_a_path_leads_nowhere_and_is_not_printed(tmp_path, capfd, caplog):
    """Entry 28."""
    (tmp_path / "in" / "films").mkdir(parents=True)
    for number, uid in enumerate(["../../ESCAPED", "../ESCAPED/x", str(tmp_path / "ESCAPED"), "..\\ESCAPED"]):
        identifiers = {"SOPInstanceUID": uid, "StudyInstanceUID": uid, "SeriesInstanceUID": uid}
        save_invalid(tmp_path / "in" / "films" / f"{number}.dcm", FILM, **identifiers)
    listen(capfd, caplog)
    assert run(tmp_path / "in" / "films", tmp_path / "in" / "out")[0] == 0
    expected = {
        *(f"in/out/{name}" for name in ("report.jsonl", "audit.jsonl", "run.log")),
        *(f"in/films/{n}.dcm" for n in range(4)),
    }
    expected |= {f"in/out/{n}_lungs{end}" for n in range(4) for end in (".nii.gz", "_report.png")}
    assert files_below(tmp_path) == expected
    assert "ESCAPED" not in printed(tmp_path / "in" / "out", capfd, caplog)


def test_files_that_a_dicomdir_names_are_not_opened(tmp_path):
    """Entry 29: the directory names a film outside of the folder."""
    (tmp_path / "films").mkdir()
    save(tmp_path / "film.dcm", FILM)
    save(tmp_path / "films" / "inside.dcm", FILM)
    directory = Path(get_testdata_file("DICOMDIR")).read_bytes()
    old = rb"77654033\CR1\6154"
    assert directory.count(old) == 1
    (tmp_path / "films" / "DICOMDIR").write_bytes(directory.replace(old, rb"..\film.dcm".ljust(len(old))))
    status, seen = run(tmp_path / "films", tmp_path / "out")
    assert (status, seen) == (3, ["inside.dcm"])
    assert {line["input"]: line.get("error") for line in lines_of(tmp_path / "out")[:-1]} == {
        "DICOMDIR": "DicomDirectory",
        "inside.dcm": None,
    }


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_the_file_behind_a_link_in_the_output_folder_stays(tmp_path, link):
    """Entry 30."""
    for name in ("films", "out"):
        (tmp_path / name).mkdir()
    save(tmp_path / "films" / "a.dcm", FILM)
    outputs = ("a_lungs.nii.gz", "a_lungs_report.png", "report.jsonl")
    for name in outputs:
        (tmp_path / name).write_text("not ours")
        link(tmp_path / name, tmp_path / "out" / name)
    assert run(tmp_path / "films", tmp_path / "out")[0] == 0
    for name in outputs:
        assert (tmp_path / name).read_text() == "not ours"
        assert not (tmp_path / "out" / name).is_symlink() and (tmp_path / "out" / name).read_bytes() != b"not ours"


def test_films_with_the_same_identifier_have_a_mask_each(tmp_path):
    """Entry 33."""
    films = {"a.dcm": FILM, "ward/b.dcm": FILM[::-1], "ward/c.dcm": FILM[:, ::-1]}
    for name, pixels in films.items():
        (tmp_path / "films" / name).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / "films" / name, pixels, SOPInstanceUID="1.2.3", StudyInstanceUID="1.2", SeriesInstanceUID="1.1")
    assert run(tmp_path / "films", tmp_path / "out")[0] == 0
    lines = {line["input"]: line for line in lines_of(tmp_path / "out")[:-1]}
    assert {name: line["mask"] for name, line in lines.items()} == {n: n.replace(".dcm", "_lungs.nii.gz") for n in films}
    for name, pixels in films.items():
        mask = np.asarray(nibabel.load(tmp_path / "out" / lines[name]["mask"]).dataobj)[..., 0].T
        np.testing.assert_array_equal(mask, pixels > (FILM.min() + FILM.max()) / 2)


def test_no_output_holds_patient_data(tmp_path, capfd, caplog):
    """Entry 35, with real pictures."""
    names = ["PatientName", "PatientID", "PatientComments", "InstitutionName", "ReferringPhysicianName", "StudyDescription"]
    names += ["ImageComments", "AccessionNumber", "BodyPartExamined", "ViewPosition", "ImageLaterality", "StationName"]
    names += ["StudyInstanceUID", "SOPInstanceUID", "PatientBirthDate", "PatientAge", "DerivationDescription"]
    secret = dict.fromkeys(names, "SECRET")
    (tmp_path / "films").mkdir()
    faults = {"good": {}, "bits": {"BitsStored": 20}, "rows": {"Rows": None}, "frames": {"NumberOfFrames": 2}}
    faults |= {"view": {"ViewPosition": "LL", "WindowCenter": 100, "WindowWidth": -1}, "kind": {"Modality": "SECRET"}}
    for name, elements in faults.items():
        path = save_invalid(tmp_path / "films" / f"{name}.dcm", FILM, **{**secret, **elements})
        assert path.read_bytes().count(b"SECRET") > 15
    listen(capfd, caplog)
    assert run(tmp_path / "films", tmp_path / "out", kind=FilmReporter)[0] == 3
    status = {line["input"]: line["status"] for line in lines_of(tmp_path / "out")[:-1]}
    assert {name for name, word in status.items() if word == "failed"} == {"bits.dcm", "rows.dcm", "frames.dcm"}
    assert len(files_below(tmp_path / "out")) == 3 + 3 * 2
    said = printed(tmp_path / "out", capfd, caplog)
    assert "another body part" in said or "no defined term" in said
    assert "SECRET" not in said


# ---- files that hold code, and archives ----------------------------------------------------------------------------


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_of_weights_does_not_run(tmp_path, zipped):
    """Entry 31; the payload is real: a load that trusts the file runs it."""
    state = {**torch.nn.Linear(3, 2).state_dict(), "x": Payload(str(tmp_path / "PWNED"))}
    if zipped:
        torch.save(state, tmp_path / "model.pt")
    else:
        (tmp_path / "model.pt").write_bytes(pickle.dumps(state, 2))
    with pytest.raises(WeightsError, match=r"model\.pt does not load"):
        load_weights(torch.nn.Linear(3, 2), tmp_path / "model.pt")
    assert not (tmp_path / "PWNED").exists()
    if zipped:
        torch.load(tmp_path / "model.pt", weights_only=False)
    else:
        pickle.loads((tmp_path / "model.pt").read_bytes())
    assert (tmp_path / "PWNED").exists()


def test_no_zip_is_unpacked(tmp_path):
    """Entry 36: names that lead out of the folder, in a zip of films and in one of a bundle."""
    (tmp_path / "films").mkdir()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("../escaped.dcm", "film.dcm", "configs/inference.json", str(tmp_path / "escaped.dcm")):
            archive.writestr(name, save(io.BytesIO(), FILM).getvalue() if name.endswith("dcm") else "{}")
    for name in ("a.zip", "b.dcm"):
        (tmp_path / "films" / name).write_bytes(stream.getvalue())
    assert run(tmp_path / "films", tmp_path / "out") == (4, [])
    for line in lines_of(tmp_path / "out")[:-1]:
        assert line["error"] == "UnsupportedFile" and "Unpack it first" in line["message"]
    with pytest.raises(ConfigError, match=r"a bundle must have configs/inference\.json"):
        bundle_parser(tmp_path / "films" / "a.zip", {})
    written = {f"out/{name}" for name in ("report.jsonl", "audit.jsonl", "run.log")}
    assert files_below(tmp_path) == {"films/a.zip", "films/b.dcm", *written}
