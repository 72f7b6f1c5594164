"""``monai-diffeo watch``: films are segmented as they come, into a folder or into an Orthanc."""

from __future__ import annotations

import os
import signal
import threading
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import click

from monai_diffeo.cli.options import SWITCH, option
from monai_diffeo.cli.segment import FILM_OPTIONS, opened_bundle
from monai_diffeo.errors import ConfigError, FilmError, OutputError

__all__ = ["watch"]

_LOGIN, _TRIES = "MONAI_DIFFEO_ORTHANC_LOGIN", 3
_LASTING = ("RejectedError", "NumericalError")  # the same at each try
_PASSING = ("DecoderCrashed", "DecoderTimeout", "FileChanged", "FileNotReadable", "OutOfMemory", "ReaderNotStarted")
_GAVE_UP = FilmError("StoppedBefore", f"The program ended {_TRIES} times at this film. Run 'segment' on it alone to see why.")


@click.command(
    epilog=f"""\b
name:password of an Orthanc are read from the environment, from {_LOGIN}.
\b
Exit status:
  0    stopped by Ctrl-C or SIGTERM after a film; with --once, all that came is done
  1    nothing was run, or it had to end; the last line on stderr says why
  3    with --once: some films failed or have no result; report.jsonl and run.log say which and why
  130  with --once: stopped by Ctrl-C after a film
  143  with --once: stopped by SIGTERM after a film"""
)
@option("dataset_dir", "Folder into which films come.", metavar="DIR")
@option("orthanc", "Address of an Orthanc, such as http://127.0.0.1:8042, which gives films and gets results.", metavar="URL")
@option("output_dir", "Folder of the results, and of the record of what is done.", metavar="DIR")
@option("interval", "Seconds between two looks; a film is whole if both see the same. Without it, 5.", click.FloatRange(0.1))
@option("once", "Do what is there, and end.", SWITCH)
@option("only_new", "Leave out what the Orthanc holds at the first start.", SWITCH)
def watch(bundle_root: str | None, trust_bundle: bool | None, **options: Any) -> int:
    """Segment films as they come, into a folder or into an Orthanc.

    Killed at any point and started again, it goes on where it was: no film is lost, and none is done twice.
    """
    given = {name: value for name, value in options.items() if value is not None}
    folder, address, output = (given.pop(name, None) for name in ("dataset_dir", "orthanc", "output_dir"))
    interval, once, only_new = (given.pop(*each) for each in (("interval", 5.0), ("once", False), ("only_new", False)))
    if output is None or (folder is None) == (address is None):
        raise click.UsageError("Give --output_dir, and one of --dataset_dir and --orthanc.")
    with opened_bundle("watch", bundle_root, given) as root:
        from monai_diffeo.cli.bundle import FilmByFilm  # imports torch
        from monai_diffeo.watch import Journal, Orthanc, WatchedFolder

        output = Path(os.path.abspath(output))
        films = output / ".films" if folder is None else Path(os.path.abspath(folder))
        if films.resolve() == output.resolve():
            raise ConfigError("watch: films and results would share a folder. Give --output_dir another one.")
        if address is not None and (not address.startswith(("http://", "https://")) or "@" in address):
            raise ConfigError(f"watch: --orthanc must be a http or https address without a login. That goes into {_LOGIN}.")
        given |= {"output_dir": str(output)} | ({} if address is None else {"dicom_output": True})
        loop = _Loop(FilmByFilm(root, given, films, bool(trust_bundle)), interval, once)
        try:
            journal = Journal(output / ".watch.jsonl", address or str(films))
            login = os.environ.get(_LOGIN, "")
            source = Orthanc(address, films, journal, login, only_new) if address else WatchedFolder(films, output, journal)
            return loop.run(source, journal)
        finally:
            loop.segment.reporter.end()


watch.params += FILM_OPTIONS


class _Loop:
    """Look, segment, hand over, wait."""

    def __init__(self, segment: Any, interval: float, once: bool) -> None:
        self.segment, self.interval, self.once = segment, interval, once
        self.stop, self.signal, self.failed, self.said = threading.Event(), 0, False, ""

    def run(self, source: Any, journal: Any) -> int:
        """Exit status."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # a job in the background ignores Ctrl-C
                signal.signal(number, self._stopped)
        calm = 0  # looks in a row after which nothing is to be tried again
        while not self.stop.is_set():
            calm = calm + 1 if self._look(source, journal) else 0
            if self.once and calm > 1:  # a film is taken at the second look that sees it
                break
            self.stop.wait(self.interval)
        return (128 + self.signal if self.signal else 3 * self.failed) if self.once else 0

    def _stopped(self, number: int, frame: Any) -> None:
        self.signal = number
        self.stop.set()

    def _look(self, source: Any, journal: Any) -> bool:
        """Do what has come; False if something is to be tried again."""
        try:
            for film in source.look():
                if self.stop.is_set() or not self._do(film, source, journal):
                    return False
            self.said = ""
            return True
        except (OSError, HTTPException, ValueError, LookupError) as error:
            if isinstance(error, (ConfigError, OutputError)):
                raise
            why = f"watch: no films can be had ({error}). Check the folder, or --orthanc and {_LOGIN}."
            if self.once:
                raise ConfigError(why) from error
            if why != self.said:
                click.echo(f"{why} Trying again.", err=True)
            self.said = why
            return False

    def _do(self, film: Any, source: Any, journal: Any) -> bool:
        """Whether a film is done."""
        from monai_diffeo.trust.decision import NO_RESULT, kind_of_decision  # imports torch
        from monai_diffeo.watch import INNER_ERROR

        tries, line = journal.word(film).get("tries", 0), self.segment.line_of(film.path)
        if line is None:
            journal.put(film.name, stamp=film.stamp, tries=tries + 1)  # before: the film may end this process
            line = self.segment(film.path, _GAVE_UP if tries >= _TRIES else None)
        error = line.get("error", "")
        if error == OutputError.__name__:
            raise OutputError(line["message"])
        if error and (
            self.stop.is_set()
            or (tries + 1 < _TRIES and ((error.endswith("Error") and error not in _LASTING) or error in _PASSING))
        ):
            return False
        try:
            refused = source.finish(film, line, tries + 1 < _TRIES)
        except HTTPError as error:
            if error.code == INNER_ERROR:
                journal.put(film.name, stamp=film.stamp, tries=tries + 1)
            raise
        if refused:
            self.segment.reporter.log.say(f"'{film.name}': {refused}")
        self.failed |= bool(error or refused) or kind_of_decision(line.get("decision")) == NO_RESULT
        journal.put(film.name, stamp=film.stamp, end=refused or line["status"])
        return True
