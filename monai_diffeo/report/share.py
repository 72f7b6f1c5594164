"""A share of a run, which another process segments: it keeps what it would report, and the run's own process takes it over."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai_diffeo.files import output_error, sync_folder
from monai_diffeo.report.audit import AuditFile
from monai_diffeo.report.reporter import FilmReporter
from monai_diffeo.report.resume import outputs_of

__all__ = ["ReportedFilm", "RunShare", "take_films"]


class ReportedFilm(NamedTuple):
    """A film that another process has reported: its lines, and the folder below which its outputs are."""

    record: dict[str, Any]
    audit: dict[str, Any]
    folder: str


class RunShare:
    """Stands in a reporter, from its construction on, for folder, audit, report and log: nothing but outputs is written."""

    def __init__(self, reporter: FilmReporter) -> None:
        hashes = {"weights_sha256": reporter.weights_sha256, "settings": reporter.settings_sha256, "device": reporter.device}
        self._folder = str(reporter.output_dir)
        self._audit = AuditFile(reporter.output_dir, hashes)
        self._films: list[ReportedFilm] = []
        reporter.folder = reporter.audit = reporter.writer = reporter.log = self  # type: ignore[assignment]

    def take(self) -> list[ReportedFilm]:
        """The films since the last call."""
        films, self._films = self._films, []
        return films

    def append(self, record: Mapping[str, Any], masks: Sequence[Path] = (), figure: Path | None = None) -> None:
        self._films.append(ReportedFilm(dict(record), self._audit.line(record, masks, figure), self._folder))

    def write(self, record: Mapping[str, Any]) -> None: ...

    def film(self, record: Mapping[str, Any]) -> None: ...

    def remove(self, name: str) -> None: ...

    def wrote(self, paths: Iterable[Path]) -> None: ...


def take_films(reporter: FilmReporter, films: Sequence[ReportedFilm]) -> None:
    """Films of other processes become films of a reporter's run: outputs are renamed into place, then come audit and report.

    All of them or, where ``reporter.stopped`` says why, none has its line.
    """
    placed: list[Path] = []
    try:
        for film in films:
            if not outputs_of(film.record):
                reporter.folder.remove(film.record["input"])  # before a film that follows takes the name of its mask
        for film in films:
            for name in outputs_of(film.record):
                placed.append(reporter.output_dir / name)
                placed[-1].parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(film.folder, name), placed[-1])
        for folder in {path.parent for path in placed}:
            sync_folder(folder)
        reporter.audit.add(film.audit for film in films)
        reporter.writer.write(*(film.record for film in films))
    except OSError as error:
        reporter.stopped = str(output_error(error))
        for path in placed:
            path.unlink(missing_ok=True)  # a film without a line has no mask
        return
    reporter.folder.wrote(placed)
    for film in films:
        reporter.log.film(film.record)
