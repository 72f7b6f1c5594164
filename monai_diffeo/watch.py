"""Films that come while a program waits, into a folder or into an Orthanc, and which of them are done."""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError

from monai_diffeo.errors import ConfigError
from monai_diffeo.files import write_atomically
from monai_diffeo.radiograph.paths import list_films
from monai_diffeo.report.lines import LineFile, json_line

__all__ = ["Arrival", "Journal", "Orthanc", "WatchedFolder"]

_FILMS = {b"1.2.840.10008.5.1.4.1.1.1", b"1.2.840.10008.5.1.4.1.1.1.1"}  # CR, and DX for presentation; no result is one
_NO_CHEST = re.compile("header names (another body part|(an? [a-z]+|another) view)")
_BUSY = {401, 403, 408, 429, 502, 503, 504, 507}  # nothing is wrong with the film: try again
INNER_ERROR = 500  # it may pass, or come at each try
_HTTP = (urllib.request.HTTPHandler, urllib.request.HTTPSHandler, urllib.request.HTTPErrorProcessor)


class Arrival(NamedTuple):
    """A film that has come: its name, its file, and a stamp that is another one when the film comes again."""

    name: str
    path: Path
    stamp: list[int]


class Journal:
    """The last word on each film, so that a program that was killed goes on where it was; only its owner may read it.

    A word is a line, on disk when :meth:`put` returns. Opening leaves the last words alone, in a new file that is written as a
    whole. The word on ``""`` is about the source; a journal of another source is a ConfigError.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.words: dict[str, dict[str, Any]] = {"": {"film": "", "source": source}}
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            with suppress(ValueError):  # a crash has cut it short
                self.words |= {word["film"]: word for word in [json.loads(line)]}
        if (known := self.words[""]["source"]) != source:
            raise ConfigError(f"Journal: {str(path.parent)!r} has results of {known!r}. Give --output_dir another folder.")
        write_atomically(path, b"".join(map(json_line, self.words.values())), 0o600)
        self._file = LineFile(path)

    def put(self, film: str, **word: Any) -> None:
        self.words[film] = {"film": film, **word}
        self._file.append(json_line(self.words[film]))

    def word(self, film: Arrival) -> dict[str, Any]:
        """The last word on a film as it is now, empty if there is none."""
        word = self.words.get(film.name, {})
        return word if word.get("stamp") == film.stamp else {}


class WatchedFolder:
    """A folder into which films come, with its sub-folders but for that of the results."""

    def __init__(self, folder: Path, output: Path, journal: Journal) -> None:
        self.folder, self.output, self.journal = folder, output, journal
        self._seen: dict[Path, list[int]] = {}

    def look(self) -> Iterator[Arrival]:
        """Films that are not done, the oldest first. One that was not the same at the look before may still be written.
        FilmError if the folder cannot be read."""
        before, self._seen = self._seen, {}
        for path in list_films(self.folder, exclude=[self.output]):
            with suppress(OSError):  # it is gone, or leads nowhere
                self._seen[path] = [os.stat(path).st_size, os.stat(path).st_mtime_ns]
        for path, stamp in sorted(self._seen.items(), key=lambda item: item[1][1]):
            film = Arrival(path.relative_to(self.folder).as_posix(), path, stamp)
            if before.get(path) == stamp and "end" not in self.journal.word(film):
                yield film

    finish = staticmethod(lambda film, line, again: "")  # the results are where they belong


class Orthanc:
    """CR and DX images that come into an Orthanc, by its feed of changes; results are stored there too.

    No request follows a redirection or takes a proxy: films and login reach no other machine than the one of the address.
    Its methods raise OSError or HTTPException if it does not answer or is busy, ValueError or LookupError if it is no Orthanc.
    Into ``folder``, which holds the film that is being segmented, only its owner may look. ``login`` is ``name:password``, or
    empty. ``only_new`` leaves out what is there at the first start.
    """

    def __init__(self, address: str, folder: Path, journal: Journal, login: str = "", only_new: bool = False) -> None:
        self.address, self.folder, self.journal, self.only_new = address, folder, journal, only_new
        self._headers = {"Content-Type": "application/dicom"}
        if login:
            self._headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        self._opener = urllib.request.OpenerDirector()
        for handler in (*_HTTP, urllib.request.HTTPDefaultErrorHandler):
            self._opener.add_handler(handler())
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.iterdir():  # by a process that was killed
            left.unlink()

    def look(self) -> Iterator[Arrival]:
        """Films after the last one that is finished, in the order of the feed, each in a file."""
        place, last = self.journal.words[""].get("since"), json.loads(self._ask("/changes?last"))["Last"]
        if place is None or place > last:  # the first start, or an archive that began anew
            self._keep(place := last if place is None and self.only_new else 0)
        done = False
        while not done:
            page = json.loads(self._ask(f"/changes?since={place}&limit=100"))
            for change in page["Changes"]:
                place, id = change["Seq"], change["ID"]
                if change["ChangeType"] == "NewInstance" and re.fullmatch("[0-9a-f-]{44}", id):
                    film = Arrival(id, self.folder / f"{id}.dcm", [place])
                    try:
                        if self._fetch(film):
                            yield film
                    finally:
                        film.path.unlink(missing_ok=True)
            self._keep(place)
            done = page["Done"]

    def finish(self, film: Arrival, line: Mapping[str, Any], again: bool = False) -> str:
        """Store the DICOM results of a film, and go on in the feed; gives a reason if the archive refuses one.

        What is there already stays. Results of a film whose header names another body part or view are not stored. An inner
        error of the archive is an OSError if the film may be tried ``again``, and a reason otherwise.
        """
        refused = ""
        for name in () if _NO_CHEST.search(line.get("notes") or "") else line.get("dicom", ()):
            try:
                self._ask("/instances", (self.folder.parent / name).read_bytes())
            except HTTPError as error:
                if error.code in _BUSY or (again and error.code == INNER_ERROR):
                    raise
                refused = f"the archive refused a result: HTTP {error.code}"
        self._keep(film.stamp[0])
        return refused

    def _keep(self, place: int) -> None:
        if place != self.journal.words[""].get("since"):
            self.journal.put("", source=self.address, since=place)

    def _fetch(self, film: Arrival) -> bool:
        """Whether an instance is a film; it is a file then, unless the archive could not give it."""
        try:
            if self._ask(f"/instances/{film.name}/metadata/SopClassUid").strip(b"\0 ") not in _FILMS:
                return False
            write_atomically(film.path, self._ask(f"/instances/{film.name}/file"), 0o600)
        except HTTPError as error:
            if error.code in _BUSY:
                raise
            return error.code != 404  # it was deleted
        return True

    def _ask(self, path: str, content: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.address.rstrip("/") + path, content, self._headers)
        with self._opener.open(request, timeout=60) as answer:
            return answer.read()
