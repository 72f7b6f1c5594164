"""Which films are done: a small file beside the results, so that a program that was killed goes on where it was."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_diffeo.errors import ConfigError
from monai_diffeo.files import write_atomically
from monai_diffeo.report.lines import LineFile, json_line

__all__ = ["Arrival", "Journal"]


@dataclass(frozen=True)
class Arrival:
    """A film that has come: its name, its file, and a stamp that is another one when the film comes again."""

    name: str
    path: Path
    stamp: list[int]


class Journal:
    """The last word on each film, by its name; a word is on disk when :meth:`put` returns.

    The file gets a line a word. When it is opened, it is made anew as a whole, with the last words alone. A line that a crash
    has cut short is passed.

    Args:
        path: of the file; only its owner may read it.
        source: what is watched.

    Raises:
        ConfigError: if the file is of another source.
        OutputError: if it cannot be written, here and in :meth:`put`.
    """

    def __init__(self, path: Path, source: str) -> None:
        self._words: dict[str, dict[str, Any]] = {}
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            with suppress(ValueError, KeyError, TypeError):
                word = json.loads(line)
                self._words[word["film"]] = word
        if (known := self._words.setdefault("", {"film": "", "source": source}).get("source")) != source:
            remedy = "Give --output_dir another folder."
            raise ConfigError(f"Journal: the results in {str(path.parent)!r} are of {known!r}, not of {source!r}. {remedy}")
        write_atomically(path, b"".join(map(json_line, self._words.values())), 0o600)
        self._file = LineFile(path)

    def get(self, film: str) -> dict[str, Any]:
        """The last word on a film, empty if there is none; ``""`` is the source itself."""
        return self._words.get(film, {})

    def put(self, film: str, **word: Any) -> None:
        """A new word, in place of the last one."""
        self._words[film] = {"film": film, **word}
        self._file.append(json_line(self._words[film]))

    def tries(self, film: Arrival) -> int:
        """How often this film, as it is now, was begun."""
        word = self.get(film.name)
        return word["tries"] if word.get("stamp") == film.stamp else 0

    def is_done(self, film: Arrival) -> bool:
        """Whether there is an end of this film, as it is now."""
        return "end" in self.get(film.name) and self.get(film.name)["stamp"] == film.stamp
