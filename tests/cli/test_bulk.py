"""`monai-diffeo bulk` with real worker processes: the results of `segment`, and what happens when a process is killed."""

import asyncio
import functools
import json
import os
import re
import resource
import signal
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner

for package in ("distributed", "cryptography", "ignite", "nibabel", "pydicom", "skimage"):
    pytest.importorskip(package)

import dask  # noqa: E402

from monai_diffeo import bulk as room  # noqa: E402
from monai_diffeo.cli import bulk as command  # noqa: E402
from monai_diffeo.cli import program  # noqa: E402
from monai_diffeo.cli.bundle import FilmByFilm  # noqa: E402
from tests.bundles.command import lines_of  # noqa: E402
from tests.cli.killed import CONTEXT, start  # noqa: E402
from tests.report.runs import folder_of_films  # noqa: E402
from tests.report.test_full_disk import largest_file  # noqa: E402

PLAIN = ("--enabled", "false", "--figures", "false")


@pytest.fixture(scope="module")
def client():
    """Two worker processes of this machine, as without ``--scheduler``."""
    with room.connected(None, 2) as client:
        yield client


@pytest.fixture
def ours(client, monkeypatch):
    """The command takes the workers that are there. Batches are of three films."""
    monkeypatch.setattr(room, "connected", lambda *_: nullcontext(client))
    monkeypatch.setattr(room, "BATCH", 3)
    return client


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    names = ("a.dcm", "ward/a.dcm", "ward/b.dcm", "ward/b.png", "c.png", "d.png", "bad.dcm")
    return folder_of_films(tmp_path_factory.mktemp("films") / "in", *names)


def invoke(name, films, output, *words):
    done = CliRunner().invoke(
        program, [name, *PLAIN, "--dataset_dir", str(films), "--output_dir", str(output), *map(str, words)]
    )
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stderr.splitlines()


def made(output):
    """All that must be the same whatever happened: the lines, the audit's last word on each content, and the outputs."""
    lines, closing = lines_of(output)
    audit = [json.loads(line) for line in (output / "audit.jsonl").read_text().splitlines()]
    assert len({line["run"] for line in audit}) <= 1 or "resumed" in output.name
    for line in (*lines.values(), *audit):
        for name in ("seconds", "time", "run"):
            line.pop(name, None)
    paths = [p for p in output.rglob("*") if p.is_file() and p.name not in ("audit.jsonl", "run.log", "report.jsonl")]
    files = {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}
    inputs = [json.loads(line).get("input") for line in (output / "report.jsonl").read_text().splitlines()]
    assert len(inputs) == len(set(inputs))  # nothing twice
    return lines, closing, {str(line["sha256"]): line for line in audit}, files


@pytest.fixture(scope="module")
def calm(films, tmp_path_factory):
    """What `segment` makes of the films."""
    output = tmp_path_factory.mktemp("calm") / "out"
    assert invoke("segment", films, output)[0] == 3
    return made(output)


def test_the_results_are_those_of_segment_and_a_second_run_does_what_is_missing(ours, films, calm, tmp_path):
    output = tmp_path / "resumed"
    status, said = invoke("bulk", films, output)
    assert status == 3 and said[-2].startswith("Dashboard: http") and "Some films have no mask" in said[-1]
    assert made(output) == calm and not (output / room.STAGING).exists()
    first = (output / "audit.jsonl").read_text().splitlines()
    assert invoke("bulk", films, output)[0] == 3 and made(output) == calm
    more = [json.loads(line) for line in (output / "audit.jsonl").read_text().splitlines()[len(first) :]]
    assert [line["error"] for line in more] == ["NotAFilm"]  # what failed is tried again, and nothing else is
    (output / "ward" / "a_lungs.nii.gz").unlink()
    assert invoke("bulk", films, output)[0] == 3 and made(output) == calm
    assert len((output / "audit.jsonl").read_text().splitlines()) == len(first) + 3


# Processes that end


class Dying(FilmByFilm):
    """Ends its process at films of a folder ``dies``: each time that a file there, named like the film, still has letters.

    A small letter ends it before the film is segmented, a capital one after that.
    """

    def __call__(self, film, refused=None):
        word = self.films.parent / "dies" / film.name
        letters = word.read_text() if word.is_file() else ""
        if letters and refused is None:
            word.write_text(letters[1:])
            if letters[0].isupper():
                super().__call__(film)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(film, refused)


def _dying(root, given, films, trusted, output):
    return Dying(root, {**dict(given), "output_dir": str(output)}, films, trusted, share=True)


@pytest.fixture
def dies(ours, films, monkeypatch):
    """Say at which films workers are to end."""
    monkeypatch.setattr(command, "_segmenter", _dying)
    folder = films.parent / "dies"
    folder.mkdir(exist_ok=True)

    def say(**letters):
        for name, some in letters.items():
            (folder / name.replace("_", ".")).write_text(some)

    yield say
    assert all(path.read_text() == "" for path in folder.iterdir())  # they have ended so often
    for path in folder.iterdir():
        path.unlink()


def test_workers_that_are_killed_lose_nothing(dies, films, calm, tmp_path):
    dies(c_png="x", d_png="X", bad_dcm="xX")
    assert invoke("bulk", films, tmp_path / "out")[0] == 3
    assert made(tmp_path / "out") == calm


def test_films_that_end_each_worker_are_reported_and_all_others_are_done(dies, films, calm, tmp_path):
    dies(d_png="xxx", b_dcm="xXx")  # in one batch
    assert invoke("bulk", films, tmp_path / "out")[0] == 3
    lines, closing, *_ = made(tmp_path / "out")
    for name in ("d.png", "ward/b.dcm"):
        poison = lines.pop(name)
        assert poison["error"] == "WorkerEnded" and "3 times" in poison["message"] and poison["sha256"]
    assert not [*(tmp_path / "out").rglob("d_lungs.*"), *(tmp_path / "out").rglob("b_lungs.nii.gz")]
    assert lines == {name: calm[0][name] for name in lines} and len(lines) == len(calm[0]) - 2
    assert closing["counts"]["failed"] == 3


def test_ctrl_c_ends_the_run_and_the_same_command_goes_on(ours, films, calm, tmp_path, monkeypatch):
    def taken_and_stopped(*arguments):
        take(*arguments)
        os.kill(os.getpid(), signal.SIGINT)

    take = room.take_films
    with monkeypatch.context() as patch:
        patch.setattr(room, "take_films", taken_and_stopped)
        status, said = invoke("bulk", films, tmp_path / "resumed")
    lines, closing = lines_of(tmp_path / "resumed")
    assert status == 130 and said[-1] == "Interrupted. The same command goes on." and closing is None and 0 < len(lines) < 7
    assert invoke("bulk", films, tmp_path / "resumed")[0] == 3 and made(tmp_path / "resumed") == calm


def _ends_at_once(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_end_before_they_begin_end_the_run(films, tmp_path, monkeypatch):
    """On workers of its own, for one that was killed at its start may not come back."""
    monkeypatch.setattr(command, "_segmenter", _ends_at_once)
    monkeypatch.setattr(room, "TRIES", 0)
    with room.connected(None, 1) as client:
        monkeypatch.setattr(room, "connected", lambda *_: nullcontext(client))
        status, said = invoke("bulk", films, tmp_path / "out")
    assert status == 3 and "before they begin a film" in said[-1]


# Disks that are full


def test_a_report_that_cannot_be_written_ends_the_run_and_a_second_one_goes_on(ours, films, calm, tmp_path):
    with largest_file(6000):
        status, said = invoke("bulk", films, tmp_path / "resumed")
    lines, closing = lines_of(tmp_path / "resumed")
    assert status == 3 and "The disk is full." in said[-1] and closing is None and 0 < len(lines) < len(calm[0])
    masks = {path.relative_to(tmp_path / "resumed").as_posix() for path in (tmp_path / "resumed").rglob("*_lungs.*")}
    assert masks == {line["mask"] for line in lines.values() if line.get("mask")}  # a film without a line has no mask
    assert invoke("bulk", films, tmp_path / "resumed")[0] == 3 and made(tmp_path / "resumed") == calm


def _on_a_full_disk(*arguments):
    segment = command._segmenter(*arguments)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    return segment


def test_a_disk_that_is_full_for_a_worker_ends_the_run_too(ours, films, calm, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(command, "_segmenter", _on_a_full_disk)
        status, said = invoke("bulk", films, tmp_path / "resumed")
        while any(ours.processing().values()):
            time.sleep(0.1)
        ours.run(functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (-1, -1)))
    assert status == 3 and "The disk is full." in said[-1] and not lines_of(tmp_path / "resumed")[0]
    assert invoke("bulk", films, tmp_path / "resumed")[0] == 3 and made(tmp_path / "resumed") == calm


# Schedulers and workers of others


async def _serve(kind, file):
    from distributed import Scheduler, Worker

    more = {"dashboard": False, "port": 0} if kind == "scheduler" else {"nthreads": 1, "dashboard": False}
    async with (Scheduler if kind == "scheduler" else Worker)(scheduler_file=file, host="127.0.0.1", **more) as server:
        await server.finished()


def _served(kind, file):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    asyncio.run(_serve(kind, file))


@contextmanager
def cluster(file, *kinds):
    """A scheduler and a worker, or what is named, as their own commands start them; gives their processes."""
    processes = []
    try:
        for kind in kinds or ("scheduler", "worker"):
            processes.append(CONTEXT.Process(target=_served, args=(kind, str(file))))
            processes[-1].start()
            until = time.monotonic() + 120
            while not file.is_file() and time.monotonic() < until:
                time.sleep(0.1)
        if workers := len(processes) - 1:
            with room.Client(scheduler_file=str(file)) as client:
                client.wait_for_workers(workers, timeout=120)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()
        file.unlink(missing_ok=True)


POINTS = {
    "with results in place": ("monai_diffeo.report.audit.AuditFile.add", False),
    "with lines of the audit": ("monai_diffeo.report.audit.AuditFile.add", True),
    "with some lines of the report": ("monai_diffeo.report.writer.ReportWriter.write", True),
    "at the end": ("monai_diffeo.report.reporter.FilmReporter.end", False),
}


def test_a_run_that_is_killed_at_any_point_goes_on(films, calm, tmp_path):
    words = ("bulk", *PLAIN, "--dataset_dir", str(films), "--output_dir", str(tmp_path / "resumed"), "--scheduler")
    with cluster(tmp_path / "scheduler.json"):
        for point in POINTS.values():
            assert start(words, str(tmp_path / "scheduler.json"), kill=point) == -signal.SIGKILL, point
            lines, closing = lines_of(tmp_path / "resumed")
            assert closing is None
            for line in lines.values():
                assert line.get("error") == "NotAFilm" or (tmp_path / "resumed" / line["mask"]).is_file()
        assert start(words, str(tmp_path / "scheduler.json")) == 3
    assert made(tmp_path / "resumed") == calm


@pytest.mark.parametrize("waits", [True, False])
def test_a_scheduler_that_is_lost_ends_the_run_and_another_one_goes_on(films, calm, tmp_path, monkeypatch, waits):
    monkeypatch.setattr(room, "BATCH", 1)
    output, file, lines = tmp_path / "resumed", tmp_path / "scheduler.json", []

    def take(reporter, some):
        taken(reporter, some)
        lines.extend(some)
        if not waits:
            scheduler.kill()

    def has_ready(done):
        if waits and lines and not ready(done):
            scheduler.kill()
        return ready(done)

    taken, ready = room.take_films, room.as_completed.has_ready
    with cluster(file) as (scheduler, _), monkeypatch.context() as patch:
        patch.setattr(room, "take_films", take)
        patch.setattr(room.as_completed, "has_ready", has_ready)
        with dask.config.set({"distributed.comm.timeouts.connect": "2s"}):
            status, said = invoke("bulk", films, output, "--scheduler", file, "--patience", "0.5")
    lines, closing = lines_of(output)
    assert status == 3 and "The scheduler does not answer any more." in said[-1], said
    assert closing is None and 0 < len(lines) < len(calm[0])
    with cluster(file):
        address = json.loads(file.read_text())["address"]
        assert invoke("bulk", films, output, "--scheduler", address)[0] == 3 and made(output) == calm


class Ending(room.as_completed):
    """Ends a worker after the first batch of a run: where the result is about to be fetched."""

    worker = None

    def __next__(self):
        future = super().__next__()
        if Ending.worker is not None:
            Ending.worker.kill()
            Ending.worker = None
        return future


@pytest.mark.parametrize("fetched", [True, False])
def test_workers_that_are_gone_for_good_end_the_run_and_another_one_goes_on(films, calm, tmp_path, monkeypatch, fetched):
    monkeypatch.setattr(room, "BATCH", 1)
    output, file = tmp_path / "resumed", tmp_path / "scheduler.json"

    def take(reporter, some):
        taken(reporter, some)
        worker.kill()

    taken = room.take_films
    with cluster(file) as (_, worker), monkeypatch.context() as patch:
        patch.setattr(room, "_FETCH", 2)
        patch.setattr(*((room, "take_films", take) if fetched else (room, "as_completed", Ending)))
        Ending.worker = None if fetched else worker
        status, said = invoke("bulk", films, output, "--scheduler", file, "--patience", "2")
    lines, closing = lines_of(output)
    assert status == 3 and "must be a worker, and for 2 seconds there was none. Start some" in said[-1], said
    assert closing is None and fetched <= len(lines) < len(calm[0])
    with cluster(file):
        assert invoke("bulk", films, output, "--scheduler", file)[0] == 3 and made(output) == calm


def test_a_scheduler_to_which_no_worker_ever_comes_ends_the_run(films, tmp_path):
    with cluster(tmp_path / "scheduler.json", "scheduler"):
        words = ("--scheduler", tmp_path / "scheduler.json", "--patience", "0.5")
        status, said = invoke("bulk", films, tmp_path / "out", *words)
    assert status == 3 and "for 0.5 seconds there was none" in said[-1] and not lines_of(tmp_path / "out")[0]


class Slow(FilmByFilm):
    """Takes longer for one film than the run waits for a worker."""

    def __call__(self, film, refused=None):
        time.sleep(3 if film.name == "c.png" else 0)
        return super().__call__(film, refused)


def _slow(root, given, films, trusted, output):
    return Slow(root, {**dict(given), "output_dir": str(output)}, films, trusted, share=True)


def test_a_slow_worker_is_not_taken_for_none(ours, films, calm, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_segmenter", _slow)
    status, said = invoke("bulk", films, tmp_path / "out", "--patience", "0.5")
    assert status == 3 and "Some films have no mask" in said[-1] and made(tmp_path / "out") == calm


def test_a_worker_that_comes_in_time_goes_on(films, calm, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "BATCH", 1)
    file = tmp_path / "scheduler.json"

    def take(reporter, some):
        taken(reporter, some)
        processes[1].kill()

    def nthreads(client):
        if not (found := threads(client)) and not processes[1].is_alive():
            alone.append(time.monotonic())
            if len(alone) == 2:
                processes.append(CONTEXT.Process(target=_served, args=("worker", str(file))))
                processes[-1].start()
        return found

    taken, threads, alone = room.take_films, room.Client.nthreads, []
    monkeypatch.setattr(room, "take_films", take)
    monkeypatch.setattr(room, "_FETCH", 2)
    with cluster(file) as processes:
        monkeypatch.setattr(room.Client, "nthreads", nthreads)
        status, said = invoke("bulk", films, tmp_path / "out", "--scheduler", file, "--patience", "200")
    assert status == 3 and "Some films have no mask" in said[-1] and len(alone) > 1 and made(tmp_path / "out") == calm


def test_without_a_scheduler_nothing_changes(films, tmp_path, monkeypatch):
    report = tmp_path / "out" / "report.jsonl"
    report.parent.mkdir()
    report.write_text("as it was\n")
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        status, said = invoke("bulk", films, report.parent, "--scheduler", "tcp://127.0.0.1:1")
    assert status == 1 and "no scheduler answers at 'tcp://127.0.0.1:1'" in said[-1] and report.read_text() == "as it was\n"


def _with_other_settings(root, given, *more):
    return command._segmenter(root, (*given, ("tta_samples", 2)), *more)


def test_a_worker_with_other_settings_is_refused(ours, films, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_segmenter", _with_other_settings)
    status, said = invoke("bulk", films, tmp_path / "out")
    assert status == 3 and "a worker has other packages or another bundle" in said[-1] and not lines_of(tmp_path / "out")[0]


@pytest.mark.parametrize(
    "words, says",
    [
        ("--dataset_dir a", "Give --dataset_dir, --output_dir"),
        ("--dataset_dir a --output_dir b --scheduler c --workers 2", "at most one of --scheduler and --workers"),
        ("--dataset_dir a --output_dir b --workers 0", "not in the range"),
        ("--dataset_dir missing --output_dir b", "no folder or file at"),
        ("--dataset_dir a --output_dir ./a", "share the folder"),
        ("--dataset_dir a --output_dir b --bundle_root brain_3d", "Use 'segment'"),
    ],
)
def test_a_wrong_command_line_is_said_in_the_last_line(tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    done = CliRunner().invoke(program, ["bulk", *words.split()])
    assert done.exit_code == 1 and says in done.stderr.splitlines()[-1]


def test_an_empty_folder_needs_no_workers(tmp_path):
    (tmp_path / "in").mkdir()
    status, said = invoke("bulk", tmp_path / "in", tmp_path / "out", "--scheduler", "tcp://127.0.0.1:1")
    assert status == 4 and "or there was none" in said[-1]


def test_so_many_processes_are_started_as_are_asked_for(monkeypatch):
    asked = {}
    monkeypatch.setattr(room, "LocalCluster", lambda **settings: nullcontext(asked.update(settings)))
    monkeypatch.setattr(room, "Client", nullcontext)
    for workers in (3, None):
        with room.connected(None, workers) as client:
            assert client and asked["n_workers"] == workers
    assert (
        asked["threads_per_worker"] == 1 and asked["security"] is True and asked["dashboard_address"].startswith("127.0.0.1:")
    )


# Clusters that the page names


PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "segment-on-many-processes.md").read_text()


def page_code(number):
    """The Python code that the page shows, as far as it can be run without a cluster."""
    return re.split("^cluster.scale|^cluster = Kube", re.findall(r"```python\n(.*?)```", PAGE, re.S)[number], flags=re.M)[0]


def test_the_page_names_the_patience_of_the_command():
    assert f"after which the run ends; without it {command.PATIENCE}. " in PAGE


def test_the_page_asks_slurm_for_workers_of_one_thread():
    pytest.importorskip("dask_jobqueue")
    names = {}
    exec(page_code(0), names)
    with names["cluster"] as cluster:
        job = cluster.job_script()
    assert "#SBATCH -p normal" in job and "#SBATCH -t 08:00:00" in job and "--nthreads 1" in job and "dask_worker" in job


def test_the_page_asks_kubernetes_for_workers_of_one_thread_that_see_the_films():
    pytest.importorskip("dask_kubernetes")
    names = {}
    exec(page_code(1), names)
    worker = names["spec"]["spec"]["worker"]
    (container,) = worker["spec"]["containers"]
    assert worker["replicas"] == 100 and container["args"][:4] == ["dask", "worker", "--nthreads", "1"]
    assert container["volumeMounts"][0]["name"] == worker["spec"]["volumes"][0]["name"]
