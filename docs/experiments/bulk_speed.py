"""What a film costs ``monai-diffeo bulk``: workers beside one another, and the process of the run, which all films pass."""

import json
import os
import resource
import tempfile
import time
from pathlib import Path

import psutil
import torch
from distributed import get_task_stream

from docs.experiments.pages import Experiment, note, section
from monai_diffeo import bulk
from monai_diffeo.bundles import find_bundle
from monai_diffeo.cli.bulk import PATIENCE, _segmenter
from monai_diffeo.cli.bundle import film_parser
from monai_diffeo.radiograph.packaged import packaged_film
from monai_diffeo.report.share import ReportedFilm, take_films


def linked(folder: Path, films: int) -> Path:
    """A folder with the packaged film (7 MB, 1955 x 1841, not compressed) under many names."""
    folder.mkdir()
    for number in range(films):
        (folder / f"{number:06}.dcm").symlink_to(packaged_film())
    return folder


def reporter_of(films: Path, output: Path, amp: bool = False):
    """The reporter of a run, its films that are missing, and its task for workers."""
    root = find_bundle("cxr").absolute()
    given = {"dataset_dir": str(films), "output_dir": str(output), "figures": False, "amp": amp}
    reporter = (parser := film_parser(root, {**given, "resume": True})).get_parsed_content("reporter")
    missing = [item["image"] for item in reporter.missing(parser.get_parsed_content("films").items)]
    arguments = (root, tuple(given.items()), films, False)
    (staged := output / bulk.STAGING / "run").mkdir(parents=True, exist_ok=True)
    return reporter, missing, bulk.Task(_segmenter, arguments, str(staged), reporter.settings_sha256, str(films))


def run(films: Path, output: Path, workers: int, amp: bool = False) -> dict[str, float]:
    """Seconds of a run with so many workers, whose networks are loaded: by the clock, within tasks, and of the processor."""
    reporter, missing, task = reporter_of(films, output, amp)
    with bulk.connected(None, workers) as client:
        reporter.begin(len(missing))
        client.gather(
            [client.submit(bulk.segment_batch, task, missing[:1], workers=[one], pure=False) for one in client.nthreads()]
        )
        used, own, began = sum(client.run(processor_seconds).values()), time.process_time(), time.perf_counter()
        with get_task_stream(client) as stream:
            bulk.run_films(client, task, missing, reporter, PATIENCE)
        wall, own = time.perf_counter() - began, time.process_time() - own
        used = sum(client.run(processor_seconds).values()) - used
    reporter.end()
    parts = [part for each in stream.data for part in each["startstops"] if part["action"] == "compute"]
    return {"wall": wall, "busy": sum(part["stop"] - part["start"] for part in parts), "workers'": used, "the run's": own}


def processor_seconds() -> float:
    """Of a worker and the process that reads films for it."""
    worker = psutil.Process()
    times = [each.cpu_times() for each in (worker, *worker.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def taking(output: Path, count: int) -> dict[str, float]:
    """What the process of a run needs for so many films that are done: by film, seconds, and bytes of memory and of lines."""
    line = json.loads((output / "report.jsonl").read_text().splitlines()[0])
    audit = json.loads((output / "audit.jsonl").read_text().splitlines()[0])
    mask = (output / line["mask"]).read_bytes()
    with tempfile.TemporaryDirectory() as place:
        reporter_of(linked(Path(place, "few"), 1), Path(place, "none"))
        start = time.perf_counter()
        reporter_of(Path(place, "few"), Path(place, "none"))
        loading = time.perf_counter() - start  # of networks, which all runs need
        before, start = memory(), time.perf_counter()
        reporter, missing, task = reporter_of(linked(Path(place, "films"), count), Path(place, "out"))
        listed, listing = memory(), time.perf_counter() - start - loading
        reporter.begin(count)
        seconds = 0.0
        for some in (missing[i : i + bulk.BATCH] for i in range(0, count, bulk.BATCH)):
            films = []
            for path in some:
                name = Path(path).stem + "_lungs.nii.gz"
                Path(task.folder).mkdir(parents=True, exist_ok=True)
                Path(task.folder, name).write_bytes(mask)
                films.append(ReportedFilm({**line, "input": Path(path).name, "mask": name}, audit, task.folder))
            start = time.perf_counter()
            take_films(reporter, films)
            seconds += time.perf_counter() - start
        reporter.end()
        sizes = {f"{name} bytes": Path(place, "out", f"{name}.jsonl").stat().st_size / count for name in ("report", "audit")}
        again = time.perf_counter()
        reporter, missing, _ = reporter_of(Path(place, "films"), Path(place, "out"))
        again = time.perf_counter() - again - loading
        assert not missing
    found = {"list": listing / count, "take": seconds / count, "look again": again / count, "mask bytes": len(mask)}
    return found | sizes | {"listed bytes": (listed - before) / count}


def memory() -> int:
    """Bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main(argv: list[str] | None = None) -> None:
    experiment = Experiment("bulk_speed", __doc__, argv, films=48, lines=2000)
    options = experiment.options
    torch.set_num_threads(1)
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as place:
        films = linked(Path(place, "films"), options.films)
        load = os.getloadavg()[0]
        for workers in (1, 2):
            found[workers] = run(films, Path(place, str(workers)), workers)
            some, share = found[workers], found[workers]["busy"] / (workers * found[workers]["wall"])
            row = {"number of workers": workers, **{name: f"{value / options.films:.3f}" for name, value in some.items()}}
            clock, processor = found[1]["wall"] / (workers * some["wall"]), share * found[1]["workers'"] / some["workers'"]
            rows.append(row | {"busy share": f"{share:.3f}", "by clock": f"{clock:.2f}", "by processor": f"{processor:.2f}"})
        quick = run(films, Path(place, "amp"), 1, amp=True)
        quicker = {name: f"{value / options.films:.3f}" for name, value in quick.items()}
        rows.append({"number of workers": "1, `--amp true`", **quicker, "by clock": f"{found[1]['wall'] / quick['wall']:.2f}"})
        own = taking(Path(place, "2"), options.lines)
    first, second = note("bulk_speed", films=options.films, lines=options.lines, load=f"{load:.1f}", cores=os.cpu_count())
    told = {name: f"{value:.0f}" if "bytes" in name else f"{1000 * value:.2f} ms" for name, value in own.items()}
    driver = [{"what": name, "a film": value} for name, value in told.items()]
    experiment.write("What a film costs a run of many", [section(first, rows), section(second, driver)])


if __name__ == "__main__":
    main()
