"""Films read in a process of its own: whatever a decoder does there, the next film is read.

Decoders are C and Rust code that is given bytes of strangers. A damaged film makes them end the process, grow without end or
never return. So a server, started once, has the readers loaded. It forks a worker that reads films with limits on memory and
time. When the worker ends, the server tells how, and forks the next one in milliseconds. Only data come back: JSON, and pixels
as raw float32.

On systems other than Linux the server reads itself, without a limit on memory, and a new server follows one that ended.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph import film as film_module
from monai_diffeo.radiograph.film import Film
from monai_diffeo.radiograph.reader import read_film

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["IsolatedReader", "serve"]

MEMORY, MEMORY_A_BYTE, MEMORY_A_PIXEL = 640 * 2**20, 3, 40  # bytes, of any film, for a byte of its file and for a pixel
SECONDS, SECONDS_A_BYTE, SECONDS_A_PIXEL = 3.0, 2e-6, 4e-6  # of the processor; 2000 x 2000 pixels take 0.1 to 3 of over 19
PATIENCE = 5  # so much longer by the clock: the machine may be busy, and the disk slow

_FORKS = sys.platform == "linux"
_LONGEST = 2**20  # bytes of a message
_IDLE, _READING, _ANSWERING = range(3)  # states of a worker
_GIVES_WAY = 77  # exit code of a worker that asks for a successor

_LIBRARIES = ("PIL.PngImagePlugin", "PIL.JpegImagePlugin", "nibabel", "pydicom.pixels", "libjpeg", "openjpeg", "rle")
_PACKAGES = ("monai_diffeo", "monai_diffeo.radiograph")
_BOOT = """
import json, os, sys, types
answers = os.dup(1)
os.dup2(2, 1)  # what a library prints must not reach the pipe of answers
sys.path[:], packages = json.loads(sys.argv[1])
for name, folders in packages.items():  # without their __init__, which import torch: seconds, and half a gigabyte
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = folders
from monai_diffeo.radiograph.isolation import serve
serve(0, answers)
"""

_DAMAGED = "The file may be damaged: export it again."
_CRASHED = ("DecoderCrashed", f"The software that decodes this film failed. {_DAMAGED}")
_SLOW = ("DecoderTimeout", f"Reading took too long for a film of this size. {_DAMAGED}")
_GREW = ("OutOfMemory", f"Reading took too much memory for a film of this size. {_DAMAGED}")
_ABSENT = ("ReaderNotStarted", "The process that reads films could not be started. Check the installation.")


class IsolatedReader:
    """`read_film` in a process of its own: the same films, bit for bit, and the same errors.

    Further codes of `FilmError` are ``DecoderCrashed``, ``DecoderTimeout``, ``OutOfMemory`` and ``ReaderNotStarted``. The
    limits grow with the bytes of the file and with the pixels that it declares.

    Threads share a reader and take turns. A copy, a pickled reader and a forked process have a server of their own, started
    at the first film. A server ends with its reader, and with the process that started it, however that ends.

    Args:
        debug: show what the server and its libraries print, on stderr; it may quote the file.
    """

    def __init__(self, debug: bool = False) -> None:
        self.debug = debug
        self._server: Any = None
        self._turn, self._ready = 0, False
        self._lock = threading.Lock()
        _readers.add(self)

    def __reduce__(self):
        return type(self), (self.debug,)

    def start(self) -> None:
        """Start the server and do not wait for it: it needs a second. Without this the first film starts it."""
        with self._lock:
            self._running()

    def close(self) -> None:
        """End the server; a further film starts a new one."""
        if self._server is not None:
            self._stop()
        self._server = None

    def __call__(self, path: str | os.PathLike) -> Film:
        """As `read_film`."""
        name = os.fsdecode(path)
        name = name if os.path.isabs(name) else os.path.join(os.getcwd(), name)
        with self._lock:
            try:
                server = self._running()
                self._ready = self._ready or _receive(server.stdout) is not None
                self._turn += 1
                _send(server.stdin, {"turn": self._turn, "path": name})
                return _film_of(server.stdout, self._turn)
            except FilmError:
                raise
            except Exception:  # it ended, or what it said is no answer
                raise FilmError(*self._lost()) from None
            except BaseException:  # an answer that nobody reads would be taken for the next film's
                self.close()
                raise

    def _running(self) -> Any:
        if self._server is None or self._server.poll() is not None:
            self.close()
            packages = {name: list(sys.modules[name].__path__) for name in _PACKAGES}
            command = [sys.executable, "-I", "-c", _BOOT, json.dumps(([*map(str, sys.path)], packages))]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": None if self.debug else subprocess.DEVNULL}
            own = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            options: dict[str, Any] = {**pipes, "env": own, "start_new_session": True}
            self._server = subprocess.Popen(command, bufsize=0, pipesize=2**20, **options)  # pixels cross in few turns
            self._stop, self._ready = weakref.finalize(self, _stop, self._server), False
        return self._server

    def _lost(self) -> tuple[str, str]:
        """Code and sentence for a server that is gone or talks nonsense."""
        code = None
        with suppress(subprocess.TimeoutExpired, AttributeError):
            code = self._server.wait(1)
        self.close()
        return _end(code or 0) if self._ready else _ABSENT

    def _let_go(self) -> None:
        """In a forked process: open copies of the pipes would keep the parent's server alive."""
        if self._server is not None:
            self._stop.detach()
            self._server.stdin.close()
            self._server.stdout.close()
            self._server.returncode = 0  # nobody here may wait for it
        self._server, self._lock = None, threading.Lock()


_readers: weakref.WeakSet[IsolatedReader] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [*map(IsolatedReader._let_go, _readers)])


def _stop(server: subprocess.Popen) -> None:
    """End a server and its worker; they hold nothing that could be lost."""
    if server.poll() is None:  # else its number may be another's by now
        with suppress(OSError):
            os.killpg(server.pid, signal.SIGKILL) if hasattr(os, "killpg") else server.kill()
    with server:  # closes the pipes and waits
        pass


def _film_of(answers: Any, turn: int) -> Film:
    """The film of an answer. Nothing in it is trusted: FilmError if it says so, another error if it is no answer."""
    answer = _receive(answers)
    if answer["turn"] not in (turn, None):
        raise ValueError("the answer to another question")
    if "error" in answer:
        code, sentence = answer["error"]
        raise FilmError(str(code), str(sentence))
    rows, columns = map(int, answer["shape"])
    if min(rows, columns) < 0 or rows * columns > film_module.MAX_PIXELS:
        raise ValueError("no size of a film")
    pixels = np.empty((rows, columns), np.float32)
    _fill(answers, pixels.data.cast("B"))
    rest: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in answer["film"].items()}
    return Film(pixels, **rest)


def serve(requests: int, answers: int) -> None:
    """Answer requests from one file descriptor on another until it ends; for `IsolatedReader`."""
    for name in _LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold the film
    gc.freeze()
    asked, told = open(requests, "rb", buffering=0), open(answers, "wb", buffering=0)
    state = mmap.mmap(-1, 1)  # shared with the worker
    _send(told, {"ready": True})
    while True:
        worker = os.fork() if _FORKS else 0
        if not worker:
            _work(asked, told, state)
        code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
        if state[0] == _READING:
            _send(told, {"turn": None, "error": _end(code)})
        elif state[0] == _ANSWERING or code != _GIVES_WAY:
            return  # after half an answer the reader cannot find the next one
        state[0] = _IDLE


def _work(asked: Any, told: Any, state: mmap.mmap) -> NoReturn:
    """Answer until there are no more requests, or until the libraries have kept too much memory."""
    code, base = 1, _used()
    try:
        while _used() <= base + MEMORY // 2:
            if _FORKS:
                select.select([asked], [], [])
                state[0] = _READING  # from here on the server answers for a worker that ends
            answer, pixels = _answer(_receive(asked), base)
            state[0] = _ANSWERING
            _send(told, answer)
            if pixels is not None:
                _write(told, pixels.data.cast("B"))
            state[0] = _IDLE
        code = _GIVES_WAY
    except (EOFError, OSError):  # nobody asks any more, or nobody listens
        state[0] = _IDLE
    finally:
        os._exit(code)


def _answer(request: dict[str, Any], base: int) -> tuple[dict[str, Any], np.ndarray | None]:
    turn, path = {"turn": request["turn"]}, request["path"]
    try:
        size = os.stat(path).st_size if os.path.isfile(path) else 0
        _limit(base, size, 0)
        film_module.on_size = lambda rows, columns: _limit(base, size, rows * columns)
        film = read_film(path)
        pixels = np.ascontiguousarray(film.pixels, np.float32)
        rest = {f.name: getattr(film, f.name) for f in fields(film) if f.name != "pixels"}
        return turn | {"shape": pixels.shape, "film": rest}, pixels
    except BaseException as error:  # a panic of Rust code is no Exception
        return turn | {"error": _said(error)}, None
    finally:
        _alarm(0)


def _said(error: BaseException) -> tuple[str, str]:
    """Code and sentence of an error; a MemoryError counts, although readers turn it into an error of theirs."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, MemoryError):
            return _GREW
        found = found.__context__
    return (error.code, error.sentence) if isinstance(error, FilmError) else _CRASHED


def _end(code: int) -> tuple[str, str]:
    """What a process died of, by its exit code, negative for a signal; Linux kills when memory runs out."""
    name = signal.Signals(-code).name if code < 0 else ""
    return {"SIGALRM": _SLOW, "SIGPROF": _SLOW, "SIGKILL": _GREW}.get(name, _CRASHED)


def _used() -> int:
    """Bytes of address space of this process; 0 where it is not limited."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE if _FORKS else 0


def _limit(base: int, size: int, pixels: int) -> None:
    """Limit this process for a film of so many bytes and pixels, over what it used at first."""
    _alarm(SECONDS + size * SECONDS_A_BYTE + pixels * SECONDS_A_PIXEL)
    if _FORKS:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = base + MEMORY + size * MEMORY_A_BYTE + pixels * MEMORY_A_PIXEL
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _alarm(seconds: float) -> None:
    """End this process after so many seconds, also inside C code; 0 ends the alarm."""
    if hasattr(signal, "setitimer"):
        for timer, number, limit in (("PROF", signal.SIGPROF, seconds), ("REAL", signal.SIGALRM, PATIENCE * seconds)):
            signal.signal(number, signal.SIG_DFL)
            signal.setitimer(getattr(signal, f"ITIMER_{timer}"), limit)
    elif seconds:
        faulthandler.dump_traceback_later(PATIENCE * seconds, exit=True)
    else:
        faulthandler.cancel_dump_traceback_later()


def _send(pipe: Any, message: dict[str, Any]) -> None:
    text = json.dumps(message, default=lambda value: {"array": value.tolist()} if value.ndim else value.item()).encode()
    _write(pipe, memoryview(struct.pack("<I", len(text)) + text))


def _receive(pipe: Any) -> Any:
    head = bytearray(4)
    _fill(pipe, memoryview(head))
    text = bytearray(min(*struct.unpack("<I", head), _LONGEST))
    _fill(pipe, memoryview(text))
    return json.loads(text, object_hook=lambda found: np.array(found["array"]) if [*found] == ["array"] else found)


def _write(pipe: Any, data: memoryview) -> None:
    while data:
        data = data[pipe.write(data) :]


def _fill(pipe: Any, into: memoryview) -> None:
    """Read until the buffer is full: EOFError if the pipe ends before."""
    while into:
        if not (count := pipe.readinto(into)):
            raise EOFError
        into = into[count:]
