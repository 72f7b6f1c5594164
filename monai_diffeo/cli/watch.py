"""``monai-diffeo watch``: films are segmented as they come, into a folder or into an Orthanc."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from monai_diffeo.cli.options import SWITCH, option
from monai_diffeo.cli.segment import bundle_options, opened_bundle
from monai_diffeo.errors import ConfigError, DiffeoError, FilmError, OutputError

__all__ = ["watch"]

_TRIES = 3
_LOGIN = "MONAI_DIFFEO_ORTHANC_LOGIN"
_GAVE_UP = FilmError(
    "StoppedBefore", f"The program ended {_TRIES} times while it worked on this film. Run 'segment' on it alone to see why."
)
_SAFE = {"localhost", "127.0.0.1", "::1"}


@click.command(
    epilog=f"""\b
The login of an Orthanc, name:password, is read from the environment variable
{_LOGIN}.

\b
Exit status:
  0    stopped by Ctrl-C or SIGTERM between two films; with --once, all that came is done
  1    nothing was run, or it had to end; the last line on stderr says why
  3    with --once: some films failed, and report.jsonl or run.log says which and why
  130  with --once: stopped by Ctrl-C between two films; without, by a second Ctrl-C
  143  the same by SIGTERM"""
)
@option("dataset_dir", "Folder into which the films come.", metavar="DIR")
@option("orthanc", "Address of an Orthanc, such as http://127.0.0.1:8042. Results are stored there too.", metavar="URL")
@option("output_dir", "Folder of the results, and of what is done. Always needed.", metavar="DIR")
@option(
    "interval",
    "Seconds between two looks. A film counts as whole when it is the same in two. Without it, 5.",
    click.FloatRange(0.1),
)
@option("once", "Do what is there, and end.", SWITCH)
@option("only_new", "Pass over what the Orthanc holds at the first start.", SWITCH)
@bundle_options
def watch(
    dataset_dir: str | None,
    orthanc: str | None,
    output_dir: str | None,
    bundle_root: str | None,
    trust_bundle: bool | None,
    interval: float | None,
    once: bool | None,
    only_new: bool | None,
    **options: Any,
) -> int:
    """Segment films as they come, in a folder or in an Orthanc.

    Killed at any point and started again, it goes on where it was: no film is lost, and none is done twice.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if output_dir is None or (dataset_dir is None) == (orthanc is None):
        raise click.UsageError("give --output_dir, and one of --dataset_dir and --orthanc.")
    with opened_bundle("watch", bundle_root, given) as root:
        from monai_diffeo.cli.film_by_film import FilmByFilm  # imports torch
        from monai_diffeo.watch import Journal, Orthanc, WatchedFolder

        output = Path(os.path.abspath(output_dir))
        given["output_dir"] = str(output)
        films = output / ".films" if dataset_dir is None else Path(os.path.abspath(dataset_dir))
        if dataset_dir is not None and (not films.is_dir() or films.resolve() == output.resolve()):
            raise ConfigError(f"watch: --dataset_dir must be a folder, and not that of the results, got {dataset_dir!r}.")
        if orthanc is not None:
            given.setdefault("dicom_output", True)
        segment = FilmByFilm(root, given, films, bool(trust_bundle))
        watching = _Watching(segment, 5.0 if interval is None else interval, bool(once))
        try:
            journal = Journal(output / ".watch.jsonl", str(films) if orthanc is None else orthanc.rstrip("/"))
            if orthanc is None:
                return watching.run(WatchedFolder(films, output, journal), journal)
            archive = Orthanc(orthanc, films, journal, os.environ.get(_LOGIN), bool(only_new))
            if orthanc.startswith("http:") and (host := urlsplit(orthanc).hostname) not in _SAFE:
                click.echo(f"Films and password travel to {host} without encryption. Give an https address.", err=True)
            return watching.run(archive, journal)
        finally:
            segment.reporter.end()


class _Watching:
    """The loop: look, segment, hand over, wait."""

    def __init__(self, segment: Any, interval: float, once: bool) -> None:
        self.segment, self.interval, self.once = segment, interval, once
        self.stop, self.signal, self.failed, self.said = threading.Event(), 0, 0, ""
        self.before: dict[int, Any] = {}

    def run(self, source: Any, journal: Any) -> int:
        """Exit status. It stops between two films at the first signal, at once at the second."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # a job in the background ignores Ctrl-C
                self.before[number] = signal.signal(number, self._stopped)
        looks = 0
        while not self.stop.is_set():
            looks += 1
            if self._look(source, journal) and self.once and looks > 1:
                break
            self.stop.wait(self.interval)
        if self.once:
            return 128 + self.signal if self.signal else 3 if self.failed else 0
        return 0

    def _look(self, source: Any, journal: Any) -> bool:
        """Do what has come; False if something is to be tried again."""
        try:
            for film in source.look():
                if self.stop.is_set() or not self._do(film, source, journal):
                    return False
            self.said = ""
            return True
        except DiffeoError as error:  # the archive or the drive is away
            if self.once or isinstance(error, (ConfigError, OutputError)):
                raise
            if str(error) != self.said:
                self.said = str(error)
                click.echo(f"{error} Trying again.", err=True)
            return False

    def _do(self, film: Any, source: Any, journal: Any) -> bool:
        tries, line = journal.tries(film), self.segment.line_of(film.path)
        if line is None and tries >= _TRIES:
            line = self.segment.refuse(film.path, _GAVE_UP)
        if line is None:
            journal.put(film.name, stamp=film.stamp, tries=(tries := tries + 1))
            line = self.segment(film.path)
        if self.segment.reporter.stopped:
            raise OutputError(self.segment.reporter.stopped)
        error = line.get("error", "")  # a class of ours speaks of the film, other errors may pass
        if tries < _TRIES and (error.endswith("Error") or error == "FileNotReadable"):
            return False
        if refused := source.finish(film, line):
            self.segment.reporter.log.say(f"'{film.name}' {refused}")
        self.failed += bool(error or refused)
        journal.put(film.name, stamp=film.stamp, tries=tries, end=refused or line["status"])
        return True

    def _stopped(self, number: int, frame: Any) -> None:
        os.write(2, b"Stopping after this film.\n")
        self.signal = number
        self.stop.set()
        for each, handler in self.before.items():
            signal.signal(each, handler)
