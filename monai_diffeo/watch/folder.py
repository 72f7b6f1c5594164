"""Films that come into a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from monai_diffeo.radiograph.paths import list_films
from monai_diffeo.watch.journal import Arrival, Journal

__all__ = ["WatchedFolder"]


class WatchedFolder:
    """A folder, with its sub-folders, into which others write films.

    Args:
        folder: of the films.
        output: folder of the results; it may lie below.
        journal: says which films are done.
    """

    def __init__(self, folder: Path, output: Path, journal: Journal) -> None:
        self.folder, self.output, self.journal = folder, output, journal
        self._seen: dict[Path, list[int]] = {}

    def look(self) -> Iterator[Arrival]:
        """Films that are not done, the oldest first. One whose size or time has changed since the look before is still being
        written, so the first look gives none.

        Raises:
            FilmError: if the folder cannot be read, for example because its drive is away.
        """
        before, self._seen = self._seen, {}
        for path in list_films(self.folder, exclude=[self.output]):
            with suppress(OSError):  # it is gone, or leads nowhere
                about = os.stat(path)
                self._seen[path] = [about.st_size, about.st_mtime_ns]
        for path, stamp in sorted(self._seen.items(), key=lambda item: item[1][1]):
            film = Arrival(path.relative_to(self.folder).as_posix(), path, stamp)
            if before.get(path) == stamp and not self.journal.is_done(film):
                yield film

    def finish(self, film: Arrival, line: Mapping[str, Any]) -> str:
        """Nothing to do: results are in their folder."""
        return ""
