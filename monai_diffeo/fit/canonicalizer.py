"""Fitting a canonicaliser to images, from reading them to the page that says whether it worked."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffeo.canonicalize import fit_statistics, load_canonicalizer
from monai_diffeo.errors import ConfigError
from monai_diffeo.files import record_sha256, write_atomically
from monai_diffeo.fit.images import LEAST_IMAGES, Item, Reader, find_images, number_held_back
from monai_diffeo.fit.loop import seconds_a_step, train_part
from monai_diffeo.fit.network import NetworkUnderTest
from monai_diffeo.fit.outcome import FOUND_TURNS, KEPT_UPRIGHT, FitOutcome, measure, measure_orientation, measure_overlap
from monai_diffeo.fit.page import PAGE, plan_lines, summary, write_page
from monai_diffeo.fit.parts import Part, folder_settings, parts_of, working_size_of
from monai_diffeo.networks import load_weights
from monai_diffeo.networks.predictor import resample_image

__all__ = ["fit_canonicalizer"]

RECORD = "fit.json"
_MOST_VALUES = 4e8  # of all images in memory, 1.6 GB
_READING, _ANSWERS, _OUTCOME = 0.15, 0.15, 0.1  # shares of the time, at most
_LOOKED_AT = 16  # images that the working size is chosen from


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
        images: a folder, a datalist, a manifest, or a sequence of paths, items or tensors ``(C, *S)``, see
            :func:`monai_diffeo.fit.images.find_images`. Masks (``label``) are used on the page only.
        folder: of the result; a fit that is in it is never overwritten.
        network: whose answers the predictor should bring into place; None fits without.
        transform: from ``{"image": path}`` to what the network sees; None reads files as MONAI does.
        dims: 2 or 3; None takes what the first image has.
        size: working size, multiples of 16; None takes the images' proportions, the longest side 128 (2D) or 64 (3D).
        minutes: of wall clock for everything.
        device: of training and of the network.
        resume: go on with the fit in ``folder``, which began with the same settings.
        seed: of all random numbers.
        steps: of each part by name, in place of a plan by time.
        progress: show a bar; None does so on a terminal.
        say: takes each line of the plan and of the outcome.
        checkpoint_seconds: between two checkpoints.

    Returns:
        The figures on the page, and whether it worked.

    Raises:
        ConfigError: if the settings or the images cannot be used, or the folder holds a fit.
        NumericalError: if a part fails; nothing stands in for it.
    """
    began, folder, device = time.perf_counter(), Path(folder), torch.device(device)
    if missing := [name for name in ("matplotlib", "tqdm") if find_spec(name) is None]:
        raise ConfigError(
            f'fit: packages are needed that are not installed: {missing}. Run: pip install "monai-diffeo[report]"'
        )
    _check(minutes, dims, size, device)
    net = NetworkUnderTest(network) if isinstance(network, nn.Module) else network
    items = find_images(images)
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    items = [items[i] for i in order]
    settings = _settings(items, net, dims, size, minutes, steps, seed)
    record = _begin(folder, settings, resume)
    if "outcome" in record:
        raise ConfigError(f"fit: the fit in {str(folder)!r} is finished, {PAGE} there says how it went. Nothing is left to do.")
    limit = math.inf if steps is not None else minutes * 60
    reader = Reader(transform, dims, say)
    known = record.get("plan")
    data = _read(items, reader, net, size, limit, device, known)
    parts = parts_of(reader.dims or 2, reader.channels or 1, data.size)
    inputs = {part.name: data.of(part) for part in parts}
    plan = known or _plan(data, reader, net, device, parts, inputs, steps, minutes * 60, began)
    for line in plan_lines(plan):
        say(line)
    _write(folder, {**record, "plan": plan})
    with _bar(plan, progress) as bar:
        for part in parts:
            if (folder / f"{part.name}.pt").is_file():  # written when it was finished
                bar.advance(part.name, 1.0, math.nan)
                continue
            planned = plan["parts"][part.name]
            limits = planned["steps"], planned["seconds"], seed, device, lambda s, loss, n=part.name: bar.advance(n, s, loss)
            train_part(part, inputs[part.name], folder, *limits, checkpoint_seconds)
    outcome = _finish(folder, parts, data, reader, net, seed, device, _OUTCOME * limit, plan)
    _write(folder, {**record, "plan": plan, "outcome": outcome.as_dict()})
    record_sha256(folder)
    for line in summary(outcome):
        say(line)
    return outcome


class _Data:
    """What was read: items and images ``(N, C, *size)`` in [0, 1], the held-back ones first; answers of the ones after them."""

    def __init__(self, items: list[Item], images: Tensor, held: int, answers: list[Tensor], frame: Sequence[int]) -> None:
        self.items, self.images, self.held, self.answers, self.frame = items, images, held, answers, tuple(frame)
        self.size = tuple(images.shape[2:])

    def of(self, part: Part) -> dict[str, Tensor]:
        """What a part is trained on."""
        resized = {"image": _resized(self.images[self.held :], part.size)}
        if part.name == "predictor" and self.answers:
            resized["answer"] = torch.stack([F.interpolate(a[None].float(), part.size, mode="area")[0] for a in self.answers])
        return resized


def _check(minutes: float, dims: int | None, size: Sequence[int] | None, device: torch.device) -> None:
    if not 0 < minutes < math.inf:
        raise ConfigError(f"fit: 'minutes' must be larger than 0, got {minutes}.")
    if dims not in (None, 2, 3):
        raise ConfigError(f"fit: 'dims' must be 2 or 3, got {dims}.")
    if size is not None and (
        len(size) not in (2, 3) or any(n < 32 or n % 16 for n in size) or len(size) != (dims or len(size))
    ):
        raise ConfigError(f"fit: 'size' must be one number an axis, each a multiple of 16 and at least 32, got {tuple(size)}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("fit: 'device' must be one that is there, got 'cuda' without CUDA. Use device='cpu'.")


def _settings(
    items: Sequence[Item],
    network: NetworkUnderTest | None,
    dims: int | None,
    size: Sequence[int] | None,
    minutes: float,
    steps: Mapping[str, int] | None,
    seed: int,
) -> dict[str, Any]:
    """What a fit that is resumed must have begun with."""
    names = [item["image"] if isinstance(item["image"], (str, list)) else None for item in items]
    digest = hashlib.sha256()
    for value in () if network is None else network.network.state_dict().values():
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return {
        "images": hashlib.sha256(json.dumps(names, default=str).encode()).hexdigest(),
        "network": None if network is None else digest.hexdigest(),
        "dims": dims,
        "size": None if size is None else list(size),
        "minutes": minutes,
        "steps": None if steps is None else dict(steps),
        "seed": seed,
    }


def _begin(folder: Path, settings: Mapping[str, Any], resume: bool) -> dict[str, Any]:
    """The record of the fit that is gone on with, or a new one."""
    file = folder / RECORD
    there = sorted(path.name for path in folder.glob("*.pt")) if folder.is_dir() else []
    there += [name for name in (RECORD, "canonicalizer.json") if (folder / name).is_file()]
    if there and not (resume and file.is_file()):
        remedy = "Give another --output_dir." if resume else "--resume goes on with it; else give another --output_dir."
        raise ConfigError(f"fit: {str(folder)!r} must not hold a canonicaliser, it has {there[0]}. {remedy}")
    if not there:
        return {"settings": dict(settings)}
    record = json.loads(file.read_text())
    differ = [f"{name} was {record['settings'].get(name)}, now {settings[name]}" for name in settings]
    differ = [text for text, name in zip(differ, settings) if record["settings"].get(name) != settings[name]]
    if differ:
        raise ConfigError(f"fit: --resume goes on with the settings that the fit began with; {differ[0]}. Give the same ones.")
    return record


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    write_atomically(folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())


def _resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    return torch.stack([resample_image(image[None], size)[0] for image in images])


def _read(
    items: Sequence[Item],
    reader: Reader,
    network: NetworkUnderTest | None,
    size: Sequence[int] | None,
    limit: float,
    device: torch.device,
    known: Mapping[str, Any] | None,
) -> _Data:
    """Images in the order of ``items``, until all are read or the time or the memory for them is used up."""
    began, usable = time.perf_counter(), reader.usable(items)
    first = list(islice(usable, _LOOKED_AT if known is None else min(_LOOKED_AT, known["images"])))
    if len(first) < LEAST_IMAGES:
        raise ConfigError(f"fit: at least {LEAST_IMAGES} images that can be used are needed, got {len(first)}.")
    frame = [round(median(axis)) for axis in zip(*(image.shape[1:] for _, image in first))]
    if size is not None and len(size) != len(frame):
        raise ConfigError(f"fit: 'size' must have {len(frame)} numbers as the images have axes, got {tuple(size)}.")
    working = tuple(size) if size is not None else working_size_of(frame)
    held = number_held_back(len(items)) if known is None else known["held_back"]
    kept, images, answers, asking = [], [], [], 0.0
    for item, image in _chained(first, usable):
        kept.append(item)
        plain = image.as_tensor() if hasattr(image, "as_tensor") else image
        low, high = plain.aminmax()
        images.append(resample_image(((plain - low) / (high - low))[None], working)[0])
        more = asking < _ANSWERS * limit or not answers if known is None else len(answers) < known["answers"]
        if network is not None and more and len(kept) > held:
            start = time.perf_counter()
            probabilities = network.ask(image, device)
            masks = probabilities[1:] if network.activation == "softmax" and len(probabilities) > 1 else probabilities
            half = tuple(n // 2 for n in working)
            answers.append(F.interpolate(masks[None], half, mode="area")[0].half())
            asking += time.perf_counter() - start
        if known is not None and len(kept) == known["images"]:
            break
        late = time.perf_counter() - began - asking > _READING * limit or len(kept) * images[0].numel() > _MOST_VALUES
        if known is None and late and len(kept) >= max(held + LEAST_IMAGES, 2 * held):
            break
    if known is None:
        held = min(held, number_held_back(len(kept)))
    return _Data(kept, torch.stack(images), held, answers, frame)


def _chained(first: list[Any], others: Any) -> Any:
    """The images that were read already, given away one by one, then the others."""
    while first:
        yield first.pop(0)
    yield from others


def _plan(
    data: _Data,
    reader: Reader,
    network: NetworkUnderTest | None,
    device: torch.device,
    parts: Sequence[Part],
    inputs: Mapping[str, Mapping[str, Tensor]],
    steps: Mapping[str, int] | None,
    limit: float,
    began: float,
) -> dict[str, Any]:
    """What will be done, from a short timing of each part."""
    planned = {}
    if steps is None:
        paces = {part.name: seconds_a_step(part, inputs[part.name], device) for part in parts}
        left = max((1 - _OUTCOME) * limit - (time.perf_counter() - began), 0)
        for part in parts:
            seconds = part.share * left
            planned[part.name] = {"steps": max(int(seconds / paces[part.name]), 1), "seconds": round(seconds, 2)}
    else:
        planned = {part.name: {"steps": steps.get(part.name, 1), "seconds": None} for part in parts}
    said = "none"
    if network is not None:
        how = "as stated" if network.stated else "by its number of output channels; --activation changes it"
        said = f"{network.source or type(network.network).__name__}, {network.activation} ({how}), {len(data.answers)} answers"
    return {
        "images": len(data.items),
        "held_back": data.held,
        "answers": len(data.answers),
        "dims": reader.dims,
        "channels": reader.channels,
        "frame": list(data.frame),
        "working_size": list(data.size),
        "network": said,
        "device": str(device),
        "parts": planned,
    }


class _bar:
    """One progress bar over all parts, in planned seconds (or steps), with the remaining time."""

    def __init__(self, plan: Mapping[str, Any], progress: bool | None) -> None:
        from tqdm import tqdm

        self.cost = {name: part["seconds"] or part["steps"] for name, part in plan["parts"].items()}
        form = "{l_bar}{bar}| {elapsed}, {remaining} left"
        hidden = None if progress is None else not progress
        self.bar = tqdm(total=sum(self.cost.values()), bar_format=form, disable=hidden, mininterval=1.0)

    def __enter__(self) -> _bar:
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    def advance(self, name: str, share: float, loss: float) -> None:
        self.bar.set_description(name if math.isnan(loss) else f"{name}, loss {loss:.3g}", refresh=False)
        self.bar.update(share * self.cost[name])


def _finish(
    folder: Path,
    parts: list[Part],
    data: _Data,
    reader: Reader,
    network: NetworkUnderTest | None,
    seed: int,
    device: torch.device,
    seconds: float,
    plan: Mapping[str, Any],
) -> FitOutcome:
    """Write the folder's configuration and statistics, and measure what it does to the images that were held back."""
    held, trained = data.images[: data.held], data.images[data.held :]

    orientation = next(part for part in parts if part.name == "orientation")
    judge = load_weights(orientation.build(), folder / "orientation.pt").to(device)
    kept, found = measure_orientation(judge, held.to(device), seed)
    notes = ()
    if kept < KEPT_UPRIGHT or found < FOUND_TURNS:
        least = f"{KEPT_UPRIGHT:.0%} of upright and {FOUND_TURNS:.0%} of turned images must be seen right"
        notes = (f"Rotations are not corrected: {least}, these were {kept:.0%} and {found:.0%}.",)
        parts = [part for part in parts if part is not orientation]
    content = json.dumps(folder_settings(reader.dims or 2, data.size, parts), indent=2) + "\n"
    write_atomically(folder / "canonicalizer.json", content.encode())
    fit_statistics(folder, (held if len(held) >= 8 else trained).split(8))
    canonicalizer = load_canonicalizer(folder, device=device)
    outcome, deformed, canonical = measure(canonicalizer, held, seed, device)
    outcome = replace(outcome, kept_upright=kept, found_turns=found, notes=notes)
    if network is not None:
        pairs = ((image, reader.label(item, image)) for item, image in reader.usable(data.items[: data.held]))
        overlap = measure_overlap(canonicalizer, network, pairs, seed, device, seconds)
        outcome = replace(outcome, overlap=overlap)
    write_page(folder, plan, outcome, held, deformed, canonical)
    return outcome
