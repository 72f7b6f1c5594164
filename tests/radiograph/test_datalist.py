"""Everything that is given is a film, or is said: links, foreign files among results, odd names."""

import json
import logging
import os

import pytest

from monai_diffeo.radiograph.datalist import FilmList, film_datalist
from monai_diffeo.radiograph.outputs import recorded_outputs
from monai_diffeo.radiograph.paths import list_films


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def report(folder, *records):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"schema": 2, "input": film, "mask": mask, "figure": figure}) for film, mask, figure in records]
    (folder / "report.jsonl").write_text("\n".join(lines) + "\n")


def listed(found: FilmList):
    return [os.path.relpath(path, found.root) for path in found.paths]


# ---- own outputs ---------------------------------------------------------------------------------------------------


def test_only_what_a_report_records_is_left_out_of_a_folder_of_results(tmp_path, caplog):
    put(tmp_path, "a.png", "out/ward/a_lungs.png", "out/ward/a_lungs_report.png", "out/foreign.dcm", "out/ward/b_lungs.png")
    report(tmp_path / "out", ("ward/a.png", "ward/a_lungs.png", "ward/a_lungs_report.png"), ("ward/b.png", None, None))
    for exclude in ([], [tmp_path / "out"]):
        found = film_datalist(tmp_path, exclude)
        assert listed(found) == ["a.png", "out/foreign.dcm", "out/ward/b_lungs.png"] and found.root == tmp_path
    assert found.items[0] == {"image": str(tmp_path / "a.png")} and "3 files that earlier runs wrote" in caplog.text
    caplog.clear()
    assert listed(film_datalist(tmp_path / "out")) == ["foreign.dcm", "ward/b_lungs.png"]  # the root's own report


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"input": "a.png", "mask": "a_lungs.png"}', "\x00", "no json"])
def test_a_report_that_is_not_ours_is_a_film_like_any_other_file(tmp_path, content):
    put(tmp_path, "sub/a.png", "sub/a_lungs.png", "sub/report.jsonl")
    (tmp_path / "sub" / "report.jsonl").write_text(content)
    assert listed(film_datalist(tmp_path)) == ["sub/a.png", "sub/a_lungs.png", "sub/report.jsonl"]


@pytest.mark.parametrize(
    "hidden", ["film.dcm", "a.png", "../a_lungs.png", "b/a_lungs.png", "b_lungs.png", "a_lungs.dcm", "a_x"]
)
def test_no_report_hides_a_file_that_its_run_would_not_have_named(tmp_path, hidden):
    put(tmp_path, f"sub/{hidden}", "sub/a_lungs.png")
    report(tmp_path / "sub", ("a.png", hidden, "a_lungs.png"))
    assert str((tmp_path / "sub" / hidden).resolve()) in [os.path.realpath(path) for path in film_datalist(tmp_path).paths]
    assert recorded_outputs(tmp_path / "sub" / "report.jsonl") == {"a.png": [tmp_path / "sub" / "a_lungs.png"]}


def test_records_name_existing_files_and_one_file_a_class(tmp_path):
    put(tmp_path, "a_lungs_0.png", "a_lungs_1.png")
    report(
        tmp_path, ("a.png", ["a_lungs_0.png", "a_lungs_1.png", "a_lungs_2.png"], "a_lungs_report.png"), ("b.png", None, None)
    )
    with open(tmp_path / "report.jsonl", "a") as file:
        file.write('{"schema": 2, "input": "c.png", "mask": "c_lu')  # a crash
    found = recorded_outputs(tmp_path / "report.jsonl")
    assert found == {"a.png": [tmp_path / "a_lungs_0.png", tmp_path / "a_lungs_1.png"], "b.png": []}
    assert recorded_outputs(tmp_path / "absent") == {}
    report(
        tmp_path / "sub",
        ("../a.png", "../a_lungs_0.png", None),
        (str(tmp_path / "a.png"), str(tmp_path / "a_lungs_1.png"), None),
    )
    assert not any(recorded_outputs(tmp_path / "sub" / "report.jsonl").values())


# ---- links, hidden and special files -------------------------------------------------------------------------------


def test_linked_folders_are_entered_and_circles_are_not(tmp_path):
    put(tmp_path, "films/a.dcm", "films/deep/b.dcm", "elsewhere/c.dcm", "elsewhere/deeper/d.dcm")
    films = tmp_path / "films"
    (films / "link").symlink_to(tmp_path / "elsewhere")
    (films / "again").symlink_to(tmp_path / "elsewhere" / "deeper")
    (films / "deep" / "up").symlink_to(films)
    (tmp_path / "elsewhere" / "deeper" / "self").symlink_to(".")
    (films / "loop").symlink_to("loop")
    names = ["a.dcm", "again/d.dcm", "deep/b.dcm", "link/c.dcm", "link/deeper/d.dcm", "loop"]
    assert listed(film_datalist(films)) == names
    (tmp_path / "door").symlink_to(films)
    assert listed(film_datalist(tmp_path / "door")) == names


def test_hidden_files_are_counted_aloud(tmp_path, caplog):
    put(tmp_path, "a.dcm", ".b.dcm", ".git/c.dcm", "sub/.d")
    with caplog.at_level(logging.WARNING, logger="monai_diffeo"):
        assert list_films(tmp_path) == [tmp_path / "a.dcm"]
    assert "3 hidden files and folders" in caplog.text
    assert list_films(tmp_path / ".git") == [tmp_path / ".git" / "c.dcm"]
    caplog.clear()
    put(tmp_path / "clean", "a.dcm")
    film_datalist(tmp_path / "clean")
    assert not caplog.text


# ---- what was given ------------------------------------------------------------------------------------------------


def test_nothing_given_is_the_packaged_film_and_the_word_none_is_a_folder(tmp_path, monkeypatch):
    pytest.importorskip("data_store")
    assert film_datalist(None).paths[0].endswith(".dcm")
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "None/a.dcm")
    assert listed(film_datalist("None")) == ["a.dcm"]
    put(tmp_path, "one.png", "two.png")
    assert film_datalist(tmp_path / "one.png") == FilmList([{"image": str(tmp_path / "one.png")}], tmp_path)


@pytest.mark.parametrize("given", ["", True, 2024])
def test_what_is_no_path_is_refused(given):
    with pytest.raises(ValueError, match="shell variable"):
        film_datalist(given)


def test_a_missing_folder_and_a_shared_one_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--dataset_dir"):
        film_datalist(tmp_path / "None")
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link"):
        with pytest.raises(ValueError, match="--output_dir"):
            film_datalist(tmp_path, exclude=[folder])
