"""The report of a run: whole lines, on disk before the next film begins, a closing line, and an exit status for the shell."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from monai_diffeo.canonicalize.result import CANONICALIZED, LEFT_ALONE, REJECTED
from monai_diffeo.files import write_atomically
from monai_diffeo.report.decision import decision, outcome
from monai_diffeo.report.lines import LineFile, json_line
from monai_diffeo.report.record import FAILED, SCHEMA, versions
from monai_diffeo.trust import NO_RESULT, NOT_JUDGED, REVIEW

__all__ = ["ALL_WRITTEN", "FINISHED_WITH_FAILURES", "NOTHING_WRITTEN", "ReportWriter"]

ALL_WRITTEN = 0
"""Exit status: every film has a mask. Those left alone or rejected count as written: theirs is the plain network's."""

FINISHED_WITH_FAILURES = 3
"""Exit status: the run went to its end, some films have no mask, and the report says which: they failed, or have no result by
decision. Or the report could not be written to its end."""

NOTHING_WRITTEN = 4
"""Exit status: every film failed, or no film was found."""

_STATUSES = (CANONICALIZED, LEFT_ALONE, REJECTED, FAILED)


class ReportWriter:
    """Append-only file of JSON lines, one a film, and a closing line; a report without one is of a run that was killed.

    Lines are those of a :class:`LineFile`: a machine that dies loses at most the film it was working on. Threads may share a
    writer.

    Args:
        path: of the file, e.g. ``output_dir/report.jsonl``; its folders are created.
        reset: begin a new file and drop an old one; False appends, after a line that a crash may have cut short.
        kept: records of an earlier run that the new file begins with.

    Raises:
        OutputError: if the file cannot be written, here and in every method that writes.

    Example:
        >>> import tempfile
        >>> from monai_diffeo.report import failure_record
        >>> report = ReportWriter(Path(tempfile.mkdtemp()) / "report.jsonl")
        >>> report.write(failure_record("a/b.dcm", EOFError()))
        >>> report.counts["failed"], report.exit_status()
        (1, 4)
    """

    def __init__(self, path: str | PathLike[str], reset: bool = True, kept: Iterable[Mapping[str, Any]] = ()) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        kept = list(kept)
        if reset:
            write_atomically(self.path, b"".join(map(json_line, kept)))
        self._told: Counter[str] = Counter()
        for record in kept:
            self._count(record)
        self._file = LineFile(self.path)

    @property
    def counts(self) -> dict[str, int]:
        """Lines written by this writer: ``canonicalized``, ``left alone``, ``rejected``, ``failed``."""
        return {status: self._counts[status] for status in _STATUSES}

    def write(self, *records: Mapping[str, Any]) -> None:
        """Append a :func:`film_record` or :func:`failure_record`, with any further fields; it is on disk when this returns.

        Several are on disk together, or none of them is.

        Raises:
            ValueError: if its status is none of the four.
            OutputError: if the disk does not take the whole line, and then it has nothing of it; or if the file is gone.
        """
        for kind in map(_kind, records):
            if kind not in _STATUSES:
                expected = f"'status' must begin with one of {', '.join(_STATUSES)}; got {kind!r}"
                raise ValueError(f"ReportWriter.write(): {expected}. Make the record with film_record() or failure_record().")
        with self._lock:
            self._file.append(b"".join(map(json_line, records)))
            for record in records:
                self._count(record)

    def close(self, removed: Sequence[str] = (), order: Sequence[str] | None = None) -> None:
        """Append the closing line with its field ``removed``, see :mod:`monai_diffeo.report.record`.

        With ``order``, names of all inputs, the lines are first brought into that order.
        """
        record = {"schema": SCHEMA, "end": True, "films": sum(self._counts.values()), "counts": self.counts}
        record |= {"exit_status": self.exit_status(), "removed": list(removed), "versions": versions()}
        with self._lock:
            if order is None:
                self._file.append(json_line(record))
            else:
                place = {name: number for number, name in enumerate(order)}
                lines = self.path.read_bytes().splitlines(keepends=True)
                lines.sort(key=lambda line: place.get(json.loads(line)["input"], len(place)))
                write_atomically(self.path, b"".join(lines) + json_line(record))
            self._file.close()

    def summary(self) -> str:
        """The run in one line, for the terminal."""
        total, look = sum(self._counts.values()), self._told[REVIEW]
        withheld, unjudged = self._told[NO_RESULT] - self._counts[FAILED], self._told[NOT_JUDGED]
        parts = ", ".join(f"{n} {word}" for word in ("segmented", *_STATUSES) if (n := self._told[word]))
        look_at = f" {withheld} without a mask by decision." if withheld else ""
        look_at += (f" {unjudged} not judged." if unjudged else "") + (f" Look at {look} of them." if look else "")
        return (
            f"{total} film{'' if total == 1 else 's'}: {parts}.{look_at} Report: {self.path}" if total else "No film was found."
        )

    def exit_status(self) -> int:
        """:data:`ALL_WRITTEN`, :data:`FINISHED_WITH_FAILURES` or :data:`NOTHING_WRITTEN`."""
        if not any(self._counts[status] for status in (CANONICALIZED, LEFT_ALONE, REJECTED)):
            return NOTHING_WRITTEN
        return FINISHED_WITH_FAILURES if self._told[NO_RESULT] else ALL_WRITTEN

    def _count(self, record: Mapping[str, Any]) -> None:
        self._counts[_kind(record)] += 1
        self._told.update((outcome(record)[0], str(decision(record))))


def _kind(record: Mapping[str, Any]) -> str:
    return str(record.get("status")).split(":")[0]
