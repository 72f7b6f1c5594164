"""The folder of a run: one run at a time, and no outputs of earlier runs that this run does not write again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import IO

from monai_diffeo.errors import DiffeoError
from monai_diffeo.files import remove_unfinished
from monai_diffeo.radiograph.outputs import REPORT_NAME, recorded_outputs
from monai_diffeo.report.record import SCHEMA

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderInUseError", "LOCK_NAME", "RunFolder"]

LOCK_NAME = ".report.lock"


class FolderInUseError(DiffeoError, RuntimeError):
    """Another run writes into the folder."""


class RunFolder:
    """Holds the lock of an output folder and knows the outputs that the folder's old ``report.jsonl`` records.

    The lock is the file ``.report.lock``; the system frees it when the process dies. It holds the records of earlier outputs,
    so that a run after a killed one knows them too. Where the system has no file locks, a killed run leaves the folder locked.
    Files that a killed run has half written are removed.

    Args:
        folder: of the run; it is created. Make it before the new report is begun.

    Raises:
        FolderInUseError: if another run holds the lock.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / LOCK_NAME
        self._lock: IO[str] | None = _locked(path)
        remove_unfinished(self.folder)
        self._earlier: dict[str, set[Path]] = {}
        self._written: set[Path] = set()
        self.removed: list[str] = []
        for name, paths in [*recorded_outputs(path).items(), *recorded_outputs(self.folder / REPORT_NAME).items()]:
            self._earlier.setdefault(name, set()).update(paths)
        known = [(name, self._name(path)) for name, paths in self._earlier.items() for path in sorted(paths)]
        records: list[dict] = [{"pid": os.getpid()}, *({"schema": SCHEMA, "input": name, "mask": file} for name, file in known)]
        self._lock.write("".join(json.dumps(record) + "\n" for record in records))
        self._lock.flush()

    @property
    def earlier(self) -> set[str]:
        """Names of inputs that have outputs of earlier runs."""
        return {name for name, paths in self._earlier.items() if paths}

    def wrote(self, paths: Iterable[Path]) -> None:
        """These files are outputs of this run."""
        self._written.update(Path(os.path.abspath(path)) for path in paths)

    def remove(self, name: str | None = None) -> None:
        """Remove the earlier outputs of one input that failed, or of all inputs, that this run has not written."""
        for path in sorted(set().union(*(p for n, p in self._earlier.items() if name in (None, n))) - self._written):
            if path.exists():
                path.unlink()
                self.removed.append(self._name(path))

    def release(self, forget: bool = True) -> None:
        """Free the folder for the next run; with ``forget=False`` that run still knows the earlier outputs."""
        if self._lock is not None:
            if forget:
                (self.folder / LOCK_NAME).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _locked(path: Path) -> IO[str]:
    """The lock file, open for appending and locked."""
    refused = FolderInUseError(
        f"RunFolder: expected {path.parent} to be free, but another run writes into it. Give --output_dir another folder, or "
        f"wait for the end of that run{'' if fcntl else f' or, if it was killed, delete {LOCK_NAME}'}."
    )
    if fcntl is None:
        try:
            return open(path, "x")
        except FileExistsError:
            raise refused from None
    while True:
        file = open(path, "a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except BlockingIOError:
            raise refused from None
        except FileNotFoundError:
            pass
        file.close()  # another run ended, and deleted the file, between our opening and our locking it
