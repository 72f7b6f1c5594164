"""What a run tells while it lasts: a log in its folder, and a bar on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from monai_diffeo.files import printable
from monai_diffeo.report.decision import decision, outcome, remarks

__all__ = ["RunLog"]

_BAR = "{l_bar}{bar}| {n_fmt} of {total_fmt}, {elapsed}, {remaining} left"


class RunLog:
    """``run.log``, a line an event with its UTC time, and a bar over the films with the remaining time.

    The log has the names and sentences of the report and no others. It is a help and no result: what the disk does not take is
    left out, and nothing stops for it. The bar is on stderr, needs tqdm, and is off where stderr is no terminal.

    Args:
        path: of the log.
        films: so many are to do; None for no bar.
        going_on: append to the log of an earlier run.
    """

    def __init__(self, path: Path, films: int | None, going_on: bool = False) -> None:
        self._file, self._bar = None, None
        with suppress(OSError):
            self._file = open(path, "a" if going_on else "w", encoding="utf-8", errors="backslashreplace", buffering=1)
        with suppress(ImportError):
            from tqdm import tqdm

            self._bar = tqdm(total=films, desc="films", bar_format=_BAR, disable=films is None or None, file=sys.stderr)

    def say(self, text: str) -> None:
        """One line."""
        if self._file is not None:
            with suppress(OSError):
                self._file.write(f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ} {text}\n")

    def film(self, record: Mapping[str, Any]) -> None:
        """A film that has its line in the report."""
        status, reason = outcome(record)
        seconds = "" if record.get("seconds") is None else f", {record['seconds']:.2f} s"
        happened = f"{status} ({reason})" if reason else status
        notes = f" [{told}]" if (told := remarks(record)) else ""
        self.say(f"{decision(record)}: '{printable(record['input'])}' {happened}{seconds}{notes}")
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
