"""A bundle that is built once and segments one film after another, as they come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_diffeo.cli.bundle import bundle_parser
from monai_diffeo.errors import ConfigError, FilmError
from monai_diffeo.radiograph.datalist import FilmList
from monai_diffeo.radiograph.mask_writer import figure_path, mask_path_beside
from monai_diffeo.report.record import FAILED
from monai_diffeo.report.resume import outputs_of, sha256_or_none

__all__ = ["FilmByFilm"]

_PARTS = ("dataset", "reporter", "evaluator")


class FilmByFilm:
    """Segments films of a folder with a bundle, whose networks are loaded once; what it writes is as of ``segment``.

    Report, audit and log of an earlier run are continued, and none of its outputs is removed.

    Args:
        root, given, trusted: of :func:`monai_diffeo.cli.bundle.bundle_parser`; ``given`` must have ``output_dir``.
        films: the folder below which films are named.

    Raises:
        ConfigError: if the bundle is none for films, or not allowed.
        FolderInUseError: if another run writes into the output folder.
    """

    def __init__(self, root: Path, given: Mapping[str, Any], films: Path, trusted: bool = False) -> None:
        parser = bundle_parser(root, given, trusted)
        if missing := [name for name in ("films", "names", *_PARTS) if name not in parser]:
            raise ConfigError(f"FilmByFilm: the configuration of {str(root)!r} needs {missing}. Use 'segment' for this bundle.")
        parser["films"], parser["names"] = FilmList([{"image": str(films)}], films), None
        self.dataset, self.reporter, self.evaluator = (parser.get_parsed_content(name) for name in _PARTS)
        self.films, self.output = films, Path(given["output_dir"])
        self.reporter.begin(None)
        self._lines = dict(self.reporter.kept)

    def __call__(self, film: Path) -> dict[str, Any]:
        """Segment a film; gives its line in the report, which is on disk, and so are its outputs."""
        try:
            self._check_names(film)
            self.dataset.data = [{"image": str(film)}]
            self.evaluator.run()
        except FilmError as error:
            return self.refuse(film, error)
        return self._told(film)

    def refuse(self, film: Path, error: FilmError) -> dict[str, Any]:
        """Report a film that failed, without segmenting it; gives its line."""
        self.reporter.failed(str(film), error)
        return self._told(film)

    def line_of(self, film: Path) -> dict[str, Any] | None:
        """The line of a film that needs no new run: same content, same settings, and its outputs are there."""
        line = self._lines.get(self._name(film), {"status": FAILED})
        if line["status"] == FAILED or line.get("settings") != self.reporter.settings_sha256:
            return None
        there = all((self.output / name).is_file() for name in outputs_of(line)) and (
            "dicom" in line or not self.reporter.dicom
        )
        return line if there and line.get("sha256") == sha256_or_none(film) else None

    def _told(self, film: Path) -> dict[str, Any]:
        name, line = self._name(film), self.reporter.last
        if line["status"] == FAILED:  # what an earlier file of this name has left is not of this film
            for output in outputs_of(self._lines.get(name, {})):
                (self.output / output).unlink(missing_ok=True)
        if self.reporter.stopped is None:
            self._lines[name] = line
        return line

    def _check_names(self, film: Path) -> None:
        """Refuse a film whose mask or picture would replace that of another, which may have left the folder by now."""
        masks = [mask_path_beside(film, self.films, self.output, postfix) for postfix in self.reporter.postfix]
        new = {path.relative_to(self.output).as_posix() for mask in masks for path in (mask, figure_path(mask))}
        for other, line in self._lines.items():
            if other != self._name(film) and not new.isdisjoint(outputs_of(line)):
                raise FilmError("UnsupportedFile", "Its mask or picture would replace that of another film. Rename this one.")

    def _name(self, film: Path) -> str:
        return film.relative_to(self.films).as_posix()
