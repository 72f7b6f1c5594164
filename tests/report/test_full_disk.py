"""A disk that is full and a folder that disappears: whole lines, true sentences, no word of success."""

import os
import resource
import shutil
import subprocess
from contextlib import contextmanager

import pytest

for package in ("ignite", "nibabel", "pydicom", "PIL"):
    pytest.importorskip(package)

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from monai_diffeo.errors import OutputError  # noqa: E402
from monai_diffeo.report import FilmReporter  # noqa: E402
from tests.report.runs import folder_of_films, lines_of, run  # noqa: E402

FULL = "The disk is full. Make room, then run again with --resume true."


@contextmanager
def largest_file(size):
    """The system cuts every write that makes a file larger, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def noise(folder, *names):
    """Films whose masks do not compress."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (300, 300), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_a_mask_that_cannot_be_written_makes_its_film_a_failed_one(tmp_path):
    films = folder_of_films(tmp_path / "films", "a.png", "c.png")
    noise(films, "b.png")
    with largest_file(9000):
        status, seen = run(films, tmp_path / "out")
    lines = lines_of(tmp_path / "out")
    assert status == 3 and seen == ["a.png", "b.png", "c.png"] and lines[-1]["exit_status"] == 3
    assert (lines[1]["input"], lines[1]["error"], lines[1]["message"]) == ("b.png", "OutputError", FULL)
    assert sorted(p.name for p in (tmp_path / "out").glob("*_lungs.png")) == ["a_lungs.png", "c_lungs.png"]
    assert not list((tmp_path / "out").glob(".*"))
    assert run(films, tmp_path / "out", resume=True) == (0, ["b.png"])


@pytest.mark.parametrize("size", [1500, 2500, 2900])
def test_a_report_that_cannot_be_written_on_ends_the_run_with_whole_lines(tmp_path, capsys, size):
    films = folder_of_films(tmp_path / "films", *(f"{letter}.png" for letter in "abcdef"))
    with largest_file(size):
        status, seen = run(films, tmp_path / "out", figures=False)
    lines, said = lines_of(tmp_path / "out"), capsys.readouterr()
    assert status == 3 and 0 < len(lines) < 5 and not any("end" in line for line in lines)
    assert len(seen) == len(lines) + 1  # the run ends with the film that could not be reported
    assert FULL in said.err and "not complete" in said.err and said.out == ""
    assert {line["mask"] for line in lines if "mask" in line} == {p.name for p in (tmp_path / "out").glob("*_lungs.png")}
    status, seen = run(films, tmp_path / "out", figures=False, resume=True)
    assert status == 0 and len(seen) == 6 - len([line for line in lines if "mask" in line])


def test_a_run_that_could_not_be_reported_does_not_forget_earlier_outputs(tmp_path):
    films = folder_of_films(tmp_path / "films", *(f"{letter}.png" for letter in "abcdef"))
    run(films, tmp_path / "out", figures=False)
    (films / "f.png").unlink()
    with largest_file(1500):
        assert run(films, tmp_path / "out", figures=False)[0] == 3
    assert (tmp_path / "out" / "f_lungs.png").exists()
    run(films, tmp_path / "out", figures=False)
    assert lines_of(tmp_path / "out")[-1]["removed"] == ["f_lungs.png"] and not (tmp_path / "out" / "f_lungs.png").exists()


def test_a_report_that_cannot_be_begun_is_said(tmp_path):
    with largest_file(4), pytest.raises(OutputError, match="The disk is full"):
        FilmReporter(tmp_path, tmp_path).begin(1)


def test_a_closing_line_that_cannot_be_written_is_said_and_missing(tmp_path, capsys):
    films = folder_of_films(tmp_path / "films", "a.png")
    reporter_end = FilmReporter.end

    class AtTheEnd(FilmReporter):
        def end(self):
            with largest_file((self.output_dir / "report.jsonl").stat().st_size + 20):
                return reporter_end(self)

    assert run(films, tmp_path / "out", kind=AtTheEnd, figures=False)[0] == 3
    (line,) = lines_of(tmp_path / "out")
    said = capsys.readouterr()
    assert line["input"] == "a.png" and FULL in said.err and "canonicalized" not in said.out


@pytest.mark.parametrize("at", ["a.png", "b.png", "c.png"])
def test_an_output_folder_that_disappears_is_said(tmp_path, capsys, at):
    films = folder_of_films(tmp_path / "films", "a.png", "b.png", "c.png")
    status, seen = run(films, tmp_path / "out", each=lambda name: shutil.rmtree(tmp_path / "out") if name == at else None)
    said = capsys.readouterr()
    assert status == 3 and seen[-1] == at and "removed during the run" in said.err and said.out == ""
    assert not list((tmp_path / "out").rglob("*_lungs.png"))  # none without a line


def test_a_disk_of_sixty_four_kilobytes(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.name == "nt" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        films = noise(tmp_path / "films", *(f"{number}.png" for number in range(12)))
        status, _ = run(films, disk / "out", figures=False)
        lines = lines_of(disk / "out")
        masks = {line["mask"] for line in lines if "mask" in line}
        assert status == 3 and masks == {p.name for p in (disk / "out").glob("*.png")} and 0 < len(masks) < 12
        assert FULL in {line.get("message") for line in lines} or not any("end" in line for line in lines)
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        status, seen = run(films, disk / "out", figures=False, resume=True)
        assert status == 0 and len(seen) == 12 - len(masks) and len(lines_of(disk / "out")) == 13
    finally:
        subprocess.run(["umount", str(disk)], check=True)
