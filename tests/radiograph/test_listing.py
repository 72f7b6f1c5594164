"""Everything below the given folder is a line, whatever it is, and a fault of the machine gets its true sentence."""

import errno
import os
import socket

import pytest

from monai_diffeo.errors import FilmError
from monai_diffeo.files import sha256_of
from monai_diffeo.radiograph.datalist import film_datalist
from monai_diffeo.radiograph.paths import list_films
from monai_diffeo.radiograph.reader import read_film
from monai_diffeo.report import failure_record

posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def refused(path):
    with pytest.raises(FilmError) as error:
        read_film(path)
    assert str(path) not in error.value.sentence
    return error.value.code


@pytest.mark.parametrize("kind", [PermissionError, FileNotFoundError])
def test_a_sub_folder_that_cannot_be_read_is_a_line(tmp_path, monkeypatch, kind):
    put(tmp_path, "a.dcm", "shut/b.dcm", "open/deep/shut/c.dcm", "open/d.dcm")
    listdir = os.listdir

    def shut(folder):  # root may read everything, so permissions do not show it
        if os.path.basename(folder) == "shut":
            raise kind("DOE^JANE")
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", shut)
    found = film_datalist(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in found.paths] == ["a.dcm", "open/d.dcm", "open/deep/shut", "shut"]
    assert refused(tmp_path / "shut") == "FileNotReadable"
    with pytest.raises(FilmError, match="FileNotReadable"):
        list_films(tmp_path / "shut")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_sub_folder_without_permission_is_a_line(tmp_path):
    put(tmp_path, "a.dcm", "shut/b.dcm", "blind/c.dcm")
    for folder, mode in (("shut", 0), ("blind", 0o400)):
        (tmp_path / folder).chmod(mode)
    try:
        names = [os.path.relpath(path, tmp_path) for path in list_films(tmp_path)]
        assert names == ["a.dcm", "blind/c.dcm", "shut"] and refused(tmp_path / "blind/c.dcm") == "FileNotReadable"
    finally:
        for folder in ("shut", "blind"):
            (tmp_path / folder).chmod(0o700)


@posix
def test_pipes_sockets_devices_and_broken_links_are_lines_that_do_not_hang(tmp_path, monkeypatch, caplog):
    put(tmp_path, "a.dcm")
    monkeypatch.chdir(tmp_path)  # a socket's path may be 108 bytes long
    os.mkfifo("pipe.dcm")
    os.mkfifo("report.jsonl")  # looked into for earlier outputs
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket.dcm")
    os.symlink("/dev/zero", "zero.dcm")
    os.symlink("absent", "link.dcm")
    os.symlink("loop.dcm", "loop.dcm")
    found = film_datalist(tmp_path)
    special = ["link.dcm", "loop.dcm", "pipe.dcm", "report.jsonl", "socket.dcm", "zero.dcm"]
    assert [os.path.basename(path) for path in found.paths] == ["a.dcm", *special] and not caplog.text
    for name in special:
        assert refused(name) == "FileNotReadable"
        with pytest.raises(OSError):
            sha256_of(name)
    assert list_films("pipe.dcm") == list_films("./pipe.dcm") and film_datalist("pipe.dcm").paths == ["pipe.dcm"]


@posix
def test_odd_names_are_films_and_fields_of_a_report(tmp_path):
    names = [os.fsdecode(b"\xff\xfe\x80"), "two\nlines", "tab\t", "n" * 255, "-rf", "a b", "$x", "%x", "ü"]
    put(tmp_path, *names)
    assert sorted(path.name for path in list_films(tmp_path)) == sorted(names)
    assert {failure_record(name, ValueError())["input"] for name in names} == set(names)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "cannot be written"),
        (errno.EIO, "reported an error"),
        (errno.ENAMETOOLONG, "name of the film is so long"),
        (errno.EACCES, "permissions"),
        (errno.EPERM, "permissions"),
        (errno.ENOENT, "was not there"),
        (errno.ENOMEM, "not enough memory"),
        (errno.EMFILE, "open files"),
        (errno.EXDEV, "Check the disk"),
    ],
)
def test_a_fault_of_the_machine_has_its_true_sentence(number, words):
    record = failure_record("a.dcm", OSError(number, "DOE^JANE", "/home/jane"))
    assert words in record["message"] and record["message"].endswith(".") and "JANE" not in record["message"].upper()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: x")])
def test_memory_that_ran_out_is_said(error):
    assert "not enough memory" in failure_record("a.dcm", error)["message"]


def test_a_name_that_is_too_long_for_its_mask_is_said_when_the_mask_is_written(tmp_path):
    import numpy as np

    from monai_diffeo.radiograph.mask_writer import mask_path, write_mask

    pytest.importorskip("PIL")
    film = tmp_path / ("n" * 251 + ".png")
    put(tmp_path, film.name)
    with pytest.raises(OSError) as error:
        write_mask(np.eye(4), "png", np.eye(4), mask_path(film, tmp_path, tmp_path / "out"))
    assert "shorter name" in failure_record(film.name, error.value)["message"]
