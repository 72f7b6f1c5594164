"""A log beside the report, and a bar where somebody is watching."""

import io
import re
import sys

import pytest

for package in ("ignite", "nibabel", "pydicom", "PIL", "matplotlib", "tqdm"):
    pytest.importorskip(package)

from monai_diffeo.report.run_log import RunLog  # noqa: E402
from tests.report.runs import folder_of_films, run  # noqa: E402


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def films(tmp_path):
    return folder_of_films(tmp_path / "films", "a.png", "two\nlines.png", "bad.png")


def log_of(output):
    lines = (output / "run.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \S", line) for line in lines)
    return [line[21:] for line in lines]


def test_the_log_has_a_line_for_the_beginning_each_film_and_the_end(films, tmp_path):
    run(films, tmp_path / "out")
    first, one, bad, two, last = log_of(tmp_path / "out")
    assert first.startswith("run of 3 films begins, 0 kept; device cpu")
    assert last == "3 films: 2 segmented, 1 failed. 2 not judged."
    assert re.fullmatch(r"not judged: 'a.png' segmented \(without canonicalisation\), \d+\.\d\d s(?: \[.*\])?", one)
    assert bad.startswith("no result: 'bad.png' failed (") and two.startswith(r"not judged: 'two\nlines.png' segmented")


def test_a_new_run_begins_a_new_log_and_a_resumed_one_goes_on(films, tmp_path):
    run(films, tmp_path / "out")
    run(films, tmp_path / "out")
    assert len(log_of(tmp_path / "out")) == 5
    run(films, tmp_path / "out", resume=True)
    assert len(log_of(tmp_path / "out")) == 8 and "2 kept" in log_of(tmp_path / "out")[5]


def test_a_run_that_keeps_no_line_keeps_no_log_of_names_either(films, tmp_path):
    run(films, tmp_path / "out", weights=__file__)
    for path in (tmp_path / "out").glob("*_lungs*"):
        path.unlink()
    (tmp_path / "out" / "report.jsonl").unlink()
    run(films, tmp_path / "out", hide=True, resume=True)
    assert "a.png" not in (tmp_path / "out" / "run.log").read_text()


def test_the_bar_counts_films_and_tells_the_time_left_on_a_terminal_only(films, tmp_path, monkeypatch, capsys):
    run(films, tmp_path / "out")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    run(films, tmp_path / "out")
    assert "films:" in sys.stderr.getvalue() and "3 of 3" in sys.stderr.getvalue() and " left" in sys.stderr.getvalue()
    (tmp_path / "out" / "a_lungs.png").unlink()
    monkeypatch.setattr(sys, "stderr", Terminal())
    run(films, tmp_path / "out", resume=True)
    assert "2 of 2" in sys.stderr.getvalue()


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "run.log").mkdir()
    log = RunLog(tmp_path / "run.log", 1)
    log.film({"input": "a.png", "status": "failed"})
    log.close()
