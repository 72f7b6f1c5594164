import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from monai_diffeo.errors import OutputError
from monai_diffeo.report import ALL_WRITTEN, FINISHED_WITH_FAILURES, NOTHING_WRITTEN, ReportWriter, versions

OK, ALONE, REJECTED, FAILED = "canonicalized", "left alone: reason", "rejected: reason", "failed"


def lines(path):
    text = path.read_bytes()
    assert text == b"" or text.endswith(b"\n")
    return [json.loads(line) for line in text.decode("ascii").splitlines()]


def test_the_exit_statuses_are_what_scripts_rely_on():
    assert (ALL_WRITTEN, FINISHED_WITH_FAILURES, NOTHING_WRITTEN) == (0, 3, 4)


@pytest.mark.parametrize(
    "statuses, code",
    [
        ([], NOTHING_WRITTEN),
        ([FAILED], NOTHING_WRITTEN),
        ([FAILED, FAILED], NOTHING_WRITTEN),
        ([OK], ALL_WRITTEN),
        ([ALONE], ALL_WRITTEN),
        ([REJECTED], ALL_WRITTEN),
        ([OK, ALONE, REJECTED], ALL_WRITTEN),
        ([FAILED, REJECTED], FINISHED_WITH_FAILURES),
        ([OK, FAILED], FINISHED_WITH_FAILURES),
    ],
)
def test_exit_status(tmp_path, statuses, code):
    report = ReportWriter(tmp_path / "report.jsonl")
    for status in statuses:
        report.write({"status": status})
    assert report.exit_status() == code


def test_the_summary_counts(tmp_path):
    report = ReportWriter(tmp_path / "report.jsonl")
    assert report.summary() == "No film was found."
    report.write({"status": OK})
    assert report.summary() == f"1 film: 1 canonicalized. Report: {report.path}"
    for status in (OK, REJECTED, FAILED):
        report.write({"status": status})
    assert report.counts == {"canonicalized": 2, "left alone": 0, "rejected": 1, "failed": 1}
    assert report.summary().startswith("4 films: 2 canonicalized, 1 rejected, 1 failed. ")


def test_the_closing_line_counts_and_is_no_film(tmp_path):
    report = ReportWriter(tmp_path / "report.jsonl")
    for status in (OK, OK, ALONE, FAILED):
        report.write({"status": status})
    report.close(["old_mask.png"])
    assert lines(report.path)[-1] == {
        "schema": 2,
        "end": True,
        "films": 4,
        "counts": {"canonicalized": 2, "left alone": 1, "rejected": 0, "failed": 1},
        "exit_status": FINISHED_WITH_FAILURES,
        "removed": ["old_mask.png"],
        "versions": versions(),
    }
    assert sum("end" in line for line in lines(report.path)) == 1


def test_a_line_is_on_disk_before_the_next_film_begins(tmp_path):
    path = tmp_path / "deep" / "er" / "report.jsonl"
    report = ReportWriter(path)
    assert lines(path) == []  # a run that finds nothing leaves an empty report, not an old one
    for n in range(3):
        report.write({"status": OK, "n": n})
        assert [line["n"] for line in lines(path)] == list(range(n + 1))


def test_a_new_run_begins_a_new_file_unless_told_to_go_on(tmp_path):
    path = tmp_path / "report.jsonl"
    ReportWriter(path).write({"status": OK, "run": 1})
    ReportWriter(path, reset=False).write({"status": OK, "run": 2})
    assert [line["run"] for line in lines(path)] == [1, 2]
    ReportWriter(path).write({"status": OK, "run": 3})
    assert [line["run"] for line in lines(path)] == [3]


def test_a_new_run_leaves_the_file_behind_a_link_alone(tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("precious")
    (tmp_path / "report.jsonl").symlink_to(other)
    ReportWriter(tmp_path / "report.jsonl").write({"status": OK})
    assert other.read_text() == "precious"


def test_a_line_cut_short_by_a_crash_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "report.jsonl"
    path.write_text('{"status": "canonic')
    ReportWriter(path, reset=False).write({"status": OK})
    assert json.loads(path.read_text().splitlines()[-1]) == {"status": OK}


def test_threads_with_one_writer_and_threads_with_their_own_never_mix_lines(tmp_path):
    path = tmp_path / "report.jsonl"
    report = ReportWriter(path)
    others = [ReportWriter(path, reset=False) for _ in range(2)]

    def write(n):
        (report if n % 2 else others[n % 4 // 2]).write({"status": OK, "n": n, "text": "x" * 5000})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(60)))
    assert sorted(line["n"] for line in lines(path)) == list(range(60))
    assert report.counts["canonicalized"] == 30


def test_nothing_is_not_a_number_in_the_file(tmp_path):
    path = tmp_path / "report.jsonl"
    ReportWriter(path).write({"status": OK, "extra": float("nan"), "deep": [{"x": float("inf")}]})
    assert lines(path) == [{"status": OK, "extra": None, "deep": [{"x": None}]}]


@pytest.mark.parametrize("name", ["line\nbreak\u2028.png", os.fsdecode(b"\xff\xfe.png"), "Köln.png"])
def test_any_file_name_stays_one_line_and_comes_back(tmp_path, name):
    path = tmp_path / "report.jsonl"
    ReportWriter(path).write({"status": OK, "input": name})
    assert [line["input"] for line in lines(path)] == [name]


@pytest.mark.parametrize("record", [{}, {"status": "fine"}, {"status": None}])
def test_an_unknown_status_is_refused_and_not_written(tmp_path, record):
    report = ReportWriter(tmp_path / "report.jsonl")
    with pytest.raises(ValueError, match="film_record"):
        report.write(record)
    assert lines(tmp_path / "report.jsonl") == [] and report.exit_status() == NOTHING_WRITTEN


def test_a_disk_that_takes_half_a_line_is_an_error(tmp_path, monkeypatch):
    report = ReportWriter(tmp_path / "report.jsonl")
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[: len(data) // 2]))
    with pytest.raises(OutputError, match="Make room"):
        report.write({"status": OK})
    assert report.counts["canonicalized"] == 0 and lines(report.path) == []
    monkeypatch.undo()
    report.write({"status": OK})
    assert lines(report.path) == [{"status": OK}]


def test_a_line_that_does_not_reach_the_disk_is_taken_back(tmp_path, monkeypatch):
    report = ReportWriter(tmp_path / "report.jsonl")
    report.write({"status": OK, "n": 1})

    def fail(handle):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="EIO"):
        report.write({"status": OK, "n": 2})
    assert [line["n"] for line in lines(report.path)] == [1]


@pytest.mark.parametrize("another", [False, True])
def test_a_report_that_is_gone_is_not_begun_anew(tmp_path, another):
    path = tmp_path / "report.jsonl"
    report = ReportWriter(path)
    path.unlink()
    if another:
        path.write_text("")
    with pytest.raises(OutputError, match="removed during the run"):
        report.write({"status": OK})
    assert path.exists() == another and (not another or path.read_text() == "")


def test_lines_that_are_kept_count_and_the_end_brings_all_into_the_order_of_the_run(tmp_path):
    path = tmp_path / "report.jsonl"
    report = ReportWriter(path, kept=[{"status": OK, "input": "b"}, {"status": ALONE, "input": "d"}])
    for name in ("c", "a"):
        report.write({"status": FAILED, "input": name})
    report.close(order=["a", "b", "c", "d"])
    assert [line.get("input") for line in lines(path)] == ["a", "b", "c", "d", None]
    assert lines(path)[-1]["counts"] == {"canonicalized": 1, "left alone": 1, "rejected": 0, "failed": 2}
