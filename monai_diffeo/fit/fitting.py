"""Fitting a canonicaliser to images, from reading them to the page that says whether it worked."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_diffeo.canonicalize import Canonicalizer, fit_statistics, load_canonicalizer
from monai_diffeo.canonicalize.checks import check_device
from monai_diffeo.canonicalize.folder import read_settings
from monai_diffeo.canonicalize.limits import SignLimits
from monai_diffeo.errors import ConfigError
from monai_diffeo.files import record_sha256, write_atomically
from monai_diffeo.fit.atlas import fit_atlas
from monai_diffeo.fit.images import LEAST_IMAGES, ImagesReader, Item, find_images, is_held_back
from monai_diffeo.fit.loop import seconds_a_step, train_part
from monai_diffeo.fit.network import NetworkUnderTest
from monai_diffeo.fit.outcome import FitOutcome, keeps_orientation, measure, measure_orientation, measure_overlap
from monai_diffeo.fit.page import PAGE, outcome_lines, plan_lines, write_page
from monai_diffeo.fit.parts import REFINE, SINGLE_PASS, FitPart, folder_settings, parts_of, predictor_size, working_size_of
from monai_diffeo.fit.settings import write_settings
from monai_diffeo.networks import load_weights
from monai_diffeo.networks.predictor import resample_image, resample_once_more

__all__ = ["fit_canonicalizer"]

RECORD = "fit.json"
_MOST_VALUES = 4e8  # of all images in memory: 1.6 GB
_READING, _ANSWERS, _OUTCOME = 0.15, 0.15, 0.12  # shares of the time
_ENOUGH = 8  # images that were held back, for the statistics to be of these alone
_WORTH_SEARCHING = 0.02  # share of the displacement that a search must undo beyond the predictor, for it takes long
_LOOKED_AT = 8  # images from which the working size is chosen


def fit_canonicalizer(
    images: Any,
    folder: str | Path,
    network: nn.Module | NetworkUnderTest | None = None,
    *,
    transform: Callable[[Any], Any] | None = None,
    dims: int | None = None,
    size: Sequence[int] | None = None,
    minutes: float = 20.0,
    device: str | torch.device = "cpu",
    resume: bool = False,
    seed: int = 0,
    steps: Mapping[str, int] | None = None,
    progress: bool | None = None,
    say: Callable[[str], Any] = print,
    checkpoint_seconds: float = 20.0,
) -> FitOutcome:
    """Fit predictor, orientation, VAE, critic and statistics to unlabelled images; :func:`load_canonicalizer` reads the result.

    Args:
        images: a folder, a datalist, a manifest, or a sequence, see :func:`~monai_diffeo.fit.images.find_images`. Masks
            (``label``) are used for the page only.
        folder: of the result; a fit that is in it is never overwritten.
        network: whose answers on the images the predictor learns to bring into place; None fits without.
        transform: from ``{"image": path}`` to what the network sees; None reads files as MONAI does.
        dims: 2 or 3; None takes what the first image has.
        size: working size, multiples of 16; None takes the images' proportions, the longest side 128 (2D) or 64 (3D).
        minutes: of wall clock, for everything.
        device: of training and network.
        resume: go on with the fit in ``folder``, which began with the same settings.
        seed: of all random numbers.
        steps: of each part by name, in place of a plan by time.
        progress: show a bar; None does so on a terminal.
        say: takes each line of the plan and of the outcome.
        checkpoint_seconds: between two checkpoints.

    Returns:
        The figures of the page.

    Raises:
        ConfigError: if the settings or the images cannot be used, or the folder holds a fit.
        ValueError: if there is no such device.
        NumericalError: if a part fails; nothing stands in for it.
    """
    began, worked, folder, device = time.perf_counter(), time.process_time(), Path(folder), check_device("fit", device)
    _check(minutes, dims, size)
    items = find_images(images)
    items = [items[i] for i in torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()]
    net = NetworkUnderTest(network) if isinstance(network, nn.Module) else network
    names = "".join(str(item["image"]) for item in items if not isinstance(item["image"], Tensor))
    settings: dict[str, Any] = {
        "images": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
        "network": net and net.source,
    }
    settings |= {"dims": dims, "size": size and list(size), "minutes": minutes, "steps": steps and dict(steps), "seed": seed}
    record = _begin(folder, settings, resume)
    limit = math.inf if steps else 60 * minutes
    data = _Images(items, ImagesReader(transform, dims, say), net, size, record.get("plan"))
    data.read(limit, device)
    parts = parts_of(len(data.frame), data.reader.channels, data.size)
    inputs = {part.name: data.of(part) for part in parts}
    if "plan" not in record:
        left = (1 - _OUTCOME) * limit - (time.perf_counter() - began)
        record["plan"] = {**data.plan(), "device": str(device), "parts": _planned(parts, inputs, device, left, steps)}
        _write(folder, record)
    for line in plan_lines(record["plan"]):
        say(line)
    _train(folder, parts, inputs, record["plan"]["parts"], device, seed, progress, checkpoint_seconds)
    outcome = _finish(folder, parts, data, net, device, seed, _OUTCOME * limit / 4, record["plan"])
    took = {"minutes": (time.perf_counter() - began) / 60, "cpu_minutes": (time.process_time() - worked) / 60}
    _write(folder, {**record, "outcome": outcome.as_dict(), "took": took})
    record_sha256(folder)
    for line in (*outcome_lines(outcome), f"Did it work? {outcome.sentence()}"):
        say(line)
    return outcome


def _check(minutes: float, dims: int | None, size: Sequence[int] | None) -> None:
    if missing := [name for name in ("matplotlib", "tqdm") if find_spec(name) is None]:
        raise ConfigError(f'fit: packages are needed that are not there: {missing}. Run: pip install "monai-diffeo[report]"')
    if not 0 < minutes < math.inf:
        raise ConfigError(f"fit: 'minutes' must be larger than 0, got {minutes}.")
    if size is not None and (len(size) != (dims or len(size)) or any(n < 32 or n % 16 for n in size)):
        raise ConfigError(f"fit: 'size' must be one number an axis, each a multiple of 16 and at least 32, got {tuple(size)}.")


def _begin(folder: Path, settings: Mapping[str, Any], resume: bool) -> dict[str, Any]:
    """The record of the fit that is gone on with, or a new one."""
    file, there = folder / RECORD, [path.name for path in (*folder.glob("*.pt"), *folder.glob("*.json"))]
    if not there:
        return {"settings": settings}
    if not (resume and file.is_file()):
        remedy = "Give another --output_dir" + ("." if resume else ", or --resume to go on with it.")
        raise ConfigError(f"fit: {str(folder)!r} must not hold a canonicaliser, it has {sorted(there)[0]}. {remedy}")
    record = json.loads(file.read_text())
    if "outcome" in record:
        raise ConfigError(f"fit: the fit in {str(folder)!r} is finished; {PAGE} there says how it went. Nothing is left to do.")
    for name, value in settings.items():
        if record["settings"][name] != value:
            got = f"{name!r} was {record['settings'][name]} and is now {value}"
            raise ConfigError(f"fit: --resume needs the settings that the fit began with; {got}. Give the same ones.")
    return record


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    write_atomically(folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())


class _Images:
    """Images ``(N, C, *size)`` in [0, 1], in a random order: those that are held back, and those to train on.

    Reading ends when the time or the memory for it is used up; a fit that is resumed reads as many as before. The first images
    to train on have answers of the network, all of them if there is time.
    """

    def __init__(
        self, items: Sequence[Item], reader: ImagesReader, network: NetworkUnderTest | None, size: Any, known: Any
    ) -> None:
        self.usable, self.reader, self.network, self.known = reader.usable(items), reader, network, known
        self.first = list(islice(self.usable, _LOOKED_AT))
        if len(self.first) < LEAST_IMAGES:
            first = f" The first that was not used: {reader.refused}" if reader.refused else ""
            raise ConfigError(
                f"fit: there must be {LEAST_IMAGES} images or more that can be used, got {len(self.first)}.{first}"
            )
        self.frame = [round(median(axis)) for axis in zip(*(image.shape[1:] for _, image in self.first))]
        if size is not None and len(size) != len(self.frame):
            raise ConfigError(
                f"fit: 'size' must be {len(self.frame)} numbers, one for each axis of the images, got {tuple(size)}."
            )
        self.size = working_size_of(self.frame) if size is None else tuple(size)
        self.held: list[Tensor] = []
        self.trained: list[Tensor] = []
        self.answers: list[Tensor] = []
        self.held_items: list[Item] = []

    def read(self, limit: float, device: torch.device) -> None:
        """Read the images, in at most about ``limit`` seconds."""
        began, asking, known = time.perf_counter(), 0.0, self.known
        for item, image in chain((self.first.pop(0) for _ in range(len(self.first))), self.usable):  # none is kept at its size
            low, high = image.aminmax()
            small = resample_once_more(((torch.Tensor.as_subclass(image, Tensor) - low) / (high - low))[None], self.size)[0]
            if is_held_back(len(self.held) + len(self.trained)):
                self.held.append(small)
                self.held_items.append(item)
            else:
                self.trained.append(small)
                wanted = asking <= _ANSWERS * limit if self._learns_from_answers() else not self.answers
                if self.network and (len(self.answers) < known["answers"] if known else wanted):
                    start = time.perf_counter()
                    answer = self.network.classes(self.network.ask(image, device))
                    self.answers.append(resample_image(answer[None], predictor_size(self.size))[0].half())
                    asking += time.perf_counter() - start
            count = len(self.held) + len(self.trained)
            late = time.perf_counter() - began - asking > _READING * limit or count * small.numel() > _MOST_VALUES
            if count == known["images"] if known else late and count >= _LOOKED_AT:
                break

    def of(self, part: FitPart) -> dict[str, Tensor]:
        """What a part is trained on."""
        images = torch.cat([resample_image(image[None], part.size) for image in self.trained])
        use = part.name == "predictor" and self.answers and self._learns_from_answers()
        return {"image": images, **({"answer": torch.stack(self.answers)} if use else {})}

    def _learns_from_answers(self) -> bool:
        """In space answers on so few voxels teach less than they cost: the network is asked once, to see that it can be."""
        return len(self.size) == 2

    def plan(self) -> dict[str, Any]:
        """What is there, for the plan."""
        said, net = "none", self.network
        if net is not None:
            how = "as given" if net.stated else "chosen by its number of output channels; --activation changes it"
            said = f"{net.source}, {net.activation} ({how}), answers on {len(self.answers)} images"
            said = said if self._learns_from_answers() else f"{said}, not learned from"
        counts = {"images": len(self.held) + len(self.trained), "held_back": len(self.held), "answers": len(self.answers)}
        return {**counts, "channels": self.reader.channels, "frame": self.frame, "working_size": self.size, "network": said}


def _planned(
    parts: Sequence[FitPart], inputs: Mapping[str, Any], device: torch.device, left: float, steps: Mapping[str, int] | None
) -> dict[str, Any]:
    """Steps and seconds of each part, from a short timing of each."""
    if steps:
        return {part.name: {"steps": steps[part.name], "seconds": None} for part in parts}
    began = time.perf_counter()
    paces = {part.name: seconds_a_step(part, inputs[part.name], device) for part in parts}
    left = max(left - (time.perf_counter() - began), 0.0)
    seconds = {part.name: round(part.share * left, 2) for part in parts}
    return {name: {"steps": max(int(time / paces[name]), 1), "seconds": time} for name, time in seconds.items()}


def _train(
    folder: Path,
    parts: Sequence[FitPart],
    inputs: Mapping[str, Any],
    plan: Mapping[str, Any],
    device: torch.device,
    seed: int,
    progress: bool | None,
    every: float,
) -> None:
    """All parts that have no weights yet, under one bar in planned seconds."""
    from tqdm import tqdm

    costs = {name: part["seconds"] or part["steps"] for name, part in plan.items()}
    form, hidden = "{l_bar}{bar}| {elapsed}, {remaining} left", None if progress is None else not progress
    with tqdm(total=sum(costs.values()), bar_format=form, disable=hidden, mininterval=1.0) as bar:
        for part in parts:

            def tick(share: float, loss: float, name: str = part.name) -> None:
                bar.set_description(f"{name}, loss {loss:.3g}", refresh=False)
                bar.update(share * costs[name])

            if (folder / f"{part.name}.pt").is_file():
                tick(1.0, math.nan)
            else:
                train_part(part, inputs[part.name], folder, plan[part.name], device, seed, tick, every)


def _finish(
    folder: Path,
    parts: Sequence[FitPart],
    data: _Images,
    network: NetworkUnderTest | None,
    device: torch.device,
    seed: int,
    seconds: float,
    plan: Mapping[str, Any],
) -> FitOutcome:
    """Write the folder's configuration and statistics, and measure what it does to the images that were held back."""
    record_sha256(folder)  # of what is loaded below: a bundle may still name the files of an earlier fit
    held = torch.stack(data.held)
    orientation = next(part for part in parts if part.name == "orientation")
    judge = load_weights(orientation.build(), folder / "orientation.pt").to(device)
    seen = measure_orientation(judge, held.to(device), seed)
    used = [part for part in parts if part is not orientation or keeps_orientation(*seen)]
    write_settings(folder, folder_settings(len(data.frame), data.size, used))
    fit_atlas(folder, data.trained)
    fit_statistics(folder, (held if len(held) >= _ENOUGH else torch.cat([held, torch.stack(data.trained)])).split(8))
    record_sha256(folder)
    other = _tried(folder, REFINE, held.to(device), seed, seconds)
    chosen = _tried(folder, SINGLE_PASS, held[: other.outcome.images].to(device), seed, math.inf)
    if other.outcome.undone > chosen.outcome.undone + _WORTH_SEARCHING:
        chosen, other = other, chosen
    outcome, signs = chosen.outcome, chosen.signs
    write_settings(folder, {**read_settings(folder), "default_mode": outcome.mode})
    outcome = replace(outcome, kept_upright=seen[0], found_turns=seen[1], orientation=orientation in used)
    if network is not None:
        pairs = ((image, data.reader.label(item, image)) for item, image in data.reader.usable(data.held_items))
        outcome = replace(outcome, overlap=measure_overlap(chosen.canonicalizer, network, pairs, seed, device, seconds, signs))
    SignLimits.of(other.outcome.mode, other.signs).save(folder, further=True)
    SignLimits.of(outcome.mode, signs).save(folder)
    write_page(folder, plan, outcome, held, *chosen.states)
    return outcome


class _Tried(NamedTuple):
    """What a mode does to images that were held back; ``states`` are they deformed, and canonicalised after that."""

    outcome: FitOutcome
    states: tuple[Tensor, Tensor]
    canonicalizer: Canonicalizer
    signs: list[dict[str, float]]


def _tried(folder: Path, mode: str, held: Tensor, seed: int, seconds: float) -> _Tried:
    canonicalizer, signs = load_canonicalizer(folder, mode, held.device), list[dict[str, float]]()
    outcome, twins, moved = measure(canonicalizer, held, seed, seconds, signs)
    return _Tried(replace(outcome, mode=mode), (twins, moved), canonicalizer, signs)
