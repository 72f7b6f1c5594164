"""Many films on the workers of Dask: batches, worker processes that end, and the record of what is done.

Only the process of the run writes into the output folder. A worker leaves outputs in a hidden folder, from which they are
renamed into place; audit and report come after that. So whatever ends, a film has all of its results and a line, or no line.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import multiprocessing
import os
import platform
import shutil
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from distributed import CancelledError, Client, KilledWorker, LocalCluster, as_completed
from distributed.utils import get_mp_context

from monai_diffeo.errors import ConfigError, DiffeoError, FilmError, OutputError
from monai_diffeo.files import output_error
from monai_diffeo.report.reporter import FilmReporter
from monai_diffeo.report.share import ReportedFilm, take_films

__all__ = ["Task", "connected", "run_films", "segment_batch", "staging"]

STAGING = ".bulk"
BATCH, TRIES = 8, 3
_GAVE_UP = FilmError("WorkerEnded", f"The process ended {TRIES} times at this film. Run 'segment' on it alone to see why.")
_FETCH = 30.0  # seconds for the lines of a batch that has ended
_ASK = 1.0  # seconds after which the scheduler is asked for its workers again
_AHEAD = 2  # batches a thread of a worker, so that none waits, and few are known to the scheduler
_DYING = "Workers end before they begin a film. Look into their logs: they may lack memory. Then run again."
_ALONE = "bulk: there must be a worker, and for {:g} seconds there was none. Start some, or wait longer with --patience. "
_ALONE += "Logs of workers say why they ended. Then run again: what is done stays done."
_LOST = "The scheduler does not answer any more. Start it, then run again."
_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_PRELOADED = ("monai_diffeo.cli.bundle", "ignite.engine", "nibabel", "pydicom.pixels")  # names: this room stands below cli
_turn = threading.Lock()
_made: dict[Task, Any] = {}


@dataclass(frozen=True)
class Task:
    """What all batches of a run have in common.

    Args:
        make: called with ``arguments`` and a folder for outputs, on a worker; gives what ``FilmByFilm`` of ``cli`` is.
        arguments: the same in two tasks only if they do the same.
        folder: of this run, for outputs and for marks of films that are begun.
        settings: SHA-256 of the settings that the run has; a worker that has others is refused, and the run ends.
        films: folder of all films, which a worker must see.
    """

    make: Callable[..., Any]
    arguments: tuple
    folder: str
    settings: str
    films: str


def segment_batch(task: Task, films: Sequence[str]) -> list[ReportedFilm]:
    """Segment films on a worker, with networks that stay loaded until another task comes.

    Before a film a mark is made, and after it the mark goes, unless the film is given up: the process ended three times at it.

    Raises:
        ConfigError: if the worker has other versions of packages, or other files of the bundle, than the process of the run.
    """
    with _turn:  # a worker may have several threads
        if unseen := [name for name in (task.folder, task.films) if not Path(name).is_dir()]:
            where = f"a worker on {platform.node()} does not see {unseen[0]!r}"
            raise ConfigError(f"bulk: {where}. Mount films and results there under the same names.")
        if task not in _made:
            _made.clear()
            _made[task] = task.make(*task.arguments, Path(task.folder, uuid.uuid4().hex))
        segment = _made[task]
        if segment.reporter.settings_sha256 != task.settings:
            raise ConfigError("bulk: a worker has other packages or another bundle than this process. Install the same there.")
        segment.share.take()
        for film in films:
            tries, mark = _tries(task, film), _mark(task, film)
            try:
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.write_bytes(b"." * (tries + 1))
            except OSError as error:
                raise output_error(error) from None
            line = segment(Path(film), _GAVE_UP if tries >= TRIES else None)
            if line.get("error") == OutputError.__name__:
                raise OutputError(line["message"])
            if tries < TRIES:
                mark.unlink(missing_ok=True)
        return segment.share.take()


def _mark(task: Task, film: str) -> Path:
    return Path(task.folder, "begun", hashlib.sha256(os.fsencode(film)).hexdigest())


def _tries(task: Task, film: str) -> int:
    """How many processes have begun a film and not ended it."""
    mark = _mark(task, film)
    return mark.stat().st_size if mark.is_file() else 0


@contextmanager
def connected(scheduler: str | None, workers: int | None) -> Iterator[Client]:
    """A client of the scheduler at an address or in a scheduler file, or of one on this machine with so many workers.

    Raises:
        ConfigError: if no scheduler answers.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # its lines name films; what matters is in our report
    if scheduler is None:
        with dask.config.set({"distributed.worker.multiprocessing-method": _START}):
            if _START == "forkserver":  # workers are copies of a process that has all loaded: one that ends is soon replaced
                get_mp_context().set_forkserver_preload(["distributed", *_PRELOADED])
            quiet = {"silence_logs": logging.CRITICAL, "dashboard_address": "127.0.0.1:8787"}
            # encrypted: whoever reaches a plain scheduler, such as another user, may run code
            cluster = LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=0, security=True, **quiet)
            with cluster, Client(cluster) as client:
                yield client
        return
    where = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        client = Client(**where)
    except (OSError, ValueError) as error:
        raise ConfigError(f"bulk: no scheduler answers at {scheduler!r}. Start one, or check --scheduler.") from error
    with client:
        yield client


def run_films(client: Client, task: Task, films: Sequence[str], reporter: FilmReporter, patience: float) -> None:
    """Segment films on the workers and report them; where ``reporter.stopped`` is set in the end, films are missing.

    The run ends if the scheduler has no worker for ``patience`` seconds. How long a worker takes does not matter.
    """
    batches = deque(tuple(films[i : i + BATCH]) for i in range(0, len(films), BATCH))
    running: dict[Any, tuple[str, ...]] = {}
    deaths: Counter[tuple[str, ...]] = Counter()
    done = as_completed()
    try:
        while (batches or running) and reporter.stopped is None:
            while batches and len(running) < _AHEAD * max(sum(client.nthreads().values()), 1):
                future = client.submit(segment_batch, task, batches[0], pure=False)
                running[future] = batches.popleft()
                done.add(future)
            if not _one_ends(client, done, patience):
                reporter.stopped = _ALONE.format(patience)
                break
            future = next(done)
            try:
                error = future.exception(timeout=_FETCH)
                lines = future.result(timeout=_FETCH) if error is None else []
            except asyncio.TimeoutError:  # the worker has ended before its result was fetched: the batch is done again
                done.add(future)
                continue
            batch = running.pop(future)
            if isinstance(error, KilledWorker):
                batches.append(batch)
                deaths[batch] += 1
                if deaths[batch] > TRIES + sum(_tries(task, film) for film in batch):
                    reporter.stopped = _DYING
            elif isinstance(error, CancelledError):
                raise error
            elif isinstance(error, DiffeoError):
                reporter.stopped = str(error)
            elif error is not None:
                why = f"A worker failed: {type(error).__name__}: {error}"
                reporter.stopped = f"{why.rstrip('.')}. Install the same packages there, then run again."
            else:
                take_films(reporter, lines)
    except (CancelledError, OSError, asyncio.TimeoutError):
        reporter.stopped = _LOST


def _one_ends(client: Client, done: as_completed, patience: float) -> bool:
    """Wait until a batch ends; False if there is no worker for so many seconds."""
    seen = time.monotonic()
    while True:
        with done.thread_condition:  # wakes when a batch ends
            if done.thread_condition.wait_for(done.has_ready, _ASK):
                return True
        with suppress(OSError, asyncio.TimeoutError):  # a lost scheduler cancels the batches
            if client.nthreads():
                seen = time.monotonic()
            elif time.monotonic() - seen > patience:
                return False


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A folder for outputs that workers write and the run has not taken; what earlier runs left there goes."""
    shutil.rmtree(output / STAGING, ignore_errors=True)
    folder = output / STAGING / uuid.uuid4().hex
    try:
        yield folder
    finally:
        shutil.rmtree(output / STAGING, ignore_errors=True)
