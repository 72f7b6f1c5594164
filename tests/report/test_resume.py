"""A run that is cut short and resumed gives what one run gives; a film is done again only where its line does not hold."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys

import pytest
import torch

for package in ("ignite", "nibabel", "pydicom", "PIL"):
    pytest.importorskip(package)

from monai_diffeo.errors import ConfigError  # noqa: E402
from monai_diffeo.files import sha256_of  # noqa: E402
from monai_diffeo.report import FilmReporter, ReportWriter  # noqa: E402
from monai_diffeo.report.record import SCHEMA  # noqa: E402
from monai_diffeo.report.resume import lines_that_hold  # noqa: E402
from tests.report.runs import folder_of_films, lines_of, result_of, run  # noqa: E402

NAMES = ("a.png", "bad.dcm", "ward/b.dcm", "c.dcm", "c.png")
GOOD = ["a.png", "c.dcm", "c.png", "ward/b.dcm"]


@pytest.fixture
def films(tmp_path):
    return folder_of_films(tmp_path / "films", *NAMES)


def killed_at(moment, films, output, **settings):
    """A run in a process of its own that is killed before its n-th write, sync or rename; its exit code."""

    def work():
        torch.set_num_threads(1)
        left = [moment]

        def counted(function):
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return call

        os.write, os.fsync, os.replace = map(counted, (os.write, os.fsync, os.replace))
        run(films, output, **settings)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")
def test_killed_at_random_moments_and_resumed_it_is_the_result_of_one_run(films, tmp_path):
    assert run(films, tmp_path / "one")[0] == 3
    expected, draw = result_of(tmp_path / "one"), random.Random(0)
    for number, first in enumerate(draw.sample(range(4, 36), 5)):
        output, kills = tmp_path / f"killed{number}", 0
        for moment in (first, *draw.sample(range(4, 24), 2)):
            kills += killed_at(moment, films, output, resume=True) == -signal.SIGKILL
            lines_of(output)
        assert run(films, output, resume=True)[0] == 3 and kills and result_of(output) == expected, first


def test_a_run_that_was_whole_is_not_done_again_but_for_the_films_that_failed(films, tmp_path):
    assert run(films, tmp_path / "out")[1] == GOOD
    report = (tmp_path / "out" / "report.jsonl").read_bytes()
    assert run(films, tmp_path / "out", resume="true") == (3, []) and (tmp_path / "out" / "report.jsonl").read_bytes() == report
    folder_of_films(films, "good.dcm")
    (films / "good.dcm").replace(films / "bad.dcm")
    status, seen = run(films, tmp_path / "out", resume=True)
    assert (status, seen) == (0, ["bad.dcm"])
    assert [line.get("input") for line in lines_of(tmp_path / "out")] == [*sorted(NAMES), None]


@pytest.mark.parametrize("decision, holds", [("no result: no chest film", True), ("ok", False)])
def test_a_film_without_a_mask_by_decision_is_not_done_again(films, tmp_path, decision, holds):
    film = films / "a.png"
    line = {"schema": SCHEMA, "input": "a.png", "sha256": sha256_of(film), "status": "canonicalized", "settings": "s"}
    line |= {"mask": None, "figure": None, "decision": decision, "dicom": []}
    (tmp_path / "report.jsonl").write_text(json.dumps(line) + "\n")
    outputs = ["a_lungs.png"], "a_lungs_report.png", []
    found = lines_that_hold(tmp_path / "report.jsonl", {"a.png": str(film)}, lambda film: outputs, "s")
    assert found == ({"a.png": line} if holds else {})


def test_without_resume_everything_is_done_again(films, tmp_path):
    run(films, tmp_path / "out")
    assert run(films, tmp_path / "out")[1] == GOOD


def change_content(films, output):
    folder_of_films(films, *("x.png",) * 9, "a.png")
    (films / "x.png").unlink()


def half_a_line(films, output):
    text = (output / "report.jsonl").read_text()
    (output / "report.jsonl").write_text(text[: text.index("\n") // 2])


@pytest.mark.parametrize(
    "change, settings, again",
    [
        (change_content, {}, ["a.png"]),
        (lambda films, output: (output / "a_lungs.png").unlink(), {}, ["a.png"]),
        (lambda films, output: (output / "a_lungs_report.png").unlink(), {}, ["a.png"]),
        (lambda films, output: (output / "a_lungs_report.png").unlink(), {"figures": False}, []),
        (lambda films, output: (output / "report.jsonl").unlink(), {}, GOOD),
        (half_a_line, {}, GOOD),
        (lambda films, output: None, {"mode": "refine"}, GOOD),
        (lambda films, output: None, {"device": "cuda"}, GOOD),
        (lambda films, output: None, {"settings": {"tta_samples": 3}}, GOOD),
        (lambda films, output: None, {"weights": __file__}, GOOD),
        (lambda films, output: (films / "c.png").unlink(), {}, ["c.dcm"]),  # its mask gets another name
        (lambda films, output: (films / "a.png").unlink(), {}, []),
    ],
)
def test_a_line_holds_only_for_the_same_film_settings_and_outputs(films, tmp_path, change, settings, again):
    run(films, tmp_path / "out")
    change(films, tmp_path / "out")
    assert run(films, tmp_path / "out", resume=True, **settings)[1] == again
    run(films, tmp_path / "one", **settings)
    resumed, one = result_of(tmp_path / "out"), result_of(tmp_path / "one")
    del resumed["report.jsonl"][-1]["removed"], one["report.jsonl"][-1]["removed"]
    assert resumed == one


def test_a_mask_that_another_film_left_under_the_name_does_not_count(tmp_path):
    films, output = folder_of_films(tmp_path / "films", "d.dcm", "d"), tmp_path / "out"
    run(films, output, figures=False)
    assert {line["input"]: line["mask"] for line in lines_of(output)[:-1]} == {
        "d": "d_lungs.nii.gz",
        "d.dcm": "d_dcm_lungs.nii.gz",
    }
    (films / "d").unlink()
    assert run(films, output, resume=True, figures=False)[1] == ["d.dcm"]
    assert [path.name for path in output.glob("*.gz")] == ["d_lungs.nii.gz"]


def test_another_version_does_not_hold(films, tmp_path, monkeypatch):
    run(films, tmp_path / "out")
    monkeypatch.setattr("monai_diffeo.__version__", "0.0.0")
    assert run(films, tmp_path / "out", resume=True)[1] == GOOD


def test_the_closing_line_and_the_exit_status_count_lines_that_are_kept(films, tmp_path):
    run(films, tmp_path / "out")
    (tmp_path / "out" / "a_lungs.png").unlink()
    assert run(films, tmp_path / "out", resume=True) == (3, ["a.png"])
    closing = lines_of(tmp_path / "out")[-1]
    assert closing["films"] == 5 and closing["counts"]["failed"] == 1 and closing["removed"] == []


def test_a_killed_run_leaves_no_half_written_file_behind_for_good(films, tmp_path):
    left = tmp_path / "out" / "ward" / f".{'0f' * 16}.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    (left.parent / ".mine.part").write_bytes(b"no file of ours")
    run(films, tmp_path / "out")
    assert not left.exists() and (left.parent / ".mine.part").exists()


def test_resume_needs_to_know_the_films(tmp_path):
    with pytest.raises(ConfigError, match="'resume' needs 'films'"):
        FilmReporter(tmp_path, tmp_path, resume=True)


def test_a_report_that_begins_with_kept_lines_is_whole_at_any_moment(tmp_path, monkeypatch):
    path = tmp_path / "report.jsonl"
    path.write_text("old\n")
    seen, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append((path.read_text(), open(a).read())), replace(a, b)))
    ReportWriter(path, kept=[{"status": "canonicalized", "n": 1}])
    assert seen == [("old\n", json.dumps({"status": "canonicalized", "n": 1}) + "\n")]


def test_an_interrupted_film_leaves_no_mask_without_a_line(films, tmp_path, monkeypatch):
    def interrupt(self, record):
        raise KeyboardInterrupt

    monkeypatch.setattr(ReportWriter, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(films, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".report.lock", "audit.jsonl", "report.jsonl", "run.log"
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "out")
