"""`monai-diffeo watch` on a folder: what is taken, what is done again, and a process that is killed at any point."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pytest
from click.testing import CliRunner

for package in ("highdicom", "ignite", "nibabel", "pydicom", "skimage"):
    pytest.importorskip(package)

import nibabel  # noqa: E402
import pydicom  # noqa: E402

from monai_diffeo.cli import program  # noqa: E402
from monai_diffeo.cli.watch import _Loop  # noqa: E402
from monai_diffeo.dicom_output import write_dicom_results  # noqa: E402
from monai_diffeo.errors import ConfigError, FilmError, OutputError  # noqa: E402
from monai_diffeo.files import sha256_of  # noqa: E402
from monai_diffeo.report import reporter  # noqa: E402
from monai_diffeo.transforms import LoadImageFilmd  # noqa: E402
from monai_diffeo.watch import Arrival, Journal, WatchedFolder  # noqa: E402
from tests.bundles.command import lines_of  # noqa: E402
from tests.cli.killed import KILLED, start  # noqa: E402
from tests.dicom_output.films import film  # noqa: E402

ROOT = Path(__file__).parents[2]
PLAIN = ("--once", "--interval", "0.2", "--enabled", "false", "--figures", "false")


def invoke(*words):
    done = CliRunner().invoke(program, ["watch", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stderr.splitlines()


# What is taken


@pytest.fixture(autouse=True)
def handlers():
    """Of signals, as they were."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture
def watched(tmp_path):
    (tmp_path / "in" / "ward").mkdir(parents=True)
    journal = Journal(tmp_path / "in" / "out" / ".watch.jsonl", "here")
    return WatchedFolder(tmp_path / "in", tmp_path / "in" / "out", journal)


def test_a_film_is_taken_when_two_looks_see_the_same(watched):
    path = watched.folder / "ward" / "a.dcm"
    path.write_bytes(b"half")
    (watched.folder / "link.dcm").symlink_to("nowhere")
    (watched.folder / ".hidden").touch()
    (watched.output / "a_lungs.nii.gz").touch()
    assert not [*watched.look()]
    path.write_bytes(b"half of it")
    assert not [*watched.look()]
    os.utime(path, ns=(0, 7))  # as long, but written again
    assert not [*watched.look()]
    assert [*watched.look()] == [Arrival("ward/a.dcm", path, [10, 7])] == [*watched.look()]


def test_a_film_that_is_done_is_not_taken_until_it_comes_again(watched):
    path = watched.folder / "a.dcm"
    path.write_bytes(b"film")
    [*watched.look()]
    (found,) = watched.look()
    watched.journal.put("a.dcm", stamp=found.stamp, end="done")
    assert not [*watched.look()]
    journal = Journal(watched.output / ".watch.jsonl", "here")
    again = WatchedFolder(watched.folder, watched.output, journal)
    assert not [*again.look(), *again.look()]
    path.write_bytes(b"another film")
    assert not [*again.look()]
    assert [film.name for film in again.look()] == ["a.dcm"]
    journal.put("a.dcm", stamp=[1, 1], tries=1)
    assert journal.word(Arrival("a.dcm", path, [1, 1])) == {"film": "a.dcm", "stamp": [1, 1], "tries": 1}


def test_the_oldest_film_comes_first_and_a_folder_that_is_gone_is_an_error(watched):
    for name, when in (("b", 1), ("c", 3), ("a", 2)):
        (watched.folder / name).touch()
        os.utime(watched.folder / name, (when, when))
    [*watched.look()]
    assert [film.name for film in watched.look()] == ["b", "a", "c"]
    watched.folder = watched.folder / "gone"
    with pytest.raises(FilmError):
        [*watched.look()]


def test_the_journal_is_private_small_and_of_one_source(tmp_path):
    path = tmp_path / "new" / ".watch.jsonl"
    journal = Journal(path, "there")
    for number in range(5):
        journal.put("a", stamp=[number], tries=1)
    with open(path, "ab") as file:
        file.write(b'{"film": "b", "sta')
    assert Journal(path, "there").words == {"": {"film": "", "source": "there"}, "a": {"film": "a", "stamp": [4], "tries": 1}}
    assert len(path.read_text().splitlines()) == 2 and stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="has results of 'there'"):
        Journal(path, "elsewhere")


# What is done again


class Segment:
    """Fails with what it is told, and remembers."""

    def __init__(self, **errors):
        self.errors, self.seen, self.reporter = errors, [], self
        self.log, self.said = self, []

    def line_of(self, path):
        return None

    def say(self, text):
        self.said.append(text)

    def __call__(self, path, refused=None):
        self.seen.append(path.name)
        if refused:
            return {"status": "failed", "error": refused.code}
        error = self.errors.get(path.name)
        if error == "full":
            raise OutputError("The disk is full.")
        return {"status": "failed", "error": error} if error else {"status": "canonicalized"}


def a_loop(folder, **errors):
    for name in errors:
        (folder.folder / name).touch()
    return _Loop(Segment(**errors), 0.01, True)


@pytest.mark.parametrize(
    "error, times",
    [("MultiFrame", 1), ("RejectedError", 1), ("OSError", 3), ("FileNotReadable", 3), ("FileChanged", 3), ("", 1)],
)
def test_what_is_wrong_with_a_film_is_said_once_and_what_may_pass_is_tried_three_times(watched, error, times):
    loop = a_loop(watched, a=error, b="")
    assert loop.run(watched, watched.journal) == (3 if error else 0)
    assert loop.segment.seen.count("a") == times and loop.segment.seen.count("b") == 1
    assert _Loop(Segment(a=error), 0.01, True).run(watched, watched.journal) == 0  # it is done
    assert watched.journal.words["a"]["end"] == ("failed" if error else "canonicalized")


def test_a_refusal_of_the_archive_is_logged_and_counts(watched):
    loop = a_loop(watched, a="")
    watched.finish = lambda film, line, again: "the archive refused"
    assert loop.run(watched, watched.journal) == 3
    assert loop.segment.said == ["'a': the archive refused"] and watched.journal.words["a"]["end"] == "the archive refused"


@pytest.mark.parametrize("code, times", [(500, 3), (503, 5)])
def test_an_inner_error_of_the_archive_is_tried_three_times_and_a_busy_archive_for_ever(watched, code, times):
    loop, asked = a_loop(watched, a=""), []
    loop.once = False

    def finish(film, line, again):
        asked.append(again)
        if len(asked) == times:
            loop.stop.set()
        if again or code == 503:
            raise HTTPError("address", code, "", None, None)
        return "refused"

    watched.finish = finish
    assert loop.run(watched, watched.journal) == 0 and len(asked) == times
    assert watched.journal.words["a"].get("end") == (None if code == 503 else "refused")


def test_a_film_whose_mask_would_replace_that_of_another_film_is_refused(tmp_path):
    films, out = tmp_path / "in", tmp_path / "out"
    films.mkdir()
    film(films / "b.dcm")
    words = ("watch", *PLAIN, "--dataset_dir", str(films), "--output_dir", str(out))
    assert start(words) == 0
    mask = (out / "b_lungs.nii.gz").read_bytes()
    (films / "b.dcm").unlink()  # so that both would have this name
    film(films / "b.dicom", pixels=np.random.default_rng(0).integers(0, 4000, (48, 64), np.uint16))
    assert start(words) == 3
    lines, _ = lines_of(out)
    assert lines["b.dicom"]["error"] == "UnsupportedFile" and "Rename" in lines["b.dicom"]["message"]
    assert (out / "b_lungs.nii.gz").read_bytes() == mask and lines["b.dcm"]["mask"] == "b_lungs.nii.gz"


def test_a_full_disk_ends_the_watch_and_the_film_is_not_done(watched):
    loop = a_loop(watched, a="full")
    with pytest.raises(OutputError, match="full"):
        loop.run(watched, watched.journal)
    assert "end" not in watched.journal.words["a"]


def test_an_archive_that_is_away_is_waited_for_and_said_once(watched, capsys):
    loop, looks = _Loop(Segment(), 0.01, False), []

    class Away:
        def look(self):
            looks.append(1)
            if len(looks) < 4:
                raise ConnectionRefusedError("no answer")
            loop.stop.set()
            return iter(())

    assert loop.run(Away(), watched.journal) == 0 and len(looks) == 4
    assert capsys.readouterr().err.count("no answer") == 1
    loop, looks = _Loop(Segment(), 0.01, True), []
    with pytest.raises(ConfigError, match="no answer"):
        loop.run(Away(), watched.journal)


@pytest.mark.parametrize(
    "number, once, status", [("SIGTERM", False, 0), ("SIGINT", False, 0), ("SIGTERM", True, 143), ("SIGINT", True, 130)]
)
def test_a_signal_ends_it_after_the_film(watched, number, once, status):
    loop = a_loop(watched, a="", b="")
    loop.once = once
    loop.segment.line_of = lambda path: os.kill(os.getpid(), getattr(signal, number))
    assert loop.run(watched, watched.journal) == status and len(loop.segment.seen) == 1
    assert [word.get("end") for name, word in watched.journal.words.items() if name] == ["canonicalized"]


@pytest.mark.parametrize(
    "words, says",
    [
        ("--dataset_dir a", "Give --output_dir"),
        ("--output_dir a", "one of --dataset_dir and --orthanc"),
        ("--output_dir a --dataset_dir b --orthanc http://c", "one of --dataset_dir and --orthanc"),
        ("--output_dir a --dataset_dir ./a", "share a folder"),
        ("--output_dir a --orthanc 127.0.0.1:8042", "http or https address"),
        ("--output_dir a --orthanc http://me:secret@127.0.0.1", "without a login"),
        ("--output_dir a --dataset_dir b --bundle_root brain_3d", "Use 'segment'"),
        ("--output_dir a --dataset_dir missing --interval 0.1", "no films can be had"),
        ("--output_dir a --interval 0", "not in the range"),
    ],
)
def test_a_wrong_command_line_is_said_in_the_last_line(tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    status, lines = invoke(*words.split(), "--once")
    assert status == 1 and says in lines[-1] and "secret" not in "".join(lines)


def test_dicom_results_never_have_the_mask_of_one_film_and_the_patient_of_another(tmp_path, monkeypatch):
    films, out = tmp_path / "in", tmp_path / "out"
    films.mkdir()
    film(films / "a.dcm")
    other = film(tmp_path / "other.dcm", PatientID="0815")

    def replaced(path, *words):
        if other.exists():
            os.replace(other, path)
        return write_dicom_results(path, *words)

    monkeypatch.setattr(reporter, "write_dicom_results", replaced)
    words = ("segment", "--dataset_dir", films, "--output_dir", out, *PLAIN[3:], "--dicom_output")
    done = CliRunner().invoke(program, [*map(str, words)])
    assert done.exit_code == 4 and lines_of(out)[0]["a.dcm"]["error"] == "FileChanged" and not [*out.glob("a_*")]


def test_a_film_that_is_replaced_while_it_is_read_is_done_again_and_its_line_is_that_of_its_mask(tmp_path, monkeypatch):
    films, out, read = tmp_path / "in", tmp_path / "out", LoadImageFilmd.__call__
    films.mkdir()
    film(films / "a.dcm")
    other = film(tmp_path / "other.dcm", pixels=np.random.default_rng(0).integers(0, 4000, (40, 56), np.uint16))
    seen = []

    def replaced(self, data, *words):
        found = read(self, data, *words)
        seen.append(found["film"].shape if "film" in found else found["image"].shape)
        if other.exists():
            os.replace(other, films / "a.dcm")
        return found

    monkeypatch.setattr(LoadImageFilmd, "__call__", replaced)
    words = (*PLAIN, "--dataset_dir", films, "--output_dir", out)
    assert invoke(*words)[0] == 0 and len(seen) == 2 and seen[0] != seen[1]
    line = lines_of(out)[0]["a.dcm"]
    assert line["sha256"] == sha256_of(films / "a.dcm") and nibabel.load(out / line["mask"]).shape[:2] == (56, 40)
    assert invoke(*words)[0] == 0 and len(seen) == 2  # it is done


# A process that is killed


def whole(output):
    """What must be the same, whatever happened: lines by input, masks, and the UIDs of DICOM results."""
    lines, closing = lines_of(output)
    assert closing["films"] == len(lines)
    masks = {path.name: path.read_bytes() for path in output.glob("*.nii.gz")}
    uids = {path.name: pydicom.dcmread(path).SOPInstanceUID for path in output.glob("*.dcm")}
    assert not [*output.rglob(".*.part")]
    return {name: line["sha256"] for name, line in lines.items()}, masks, uids


def test_killed_at_any_point_and_started_again_no_film_is_lost_and_none_is_done_twice(tmp_path):
    films = tmp_path / "in"
    films.mkdir()
    for name in ("a.dcm", "b.dcm"):
        film(films / name)
    words = ("watch", *PLAIN, "--dicom_output", "--dataset_dir", str(films), "--output_dir")
    assert start(words, str(tmp_path / "calm")) == 0
    points = [*KILLED]
    for number, some in enumerate((points[:2], points[2:])):  # a film may be begun three times
        out = tmp_path / str(number)
        for point in some:
            assert start(words, str(out), kill=point) == -signal.SIGKILL, point
        assert start(words, str(out)) == 0
        assert whole(out) == whole(tmp_path / "calm")
        inputs = [json.loads(line).get("input") for line in (out / "report.jsonl").read_text().splitlines()]
        assert sorted(filter(None, inputs)) == ["a.dcm", "b.dcm"]


def test_a_film_at_which_the_process_ends_each_time_is_given_up_and_the_others_are_done(tmp_path):
    films = tmp_path / "in"
    films.mkdir()
    for when, name in enumerate(("poison.dcm", "good.dcm")):
        os.utime(film(films / name), (when, when))
    words = ("watch", *PLAIN, "--dataset_dir", str(films), "--output_dir")
    statuses = [start(words, str(tmp_path / "out"), kill="poison") for _ in range(5)]
    assert statuses == [-signal.SIGKILL] * 3 + [3, 0]
    lines, _ = lines_of(tmp_path / "out")
    assert lines["poison.dcm"]["error"] == "StoppedBefore" and lines["good.dcm"]["mask"]


def test_the_command_takes_films_as_they_come_and_ends_with_0_when_it_is_stopped(tmp_path):
    """The real process: a film that grows is not taken before it is whole, and a failed one keeps nothing."""
    films, out = tmp_path / "in", tmp_path / "out"
    films.mkdir()
    content = film(tmp_path / "film.dcm").read_bytes()
    command = [sys.executable, "-m", "monai_diffeo", "watch", "--dataset_dir", str(films), "--output_dir", str(out)]
    command += ["--interval", "0.5", "--enabled", "false", "--figures", "false"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=said, stderr=said)
    try:
        (films / "bad.dcm").write_text("no film")
        half = len(content) // 2
        (films / "slow.dcm").write_bytes(content[:half])
        until = time.monotonic() + 300
        while "bad.dcm" not in read_lines(out) and time.monotonic() < until:
            with open(films / "slow.dcm", "ab") as file:  # a byte at a time, as long as the other film takes
                file.write(content[half : half + 1])
            half += 1
            time.sleep(0.1)
        assert set(read_lines(out)) == {"bad.dcm"}
        with open(films / "slow.dcm", "ab") as file:
            file.write(content[half:])
        while "slow.dcm" not in read_lines(out) and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (tmp_path / "said").read_text()
    finally:
        process.kill()
    lines, _ = lines_of(out)
    assert (out / lines["slow.dcm"]["mask"]).is_file() and lines["bad.dcm"]["error"] == "NotAFilm"
    assert "dcm" not in (tmp_path / "said").read_text()  # no name of a film on the terminal


def read_lines(output):
    report = output / "report.jsonl"
    lines = report.read_text().splitlines() if report.is_file() else []
    return {line["input"]: line for line in map(json.loads, lines) if "input" in line}
