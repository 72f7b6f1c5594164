"""`monai-diffeo watch` on a real Orthanc on loopback, and on servers that are none."""

import base64
import http.server
import json
import signal
import threading
import urllib.request
from contextlib import contextmanager

import pytest

for package in ("dicomweb_client", "highdicom", "ignite", "nibabel", "pydicom", "skimage"):
    pytest.importorskip(package)

from monai_diffeo.watch import Journal, Orthanc  # noqa: E402
from tests.bundles.command import lines_of  # noqa: E402
from tests.cli.killed import start  # noqa: E402
from tests.dicom_output.films import film  # noqa: E402
from tests.dicom_output.test_archive import archive, needs_archive  # noqa: E402, F401

WORDS = ("watch", "--once", "--interval", "0.2", "--enabled", "false", "--orthanc")


def ask(address, path, content=None):
    with urllib.request.urlopen(urllib.request.Request(address + path, content), timeout=60) as answer:
        return json.load(answer)


def kinds(address):
    """Number of instances by modality."""
    tags = [ask(address, f"/instances/{id}/simplified-tags") for id in ask(address, "/instances")]
    found = [tag["Modality"] for tag in tags]
    return {kind: found.count(kind) for kind in sorted(set(found))}


@needs_archive
def test_films_of_an_archive_are_done_once_whatever_happens(archive, tmp_path):  # noqa: F811
    address, _ = archive
    ask(address, "/instances", film(tmp_path / "one.dcm").read_bytes())
    ask(address, "/instances", film(tmp_path / "hand.dcm", BodyPartExamined="HAND").read_bytes())
    words = (*WORDS, address, "--output_dir", str(tmp_path / "out"))
    assert start(words, kill=("monai_diffeo.watch.Orthanc._ask", "stored")) == -signal.SIGKILL
    assert kinds(address) == {"CR": 2, "SEG": 1}  # the first result is there
    left = [path.stat().st_mode & 0o777 for path in (tmp_path / "out" / ".films").iterdir()]
    assert left == [0o600] and (tmp_path / "out" / ".films").stat().st_mode & 0o777 == 0o700
    assert start(words) == 0 and not [*(tmp_path / "out" / ".films").iterdir()]
    once = {"CR": 2, "OT": 1, "SEG": 1, "SR": 1}
    assert kinds(address) == once
    lines, _ = lines_of(tmp_path / "out")
    assert len(lines) == 2 and sum("another body part" in line["notes"] for line in lines.values()) == 1
    told = (tmp_path / "out" / "report.jsonl").read_text()
    assert start((*WORDS, address, "--output_dir", str(tmp_path / "new"))) == 0 and kinds(address) == once  # its record is lost
    ask(address, "/instances", film(tmp_path / "two.dcm").read_bytes())
    assert start(words) == 0 and kinds(address) == {"CR": 3, "OT": 2, "SEG": 2, "SR": 2}
    assert len(lines_of(tmp_path / "out")[0]) == 3  # results are no films
    assert (tmp_path / "out" / "report.jsonl").read_text().startswith(told[: told.index('{"schema": 2, "end"')])
    written = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.suffix in (".jsonl", ".log")]
    assert len(written) == 4 and not [text for text in written if "4711" in text or "ller" in text]


@needs_archive
@pytest.mark.parametrize("archive", [{"AuthenticationEnabled": True, "RegisteredUsers": {"me": "s3cret"}}], indirect=True)
def test_a_login_comes_from_the_environment_and_is_written_nowhere(archive, tmp_path):  # noqa: F811
    address, _ = archive
    words = (*WORDS, address, "--output_dir", str(tmp_path / "out"))
    assert start(words, environment={"MONAI_DIFFEO_ORTHANC_LOGIN": "me:wr0ng"}, said=tmp_path / "said") == 1
    *_, last = (tmp_path / "said").read_text().splitlines()
    assert "401" in last and "MONAI_DIFFEO_ORTHANC_LOGIN" in last and "wr0ng" not in last
    assert start(words, environment={"MONAI_DIFFEO_ORTHANC_LOGIN": "me:s3cret"}, said=tmp_path / "said") == 0
    token = base64.b64encode(b"me:s3cret").decode()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "orthanc.json")
    assert b"s3cret" not in written and token.encode() not in written


@contextmanager
def server(answers):
    """A web server; ``answers`` gives status, content and headers for a path. Gives its address and what it was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            length = int(self.headers.get("Content-Length") or 0)
            asked.append((self.command, self.path, self.rfile.read(length), self.headers.get("Authorization")))
            status, content, *more = answers(self.path)
            self.send_response(status)
            for name, value in [("Content-Length", str(len(content))), *more]:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *args):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}", asked
    finally:
        made.shutdown()
        made.server_close()


ID = "6f5df4fc-f7d36ab3-75a68e77-afbe4d52-9d99fb68"
OTHER = ID.replace("6f", "70")


def feed(*changes, last=None):
    """Answers of an Orthanc with these changes, in pages of two, whose films have the content ``film``."""

    def answer(path):
        if path.startswith("/changes"):
            since = int(path.partition("since=")[2].partition("&")[0] or 99)
            page = [c for c in changes if c["Seq"] > since][:2]
            end = changes[-1]["Seq"] if changes else 0
            done = not page or page[-1]["Seq"] == end
            return 200, json.dumps({"Changes": page, "Done": done, "Last": last if "last" in path and last else end}).encode()
        return 200, b"1.2.840.10008.5.1.4.1.1.1" if "metadata" in path else b"film" if path.endswith("file") else b"{}"

    return answer


def change(seq, id=ID, kind="NewInstance"):
    return {"Seq": seq, "ID": id, "ChangeType": kind}


def watching(tmp_path, address, **options):
    journal = Journal(tmp_path / ".watch.jsonl", address)
    return Orthanc(address, tmp_path / "films", journal, **options), journal


def test_the_feed_is_read_page_by_page_and_from_where_it_was_left(tmp_path):
    changes = [change(1), change(2, kind="NewSeries"), change(3, "../../../../tmp/x"), change(7, OTHER)]
    with server(feed(*changes)) as (address, asked):
        orthanc, journal = watching(tmp_path, address)
        for found in orthanc.look():
            assert found.path.read_bytes() == b"film" and found.path.parent == tmp_path / "films"
            orthanc.finish(found, {"status": "failed"})
            if found.name == ID:
                break
        assert journal.words[""]["since"] == 1
        again, journal = watching(tmp_path, address)
        assert [(found.name, found.stamp) for found in again.look()] == [(OTHER, [7])] and journal.words[""]["since"] == 7
        assert not [*again.look()] and not [*(tmp_path / "films").iterdir()]
        assert not [path for _, path, *_ in asked if "tmp" in path]


def test_a_feed_that_began_anew_is_read_from_its_beginning_and_only_new_leaves_out_what_is_there(tmp_path):
    with server(feed(change(1))) as (address, _):
        orthanc, journal = watching(tmp_path, address, only_new=True)
        assert not [*orthanc.look()] and journal.words[""]["since"] == 1
        journal.put("", source=address, since=50)
        assert [found.name for found in orthanc.look()] == [ID]


def test_a_film_that_was_deleted_is_passed_and_one_that_cannot_be_had_is_a_film_without_a_file(tmp_path):
    for status, found in ((404, []), (500, [ID])):
        with server(lambda path, status=status: feed(change(1))(path) if "changes" in path else (status, b"")) as (address, _):
            orthanc, _ = watching(tmp_path / str(status), address)
            assert [film.name for film in orthanc.look() if not film.path.exists()] == found
    with server(lambda path: feed(change(1))(path) if "changes" in path else (503, b"")) as (address, _):
        with pytest.raises(OSError, match="503"):
            [*watching(tmp_path / "busy", address)[0].look()]


@pytest.mark.parametrize(
    "status, refused",
    [(200, ""), (400, "the archive refused a result: HTTP 400"), (500, "the archive refused a result: HTTP 500"), (507, None)],
)
def test_a_result_that_is_refused_has_a_reason_and_a_busy_archive_is_asked_again(tmp_path, status, refused):
    (tmp_path / "a.seg.dcm").write_bytes(b"results")
    line = {"dicom": ["a.seg.dcm"], "notes": "extreme values were left out"}
    with server(lambda path: (status, b"{}") if path == "/instances" else feed(change(3))(path)) as (address, asked):
        orthanc, journal = watching(tmp_path, address, login="a:b")
        (found,) = orthanc.look()
        journal.put("", source=address, since=0)
        if refused is None:
            with pytest.raises(OSError, match="507"):
                orthanc.finish(found, line)
        else:
            assert orthanc.finish(found, line) == refused
        if status == 500:
            with pytest.raises(OSError, match="500"):
                orthanc.finish(found, line, again=True)
            asked.pop()
        assert journal.words[""]["since"] == (0 if refused is None else 3)
        assert asked[-1] == ("POST", "/instances", b"results", "Basic YTpi")
        for notes in ("header names another body part", "header names a lateral view", "x; header names another view"):
            assert orthanc.finish(found, {**line, "notes": notes}) == ""
        assert len([1 for command, *_ in asked if command == "POST"]) == 1


def test_a_redirection_is_not_followed_and_no_proxy_is_asked(tmp_path, monkeypatch):
    with server(lambda path: (200, b"{}")) as (elsewhere, asked):
        monkeypatch.setenv("http_proxy", elsewhere)
        with server(lambda path: (302, b"", ("Location", elsewhere + path))) as (address, _):
            with pytest.raises(OSError, match="302"):
                [*watching(tmp_path, address, login="a:b")[0].look()]
        assert asked == []


@pytest.mark.parametrize("content", [b"<html>", b"{}"])
def test_what_is_no_orthanc_is_an_error_of_its_kind(tmp_path, content):
    with server(lambda path: (200, content)) as (address, _), pytest.raises((ValueError, LookupError)):
        [*watching(tmp_path, address)[0].look()]
