"""The page and the table of a run: complete, on their own, and safe whatever a film is called."""

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import unquote_to_bytes

import pytest

for package in ("ignite", "nibabel", "pydicom", "PIL", "matplotlib"):
    pytest.importorskip(package)

from click.testing import CliRunner  # noqa: E402
from PIL import Image  # noqa: E402

from monai_diffeo.cli import program  # noqa: E402
from monai_diffeo.errors import ConfigError  # noqa: E402
from monai_diffeo.files import write_atomically  # noqa: E402
from monai_diffeo.radiograph.datalist import film_datalist  # noqa: E402
from monai_diffeo.report import FilmReporter  # noqa: E402
from monai_diffeo.report.page import report_page  # noqa: E402
from monai_diffeo.report.strip_plot import strip_plot  # noqa: E402
from tests.report.runs import folder_of_films, lines_of, run  # noqa: E402

EVIL = "<img src=x onerror=alert(1)>.png"
LATIN = b"M\xfcller.png".decode("utf-8", "surrogateescape")
NAMES = (EVIL, "=1+2.png", "a#b?c%20&d.png", "gpj\u202e.png", "two\nlines.png", "\"quoted'.png", LATIN, "javascript:x.png")


class Drawn(FilmReporter):
    """A picture with a red first panel."""

    def draw(self, path, *args):
        stream = io.BytesIO()
        picture = Image.new("RGB", (1500, 1000))
        picture.paste("red", (34, 112, 494, 496))
        picture.save(stream, "PNG")
        write_atomically(path, stream.getvalue())


class Seen(HTMLParser):
    """Tags with their attributes, and the text of each cell."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.cells, self.open = [], [], False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "td":
            self.cells.append("")
            self.open = True

    def handle_endtag(self, tag):
        self.open = self.open and tag != "td"

    def handle_data(self, data):
        if self.open:
            self.cells[-1] += data

    def all(self, tag, name):
        return [attributes[name] for found, attributes in self.tags if found == tag and name in attributes]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    films = folder_of_films(folder / "films", *NAMES, "bad.png")
    assert run(films, folder / "out", kind=Drawn)[0] == 3
    report_page(folder / "out")
    return folder / "out"


def test_every_film_has_a_row_and_a_name_is_only_ever_text(output):
    seen = Seen(output / "report.html")
    rows = [attributes for tag, attributes in seen.tags if tag == "tr" and "id" in attributes]
    assert [row["id"] for row in rows] == [f"f{i}" for i in range(9)]
    assert sorted(row["data-decision"] for row in rows) == ["no result"] + ["not judged"] * 8
    assert seen.all("button", "value") == ["", "ok", "not judged", "review", "no result"]
    assert "Not judged 8" in (output / "report.html").read_text(encoding="utf-8")
    told = {name.encode("unicode_escape").decode() if not name.isprintable() else name for name in (*NAMES, "bad.png")}
    assert set(seen.cells[1::10]) == told and len(seen.cells) == 9 * 10
    assert len(seen.all("img", "src")) == 8 and [a for _, a in seen.tags if any(name.startswith("on") for name in a)] == []
    assert [tag for tag, _ in seen.tags].count("script") == 1


def test_it_loads_nothing_and_runs_its_own_script_alone(output):
    page, seen = (output / "report.html").read_text(encoding="utf-8"), Seen(output / "report.html")
    assert (
        re.findall(r"https?:|//[a-z]|@import|url\(", page) == [] and seen.all("link", "href") == seen.all("script", "src") == []
    )
    assert all(source.startswith("data:image/") for source in seen.all("img", "src"))
    script = re.search(r"<script>(.*)</script>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [content for content in seen.all("meta", "content") if "default-src" in content]
    assert f"default-src 'none'; img-src data: 'self' file:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" == policy


def test_the_script_runs_in_a_browser_from_the_file(output):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("chromium is not installed")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", (output / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    pressed = re.findall(
        r'<button value="([^"]*)"[^>]*aria-pressed="(\w+)"', done.stdout
    )  # of five buttons four get it by script
    assert pressed == [("", "true"), ("ok", "false"), ("not judged", "false"), ("review", "false"), ("no result", "false")]
    assert "Content Security Policy" not in done.stderr


def test_the_pictures_are_those_of_the_films_in_the_page_or_beside_it_wherever_the_folder_is(output, tmp_path):
    seen = Seen(output / "report.html")
    for source in seen.all("img", "src"):
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
            red, black = (picture.convert("RGB").getpixel((x, 250)) for x in (200, 600))
            assert picture.size == (1200, 800) and min(red[0], 255 - red[1], 255 - black[0]) > 200
    moved = tmp_path / "elsewhere"
    shutil.copytree(output, moved)
    report_page(moved, embed=False)
    sources = Seen(moved / "report.html").all("img", "src")
    files = {os.fsdecode(unquote_to_bytes(source)) for source in sources}
    figures = {f"./{line['figure']}" for line in lines_of(moved) if line.get("figure")}
    assert files == figures and all((moved / name).is_file() for name in files) and all(":" not in s for s in sources)
    assert seen.all("a", "href")[-8:] == sources  # a click opens the whole picture, also without the script


def test_the_table_has_all_fields_and_no_formula(output):
    with open(output / "report.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    records = lines_of(output)[:-1]
    assert [row["status"] for row in table] == [record["status"] for record in records] and len(table) == 9
    for row, record in zip(table, records):
        assert row["decision"] == ("no result" if record["status"] == "failed" else "not judged")
        assert row["sha256"] == record["sha256"] and row["versions.monai"] == record["versions"]["monai"]
        if "areas" in record:
            assert float(row["areas.total"]) == record["areas"]["total"] and row["spacing"] == ""
        assert row["input"].removeprefix("'") == record["input"].encode("utf-8", "backslashreplace").decode()
    assert sum(row["input"] == "'=1+2.png" for row in table) == 1


def test_pseudonyms_stay_pseudonyms(tmp_path):
    films = folder_of_films(tmp_path / "films", "mustermann_a.png", "mustermann_bad.png")
    run(films, tmp_path / "out", hide=True, kind=Drawn)
    for path in report_page(tmp_path / "out", embed=False):
        assert b"mustermann" not in path.read_bytes().lower() and b"_lungs" in path.read_bytes()


def test_a_new_run_removes_the_page_of_the_old_one_and_no_page_of_others(tmp_path):
    films, out = folder_of_films(tmp_path / "films", "a.png"), tmp_path / "out"
    run(films, out)
    report_page(out)
    assert film_datalist(out).items == []
    run(films, out)
    assert lines_of(out)[-1]["removed"] == ["report.csv", "report.html"] and not (out / "report.html").exists()
    (out / "report.html").write_text("<!DOCTYPE html>mine")
    (out / "report.csv").write_text("input,mine\n")
    run(films, out)
    assert lines_of(out)[-1]["removed"] == [] and (out / "report.html").exists() and (out / "report.csv").exists()


def test_a_run_that_did_not_end_is_named_and_no_file_but_a_picture_of_the_run_is_shown(tmp_path):
    run(folder_of_films(tmp_path / "films", "a.png"), tmp_path / "out", kind=Drawn)
    assert "not come to its end" not in report_page(tmp_path / "out")[0].read_text()
    (line, _), report = lines_of(tmp_path / "out"), tmp_path / "out" / "report.jsonl"
    (tmp_path / "secret.png").write_bytes((tmp_path / "out" / line["figure"]).read_bytes())
    for figure in ("../secret.png", str(tmp_path / "secret.png"), "audit.jsonl", "", None):
        report.write_text(json.dumps({**line, "figure": figure}) + "\n")
        page = report_page(tmp_path / "out")[0]
        assert "not come to its end" in page.read_text() and Seen(page).all("img", "src") == []


def test_the_command_writes_both_and_says_where(output, tmp_path):
    shutil.copytree(output, tmp_path / "out")
    (tmp_path / "out" / "report.html").unlink()
    done = CliRunner().invoke(program, ["report", str(tmp_path / "out"), "--embed_pictures", "false"])
    assert done.exit_code == 0 and done.stdout.split() == [
        str(tmp_path / "out" / name) for name in ("report.html", "report.csv")
    ]
    assert all(source.startswith("./") for source in Seen(tmp_path / "out" / "report.html").all("img", "src"))
    for folder in (tmp_path / "nothing", tmp_path):
        done = CliRunner().invoke(program, ["report", str(folder)])
        assert done.exit_code == 1 and done.stderr.startswith("Error: report: expected a report.jsonl with films")
    with pytest.raises(ConfigError):
        report_page(tmp_path)


def test_a_dot_lies_where_its_value_is_and_leads_to_its_film():
    svg = strip_plot(
        "Area", "share", {"right": [0.0, None, 0.2], "left": [0.1, 0.05, 0.4]}, ["#1", "#2", "#3"], "abc", "{:.0%}"
    )
    dots = re.findall(
        r'<a href="#f(\d)"><title>(\w: \w+ \d+%)</title><circle cx="([\d.]+)" cy="([\d.]+)" r="4" fill="#(\d)"', svg
    )
    ticks = {text: float(x) for x, text in re.findall(r'<text x="([\d.]+)" y="\d+" text-anchor="middle">(\d+)%', svg)}
    assert {"0", "10", "40"} <= set(ticks) and ticks["40"] - ticks["20"] == pytest.approx(ticks["20"] - ticks["0"], abs=0.2)
    assert [dot[1] for dot in dots] == ["a: right 0%", "c: right 20%", "a: left 10%", "b: left 5%", "c: left 40%"]
    assert [dot[0] for dot in dots] == ["0", "2", "0", "1", "2"] and all(dot[4] == str(int(dot[0]) + 1) for dot in dots)
    assert [float(d[2]) for d in dots if d[1][-3:] != " 5%"] == [
        ticks[d[1].split()[-1][:-1]] for d in dots if d[1][-3:] != " 5%"
    ]
    assert all((float(dot[3]) < 44) == ("right" in dot[1]) for dot in dots)
    assert strip_plot("Area", "share", {"total": [None, None]}, ["#1"] * 2, "ab", "{}") == ""
    assert "<circle" in strip_plot("Area", "share", {"total": [0.0]}, ["#1"], "a", "{}")  # one value, no span
