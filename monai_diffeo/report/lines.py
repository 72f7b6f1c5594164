"""A file to which whole lines are appended: each is on disk when the call returns, or nothing of it is there."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_diffeo.files import output_error
from monai_diffeo.report.record import json_safe

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LineFile", "json_line"]


class LineFile:
    """A file opened for appending; a line is one write and an fsync under a lock, so lines of several threads or processes
    never mix. A line begins on a line of its own, also after one that a crash has cut short.

    Args:
        path: of the file; its folders are created.

    Raises:
        OutputError: if the file cannot be written, here and in :meth:`append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b", buffering=0)
        except OSError as error:
            raise output_error(error) from None

    def append(self, data: bytes) -> None:
        """Append a line; it is an error if the disk does not take all of it, and then it has nothing of it, or if the file is
        gone."""
        handle, written = self._file.fileno(), 0
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
            if not os.path.samestat(os.fstat(handle), os.stat(self.path)):
                raise FileNotFoundError(errno.ENOENT, "another file has its name")
            if (size := os.lseek(handle, 0, os.SEEK_END)) and self._byte(size - 1) != b"\n":
                data = b"\n" + data
            written = os.write(handle, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, "half a line")
            os.fsync(handle)
        except BaseException as error:
            end = os.lseek(handle, 0, os.SEEK_CUR)
            if written and os.fstat(handle).st_size == end:  # no other process has written since
                os.ftruncate(handle, end - written)
            raise (output_error(error) if isinstance(error, OSError) else error) from None
        finally:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_UN)

    def close(self) -> None:
        self._file.close()

    def _byte(self, place: int) -> bytes:
        os.lseek(self._file.fileno(), place, os.SEEK_SET)
        return os.read(self._file.fileno(), 1)


def json_line(record: Mapping[str, Any]) -> bytes:
    """ASCII, so that a name in any encoding stays one line."""
    return (json.dumps(json_safe(record), allow_nan=False) + "\n").encode()
