import json
import multiprocessing
import os
import signal
import sys

import pytest

from monai_diffeo.report import FolderInUseError, RunFolder, run_folder
from monai_diffeo.report.run_folder import LOCK_NAME


def earlier_run(folder, outputs):
    """What a run leaves: files, and a report of one line an input."""
    lines = []
    for name, files in outputs.items():
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text("mask")
        lines.append({"schema": 2, "input": name, "status": "canonicalized", "mask": files[0], "figure": None})
        if len(files) > 1:
            lines[-1]["figure"] = files[1]
    (folder / "report.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"report.jsonl", LOCK_NAME}


def test_outputs_that_this_run_does_not_write_again_are_removed_and_named(tmp_path):
    outputs = {"a.png": ["a_lungs.png", "a_lungs_report.png"], "c.png": ["c_lungs.png", "c_lungs_report.png"]}
    earlier_run(tmp_path, {**outputs, "ward/b.png": ["ward/b_lungs.png"]})
    (tmp_path / "mine.png").write_text("no output of ours")
    run = RunFolder(tmp_path)
    assert len(names(tmp_path)) == 6  # nothing goes before the run knows
    run.remove("c.png")
    assert run.removed == ["c_lungs.png", "c_lungs_report.png"] and len(names(tmp_path)) == 4
    run.wrote([tmp_path / "a_lungs.png"])
    run.remove()
    run.release()
    assert names(tmp_path) == {"a_lungs.png", "mine.png"}
    assert run.removed == ["c_lungs.png", "c_lungs_report.png", "a_lungs_report.png", "ward/b_lungs.png"]
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_mask_that_another_film_of_this_run_wrote_stays(tmp_path):
    earlier_run(tmp_path, {"b.dcm": ["b_lungs.png"]})
    run = RunFolder(tmp_path)
    run.wrote([tmp_path / "sub" / ".." / "b_lungs.png"])
    run.remove("b.dcm")
    run.remove()
    assert names(tmp_path) == {"b_lungs.png"} and run.removed == []


def test_nothing_outside_the_folder_is_ever_removed(tmp_path):
    folder, outside = tmp_path / "out", tmp_path / "precious.png"
    folder.mkdir()
    outside.write_text("x")
    lines = [{"schema": 2, "input": "a", "mask": path} for path in ("../precious.png", str(outside))]
    (folder / "report.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    RunFolder(folder).remove()
    assert outside.exists()


def test_a_second_run_into_a_folder_in_use_is_refused_and_changes_nothing(tmp_path):
    earlier_run(tmp_path, {"a.png": ["a_lungs.png"]})
    before = (tmp_path / "report.jsonl").read_bytes()
    run = RunFolder(tmp_path)
    with pytest.raises(FolderInUseError, match="another run writes into it. Give --output_dir another folder"):
        RunFolder(tmp_path)
    assert (tmp_path / "report.jsonl").read_bytes() == before and names(tmp_path) == {"a_lungs.png"}
    run.release()
    RunFolder(tmp_path).release()


def in_a_process(work):
    """Run ``work`` in a process of its own, which then kills itself."""

    def killed():
        work()
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")
def test_a_killed_run_frees_the_folder_and_its_predecessors_outputs_are_not_forgotten(tmp_path):
    earlier_run(tmp_path, {"a.png": ["a_lungs.png"], "b.png": ["b_lungs.png"]})

    def work():
        run = RunFolder(tmp_path)  # noqa: F841 (holds the lock)
        earlier_run(tmp_path, {"c.png": ["c_lungs.png"]})  # the new report, cut short

    in_a_process(work)
    run = RunFolder(tmp_path)
    run.wrote([tmp_path / "b_lungs.png"])
    run.remove()
    run.release()
    assert names(tmp_path) == {"b_lungs.png"} and sorted(run.removed) == ["a_lungs.png", "c_lungs.png"]


def test_where_there_are_no_file_locks_the_lock_file_itself_is_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "fcntl", None)
    run = RunFolder(tmp_path)
    assert f'"pid": {os.getpid()}' in (tmp_path / LOCK_NAME).read_text()
    with pytest.raises(FolderInUseError, match="if it was killed, delete .report.lock"):
        RunFolder(tmp_path)
    run.release()
    RunFolder(tmp_path).release()
