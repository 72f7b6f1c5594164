"""DICOM results of a run over a folder: which films get them, what the report says, and a run that is resumed."""

import builtins
import json

import pytest

for package in ("highdicom", "ignite", "nibabel", "PIL"):
    pytest.importorskip(package)

import numpy as np  # noqa: E402
import pydicom  # noqa: E402
from PIL import Image  # noqa: E402

from monai_diffeo.errors import ConfigError, OutputError  # noqa: E402
from monai_diffeo.files import sha256_of  # noqa: E402
from monai_diffeo.radiograph.datalist import film_datalist  # noqa: E402
from monai_diffeo.report import FilmReporter  # noqa: E402
from monai_diffeo.report.cxr import LungReporter  # noqa: E402
from monai_diffeo.report.cxr.lungs import LungAnatomy  # noqa: E402
from monai_diffeo.report.sides import PatientSides  # noqa: E402
from tests.dicom_output.films import film, lungs  # noqa: E402
from tests.radiograph.dicom_factory import corner_film  # noqa: E402
from tests.report.runs import Sketch, lines_of, run  # noqa: E402


class Drawn(Sketch):
    """Pictures in no time, which Pillow reads; they show the seconds."""

    def draw(self, path, film, mask, result, record, sides):
        Image.new("RGB", (8, 4), (7, 7, int(1000 * (record["seconds"] or 0)) % 256)).save(path)


RESULTS = [f"ward/a_lungs.{kind}.dcm" for kind in ("seg", "sr", "sc")]


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "films"
    (folder / "ward").mkdir(parents=True)
    film(folder / "ward" / "a.dcm")
    film(folder / "b.dcm", StudyInstanceUID=None)
    Image.fromarray(corner_film(24, 32, bits=8)).save(folder / "c.png")
    return folder


def by_input(output):
    return {line["input"]: line for line in lines_of(output) if "input" in line}


def pixels_of(output):
    return {name: (d.SOPInstanceUID, d.get("PixelData")) for name in RESULTS for d in [pydicom.dcmread(output / name)]}


def test_a_dicom_film_gets_results_beside_its_mask_and_the_report_says_why_another_gets_none(films, tmp_path):
    status, _ = run(films, tmp_path / "out", kind=Drawn, dicom="true")
    lines = by_input(tmp_path / "out")
    assert status == 0 and lines["ward/a.dcm"]["dicom"] == RESULTS
    assert lines["b.dcm"]["dicom"] == lines["c.png"]["dicom"] == []
    assert "no DICOM results: The film is no DICOM file" in lines["c.png"]["notes"]
    assert "no DICOM results: The DICOM element StudyInstanceUID is missing" in lines["b.dcm"]["notes"]
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.dcm")) == sorted(RESULTS)
    audit = [json.loads(line)["outputs"] for line in (tmp_path / "out" / "audit.jsonl").read_text().splitlines()]
    hashes = [sha256_of(tmp_path / "out" / name) for name in RESULTS]
    assert sorted(map(str, (outputs["dicom"] for outputs in audit))) == sorted(map(str, (hashes, None, None)))
    run(films, tmp_path / "without", kind=Drawn)
    assert "dicom" not in by_input(tmp_path / "without")["ward/a.dcm"] and not [*(tmp_path / "without").rglob("*.dcm")]


def test_a_second_run_gives_the_same_uids_and_pixels_and_another_setting_gives_others(films, tmp_path):
    for name in ("one", "two"):
        run(films, tmp_path / name, kind=Drawn, dicom=True)
    run(films, tmp_path / "other", kind=Drawn, dicom=True, mode="refine")
    one, two, other = (pixels_of(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two and not {uid for uid, _ in one.values()} & {uid for uid, _ in other.values()}


@pytest.mark.parametrize(
    "before, change, after, again",
    [
        ({"dicom": True}, None, {"dicom": True}, []),
        ({"dicom": True}, RESULTS[1], {"dicom": True}, ["ward/a.dcm"]),
        ({}, None, {"dicom": True}, ["b.dcm", "c.png", "ward/a.dcm"]),
        ({"dicom": True}, None, {}, []),
        ({"dicom": True}, None, {"dicom": True, "figures": False}, []),
    ],
)
def test_a_run_that_is_resumed_knows_dicom_results(films, tmp_path, before, change, after, again):
    run(films, tmp_path / "out", kind=Drawn, **before)
    if change:
        (tmp_path / "out" / change).unlink()
    assert run(films, tmp_path / "out", kind=Drawn, resume=True, **after)[1] == again
    run(films, tmp_path / "one", kind=Drawn, **after)
    found, expected = ({p.relative_to(out).as_posix() for p in out.rglob("*")} for out in (tmp_path / "out", tmp_path / "one"))
    assert found == expected
    for name, line in by_input(tmp_path / "one").items():
        assert by_input(tmp_path / "out")[name].get("dicom") == line.get("dicom"), name


def test_results_are_never_taken_for_films_and_go_with_a_film_that_fails(films, tmp_path):
    run(films, films / "out", kind=Drawn, dicom=True)
    assert not [path for path in film_datalist(films).paths if "out" in path.split("films")[1]]
    (films / "ward" / "a.dcm").write_bytes(b"no film")
    run(films, films / "out", kind=Drawn, dicom=True)
    assert not [*(films / "out").rglob("*.dcm")] and set(RESULTS) <= set(lines_of(films / "out")[-1]["removed"])


def test_a_full_disk_fails_the_film_and_leaves_nothing_of_it(films, tmp_path, monkeypatch):
    from monai_diffeo.dicom_output import writer

    def full(path, content, write=writer.write_atomically):
        if path.name.endswith(".sr.dcm"):  # the second of a film
            raise OutputError("The disk is full.")
        return write(path, content)

    monkeypatch.setattr(writer, "write_atomically", full)
    run(films, tmp_path / "out", kind=Drawn, dicom=True)
    assert by_input(tmp_path / "out")["ward/a.dcm"]["message"] == "The disk is full."
    assert not list((tmp_path / "out" / "ward").rglob("*"))


def test_results_that_cannot_be_made_do_not_fail_the_film(films, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_diffeo.report.reporter.write_dicom_results", lambda *args: [][0])
    status, _ = run(films, tmp_path / "out", kind=Drawn, dicom=True)
    line = by_input(tmp_path / "out")["ward/a.dcm"]
    assert status == 0 and line["dicom"] == [] and "no DICOM results: IndexError" in line["notes"]


def test_pseudonyms_are_refused_and_a_missing_package_is_named_before_any_film(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--dicom_output true writes names"):
        FilmReporter(tmp_path, tmp_path, films={"a.dcm": "1"}, dicom=True)
    imported = builtins.__import__
    monkeypatch.setattr("importlib.import_module", lambda name: imported("no_" + name))
    with pytest.raises(ConfigError, match=r'pip install "monai-diffeo\[dicom_output\]"'):
        LungReporter(tmp_path, tmp_path, dicom="TRUE")
    LungReporter(tmp_path, tmp_path, dicom="false")


def test_lungs_are_named_by_the_patients_sides_and_together_are_the_mask():
    (first, second), anatomy = lungs(), LungAnatomy()
    mask = first | second
    mask[0, 0] = True  # an island
    for step, right in (((0, 1), first), ((0, -1), second)):
        told = {s.label: s.mask for s in anatomy.segments(mask, PatientSides.along(step))}
        assert list(told) == ["Right lung", "Left lung", "Lung, other parts"] and np.array_equal(told["Right lung"], right)
        assert np.array_equal(np.sum([*told.values()], axis=0), mask)
    for unknown in (anatomy.segments(mask, None), anatomy.segments(first, PatientSides.along((0, 1)))):
        assert [s.label for s in unknown] == ["Lungs"]
    assert np.array_equal(anatomy.segments(mask, None)[0].mask, mask)
