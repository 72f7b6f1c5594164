"""How long the package takes beside its peers and beside the limit, one sampling a squaring, in one run on one thread."""

import copy
import ctypes
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.networks.blocks import DVF2DDF, Warp
from torch import Tensor, nn

from docs.experiments.pages import Experiment, judged, note, section
from monai_diffeo.bundles import bundles_folder
from monai_diffeo.canonicalize import Canonicalizer, EnergySearch, load_canonicalizer
from monai_diffeo.canonicalize.search import SearchObjective
from monai_diffeo.flow import compose, exp, warp
from monai_diffeo.flow.grid import centered_grid
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.networks import load_weights
from monai_diffeo.networks.predictor import resample_image
from monai_diffeo.radiograph.manifest import read_manifest
from monai_diffeo.report import film_figure
from monai_diffeo.report.cxr import LungAnatomy

STEPS = 7
BUNDLES = bundles_folder()
PEERS = {"deepali.core.flow": "hf-deepali", "voxelmorph": "voxelmorph", "SimpleITK": "SimpleITK"}  # module: package
SHORT = 5  # steps of slow modes that are timed
QUEUED = 20  # runs that a GPU is given at once
Runs = Mapping[str, Callable[[], object]]
Times = dict[str, list[float]]


class Clock:
    """Seconds of the processor on a CPU, which other programs disturb little; of the wall, after all is done, on a GPU."""

    def __init__(self, device: str, budget: float, rounds: int) -> None:
        self.cuda, self.budget, self.rounds = torch.device(device).type == "cuda", budget, rounds

    def now(self) -> float:
        if not self.cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def once(self, run: Callable[[], object]) -> float:
        began = self.now()
        run()
        return self.now() - began

    def interleaved(self, runs: Runs, share: float = 1.0, most: int = 100) -> Times:
        """Seconds of each, one after another, round by round, until the share of the budget is spent.

        The first round, which makes what is kept between calls, counts only if it spends the share alone.
        """
        began, times, rounds = time.perf_counter(), {name: [self.once(run)] for name, run in runs.items()}, self.rounds
        if time.perf_counter() - began < share * self.budget:
            times = {name: [] for name in runs}
        while (done := len(next(iter(times.values())))) < rounds or (
            time.perf_counter() - began < share * self.budget and done < most
        ):
            for name, run in runs.items():
                times[name].append(self.once(run))
        return times


def spread(values: Sequence[float], unit: float = 1.0) -> str:
    """The median, and the smallest and largest of the values."""
    numbers = (statistics.median(values), min(values), max(values))
    return "{} ({} to {})".format(*(f"{value * unit:.3g}" for value in numbers))


def ratios(times: Times, name: str, base: str) -> list[float]:
    """Of two runs, round by round."""
    return [a / b for a, b in zip(times[name], times[base])]


def rows_of(times: Times, base: str, of: str = "", **also: object) -> list[dict[str, object]]:
    """A row a run: milliseconds, and their ratio to the base, in a column that is called ``of`` or by the base's name."""
    return [
        also | {"what": name, "milliseconds": spread(values, 1e3), f"of {of or base}": spread(ratios(times, name, base))}
        for name, values in times.items()
    ]


def imported(name: str) -> Any:
    """A module, or None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def shown(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


class Benchmark:
    """All parts on one device; each gives sections of the page, and what the table of targets needs."""

    def __init__(self, options) -> None:
        self.device, self.count, self.films_dir = options.device, options.films, options.films_dir
        self.clock = Clock(options.device, options.seconds, options.rounds)
        self.values: dict[str, float] = {}
        self.peers = {name: module for name in PEERS if (module := imported(name)) is not None}
        device = torch.cuda.get_device_name(options.device) if self.clock.cuda else "processor"
        installed = [
            f"{PEERS[name]} {metadata.version(PEERS[name]) if name in self.peers else 'not installed'}" for name in PEERS
        ]
        self.words = {"device": device, "cores": os.cpu_count(), "steps": STEPS, "count": self.count, "load": ""}
        self.words |= {"peers": ", ".join(installed)}

    def heading(self, part: str) -> str:
        """The words of a part in the notes, where a line names it."""
        return next(text for text in note("benchmark", **self.words) if text.startswith(f"<!-- {part} -->")).partition("\n")[2]

    def field(self, size: Sequence[int], batch: int = 1, share: float = 0.03) -> Tensor:
        """A smooth random velocity; ``share`` of the frame is its spread."""
        coarse = torch.randn(batch, len(size), *[8] * len(size), generator=torch.Generator().manual_seed(0))
        mode = {2: "bilinear", 3: "trilinear"}[len(size)]
        return (share * min(size) * F.interpolate(coarse, tuple(size), mode=mode, align_corners=True)).to(self.device)

    def image(self, size: Sequence[int], batch: int = 1) -> Tensor:
        """A film, or in space a head, of this size."""
        given = sample_film() if len(size) == 2 else sample_head()
        return resample_image(given, size).to(self.device).expand(batch, -1, *size).contiguous()

    def half(self, size: Sequence[int]) -> Tensor:
        """Half the frame, in voxels, a column."""
        return torch.tensor([(n - 1) / 2 for n in size], device=self.device).view(-1, *[1] * len(size))

    def in_sampler(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """A displacement as the sampler has it, in units of half the frame and x first, and where it leads."""
        size = tuple(field.shape[2:])
        half = self.half(size)
        unit = (field / half).flip(1).contiguous()
        grid = (centered_grid(size, self.device) / half).flip(0).movedim(0, -1) + unit.movedim(1, -1)
        return unit, grid.contiguous()

    def absent(self, *names: str) -> list[dict[str, object]]:
        """A row a peer that is not installed."""
        return [{"what": f"{PEERS[name]} was not installed"} for name in names if name not in self.peers]

    def exp(self) -> list[str]:
        rows = [row for size in ((256, 256), (512, 512), (96, 96, 96)) for row in self.exp_at(size)]
        return [section(self.heading("exp"), [*rows, *self.absent("deepali.core.flow", "voxelmorph")])]

    def exp_at(self, size: tuple[int, ...]) -> list[dict[str, object]]:
        """Forward, and forward and backward, for one size; the limit's grid leads an eighth of the velocity far."""
        v, dims, rows = self.field(size), len(size), []
        (unit, _), (_, grid), weight = self.in_sampler(v), self.in_sampler(v / 8), torch.randn_like(v)
        monai = DVF2DDF(num_steps=STEPS, mode="bilinear", padding_mode="border")
        runs: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {"exp": (lambda v: exp(v, STEPS), v)}
        runs |= {"exp, spacing 2": (lambda v: exp(v, STEPS, 2), v), "MONAI DVF2DDF": (monai, v)}
        if deepali := self.peers.get("deepali.core.flow"):
            runs["deepali expv"] = lambda v: deepali.expv(v, steps=STEPS), unit
        if voxelmorph := self.peers.get("voxelmorph"):
            runs["voxelmorph integrate_vec"] = lambda v: voxelmorph.integrate_vec(v, STEPS, non_spatial_dims=(0,)), v

        def limit() -> None:
            for _ in range(STEPS):
                sampled(unit, grid)

        def limit_backward() -> None:
            for _ in range(STEPS):
                leaves = unit.clone().requires_grad_(), grid.clone().requires_grad_()
                torch.autograd.grad(sampled(*leaves), leaves, weight)

        def backward(run: Callable[[Tensor], Tensor], given: Tensor) -> None:
            leaf = given.clone().requires_grad_()
            torch.autograd.grad(run(leaf), leaf, weight)

        with torch.no_grad():
            far = {name: (run(given), given is unit) for name, (run, given) in runs.items()}
            far = {name: (d.flip(1) * self.half(size) if scaled else d) for name, (d, scaled) in far.items()}
            far = {name: (d - far["exp"]).abs().max().item() for name, d in far.items()}
            times = self.clock.interleaved({"limit": limit} | {name: partial(*run) for name, run in runs.items()}, dims / 2)
        both = {"limit": limit_backward} | {name: partial(backward, *run) for name, run in runs.items()}
        for kind, found in {"forward": times, "forward and backward": self.clock.interleaved(both, dims / 2)}.items():
            rows += rows_of(found, "limit", size=shown(size), **{"pass": kind})
            where = f"exp {dims} {max(size)} {kind}"
            self.values |= {f"{where} {name}": statistics.median(ratios(found, name, "limit")) for name in found}
            self.values[f"{where} of MONAI"] = statistics.median(ratios(found, "exp", "MONAI DVF2DDF"))
        for row in rows:
            if row["what"] in far and row["pass"] == "forward":
                row["from exp, voxels"] = f"{far[str(row['what'])]:.1g}"
        self.values[f"exp {dims} {max(size)} equal"] = far["MONAI DVF2DDF"]
        return rows

    def warp(self) -> list[str]:
        rows = [row for size in ((256, 256), (96, 96, 96)) for row in self.warp_at(size)]
        return [section(self.heading("warp"), [*rows, *self.absent("deepali.core.flow", "voxelmorph")])]

    def warp_at(self, size: tuple[int, ...]) -> list[dict[str, object]]:
        """Warp of an image, and composition of a displacement with itself, for one size."""
        ddf, image, monai = self.field(size), self.image(size), Warp("bilinear", "border")
        unit, grid = self.in_sampler(ddf)
        warps: dict[str, Callable[[], object]] = {"grid_sample of the image": lambda: sampled(image, grid)}
        warps |= {"warp": lambda: warp(image, ddf), "MONAI Warp": lambda: monai(image, ddf)}
        if voxelmorph := self.peers.get("voxelmorph"):
            given = {"non_spatial_dims": (0, 1), "padding_mode": "border"}
            warps["voxelmorph spatial_transform"] = lambda: voxelmorph.spatial_transform(image, ddf, **given)
        composed: dict[str, Callable[[], object]] = {"grid_sample of the field": lambda: sampled(unit, grid)}
        composed["compose"] = lambda: compose(ddf, ddf)
        if deepali := self.peers.get("deepali.core.flow"):
            composed["deepali compose_flows"] = lambda: deepali.compose_flows(unit, unit)
        with torch.no_grad():
            found = [(self.clock.interleaved(runs, 0.4), next(iter(runs))) for runs in (warps, composed)]
        return [row for times, base in found for row in rows_of(times, base, "the sampling", size=shown(size))]

    def step(self) -> list[str]:
        image = self.image((128, 128))
        refine, faithful = (load_canonicalizer("cxr", mode, self.device) for mode in ("refine", "faithful"))
        runs = {"refine": adam(image, refine), "faithful": adam(image, faithful), "as published": published(image, faithful)}
        times = self.clock.interleaved(runs, 1.5)
        self.values["published over refine"] = statistics.median(ratios(times, "as published", "refine"))
        return [section(self.heading("step"), rows_of(times, "refine"))]

    def films(self) -> list[str]:
        network, settings = film_network(self.device), {"single_pass": {}, "refine": {}, "faithful": {"steps": SHORT}}
        modes = {mode: load_canonicalizer("cxr", mode, self.device, **some) for mode, some in settings.items()}
        rows = [row for side in (128, 256, 512) for row in self.film_at(side, modes, network)]
        return [section(self.heading("films"), [*rows, *self.absent("SimpleITK")])]

    def film_at(self, side: int, modes: Mapping[str, Canonicalizer], network: nn.Module) -> list[dict[str, object]]:
        image, demons = self.image((side, side)), self.peers.get("SimpleITK")
        runs: dict[str, Callable[[], object]] = {"network alone": partial(network, image)}
        runs["test-time augmentation, 8 samples"] = partial(augmented, image, network)
        for mode, found in modes.items():
            name = mode + f", {SHORT} of 100 steps" * (mode == "faithful")
            for poses in (1, 8) if mode == "single_pass" else (1,):
                runs[f"{name}, {poses} poses" if poses > 1 else name] = partial(inferred, found, poses, image, network)
        if demons is not None:
            runs["SimpleITK demons, 3 levels of 30"] = partial(three_levels, demons, image)
        with torch.no_grad():
            times = self.clock.interleaved(runs, 1.5, 15)
        if side == 128:
            self.values["refined film"] = statistics.median(times["refine"])
        return rows_of(times, "network alone", size=shown((side, side)))

    def volumes(self) -> list[str]:
        network, rows = bundle_network("brain_3d", self.device), []
        modes = {mode: load_canonicalizer("brain_3d", mode, self.device) for mode in ("single_pass", "refine")}
        for size in ((64,) * 3, (96,) * 3):
            image = self.image(size)
            runs = {mode: partial(inferred, found, 1, image, network) for mode, found in modes.items()}
            with torch.no_grad():
                times = self.clock.interleaved({"network alone": partial(network, image), **runs}, 1.0, 5)
            rows += rows_of(times, "network alone", size=shown(size))
        return [section(self.heading("volumes"), rows)]

    def run(self) -> list[str]:
        """A run of films from file to mask, by the command."""
        rows, count = [], self.count
        with tempfile.TemporaryDirectory() as folder:
            kinds = {PACKAGED: write_dicom, "256 x 256 PNG": write_png}
            if self.films_dir:
                kinds = {FILMS: partial(write_dicom, films=enlarged_films(self.films_dir, 1 + self.count))} | kinds
            for kind, write in kinds.items():
                few, many = Path(folder, f"{kind} few"), Path(folder, f"{kind} many")
                write(few, 1), write(many, 1 + count)
                one, all_ = (segment(films, self.device) for films in (few, many))
                each = (all_["processor"] - one["processor"]) / count
                row = {
                    "films": kind,
                    "start and first film, seconds": f"{one['processor']:.2f}",
                    "each further film": f"{each:.3f}",
                }
                row["of the wall"] = f"{(all_['wall'] - one['wall']) / count:.3f}"
                row["peak memory, MiB: one film, all"] = f"{one['memory']:.0f}, {all_['memory']:.0f}"
                rows.append(row)
                self.values[f"run {kind}"], self.values[f"memory {kind}"] = each, all_["memory"] / one["memory"]
            drawing = self.drawing(Path(folder, "film.png"))
            times = self.clock.interleaved({"picture of a film": drawing}, 0.3)
        self.values["picture"] = statistics.median(times["picture of a film"])
        return [section(self.heading("run"), rows), section(self.heading("picture"), rows_of(times, "picture of a film"))]

    def drawing(self, path: Path) -> Callable[[], None]:
        """Draws the picture of a film that was deformed, with two ellipses as its mask, into a file."""
        size = (512, 512)
        (y, x), film = np.mgrid[-1:1:512j, -1:1:512j], resample_image(sample_film(), size)[0, 0]
        mask = sum((((x - c) / 0.3) ** 2 + (y / 0.6) ** 2 < 1) for c in (-0.45, 0.45)) > 0
        ddf = self.field(size, share=0.01)[0].cpu()
        numbers = {
            "status": "canonicalized",
            "energy_before": 20.0,
            "energy_after": 4.0,
            "areas": {"right": 0.15, "left": 0.13},
        }
        parts = (np.roll(mask, 4, 1), mask, mask, "a film", numbers)
        return partial(
            film_figure, path, film, warp(film[None, None], ddf[None].cpu())[0, 0], ddf, *parts, anatomy=LungAnatomy()
        )

    def growth(self) -> list[str]:
        network, found = film_network(self.device), load_canonicalizer("cxr", "single_pass", self.device)
        sides, seconds, rows, several = (128, 256, 512, 1024), {}, [], []
        with torch.no_grad():
            for side in sides:
                image, v = self.image((side, side)), self.field((side, side))
                runs = {"exp": partial(exp, v, STEPS), "warp": partial(warp, image, v)}
                runs["single_pass"] = partial(inferred, found, 1, image, network)
                times = self.clock.interleaved(runs, 0.4, 15)
                for name, values in times.items():
                    seconds.setdefault(name, []).append(statistics.median(values))
                row = {"size": shown((side, side))} | {f"{name}, ms": spread(values, 1e3) for name, values in times.items()}
                rows.append(row | {"peak memory of single_pass, MiB": f"{self.peak(runs['single_pass']):.0f}"})
            powers = {name: power(sides, values) for name, values in seconds.items()}
            rows.append({"size": "exponent"} | {f"{name}, ms": f"{value:.2f}" for name, value in powers.items()})
            self.values |= {f"exponent of {name}": value for name, value in powers.items()}
            for batch in (1, 8, 64) if self.clock.cuda else (1, 2, 4, 8):
                run = partial(inferred, found, 1, self.image((256, 256), batch), network)
                times = self.clock.interleaved({"": run}, 0.4, 10)[""]
                row = {"films": batch, "milliseconds a film": spread(times, 1e3 / batch)}
                several.append(row | {"peak memory, MiB": f"{self.peak(run):.0f}"})
            self.values["films a second"] = batch / statistics.median(times)
        return [section(self.heading("growth"), rows), section(self.heading("batch"), several)]

    def gpu(self) -> list[str]:
        """Of a batch of 64 on a GPU: exp and warp against the bandwidth of its memory, and refine."""
        if not self.clock.cuda:
            return []
        v, image, large = self.field((256, 256), 64), self.image((256, 256), 64), torch.rand(2**28, device=self.device)
        moved = 2 * (STEPS + 1) * v.nbytes  # a squaring reads and writes a field, warp a field and two images

        def exp_and_warp() -> Tensor:
            return warp(image, exp(v, STEPS))

        compiled = torch.compile(exp_and_warp, dynamic=False, mode="reduce-overhead")
        runs = {"copy of 1 GiB": large.clone, "exp and warp": exp_and_warp, "exp and warp, compiled": compiled}
        runs["exp alone"], runs["warp alone"] = partial(exp, v, STEPS), partial(warp, image, v)
        refine, counts = load_canonicalizer("cxr", "refine", self.device), (1, 16, 64)
        films = self.image((256, 256), 64)
        with torch.no_grad():
            times = self.clock.interleaved({name: partial(several_times, run) for name, run in runs.items()}, 0.4, 10)
            refined = self.clock.interleaved({f"{n} films refined": partial(refine, films[:n]) for n in counts}, 0.0)
        seconds = {name: statistics.median(values) / QUEUED for name, values in times.items()}
        bandwidth = 2 * large.nbytes / seconds["copy of 1 GiB"]
        rows = [{"what": name, "milliseconds": f"{1e3 * value:.3g}"} for name, value in seconds.items()]
        for row, name in zip(rows, seconds):
            if name.startswith("exp and warp"):
                row["of the bandwidth"] = f"{moved / bandwidth / seconds[name]:.2f}"
        self.values["share of the bandwidth"] = moved / bandwidth / seconds["exp and warp, compiled"]
        for count, (name, values) in zip(counts, refined.items()):
            value = statistics.median(values)
            rows.append({"what": name, "milliseconds": f"{1e3 * value:.3g}", "films a second": f"{count / value:.3g}"})
            self.values["refined films a second"] = count / value
        return [section(self.heading("gpu"), rows)]

    def imports(self) -> list[str]:
        """What importing the package adds to importing MONAI."""
        codes = {"import monai": "import monai", "import monai, monai_diffeo": "import monai, monai_diffeo"}
        times: Times = {name: [] for name in codes}
        for _ in range(2 * self.clock.rounds - 1):
            for name, code in codes.items():
                times[name].append(child([sys.executable, "-c", code])["processor"])
        self.values["import"] = statistics.median(ratios(times, "import monai, monai_diffeo", "import monai"))
        return [section(self.heading("imports"), rows_of(times, "import monai"))]

    def peak(self, run: Callable[[], object]) -> float:
        """MiB that a run takes at most over what was taken before."""
        if self.clock.cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what is freed goes back
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        except (OSError, AttributeError):
            return math.nan
        before = resident("VmRSS")
        run()
        return resident("VmHWM") - before

    def asked(self) -> str:
        """What was asked beside what was measured; a part that was not run says so."""
        rows = []

        def row(what: str, asked: str, name: str, limit: float, unit: str = "", least: bool = False) -> None:
            if (value := self.values.get(name)) is None:
                rows.append({"what": what, "asked": asked, "measured": "not measured"})
            else:
                met = value >= limit if least else value <= limit
                rows.append(judged(what, asked, f"{value:.3g}{unit}", met))

        row("difference to DVF2DDF with border padding", "<= 1e-4 voxel", "exp 2 512 equal", 1e-4, " voxel")
        if self.clock.cuda:
            row("single pass at 256², batch 64", ">= 500 films/s", "films a second", 500, " films/s", least=True)
            row("exp and warp, batch 64, compiled, of the bandwidth", ">= 0.5", "share of the bandwidth", 0.5, least=True)
            row("refine at 256², batch 64", ">= 20 films/s", "refined films a second", 20, " films/s", least=True)
            return section(self.heading("asked"), rows)
        for kind, share in (("forward", 0.25), ("forward and backward", 0.35)):
            for side in (256, 512):
                row(f"exp at {side}², {kind}, over the limit", "<= 1.5", f"exp 2 {side} {kind} exp", 1.5)
                row("the same over DVF2DDF", f"<= {share}", f"exp 2 {side} {kind} of MONAI", share)
        row("exp at 96³, forward, over the limit", "<= 1.2", "exp 3 96 forward exp", 1.2)
        if (peers := self.values.get("exp 3 96 forward deepali expv")) is not None:
            ours = self.values["exp 3 96 forward exp"]
            rows.append(
                judged("exp at 96³ and deepali, over the limit", "ours first", f"{ours:.3g} and {peers:.3g}", ours < peers)
            )
        row("exp at 96³ with spacing 2, over the limit", "<= 0.3", "exp 3 96 forward exp, spacing 2", 0.3)
        row(
            "a step as published at 128² over refine at 64²",
            ">= 100",
            "published over refine",
            100,
            " times",
            least=True,
        )
        row("refined film at 128²", "<= 0.3 s", "refined film", 0.3, " s")
        row("a film of 2000², file to mask and decision", "<= 0.35 s", f"run {FILMS}", 0.35, " s")
        row("the same, the packaged film", "<= 0.35 s", f"run {PACKAGED}", 0.35, " s")
        row("picture of a film", "<= 0.25 s", "picture", 0.25, " s")
        row("import over that of MONAI", "<= 1.05", "import", 1.05)
        for name in ("exp", "warp", "single_pass"):
            row(f"exponent of the cost of {name} over pixels", "<= 1.1", f"exponent of {name}", 1.1)
        row("peak memory of all films over that of one", "<= 1.1", f"memory {PACKAGED}", 1.1)
        return section(self.heading("asked"), rows)


PACKAGED, FILMS = "2000 x 2000 DICOM, the packaged film", "2000 x 2000 DICOM, films of shenzhen"
PARTS = ("exp", "warp", "step", "films", "volumes", "run", "growth", "gpu", "imports")


def several_times(run: Callable[[], object]) -> None:
    """Queued, so that a GPU has always work; the time is that of all."""
    for _ in range(QUEUED):
        run()


def sampled(image: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def power(sides: Sequence[int], seconds: Sequence[float]) -> float:
    """Exponent of the cost over the pixels, between the smallest and the largest image."""
    return math.log(seconds[-1] / seconds[0]) / math.log((sides[-1] / sides[0]) ** 2)


def resident(which: str) -> float:
    """MiB of this process's memory: ``VmRSS`` now, ``VmHWM`` at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024


def child(command: Sequence[str]) -> dict[str, float]:
    """Seconds and MiB of a command that ends well."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall, process.returncode = time.perf_counter() - began, os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"benchmark: {' '.join(command)} ended with {process.returncode}")
    return {"wall": wall, "processor": usage.ru_utime + usage.ru_stime, "memory": usage.ru_maxrss / 1024}


def segment(films: Path, device: str) -> dict[str, float]:
    """A run of the command on a folder of films, without pictures; every film has a mask."""
    with tempfile.TemporaryDirectory() as output:
        options = {"dataset_dir": films, "output_dir": output, "device": device, "figures": "false"}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return child([sys.executable, "-m", "monai_diffeo", "segment", *words])


@lru_cache
def packaged_pixels() -> np.ndarray:
    """The film of the package, or where it is not installed a made-up one; 16 bits."""
    try:
        import pydicom

        from monai_diffeo.radiograph.packaged import packaged_film

        dataset = pydicom.dcmread(packaged_film())
        pixels = dataset.pixel_array.astype(np.int64)
        return (pixels.max() - pixels if dataset.PhotometricInterpretation == "MONOCHROME1" else pixels).astype(np.uint16)
    except Exception:
        y, x = np.mgrid[-1:1:512j, -1:1:512j]
        lungs = sum(np.exp(-(((y + 0.1) / 0.6) ** 2 + ((x - c) / 0.3) ** 2) * 2) for c in (-0.45, 0.45))
        return (3000 - 2500 * np.clip(lungs, 0, 1)).astype(np.uint16)


@lru_cache
def sample_film() -> Tensor:
    film = torch.from_numpy(packaged_pixels().astype(np.float32))[None, None]
    return (film - film.min()) / (film.max() - film.min())


@lru_cache
def sample_head() -> Tensor:
    import nibabel

    file = next((BUNDLES / "brain_3d" / "docs" / "sample").glob("*.nii.gz"))
    head = torch.from_numpy(nibabel.as_closest_canonical(nibabel.load(file)).get_fdata(dtype=np.float32))[None, None]
    return (head - head.min()) / (head.max() - head.min())


def square(side: int, number: int) -> np.ndarray:
    """The film at another size, and a bit brighter for each number, so that no two files are equal."""
    film = torch.from_numpy(packaged_pixels().astype(np.float32))[None, None]
    return resample_image(film, (side, side))[0, 0].round().clamp(0, 4000).numpy().astype(np.uint16) + number


def enlarged_films(dataset_dir: str, count: int, side: int = 2000) -> list[np.ndarray]:
    """Films of shenzhen, ``test``, at another size, 12 bits."""
    from PIL import Image

    rows = read_manifest(dataset_dir, "test", ["shenzhen"], limit=count)
    if len(rows) < count:
        raise SystemExit(f"benchmark: --films_dir must have {count} films of shenzhen, got {len(rows)}.")
    films = (Image.open(row["image"]).convert("L").resize((side, side), Image.Resampling.BICUBIC) for row in rows)
    return [np.asarray(film).astype(np.uint16) * 16 for film in films]


def write_dicom(folder: Path, count: int, side: int = 2000, films: Sequence[np.ndarray] = ()) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir()
    for i, film in enumerate(films[:count] or [square(side, i) for i in range(count)]):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = ComputedRadiographyImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.Modality, dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "CR", "MONOCHROME2", 1
        dataset.Rows = dataset.Columns = side
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.PixelData = film.tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.save_as(folder / f"{i}.dcm", enforce_file_format=True)


def write_png(folder: Path, count: int, side: int = 256) -> None:
    from PIL import Image

    folder.mkdir()
    for i in range(count):
        film = square(side, i).astype(np.float32)
        Image.fromarray((film / film.max() * 255).astype(np.uint8)).save(folder / f"{i}.png")


def bundle_network(name: str, device: str) -> nn.Module:
    parser = ConfigParser(json.loads((BUNDLES / name / "configs" / "inference.json").read_text())["network_def"])
    return load_weights(parser.get_parsed_content(), BUNDLES / name / "models" / "model.pt").to(device).eval()


def inferred(found: Canonicalizer, poses: int, image: Tensor, network: nn.Module) -> Tensor:
    return DiffeoInferer(found, tta_samples=poses)(image, network)


def film_network(device: str) -> nn.Module:
    return bundle_network("cxr_lung_segmentation", device)


def adam(image: Tensor, canonicalizer: Canonicalizer) -> Callable[[], None]:
    """One step of a mode's own search, on the frame of that search."""
    energy, rate = canonicalizer.energy, canonicalizer.learning_rate
    if isinstance(search := canonicalizer.search, EnergySearch):
        energy, rate, image = search.energy, search.learning_rate, resample_image(image, search.image_size)
    goal = SearchObjective(image, energy, canonicalizer.search_family, canonicalizer.regularizer)
    theta = goal.identity().clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=rate)

    def step() -> None:
        theta.grad = torch.autograd.grad(goal(theta).sum(), theta)[0]
        optimizer.step()

    return step


class PublishedSiren(nn.Module):
    """The velocity as the paper has it: three sine layers of 256 units at every pixel's coordinates."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        axes = [torch.linspace(-1, 1, n) for n in size]
        self.register_buffer("points", torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2))
        self.size, widths = tuple(size), (2, 256, 256, 256, 2)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        nn.init.uniform_(self.layers[-1].weight, -1e-4, 1e-4)

    def forward(self) -> Tensor:
        x = self.points
        for i, layer in enumerate(self.layers[:-1]):
            x = torch.sin((1.6 if i == 0 else 1.0) * layer(x))
        return (0.0036 * self.layers[-1](x)).T.reshape(1, 2, *self.size)


def published(image: Tensor, faithful: Canonicalizer) -> Callable[[], float]:
    """One step of the algorithm as it is published, for one film: written from the paper, with MONAI's blocks for the flow."""
    siren, size = PublishedSiren(image.shape[2:]).to(image.device), image.shape[2:]
    flow, sampler = DVF2DDF(num_steps=STEPS, mode="bilinear", padding_mode="zeros"), Warp("bilinear", "zeros")
    energy = copy.deepcopy(faithful.energy)
    optimizer = torch.optim.Adam(siren.parameters(), lr=0.0039)

    def step() -> float:
        v = siren()
        ddf = flow(v * (size[0] - 1) / 2)
        slopes = [torch.diff(v, dim=d) * (size[0] - 1) / 2 for d in (2, 3)]
        loss = energy(sampler(image, ddf)).sum() + sum(slope.square().mean() for slope in slopes)
        down, along = (torch.diff(ddf, dim=d)[..., : size[0] - 1, : size[1] - 1] for d in (2, 3))
        determinant = (1 + down[:, 0]) * (1 + along[:, 1]) - down[:, 1] * along[:, 0]
        loss = loss + F.relu(-determinant).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def augmented(image: Tensor, network: nn.Module, samples: int = 8) -> Tensor:
    """Plain test-time augmentation: the mean over small affine maps, each mapped back."""
    draw, total = torch.Generator().manual_seed(0), torch.zeros_like(image)
    for _ in range(samples):
        matrix = torch.eye(2, 3) + 0.06 * torch.randn(2, 3, generator=draw)
        square = torch.cat([matrix, torch.tensor([[0.0, 0.0, 1.0]])]).inverse()[:2]
        there, back = (F.affine_grid(m[None].to(image), list(image.shape), align_corners=True) for m in (matrix, square))
        total += sampled(network(sampled(image, there)), back)
    return total / samples


def three_levels(sitk, image: Tensor) -> object:
    """Diffeomorphic demons of a film to its mirror image, over three resolutions, on one thread."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    array, field = image[0, 0].cpu().numpy(), None
    fixed, moving = sitk.GetImageFromArray(array), sitk.GetImageFromArray(np.ascontiguousarray(array[:, ::-1]))
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfIterations(30)
    demons.SetStandardDeviations(1.5)
    for shrink in (4, 2, 1):
        level = [sitk.Shrink(sitk.DiscreteGaussian(part, (shrink / 2) ** 2), [shrink, shrink]) for part in (fixed, moving)]
        if field is None:
            field = demons.Execute(*level)
        else:
            field = demons.Execute(*level, sitk.Resample(field, level[0]))
    return field


def main(argv: list[str] | None = None) -> None:
    defaults: dict[str, object] = {"only": list(PARTS), "device": "cpu", "films": 6, "seconds": 8.0, "rounds": 3, "threads": 1}
    experiment = Experiment("benchmark", __doc__, argv, **defaults, films_dir=str, output="docs/results/speed.md")
    options = experiment.options
    if unknown := set(options.only) - set(PARTS):
        raise SystemExit(f"benchmark: --only takes {', '.join(PARTS)}, got {', '.join(sorted(unknown))}.")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    before, benchmark, parts = os.getloadavg()[0], Benchmark(options), []
    for part in options.only:
        began = time.perf_counter()
        parts += getattr(benchmark, part)()
        print(f"({part}: {time.perf_counter() - began:.0f} s)\n", flush=True)
    benchmark.words["load"] = f"{before:.1f} before and {os.getloadavg()[0]:.1f} after"
    text = benchmark.heading("all")
    experiment.write("Speed", [text, benchmark.asked(), *parts], seed=0)


if __name__ == "__main__":
    main()
