"""Films from the process of their own: the same films, an answer for every end, and nothing left behind."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph import isolation
from monai_diffeo.radiograph.isolation import IsolatedReader
from monai_diffeo.radiograph.reader import read_film

for package in ("pydicom", "nibabel", "PIL", "rle", "openjpeg", "libjpeg"):
    pytest.importorskip(package)

from tests.radiograph.dicom_factory import corner_film, save  # noqa: E402
from tests.radiograph.fuzz import seeds  # noqa: E402

linux = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked and limited on Linux")
EVIL = """
import os, signal, sys, time
from pathlib import Path
from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph import isolation
isolation.SECONDS, isolation.MEMORY = 0.6, 64 * 2**20
good, answer = isolation.read_film, isolation._answer

class Panic(BaseException):
    pass

def read(path):
    match Path(path).stem:
        case "segv": os.kill(os.getpid(), signal.SIGSEGV)
        case "abort": os.abort()
        case "exit": os._exit(0)
        case "kill": os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True: pass
        case "asleep":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            time.sleep(60)
        case "panic": raise Panic("DOE^JANE")
        case "grow":
            kept = []
            while True: kept.append(bytearray(2**22))
        case "swallowed":
            try: bytearray(2**30)
            except Exception: raise FilmError("UnreadablePixels", "x") from None
        case "prints":
            os.write(1, b"x" * 200000); os.write(2, b"DOE^JANE"); print("y" * 200000, flush=True)
        case "torch": raise FilmError("Modules", ".".join(sys.modules))
        case "half": isolation._write = lambda pipe, data: (pipe.write(data[:7]), os.kill(os.getpid(), signal.SIGKILL))
    return good(path)

def say(request, base):
    found, pixels = answer(request, base)
    match Path(request["path"]).stem:
        case "stranger": found["turn"] += 1
        case "endless": found["shape"] = [2**16, 2**12]
        case "foreign": found["film"] = {"code": "?"}
    return found, pixels

isolation.read_film, isolation._answer = read, say
"""


@pytest.fixture(scope="module")
def reader():
    found = IsolatedReader()
    yield found
    found.close()


@pytest.fixture
def evil(monkeypatch):
    """A reader whose server does what films of certain names ask for; 0.6 seconds and 64 MiB are the limits."""
    monkeypatch.setattr(isolation, "_BOOT", isolation._BOOT.replace("serve(0, answers)", EVIL + "serve(0, answers)"))
    found = IsolatedReader()
    yield found
    found.close()


@pytest.fixture
def good(tmp_path):
    return save(tmp_path / "good.dcm", corner_film(), PixelSpacing=[0.2, 0.1])


def code(read, path):
    with pytest.raises(FilmError) as error:
        read(path)
    return error.value.code


def gone(pid, seconds=5.0):
    """Whether a process ends, and is no zombie."""
    until = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.02)
    return not Path(f"/proc/{pid}").exists()


# ---- the same films ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", seeds())
def test_films_and_errors_are_the_same_bit_for_bit(reader, tmp_path, kind):
    suffix, content = seeds()[kind]
    for name, data in ((f"film{suffix}", content), (f"cut{suffix}", content[: len(content) // 3])):
        path = tmp_path / name
        path.write_bytes(data)
        try:
            here = read_film(path)
        except FilmError as error:
            with pytest.raises(FilmError) as there:
                reader(path)
            assert (there.value.code, there.value.sentence) == (error.code, error.sentence)
            continue
        film = reader(str(path))
        assert film.pixels.dtype == here.pixels.dtype == np.float32 and film.pixels.flags.writeable
        np.testing.assert_array_equal(film.pixels.view(np.uint32), here.pixels.view(np.uint32))
        assert film.affine.dtype == np.float64 and (film.affine == here.affine).all()
        assert (film.spacing, film.spacing_source, film.format) == (here.spacing, here.spacing_source, here.format)
        assert film.details == here.details
        assert {name: type(v) for name, v in film.details.items()} == {name: type(v) for name, v in here.details.items()}


def test_names_that_are_relative_or_no_text(reader, tmp_path, monkeypatch):
    content = seeds()["raw"][1]
    for name in ("a.dcm", os.fsdecode(b"\xff\xfe.dcm"), "two\nlines.dcm", "n" * 251 + ".dcm"):
        (tmp_path / name).write_bytes(content)
        monkeypatch.chdir(tmp_path)
        assert reader(name).pixels.shape == reader(os.fsencode(tmp_path / name)).pixels.shape == (48, 40)
    assert code(reader, tmp_path / "absent.dcm") == "FileNotReadable"


def test_threads_take_turns(reader, tmp_path):
    films = [save(tmp_path / f"{k}.dcm", corner_film(20 + k, 30)) for k in range(4)]
    seen: list = []

    def read(film):
        seen.append((film, [reader(film).pixels.shape[0] for _ in range(8)]))

    threads = [threading.Thread(target=read, args=(film,)) for film in films]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(seen) == {film: [20 + k] * 8 for k, film in enumerate(films)}


@pytest.mark.parametrize("how", [copy.deepcopy, lambda reader: pickle.loads(pickle.dumps(reader))])
def test_a_copy_has_a_server_of_its_own(reader, good, how):
    other = how(reader)
    assert other._server is None and other(good).pixels.shape == reader(good).pixels.shape
    assert other._server.pid != reader._server.pid
    other.close()
    assert reader(good).pixels.shape == (24, 32)


# ---- every end is an answer ----------------------------------------------------------------------------------------

ENDS = {"segv": "DecoderCrashed", "abort": "DecoderCrashed", "exit": "DecoderCrashed", "panic": "DecoderCrashed"}
ENDS |= {"hang": "DecoderTimeout", "asleep": "DecoderTimeout", "grow": "OutOfMemory", "swallowed": "OutOfMemory"}
ENDS |= {"kill": "OutOfMemory", "half": "DecoderCrashed"}
ENDS |= dict.fromkeys(("stranger", "endless", "foreign"), "DecoderCrashed")


@linux
def test_whatever_ends_a_worker_is_an_answer_and_the_next_film_is_read(evil, good, tmp_path, capfd):
    seen = {}
    for name in ENDS:
        path = tmp_path / f"{name}.dcm"
        path.write_bytes(good.read_bytes())
        began = time.monotonic()
        seen[name] = code(evil, path)
        assert time.monotonic() - began < 30
        if name not in ("half", "stranger", "endless", "foreign"):
            assert evil._server.poll() is None  # the server stays: the next film does not wait for its imports
        assert evil(good).pixels.shape == (24, 32), name
    assert seen == ENDS
    assert capfd.readouterr() == ("", "")


@linux
def test_what_a_decoder_prints_is_neither_an_answer_nor_on_the_terminal(evil, good, tmp_path, capfd):
    path = tmp_path / "prints.dcm"
    path.write_bytes(good.read_bytes())
    assert evil(path).pixels.shape == (24, 32) and capfd.readouterr() == ("", "")


@linux
def test_limits_grow_with_the_size_that_a_file_declares(evil, tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    ramp = np.add.outer(np.arange(3000, dtype=np.uint16), np.arange(3000, dtype=np.uint16))
    image_module.fromarray(ramp).save(tmp_path / "large.png")
    np.testing.assert_array_equal(evil(tmp_path / "large.png").pixels, ramp)  # 36 MB of pixels, 100 of memory


@linux
def test_the_server_does_without_torch(evil, good, tmp_path):
    path = tmp_path / "torch.dcm"
    path.write_bytes(good.read_bytes())
    with pytest.raises(FilmError) as said:
        evil(path)
    names = said.value.sentence.split(".")
    assert "pydicom" in names and not {"torch", "monai"} & set(names)


@linux
def test_a_server_or_worker_that_is_killed_between_films_costs_no_film(reader, good):
    for kill in ("server", "worker"):
        assert reader(good).pixels.shape == (24, 32)
        server = reader._server.pid
        worker = int(Path(f"/proc/{server}/task/{server}/children").read_text())
        os.kill(server if kill == "server" else worker, signal.SIGKILL)
        reader._server.wait(5)
        assert reader(good).pixels.shape == (24, 32) and reader._server.pid != server


def test_a_server_that_does_not_start_is_said(monkeypatch, good):
    monkeypatch.setattr(isolation, "_BOOT", "raise SystemExit(1)")
    reader = IsolatedReader()
    assert [code(reader, good) for _ in range(2)] == ["ReaderNotStarted"] * 2
    monkeypatch.setattr(sys, "executable", "/absent/python")
    assert code(IsolatedReader(), good) == "ReaderNotStarted"


# ---- nothing is left behind ----------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, time, types
root, film, end = sys.argv[1:]
sys.path.insert(0, root)
for name in ("monai_diffeo", "monai_diffeo.radiograph"):  # without torch: quick
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [os.path.join(root, *name.split("."))]
from monai_diffeo.radiograph.isolation import IsolatedReader
reader = IsolatedReader(debug=True)
reader(film)
print(reader._server.pid, flush=True)
if end == "error": raise ValueError
if end == "kill": os.kill(os.getpid(), signal.SIGKILL)
if end == "busy": reader(film.replace("good", "asleep"))
if end == "interrupt": time.sleep(60)
"""


@linux
@pytest.mark.parametrize("end", ["normal", "error", "kill", "interrupt"])
def test_a_server_ends_with_its_process_however_that_ends(good, end):
    root = str(Path(isolation.__file__).parents[2])
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), root, str(good), end]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    server = int(process.stdout.readline())
    if end == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches the group
    _, said = process.communicate(timeout=20)
    assert process.returncode == {"normal": 0, "error": 1, "kill": -signal.SIGKILL, "interrupt": -signal.SIGINT}[end]
    assert said.count("Traceback") == (end in ("error", "interrupt"))  # that of the script alone
    assert gone(server)


@linux
def test_a_reader_that_is_dropped_or_closed_takes_its_server_along(good):
    reader = IsolatedReader()
    reader(good)
    first = reader._server.pid
    reader.close()
    assert gone(first) and reader(good).pixels.shape == (24, 32)
    second, open_files = reader._server.pid, len(os.listdir("/proc/self/fd"))
    del reader
    assert gone(second) and len(os.listdir("/proc/self/fd")) == open_files - 2


@linux
def test_ctrl_c_during_a_film_ends_its_server_and_the_next_film_is_read(evil, good, tmp_path):
    path = tmp_path / "asleep.dcm"
    path.write_bytes(good.read_bytes())
    evil(good)
    server = evil._server.pid
    threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        evil(path)
    assert gone(server) and evil(good).pixels.shape == (24, 32)


@linux
def test_a_forked_process_has_a_server_of_its_own_and_lets_go_of_the_parents(reader, good):
    reader(good)
    server = reader._server
    child = os.fork()
    if not child:
        status = 1
        try:
            own = server.stdin.closed and reader(good).pixels.shape == (24, 32) and reader._server.pid != server.pid
            status = 0 if own else 2
            reader.close()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert server.poll() is None and reader(good).pixels.shape == (24, 32) and reader._server is server


# ---- a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poison(tmp_path_factory):
    """Twelve films with one flipped bit in RLE, panics of the decoder first, between two good ones."""
    from pydicom.uid import RLELossless

    folder = tmp_path_factory.mktemp("poison")
    content = save(folder / "a_good.dcm", corner_film(), compress=RLELossless).read_bytes()
    header = content.index(b"\xfe\xff\x00\xe0", content.index(b"\xe0\x7f\x10\x00") + 20) + 8
    probe, found = folder / "probe.dcm", []
    for bit in range(8 * 24):
        data = bytearray(content)
        data[header + bit // 8] ^= 1 << bit % 8
        probe.write_bytes(data)
        try:
            read_film(probe)
        except BaseException as error:
            found.append((isinstance(error, Exception), bit, bytes(data)))
    for count, (*_, data) in enumerate(sorted(found)[:12]):
        (folder / f"b_{count:02}.dcm").write_bytes(data)
    save(folder / "c_good.dcm", corner_film())
    return sorted(folder.glob("?_*.dcm"))


def test_poison_is_an_item_of_a_dataset_also_without_isolation(poison):
    from monai_diffeo.radiograph.failsafe import FAILURE, FailSafeDataset

    items = FailSafeDataset([{"image": str(path)} for path in poison], lambda item: read_film(item["image"]) and item)
    failed = [FAILURE in items[k] for k in range(len(poison))]
    assert failed == [False, *[True] * (len(poison) - 2), False]


@pytest.mark.parametrize("workers", [0, 1])
def test_twelve_poison_films_between_two_good_ones_are_twelve_lines_and_both_good_ones_are_segmented(poison, workers):
    pytest.importorskip("ignite")
    import torch
    from monai.inferers import SimpleInferer
    from torch.utils.data import DataLoader

    from monai_diffeo.engines import FilmEvaluator
    from monai_diffeo.radiograph.failsafe import FailSafeDataset, collate_one
    from monai_diffeo.transforms import LoadImageFilmd

    class Seen:
        wants_plain = False

        def done(self, path, batch, output, result, seconds):
            good.append(path)

        def failed(self, path, error):
            bad.append(path)
            assert isinstance(error, FilmError)

    good, bad = [], []
    load, seen = LoadImageFilmd("image", isolate=True), Seen()
    data = FailSafeDataset([{"image": str(path)} for path in poison], load)
    loader = DataLoader(data, batch_size=1, collate_fn=collate_one, num_workers=workers)
    FilmEvaluator(torch.device("cpu"), loader, torch.nn.Identity(), inferer=SimpleInferer(), reporter=seen).run()
    first, *between, last = map(str, poison)
    assert good == [first, last] and bad == between and len(between) == 12
    load.loader.isolated.close()
