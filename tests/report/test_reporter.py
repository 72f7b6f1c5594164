"""The reporter without an evaluator: any task, any run."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from monai.data import MetaTensor

pytest.importorskip("matplotlib")
from PIL import Image

from monai_diffeo.errors import FilmError
from monai_diffeo.inferers import DiffeoResult
from monai_diffeo.report import Anatomy, FilmReporter, FolderInUseError, Part, versions
from monai_diffeo.report.cxr import LungReporter
from monai_diffeo.trust import Verdict
from tests.report.helpers import known_result

SIZE = (40, 55)
TOLD = {"report.jsonl", "audit.jsonl", "run.log"}
NUMBER, TEXT, SHA = {"type": ["number", "null"]}, {"type": "string"}, {"type": ["string", "null"], "pattern": "^[0-9a-f]{64}$"}
SHARE = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
VERSIONS = {"type": "object", "additionalProperties": TEXT, "minProperties": 5}
COMMON = {"schema": {"const": 2}, "input": TEXT, "sha256": SHA, "status": TEXT, "versions": VERSIONS}
COMMON["decision"] = {"pattern": "^(ok$|review: |no result)"}
FILM = {
    **COMMON,
    "status": {"pattern": "^(canonicalized$|left alone: |rejected: )"},
    **dict.fromkeys(["energy_before", "energy_after", "inverse_error", "largest_displacement", "steps", "seconds"], NUMBER),
    "largest_displacement_mm": NUMBER,
    **dict.fromkeys(["folding_fraction", "displacement_share", "agreement"], SHARE),
    "energy_terms": {"type": ["object", "null"], "additionalProperties": NUMBER},
    "frame": {"type": ["array", "null"], "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
    **dict.fromkeys(["notes", "mode", "figure", "device"], {"type": ["string", "null"]}),
    "mask": {"type": ["string", "array"], "items": TEXT},
    "areas": {"type": "object", "required": ["total"], "additionalProperties": SHARE},
    "weights_sha256": SHA,
    "settings": SHA,
    "spacing": {"type": ["array", "null"], "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
    "spacing_source": TEXT,
    "spacing_doubt": {"type": ["string", "null"]},
}
TEMPLATE = {
    **dict.fromkeys(["factor", "folding_fraction", "nonpositive_cell_fraction", "agreement"], SHARE),
    **dict.fromkeys(["level", "native_level"], NUMBER),
    **dict.fromkeys(["components", "holes"], {"type": "integer"}),
}
CLOSING = {
    "schema": {"const": 2},
    "end": {"const": True},
    "films": {"type": "integer"},
    "counts": {"type": "object", "required": ["canonicalized", "left alone", "rejected", "failed"]},
    "exit_status": {"enum": [0, 3, 4]},
    "removed": {"type": "array", "items": TEXT},
    "versions": VERSIONS,
}


def exactly(fields, **optional):
    return {"type": "object", "properties": {**fields, **optional}, "required": list(fields), "additionalProperties": False}


SCHEMA = {
    "oneOf": [
        exactly(FILM, template=exactly(TEMPLATE)),
        exactly({**COMMON, "status": {"const": "failed"}, "error": TEXT, "message": TEXT}),
        exactly(CLOSING),
    ]
}


def films_of(folder):
    """The lines of a report, each as the schema says, and the closing line."""
    *films, closing = map(json.loads, (folder / "report.jsonl").read_text().splitlines())
    for line in (*films, closing):
        Draft202012Validator(SCHEMA).validate(line)
    return {line["input"]: line for line in films}, closing


def found(**meta):
    """A film with two ellipses, one the larger, its mask, and the result of moving it by three voxels."""
    film = MetaTensor(torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(0)), meta=meta)
    mask = torch.zeros(1, *SIZE)
    mask[:, 10:30, 10:20], mask[:, 10:20, 35:45] = 1, 1
    result = DiffeoResult(mask[None], known_result(("canonicalized",), SIZE), plain=mask[None] - 0.5)
    return film, mask, result


def report(reporter, name, film, mask, result):
    path = reporter.output_dir / name.replace(".png", "_organ.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mask")
    reporter.done(str(reporter.root / name), {"film": film}, {"pred": mask, "pred_path": str(path)}, result, 0.5)


def run(folder, *films, kind=FilmReporter, failed=(), **settings):
    reporter = kind(folder / "out", folder, **settings)
    reporter.begin(len(films) + len(failed))
    for name in films:
        report(reporter, name, *found())
    for name in failed:
        reporter.failed(str(folder / name), FilmError("EmptyFile", "The file is empty."))
    return reporter.end()


def test_any_task_gets_a_line_and_a_picture_of_its_own_words(tmp_path):
    class Kidneys(Anatomy):
        def parts(self, mask, sides):
            return [Part(mask & (np.arange(mask.shape[1]) < mask.shape[1] / 2), "#ff8800")]

        def areas(self, mask, sides):
            return {"total": float(mask.mean()), "cyst": 0.25}

        def rows(self, areas):
            return [("Cyst", f"{areas['cyst']:.0%}")]

    assert run(tmp_path, "ward/a.png") == 0
    films, closing = films_of(tmp_path / "out")
    line = films["ward/a.png"]
    assert line["areas"] == {"total": pytest.approx(300 / 2200)} and line["mask"] == "ward/a_organ.png"
    assert line["figure"] == "ward/a_organ_report.png" and line["largest_displacement"] == 3.0
    usual = Image.open(tmp_path / "out" / line["figure"]).tobytes()
    assert run(tmp_path, "ward/a.png", anatomy=Kidneys()) == 0
    films, _ = films_of(tmp_path / "out")
    assert films["ward/a.png"]["areas"] == {"total": pytest.approx(300 / 2200), "cyst": 0.25}
    assert Image.open(tmp_path / "out" / line["figure"]).tobytes() != usual
    assert closing["films"] == 1 and closing["counts"]["canonicalized"] == 1 and closing["versions"] == versions()


@pytest.mark.parametrize(
    "meta, areas",
    [
        ({}, (200, 100)),
        ({"film_patient_orientation": ["L\\F"], "film_exif_orientation": torch.tensor([0])}, (200, 100)),
        ({"film_patient_orientation": "R\\F"}, (100, 200)),
        ({"film_patient_orientation": [""], "film_exif_orientation": torch.tensor([2])}, (100, 200)),
        ({"film_patient_orientation": ["A\\F"]}, (None, None)),
    ],
)
def test_what_the_file_states_about_sides_reaches_the_line(tmp_path, meta, areas):
    reporter = LungReporter(tmp_path, tmp_path, figures=False)
    reporter.begin(1)
    report(reporter, "a.png", *found(**meta))
    reporter.end()
    films, _ = films_of(tmp_path)
    wanted = {side: None if count is None else count / 2200 for side, count in zip(("right", "left"), areas)}
    assert films["a.png"]["areas"] == pytest.approx({"total": 300 / 2200, **wanted})


@pytest.mark.parametrize(
    "source, doubt, spacing",
    [("ImagerPixelSpacing", "", [0.2, 0.1]), ("NIfTI", "no unit", [0.2, 0.1]), ("unknown", "none stated", None)],
)
def test_the_spacing_its_source_and_its_doubt_reach_the_line(tmp_path, source, doubt, spacing):
    meta = {"film_spacing_source": [source], "film_spacing_doubt": [doubt], "film_spacing_column": 0.1}
    reporter = LungReporter(tmp_path, tmp_path, figures=False)
    reporter.begin(1)
    report(reporter, "a.png", *found(**meta, film_spacing_row=torch.tensor([0.2], dtype=torch.float64)))
    reporter.end()
    line = films_of(tmp_path)[0]["a.png"]
    assert (line["spacing"], line["spacing_source"], line["spacing_doubt"]) == (spacing, source, doubt or None)


@pytest.mark.parametrize("spacing, expected", [([0.2, 0.1], 3.0 * 4 * 0.1), (None, None)])
def test_the_largest_displacement_is_in_millimetres_of_the_film_where_its_spacing_is_known(tmp_path, spacing, expected):
    """Three voxels along the columns of an image whose rows are 8 and whose columns are 4 rows and columns of the film."""
    film, mask, result = found(film_spacing_source="ImagerPixelSpacing" if spacing else "unknown")
    rows, columns = spacing or (1.0, 1.0)
    film.meta |= {"film_spacing_row": torch.tensor([rows]), "film_spacing_column": torch.tensor([columns])}
    film.meta["original_affine"] = torch.tensor([[0.0, -2, 0, 5], [-3, 0, 0, 6], [0, 0, 1, 0], [0, 0, 0, 1]])[None]
    film.affine = film.meta["original_affine"] @ torch.diag(torch.tensor([8.0, 4, 1, 1]))
    reporter = FilmReporter(tmp_path, tmp_path, figures=False)
    reporter.begin(1)
    report(reporter, "a.png", film, mask, result)
    reporter.end()
    line = films_of(tmp_path)[0]["a.png"]
    assert line["largest_displacement"] == 3.0 and line["largest_displacement_mm"] == (expected and pytest.approx(expected))


def test_letters_stand_on_the_picture_only_where_the_sides_are_known(tmp_path):
    """R and L at the borders of the first panel, at the height of its middle."""
    pictures = {}
    for name, tag in (("known", "L\\F"), ("mirrored", "R\\F"), ("unknown", "A\\F")):
        reporter = LungReporter(tmp_path, tmp_path)
        reporter.begin(1)
        film, mask, result = found(film_patient_orientation=tag)
        report(reporter, f"{name}.png", film * 0, mask * 0, result)
        reporter.end()
        panel = np.asarray(Image.open(tmp_path / f"{name}_organ_report.png").convert("L"))[112:496, 34:494].astype(int)
        pictures[name] = panel[:, :200], panel[:, 250:]
    (known_r, known_l), (mirrored_l, mirrored_r) = pictures["known"], pictures["mirrored"]
    assert all(half.max() < 60 for half in pictures["unknown"]) and all(half.max() > 200 for half in pictures["known"])
    ink = [int((half > 200).sum()) for half in (known_r, mirrored_r, known_l, mirrored_l)]
    assert max(ink[2:]) + 12 < min(ink[:2])  # an L has less ink than an R


class Sketch(FilmReporter):
    """Pictures in no time."""

    def draw(self, path, *args):
        path.write_bytes(b"figure")


def test_a_rerun_removes_what_fails_now_or_is_gone_and_says_so(tmp_path, capsys):
    assert run(tmp_path, "a.png", "b.png", "c.png", kind=Sketch) == 0
    assert run(tmp_path, "a.png", failed=["b.png"], figures=False) == 3
    films, closing = films_of(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a_organ.png", *TOLD}
    assert closing["removed"] == [
        "b_organ.png", "b_organ_report.png", "a_organ_report.png", "c_organ.png", "c_organ_report.png"
    ]  # fmt: skip
    assert closing["exit_status"] == 3 and closing["counts"] == {
        "canonicalized": 1,
        "left alone": 0,
        "rejected": 0,
        "failed": 1,
    }
    assert films["b.png"]["error"] == "EmptyFile" and "5 outputs of earlier runs removed" in capsys.readouterr().out
    assert run(tmp_path, failed=["a.png"]) == 4 and films_of(tmp_path / "out")[1]["exit_status"] == 4


def test_a_run_that_does_not_come_to_its_end_has_no_closing_line_and_keeps_the_folder(tmp_path):
    reporter = FilmReporter(tmp_path, tmp_path, figures=False)
    reporter.begin(2)
    report(reporter, "a.png", *found())
    (line,) = map(json.loads, (tmp_path / "report.jsonl").read_text().splitlines())
    assert line["input"] == "a.png" and "end" not in line
    with pytest.raises(FolderInUseError):
        FilmReporter(tmp_path, tmp_path).begin(1)
    assert json.loads((tmp_path / "report.jsonl").read_text()) == line  # the second run has changed nothing


def test_a_film_that_fails_after_its_mask_was_written_keeps_no_mask(tmp_path):
    reporter = FilmReporter(tmp_path, tmp_path)
    reporter.begin(1)
    film, _, result = found()
    with pytest.raises(TypeError):
        report(reporter, "a.png", film, "no mask", result)
    reporter.failed(str(tmp_path / "a.png"), ValueError())
    assert reporter.end() == 4 and {p.name for p in tmp_path.iterdir()} == TOLD


def test_an_empty_mask_is_to_be_reviewed_whatever_the_verdict(tmp_path):
    reporter = FilmReporter(tmp_path, tmp_path, figures=False)
    reporter.begin(2)
    film, mask, result = found()
    fine = replace(result, verdicts=(Verdict("ok", dice=(0.8, 0.95), signs={"energy": 1.0}),))
    report(reporter, "full.png", film, mask, fine)
    report(reporter, "empty.png", film, mask * 0, fine)
    reporter.end()
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [line["decision"] for line in lines[:2]] == ["ok", "review: the mask is empty"]


def test_an_empty_mask_is_noted(tmp_path):
    reporter = FilmReporter(tmp_path, tmp_path, figures=False)
    reporter.begin(2)
    film, mask, result = found(film_notes="spacing unknown")
    report(reporter, "full.png", film, mask, result)
    report(reporter, "empty.png", film, mask * 0, result)
    reporter.end()
    notes = {name: line["notes"] for name, line in films_of(tmp_path)[0].items()}
    assert notes == {"full.png": "spacing unknown", "empty.png": "spacing unknown; the mask is empty"}


def test_one_mask_a_class_is_a_list_of_names(tmp_path):
    reporter = FilmReporter(tmp_path, tmp_path, figures=False)
    reporter.begin(1)
    film, mask, result = found()
    paths = [str(tmp_path / f"a_{name}.png") for name in ("heart", "aorta")]
    reporter.done(
        str(tmp_path / "a.png"), {"film": film}, {"pred": torch.cat([mask * 0, mask]), "pred_path": paths}, result, 0.5
    )
    reporter.end()
    films, _ = films_of(tmp_path)
    assert films["a.png"]["mask"] == ["a_heart.png", "a_aorta.png"]
    assert films["a.png"]["areas"] == {"total": pytest.approx(300 / 2200)}


def test_a_picture_that_fails_does_not_fail_the_film(tmp_path):
    class Broken(FilmReporter):
        def draw(self, *args):
            raise ZeroDivisionError

    assert run(tmp_path, "a.png", kind=Broken) == 0
    films, _ = films_of(tmp_path / "out")
    assert films["a.png"]["figure"] is None and films["a.png"]["notes"] == "no picture: ZeroDivisionError"


@pytest.mark.parametrize("channels, foreground", [(1, [0, 0, 1]), (3, [0, 1, 1])])
def test_the_plain_mask_is_of_one_logit_or_of_classes_with_the_background_first(tmp_path, channels, foreground):
    scores = torch.tensor([[-1.0, -0.5, 0.5], [-2.0, 1.0, 2.0], [-3.0, 0.0, 1.0]])[:channels].reshape(1, channels, 1, 3)
    assert FilmReporter(tmp_path, tmp_path).foreground(scores)[0, 0].tolist() == foreground
