"""``audit.jsonl``: one line for each film of each run, for good. A new run may replace the report, never these lines.

========================= =================================================================================================
field                     meaning
========================= =================================================================================================
audit, run                version of these fields; the same random word in all lines of a run
time                      UTC at which the line was written, ISO 8601
sha256                    of the film's file, null if it could not be read
weights_sha256, settings  of the network's weights; of all settings that decide the result, the canonicaliser's files among them
versions, device          of the packages; where the network ran
seconds                   wall time of the film; of one that failed, since the line before or the beginning of the run
decision, status          what a person should do; what happened, in the words of the report
error                     class of the error of a film that failed, else null
outputs                   SHA-256 of each output by its kind: ``mask``, ``figure`` and, where asked for, ``dicom``; null if
                          none, of several a list
========================= =================================================================================================

There is no name in it, of a film, a folder or a person: what is never removed must not hold them. The SHA-256 tells the film.
A film that is kept by ``--resume`` has the line of the run that made it. A film that ran twice has two lines, and the later
one counts. The line is written before that of the report, so no line of a report lacks its own here.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from monai_diffeo.files import sha256_or_none
from monai_diffeo.radiograph.outputs import AUDIT_NAME
from monai_diffeo.report.decision import decision
from monai_diffeo.report.lines import LineFile, json_line

__all__ = ["AuditFile"]

_VERSION = 1
_SAME = ("sha256", "weights_sha256", "settings", "versions", "device", "seconds", "status", "error")


class AuditFile:
    """The audit of a folder, opened for appending.

    Args:
        folder: of the run.
        common: fields of every line that a record does not have itself.

    Raises:
        OutputError: if it cannot be written, here and in :meth:`append`.
    """

    def __init__(self, folder: Path, common: Mapping[str, Any]) -> None:
        self._common, self._run, self._last = common, uuid.uuid4().hex, time.perf_counter()
        self._folder, self._file = folder, LineFile(folder / AUDIT_NAME)

    def append(self, record: Mapping[str, Any], masks: Sequence[Path] = (), figure: Path | None = None) -> None:
        """The line of a film; arguments are its record for the report and its outputs, which are on disk."""
        self._file.append(json_line(self.line(record, masks, figure)))

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Lines that other processes have made with :meth:`line`; they are of this run."""
        self._file.append(b"".join(json_line({**line, "run": self._run}) for line in lines))

    def line(self, record: Mapping[str, Any], masks: Sequence[Path] = (), figure: Path | None = None) -> dict[str, Any]:
        """What :meth:`append` would write."""
        now = time.perf_counter()
        told = {"seconds": now - self._last, **self._common, **record}
        hashes = [sha256_or_none(mask) for mask in masks]
        outputs: dict[str, Any] = {"mask": hashes[0] if len(hashes) == 1 else hashes or None}
        outputs["figure"] = figure and sha256_or_none(figure)
        if "dicom" in record:
            outputs["dicom"] = [sha256_or_none(self._folder / name) for name in record["dicom"]] or None
        line = {"audit": _VERSION, "run": self._run, "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds")}
        line |= {"decision": decision(record), **{name: told.get(name) for name in _SAME}, "outputs": outputs}
        self._last = now
        return line

    def close(self) -> None:
        self._file.close()
