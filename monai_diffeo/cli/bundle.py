"""Run a bundle in this process, on all films or on one after another: values are words, and its configuration is checked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_diffeo.cli.allowed import allow
from monai_diffeo.cli.memory import keep_memory
from monai_diffeo.errors import ConfigError, FilmError, OutputError
from monai_diffeo.files import sha256_or_none
from monai_diffeo.radiograph.datalist import FilmList
from monai_diffeo.radiograph.mask_writer import figure_path, mask_path_beside
from monai_diffeo.report.resume import outputs_of
from monai_diffeo.report.share import RunShare

__all__ = ["FilmByFilm", "bundle_parser", "film_parser", "run_bundle"]


def bundle_parser(root: Path, given: Mapping[str, Any], trusted: bool = False) -> ConfigParser:
    """``configs/inference.json`` (or ``.yaml``, ``.yml``) of a bundle, ready to build what it describes; nothing is built yet.

    Args:
        root: folder of the bundle.
        given: values by id of the configuration; text is taken as it is, whatever it begins with.
        trusted: allow any code, and let Python look for modules in the bundle's folder.

    Raises:
        ConfigError: if there is no configuration, it does not know an id, or something in it is not allowed.
    """
    file = next((file for kind in ConfigParser.suffixes if (file := root / "configs" / f"inference.{kind}").is_file()), None)
    if file is None:
        raise ConfigError(
            f"segment: a bundle must have configs/inference.json or .yaml, {str(root)!r} has not. Check --bundle_root."
        )
    parser = ConfigParser()
    parser.read_config(file)
    for name in given:
        if name not in parser and name != "debug":  # our own option too
            raise ConfigError(f"segment: the configuration of {str(root)!r} has no option --{name}. Leave it out.")
    parser.update({n: _literal(value) for n, value in {"bundle_root": str(root), **given}.items() if n in parser})
    if trusted:
        sys.path.insert(1, str(root))
    else:
        allow(parser)
    return parser


def film_parser(root: Path, given: Mapping[str, Any], trusted: bool = False) -> ConfigParser:
    """:func:`bundle_parser` of a bundle that names its films and reports them one by one; ConfigError for another bundle."""
    parser = bundle_parser(root, given, trusted)
    if missing := [name for name in ("films", "names", "dataset", "reporter", "evaluator") if name not in parser]:
        raise ConfigError(f"segment: the configuration of {str(root)!r} lacks {missing}. Use 'segment' for this bundle.")
    return parser


def run_bundle(root: Path, given: Mapping[str, Any], trusted: bool = False) -> int:
    """Run a bundle and give its exit status; arguments and errors as for :func:`bundle_parser`.

    The status is that with which the bundle exits, or else the number that its ``finalize`` gives last.
    Unlike MONAI's workflow it does not apply the bundle's ``logging.conf``, and only a trusted bundle's folder becomes a place
    where Python looks for modules.
    """
    keep_memory()
    parser = bundle_parser(root, given, trusted)
    status: Any = None
    try:
        for step in ("initialize", "run", "finalize"):
            entries, status = parser.get(step, []), None
            for id in [f"{step}::{i}" for i in range(len(entries))] if isinstance(entries, list) else [step]:
                status = parser.get_parsed_content(id)
                parser.ref_resolver.remove_resolved_content(id)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return status if type(status) is int else 0


class FilmByFilm:
    """A bundle that is built once and runs on films as they come; report, audit and log of earlier runs go on.

    Arguments and errors are those of :func:`bundle_parser`; ``given`` has an ``output_dir``, and ``films`` is the folder below
    which films are named. FolderInUseError if another run writes into the output folder, OutputError if it is full.
    With ``share`` the films are those of another process's run, see :class:`monai_diffeo.report.share.RunShare`.
    """

    def __init__(self, root: Path, given: Mapping[str, Any], films: Path, trusted: bool = False, share: bool = False) -> None:
        keep_memory()
        parser = film_parser(root, given, trusted)
        parser["films"], parser["names"] = FilmList([{"image": str(films)}], films), None
        self.dataset, self.reporter, self.evaluator = map(parser.get_parsed_content, ("dataset", "reporter", "evaluator"))
        self.films, self.output = films, Path(given["output_dir"])
        self.share = RunShare(self.reporter) if share else self.reporter.begin(None)
        self._lines = dict(self.reporter.kept)
        self._owners = {output: name for name, line in self._lines.items() for output in outputs_of(line)}

    def __call__(self, film: Path, refused: FilmError | None = None) -> dict[str, Any]:
        """Segment a film, or report why not; gives its line in the report, which is on disk, and so are its outputs.

        A film is refused whose mask or picture would replace that of another film, which came before.
        """
        name = film.relative_to(self.films).as_posix()
        refused = refused or self._no_name_is_free(film, name)
        if refused is None:
            self.dataset.data = [{"image": str(film)}]
            self.evaluator.run()
        else:
            self.reporter.failed(str(film), refused)
        if self.reporter.stopped:
            raise OutputError(self.reporter.stopped)
        line = self.reporter.last
        if self.share:
            return line
        for output in set(outputs_of(self._lines.get(name, {}))) - set(outputs_of(line)):
            (self.output / output).unlink(missing_ok=True)  # of an earlier file of this name
            self._owners.pop(output, None)
        self._lines[name] = line
        self._owners |= dict.fromkeys(outputs_of(line), name)
        return line

    def _no_name_is_free(self, film: Path, name: str) -> FilmError | None:
        try:
            masks = [mask_path_beside(film, self.films, self.output, postfix) for postfix in self.reporter.postfix]
        except FilmError as error:
            return error
        files = [path.relative_to(self.output).as_posix() for mask in masks for path in (mask, figure_path(mask))]
        if all(self._owners.get(file, name) == name for file in files):
            return None
        return FilmError("UnsupportedFile", "Another film has a mask or picture of this name. Rename one of them.")

    def line_of(self, film: Path) -> dict[str, Any] | None:
        """The line of a film that needs no new run: same content, same settings, and its outputs are there."""
        line = self._lines.get(film.relative_to(self.films).as_posix(), {})
        wanted = line.get("settings") == self.reporter.settings_sha256 and ("dicom" in line or not self.reporter.dicom)
        there = wanted and all((self.output / name).is_file() for name in outputs_of(line))
        return line if there and line["sha256"] == sha256_or_none(film) else None


def _literal(value: Any) -> Any:
    """An entry of a configuration that stands for a value. In plain text, MONAI would read ``$``, ``@``, ``%`` and ``#``."""
    if not isinstance(value, str):
        return value
    return f"$bytes.fromhex('{value.encode('utf-8', 'surrogateescape').hex()}').decode('utf-8', 'surrogateescape')"
