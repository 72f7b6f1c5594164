"""Films that come into an Orthanc: its feed of changes says which, and its REST interface gives films and takes results."""

from __future__ import annotations

import base64
import json
import re
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from monai_diffeo.errors import ConfigError, DiffeoError, FilmError
from monai_diffeo.files import write_atomically
from monai_diffeo.radiograph.dicom_file import dataset_of_file
from monai_diffeo.radiograph.dicom_kind import KIND_TAGS, kind_notes
from monai_diffeo.radiograph.film import MAX_FILE_BYTES, library, quiet
from monai_diffeo.watch.journal import Arrival, Journal

__all__ = ["ArchiveError", "Orthanc"]

_FILMS = {"1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"}  # CR, and DX for presentation; no result is one
_NO_CHEST = re.compile("header names (another body part|(an? [a-z]+|another) view)")
_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{8}){4}")
_SECONDS = 60
_BUSY = {408, 429, 502, 503, 504, 507}  # nothing is wrong with the film: try again


class ArchiveError(DiffeoError, RuntimeError):
    """The archive does not answer, or answers with an error; ``status`` is that of HTTP, None without an answer."""

    def __init__(self, sentence: str, status: int | None = None) -> None:
        self.status = status
        super().__init__(sentence)


class Orthanc:
    """The films of an Orthanc: CR and DX images whose header names no other body part and no other view than a frontal one.

    Requests follow no redirection and use no proxy, so films and password reach no other machine than the one named.

    Args:
        address: such as ``http://127.0.0.1:8042``.
        folder: for the film that is being segmented, which is removed then; only its owner may look into it.
        journal: keeps the place in the feed.
        login: ``"name:password"``, None without.
        only_new: at the first start, pass over what is there already.

    Raises:
        ConfigError: for an address that is none, or that holds a name or a password.
    """

    def __init__(self, address: str, folder: Path, journal: Journal, login: str | None = None, only_new: bool = False) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            expected = "an address such as http://127.0.0.1:8042, without name and password"
            raise ConfigError(f"Orthanc: expected {expected}, got one that is not. Check --orthanc.")
        self.address, self.folder, self.journal, self.only_new = address.rstrip("/"), folder, journal, only_new
        self._headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay).open
        self._checked = False
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.iterdir():  # by a process that was killed
            left.unlink()

    def look(self) -> Iterator[Arrival]:
        """Films that have come since the last one that is finished, in the order of the feed, each in a file.

        Raises:
            ArchiveError: if the archive does not answer.
            ConfigError: if it does not know the name or the password.
        """
        place = self._place()
        while True:
            page = self._changes(f"since={place}&limit=100")
            for change in page["Changes"]:
                if change["ChangeType"] == "NewInstance" and _ID.fullmatch(change["ID"]):
                    path = self.folder / f"{change['ID']}.dcm"
                    if self._fetch(change["ID"], path):
                        yield Arrival(path.stem, path, [change["Seq"]])
                place = change["Seq"]
            if page["Changes"]:
                self._keep(place)
            if page["Done"]:
                return

    def finish(self, film: Arrival, line: Mapping[str, Any]) -> str:
        """Send the DICOM results of a film, and go on in the feed; gives a reason if the archive refuses one, else "".

        What is there already stays, and is no reason.

        Raises:
            ArchiveError: if the archive does not answer or is busy; then nothing is finished.
        """
        reason = ""
        for name in line.get("dicom") or ():
            try:
                status = json.loads(self._ask("/instances", (self.folder.parent / name).read_bytes()))["Status"]
                reason = reason if status in ("Success", "AlreadyStored") else f"the archive refused a result: {status}"
            except ArchiveError as error:
                if error.status is None or error.status in _BUSY:
                    raise
                reason = f"the archive refused a result: HTTP {error.status}"
        film.path.unlink(missing_ok=True)
        self._keep(film.stamp[0])
        return reason

    def _place(self) -> int:
        """The number of the last change that is finished; 0 if the feed of the archive has begun anew."""
        place = self.journal.get("").get("since", 0)
        if not self._checked:
            last = self._changes("last")["Last"]
            if last < place or (self.only_new and "since" not in self.journal.get("")):
                self._keep(place := 0 if last < place else last)
            self._checked = True
        return place

    def _changes(self, query: str) -> dict[str, Any]:
        """A page of the feed."""
        try:
            return {
                key: page[key] for page in [json.loads(self._ask(f"/changes?{query}"))] for key in ("Changes", "Done", "Last")
            }
        except (ValueError, KeyError, TypeError):
            raise ArchiveError(f"Orthanc: {self.address} gives no feed of changes. Check --orthanc.") from None

    def _keep(self, place: int) -> None:
        self.journal.put("", source=self.address, since=place)

    def _fetch(self, id: str, path: Path) -> bool:
        """Whether an instance is a film; it then lies in a file, unless the archive could not give it."""
        try:
            if self._ask(f"/instances/{id}/metadata/SopClassUid").decode().strip("\0 ") not in _FILMS:
                return False
            write_atomically(path, self._ask(f"/instances/{id}/file"), 0o600)
        except ArchiveError as error:
            if error.status is None or error.status in _BUSY:
                raise
            return error.status != 404  # it was deleted since
        if not _is_chest(path):
            path.unlink()
            return False
        return True

    def _ask(self, path: str, content: bytes | None = None) -> bytes:
        """GET, or POST of a DICOM object."""
        request = urllib.request.Request(self.address + path, content, {**self._headers, "Content-Type": "application/dicom"})
        try:
            with self._open(request, timeout=_SECONDS) as answer:
                if (answer.length or 0) > MAX_FILE_BYTES:
                    raise ArchiveError(f"Orthanc: expected at most {MAX_FILE_BYTES} bytes, got {answer.length}.", 413)
                return answer.read()
        except HTTPError as error:
            if error.code in (401, 403):
                remedy = "Set MONAI_DIFFEO_ORTHANC_LOGIN to name:password of a user who may read and store."
                raise ConfigError(f"Orthanc: {self.address} refuses access, HTTP {error.code}. {remedy}") from None
            raise ArchiveError(f"Orthanc: {self.address} answers HTTP {error.code}.", error.code) from None
        except (OSError, HTTPException) as error:
            raise ArchiveError(f"Orthanc: {self.address} does not answer ({type(error).__name__}).") from None


class _Stay(urllib.request.HTTPRedirectHandler):
    """No redirection: the password and the results would go where it leads."""

    def redirect_request(self, *args: Any) -> None:
        return None


def _is_chest(path: Path) -> bool:
    """Whether nothing in the header speaks for another part of the body or another view; a damaged film is for the reader."""
    try:
        with quiet():
            notes = kind_notes(dataset_of_file(library("pydicom", "Films of an archive need pydicom."), path, KIND_TAGS))
    except FilmError as error:
        return error.code != "NotARadiograph"
    except Exception:
        return True
    return not any(_NO_CHEST.search(note) for note in notes)
