"""With pseudonyms, no output but their table holds a film's own name."""

import csv
import gzip
import hashlib
import json
import logging
import stat

import pytest

for package in ("ignite", "nibabel", "pydicom", "PIL", "matplotlib"):
    pytest.importorskip(package)

from monai_diffeo.errors import ConfigError  # noqa: E402
from monai_diffeo.radiograph.datalist import film_datalist  # noqa: E402
from monai_diffeo.radiograph.mask_writer import MaskNames  # noqa: E402
from monai_diffeo.radiograph.pseudonyms import pseudonyms  # noqa: E402
from monai_diffeo.report import FilmReporter  # noqa: E402
from monai_diffeo.report.run_folder import LOCK_NAME  # noqa: E402
from tests.report.runs import folder_of_films, lines_of, result_of, run  # noqa: E402

NAMES = ("Mustermann_Max/mustermann_a.png", "mustermann_b.dcm", "mustermann_bad.Mustermann", "mustermann_c.png")


@pytest.fixture
def films(tmp_path):
    folder = folder_of_films(tmp_path / "films", *NAMES)
    (folder / "mustermann_copy.png").write_bytes((folder / "mustermann_c.png").read_bytes())
    return folder


def table_of(output):
    with open(output / "pseudonyms.csv", newline="") as file:
        return {row["input"]: row["pseudonym"] for row in csv.DictReader(file)}


def holds_a_name(path):
    content = path.read_bytes()
    content += gzip.decompress(content) if path.suffix == ".gz" else b""
    return b"mustermann" in content.lower() or "mustermann" in path.name.lower()


def test_names_are_in_the_table_alone(films, tmp_path, capsys, caplog):
    during = []
    with caplog.at_level(logging.DEBUG):
        look = lambda name: during.append({*(tmp_path / "out").rglob("*")})  # noqa: E731
        assert run(films, tmp_path / "out", hide=True, kind=FilmReporter, each=look)[0] == 3
    table, outputs = table_of(tmp_path / "out"), [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert tmp_path / "out" / "pseudonyms.csv" in during[0]  # before the first output
    assert stat.S_IMODE((tmp_path / "out" / "pseudonyms.csv").stat().st_mode) == 0o600
    assert [path.name for path in outputs if holds_a_name(path)] == ["pseudonyms.csv"]
    assert "mustermann" not in (caplog.text + "".join(capsys.readouterr())).lower()
    short = {name: hashlib.sha256((films / name).read_bytes()).hexdigest()[:16] for name in (*NAMES, "mustermann_copy.png")}
    assert table == {**short, "mustermann_copy.png": f"{short['mustermann_c.png']}-2"}
    lines = {line["input"]: line for line in lines_of(tmp_path / "out")[:-1]}
    assert set(lines) == set(table.values()) and lines[table["mustermann_bad.Mustermann"]]["error"] == "UnsupportedFile"
    assert lines[table["mustermann_b.dcm"]]["mask"] == f"{table['mustermann_b.dcm']}_lungs.nii.gz"
    assert (
        lines[table["Mustermann_Max/mustermann_a.png"]]["figure"]
        == f"{table['Mustermann_Max/mustermann_a.png']}_lungs_report.png"
    )
    assert len(outputs) == 4 + 4 * 2


def test_the_lock_of_a_run_under_way_holds_no_name_and_a_resumed_run_keeps_its_lines(films, tmp_path):
    locks = []
    read = lambda name: locks.append((tmp_path / "out" / LOCK_NAME).read_text())  # noqa: E731
    run(films, tmp_path / "out", hide=True)
    before = result_of(tmp_path / "out")
    assert run(films, tmp_path / "out", hide=True, resume=True, each=read) == (3, [])
    assert result_of(tmp_path / "out") == before
    next((tmp_path / "out").glob("*_lungs.nii.gz")).unlink()
    assert run(films, tmp_path / "out", hide=True, resume=True, each=read) == (3, ["mustermann_b.dcm"])
    assert result_of(tmp_path / "out") == before and "pseudonyms.csv" in locks[0] and "mustermann" not in locks[0].lower()


def test_an_ordinary_run_removes_the_table_and_no_run_takes_it_for_a_film(films, tmp_path):
    run(films, tmp_path / "out", hide=True)
    assert film_datalist(tmp_path / "out").items == []
    run(films, tmp_path / "out")
    assert not (tmp_path / "out" / "pseudonyms.csv").exists()
    assert "pseudonyms.csv" in lines_of(tmp_path / "out")[-1]["removed"]
    (films / "pseudonyms.csv").write_text("pseudonym,input\n")  # of somebody else
    (films / "report.jsonl").write_text("a report of somebody else\n")
    assert str(films / "pseudonyms.csv") in film_datalist(films).paths


def test_names_that_are_there_already_and_tracebacks_are_refused(films, tmp_path):
    run(films, tmp_path / "out")
    before = result_of(tmp_path / "out")
    with pytest.raises(ConfigError, match="Give --output_dir another folder"):
        run(films, tmp_path / "out", hide=True)
    (tmp_path / "out" / LOCK_NAME).unlink()
    assert result_of(tmp_path / "out") == before
    with pytest.raises(ConfigError, match="--debug true quotes names"):
        run(films, tmp_path / "new", hide=True, debug="true")


def test_films_that_cannot_be_read_are_counted_and_no_mask_replaces_a_film(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    missing = [str(tmp_path / name) for name in ("gone.png", "lost.png")]
    names = pseudonyms([str(tmp_path / "a.png"), *missing])
    short = hashlib.sha256(b"a").hexdigest()[:16]
    assert list(names.values()) == [short, "unreadable", "unreadable-2"]
    taken = str(tmp_path / f"{short}_lungs.png")
    masks = MaskNames({**names, taken: "x"}, tmp_path, tmp_path).paths
    assert masks[tmp_path / "a.png"] is None and masks[tmp_path / "gone.png"] == tmp_path / "unreadable_lungs.png"


def test_a_name_in_any_encoding_comes_back(tmp_path):
    name = b"M\xfcller, J.png".decode("utf-8", "surrogateescape")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / name).write_bytes(b"no film")
    run(tmp_path / "films", tmp_path / "out", hide=True)
    with open(tmp_path / "out" / "pseudonyms.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert list(csv.reader(file))[1][1] == name
    assert json.loads((tmp_path / "out" / "report.jsonl").read_text().splitlines()[0])["error"]
