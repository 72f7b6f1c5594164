"""One line a film and run that nothing removes, and that names nobody."""

import json
import multiprocessing
import sys
from datetime import datetime, timedelta, timezone

import pytest

for package in ("ignite", "nibabel", "pydicom", "PIL", "matplotlib"):
    pytest.importorskip(package)

from monai_diffeo.errors import OutputError  # noqa: E402
from monai_diffeo.files import sha256_of  # noqa: E402
from monai_diffeo.radiograph.datalist import film_datalist  # noqa: E402
from monai_diffeo.report import versions  # noqa: E402
from monai_diffeo.report.audit import AuditFile  # noqa: E402
from tests.report.runs import folder_of_films, lines_of, run  # noqa: E402


@pytest.fixture
def films(tmp_path):
    return folder_of_films(tmp_path / "films", "Mustermann/a.png", "b.dcm", "bad.png")


def audit_of(output):
    return [json.loads(line) for line in (output / "audit.jsonl").read_text().splitlines()]


def test_a_line_says_what_was_done_to_which_file_with_what(films, tmp_path):
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"weights")
    began = datetime.now(timezone.utc) - timedelta(seconds=1)
    run(films, tmp_path / "out", weights=weights)
    lines, report = audit_of(tmp_path / "out"), lines_of(tmp_path / "out")[:-1]
    assert [line["sha256"] for line in lines] == [sha256_of(films / line["input"]) for line in report] and len(lines) == 3
    assert [(line["decision"], line["error"] is None) for line in lines] == [("not judged", True)] * 2 + [("no result", False)]
    for line, told in zip(lines, report):
        assert line["weights_sha256"] == sha256_of(weights) and line["versions"] == versions() and line["device"] == "cpu"
        assert line["status"] == told["status"] and line["seconds"] == told.get("seconds", line["seconds"]) > 0
        assert line["settings"] == report[0]["settings"] and line["run"] == lines[0]["run"]
        assert began < datetime.fromisoformat(line["time"]) < datetime.now(timezone.utc)
    written = {name: sha256_of(tmp_path / "out" / report[0][name]) for name in ("mask", "figure")}
    assert lines[0]["outputs"] == written and lines[2]["outputs"] == {"mask": None, "figure": None}


def test_a_new_run_replaces_the_report_and_adds_to_the_audit(films, tmp_path):
    run(films, tmp_path / "out")
    first = (tmp_path / "out" / "audit.jsonl").read_bytes()
    (films / "b.dcm").unlink()
    run(films, tmp_path / "out")
    assert len(lines_of(tmp_path / "out")) == 3 and len({line["run"] for line in audit_of(tmp_path / "out")}) == 2
    assert (tmp_path / "out" / "audit.jsonl").read_bytes().startswith(first) and len(audit_of(tmp_path / "out")) == 5


def test_a_resumed_run_adds_lines_only_for_the_films_that_it_does(films, tmp_path):
    run(films, tmp_path / "out")
    (tmp_path / "out" / "b_lungs.nii.gz").unlink()
    run(films, tmp_path / "out", resume=True)
    again = [line["sha256"] for line in audit_of(tmp_path / "out")[3:]]
    assert again == [sha256_of(films / name) for name in ("b.dcm", "bad.png")]


def test_a_line_that_a_crash_cut_short_spoils_no_other(films, tmp_path):
    run(films, tmp_path / "out")
    audit = tmp_path / "out" / "audit.jsonl"
    other = AuditFile(tmp_path / "out", {})  # of a run that is under way
    for _ in range(2):
        with open(audit, "ab") as file:
            file.write(b'{"audit": 1, "ru')
        other.append({"status": "failed"})
    with open(audit, "ab") as file:
        file.write(b'{"audit": 1, "ru')
    run(films, tmp_path / "out")
    lines = audit.read_text().splitlines()
    assert [number for number, line in enumerate(lines) if not line.endswith("}")] == [3, 5, 7]
    assert len([json.loads(line) for line in lines if line.endswith("}")]) == 3 + 2 + 3


def append_many(folder, word):
    audit = AuditFile(folder, {"device": word * 3000})
    for number in range(60):
        audit.append({"status": "failed", "seconds": number})


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_runs_at_once_never_mix_their_lines(tmp_path):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=append_many, args=(tmp_path, word)) for word in "xyz"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    lines = audit_of(tmp_path)
    assert len({line["run"] for line in lines}) == 3 and len(lines) == 180
    for word in "xyz":
        assert [line["seconds"] for line in lines if line["device"] == word * 3000] == list(range(60))


@pytest.mark.parametrize("hide", [False, True])
def test_it_names_nobody(films, tmp_path, hide):
    run(films, tmp_path / "out", hide=hide)
    text = (tmp_path / "out" / "audit.jsonl").read_text()
    assert "ustermann" not in text and ".dcm" not in text and str(tmp_path) not in text


def test_a_film_that_cannot_be_audited_has_no_mask_and_no_line(films, tmp_path, monkeypatch, capsys):
    def full(self, *args):
        raise OutputError("The disk is full.")

    monkeypatch.setattr(AuditFile, "append", full)
    assert run(films, tmp_path / "out")[0] == 3
    assert lines_of(tmp_path / "out") == [] and not list((tmp_path / "out").rglob("*_lungs*"))
    assert "The report is not complete, and the run ends here. The disk is full." in capsys.readouterr().err


def test_it_is_no_film(films, tmp_path):
    run(films, tmp_path / "out")
    assert film_datalist(tmp_path / "out").items == []
