"""Any network, any size, any dimension: a stranger's network under a canonicaliser that one command fitted."""

import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.networks.nets import UNet
from monai.transforms import LoadImage
from torch import Tensor, nn

from docs.experiments import any_network_3d, user_errors
from docs.experiments.made_up_bodies import CLASSES, SIZE, SPLITS, unet, write_bundle, write_folder
from docs.experiments.pages import Experiment, judged, note, section
from docs.experiments.templates import plus_minus, timing
from docs.experiments.training import code_digest, kept, trained
from monai_diffeo.augmentation import tps_protocol
from monai_diffeo.canonicalize import Canonicalization, Canonicalizer, load_canonicalizer
from monai_diffeo.flow import warp
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.radiograph.manifest import read_manifest
from monai_diffeo.radiograph.packaged import packaged_film
from monai_diffeo.transforms import LoadImageFilmd, ScaleFilmIntensityd

BARE, OURS = "bare", "wrapped"
Rows = list[dict[str, str]]
Found = Mapping[str, Mapping[str, Mapping[str, Any]]]  # by set, method and measure
Sets = Mapping[str, tuple[Tensor, Tensor]]  # by name: images (N, C, H, W), and the class of each voxel (N, 1, H, W)


def read_split(folder: Path, bundle: Path) -> dict[str, Tensor]:
    """Images of a folder as the bundle prepares them, and their labels."""
    prepare = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text())).get_parsed_content("preprocessing")
    read = LoadImage(image_only=True, ensure_channel_first=True, reader="PILReader", reverse_indexing=False)
    items = json.loads((folder / "datalist.json").read_text())["training"]
    images = [prepare({"image": str(folder / item["image"])})["image"].as_tensor() for item in items]
    return {"image": torch.stack(images), "label": torch.stack([read(folder / item["label"]).as_tensor() for item in items])}


class StrangersStep:
    """Dice and cross entropy of a network with a softmax, on images as they are."""

    def __init__(self) -> None:
        self.loss = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"segmentation": self.loss(network(batch["image"]), batch["label"])}


def one_hot(label: Tensor) -> Tensor:
    """Classes of voxels ``(B, 1, H, W)`` as masks of all classes."""
    return F.one_hot(label[:, 0].long(), len(CLASSES)).movedim(-1, 1).float()


def deformed(image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Images and labels under the paper's test deformation; a voxel belongs to an organ that covers more than half of it."""
    ddf = tps_protocol(len(image), tuple(image.shape[2:]), torch.Generator().manual_seed(seed))
    shares = warp(one_hot(label)[:, 1:], ddf, padding_mode="zeros")
    moved = torch.cat([torch.full_like(shares[:, :1], 0.5), shares], 1).argmax(1, keepdim=True)
    return warp(image, ddf, padding_mode="zeros"), moved


def shown_sets(image: Tensor, label: Tensor, seed: int = 0) -> Sets:
    """Images as they are, deformed, and as they are but turned by quarter turns; the frame turns too."""
    sets = {"undeformed": (image, label), "TPS": deformed(image, label, seed)}
    for k in (1, 2, 3):
        sets[f"turned by {90 * k}°"] = torch.rot90(image, k, (2, 3)), torch.rot90(label, k, (2, 3))
    return sets


def dice_of_organs(network: Callable[[Tensor], Tensor], image: Tensor, label: Tensor, batch_size: int = 4) -> dict[str, Any]:
    """Dice of each image, mean over organs, ``(N,)``; of each organ ``(N, K)``; seconds of the processor an image."""
    began = time.process_time()
    with torch.no_grad():
        found = torch.cat([network(part).argmax(1, keepdim=True) for part in image.split(batch_size)])
    seconds = (time.process_time() - began) / len(image)
    dice = compute_dice(one_hot(found), one_hot(label), include_background=False, ignore_empty=False)
    return {"dice": dice.mean(1), "organs": dice, "seconds": seconds}


def dice_wrapped(network: nn.Module, canonicalizer: Canonicalizer, *images: Tensor, tta_samples=None) -> dict[str, Any]:
    """As :func:`dice_of_organs`, around the canonicaliser; with the statuses, and how many images fold."""
    results: list[Canonicalization] = []
    inferer = DiffeoInferer(canonicalizer, tta_samples=tta_samples, on_result=results.append)
    row = dice_of_organs(lambda image: inferer(image, lambda moved: network(moved).softmax(1)), *images)
    row["status"] = Counter(status.split(":")[0] for result in results for status in result.status)
    row["turned"] = sum("rotation" in text for result in results for text in result.notes)
    return row | {"folded": sum(int((result.folding_fraction > 0).sum()) for result in results)}


def fit(folder: Path, bundle: Path, output: Path, minutes: float) -> dict[str, float]:
    """Run the command on one thread; CPU minutes that it took. It sees the images of the folder alone."""
    words = ["fit", "--dataset_dir", folder, "--output_dir", output, "--bundle_root", bundle, "--minutes", minutes]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "monai_diffeo", *map(str, words)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_minutes": seconds / 60, "minutes": (time.monotonic() - began) / 60}


def table(found: Found) -> Rows:
    """A row a set and method."""
    rows = []
    for name, method, row in ((name, method, row) for name, methods in found.items() for method, row in methods.items()):
        out = {"images": name, "method": method, "Dice": plus_minus(row["dice"], 4)}
        out |= {organ: f"{value:.4f}" for organ, value in zip(CLASSES[1:], row["organs"].mean(0).tolist())}
        if "status" in row:
            out["status"] = ", ".join(f"{count} {status}" for status, count in sorted(row["status"].items()))
            out |= {"rotation corrected": str(row["turned"]), "images with folds": str(row["folded"])}
        rows.append(out | {"seconds an image": f"{row['seconds']:.3f}"})
    return rows


def body_figures(found: Found, minutes: float, ours: str = OURS) -> Rows:
    """What was asked of the 2D network beside what was measured."""
    dice = {(name, method): row["dice"].mean().item() for name, rows in found.items() for method, row in rows.items()}
    upright, tps, ours_tps = dice["undeformed", BARE], dice["TPS", BARE], dice["TPS", ours]
    closed, loss = (ours_tps - tps) / (upright - tps), upright - dice["undeformed", ours]
    rows = [judged("2D: CPU minutes of `fit`", "at most 15", f"{minutes:.1f}", minutes <= 15)]
    measured = f"{closed:.2f}: from {tps:.4f} to {ours_tps:.4f} of {upright:.4f}"
    rows.append(judged("2D, TPS: share of the gap that is closed", "at least 0.8", measured, closed >= 0.8))
    rows.append(judged("2D, undeformed: Dice lost", "at most 0.003", f"{loss:+.4f}", loss <= 0.003))
    for k in (1, 2, 3):
        share = dice[f"turned by {90 * k}°", ours] / upright
        rows.append(judged(f"2D, turned by {90 * k}°: share of upright", "at least 0.98", f"{share:.4f}", share >= 0.98))
    return rows


def split_sizes(scale: float) -> dict[str, int]:
    """How many bodies each split has; ``scale`` makes all of them smaller."""
    return {split: max(round(count * scale), 4) for split, count in SPLITS.items()}


def body_rows(options: Any) -> tuple[Rows, Rows]:
    """The 2D network: bodies made, network trained, canonicaliser fitted, all measured; the table, and the figures."""
    keep, name = Path(options.weights_dir), f"{options.seed}_{options.scale:g}_{options.iterations}"
    folder, bundle = keep / f"bodies_{name}", keep / f"bundle_{name}"
    write_folder(folder, options.seed, split_sizes(options.scale))
    weights, settings = write_bundle(bundle) / "models" / "model.pt", {"batch_size": 8, "rate": 3e-3}
    data = read_split(folder / "train", bundle)
    network = trained(weights, unet, StrangersStep(), data, options.iterations, options.seed, **settings)
    settings, output = {"experiment": "any_network", "name": name, "minutes": options.minutes}, keep / f"canonicalizer_{name}"
    spent = kept(keep, settings, lambda: fit(folder / "train", bundle, output, options.minutes))
    canonicalizer, found = load_canonicalizer(output), {}
    for title, images in shown_sets(**read_split(folder / options.split, bundle), seed=options.seed + 1).items():
        found[title] = {BARE: dice_of_organs(network, *images), OURS: dice_wrapped(network, canonicalizer, *images)}
        found[title]["wrapped, one answer"] = dice_wrapped(network, canonicalizer, *images, tta_samples=1)
    return table(found), body_figures(found, spent["cpu_minutes"])


def read_films(films_dir: str | None, count: int = 8) -> dict[str, Tensor]:
    """The sample film and, of a folder with ``cxr`` and ``cxr512``, some ``val`` films of 512 x 512, each ``(1, 1, H, W)``."""
    read, scale, paths = LoadImageFilmd("image"), ScaleFilmIntensityd("image"), {"sample film": packaged_film()}
    if films_dir is not None:
        small, large = Path(films_dir) / "cxr", Path(films_dir) / "cxr512"  # one list for both sizes
        rows = read_manifest(small, "val", ("shenzhen", "montgomery"), limit=count)
        paths |= {row["id"]: large / Path(row["image"]).relative_to(small) for row in rows}
    return {name: scale(read({"image": str(path)}))["image"].as_tensor()[None].float() for name, path in paths.items()}


def at_size(film: Tensor, size: int) -> Tensor:
    """A film in a square frame, as the bundle resizes it."""
    return F.interpolate(film, (size, size), mode="bilinear", antialias=True)


def size_rows(options: Any, least: int = 128) -> tuple[Rows, Rows]:
    """The same films at several sizes: how far fields and energies are from those at the ``least``, and the time."""
    canonicalizer, rows, base = load_canonicalizer(Path(options.bundle) / "models" / "energy"), [], {}
    films, far = read_films(options.films_dir), []
    for size in (least, 256, 512, 1024):
        shown = {name: at_size(film, size) for name, film in films.items() if min(film.shape[2:]) >= size}
        seconds, off, other = [], [], []
        for name, film in shown.items():
            began = time.thread_time()
            found = canonicalizer(film)
            seconds.append(time.thread_time() - began)
            field = F.interpolate(found.ddf, (least, least), mode="bilinear") * (least / size)
            energies = torch.stack([found.energy_before, found.energy_after])
            first, before = base.setdefault(name, (field, energies))
            off.append((field - first).square().sum(1).sqrt().max().item())
            other.append((energies - before).abs().max().item())
        row = {"size": f"{size} x {size}", "films": str(len(shown))}
        row["fields differ by at most, voxels of 128"] = f"{max(off):.3f}"
        rows.append(row | {"energies by at most": f"{max(other):.3f}", "seconds a film": f"{np.median(seconds):.3f}"})
        far += off
    figure = judged("fields of films of 256, 512 and 1024", "within 0.25 voxel of 128", f"{max(far):.3f}", max(far) <= 0.25)
    return rows, [figure]


def single_pass_rows(options: Any, size: int = 512) -> tuple[Rows, Rows]:
    """CPU seconds of MONAI's U-Net, bare and in a single pass, taking turns, mean over films."""
    canonicalizer = load_canonicalizer(Path(options.bundle) / "models" / "energy", "single_pass")
    films, rows, figures = [at_size(film, size) for film in read_films(options.films_dir).values()], [], []
    for units in (0, 2):
        network = UNet(2, 1, 1, (32, 64, 128, 256, 512), (2, 2, 2, 2), num_res_units=units).eval()
        methods: dict[str, Callable[[Tensor], object]] = {"bare": network, "canonicaliser alone": canonicalizer}
        for count in (1, 8):
            methods[f"wrapped, answers: {count}"] = partial(DiffeoInferer(canonicalizer, tta_samples=count), network=network)
        each = [timing(methods, film, options.repeats) for film in films]
        seconds = {method: float(np.mean([one[method] for one in each])) for method in methods}
        for method, value in seconds.items():
            row = {"residual units": str(units), "method": method, "ms": f"{1e3 * value:.0f}"}
            rows.append(row | {"times bare": f"{value / seconds['bare']:.2f}"})
        ratio, what = seconds["wrapped, answers: 1"] / seconds["bare"], f"{units} residual units, as in our bundles"
        what = f"single pass at {size} x {size}, one answer, {what if units else 'no residual units'}"
        figures.append(judged(what, "at most 1.5 times bare", f"{ratio:.2f}", ratio <= 1.5))
    return rows, figures


def error_rows(options: Any) -> tuple[Rows, Rows]:
    """The mistakes of users, with the message of each; tests/test_user_errors.py reads the four things in them."""
    rows = user_errors.rows()
    refused = sum(row["message"] != "no error" for row in rows)
    return rows, [judged("user errors that are explained", "25, all", f"{refused} of {len(rows)}", 25 <= refused == len(rows))]


def volume_rows(options: Any) -> tuple[Rows, Rows]:
    """The volumes in 3D."""
    found = any_network_3d.rows(options)
    return found["volumes"], found["asked"]


def main(argv: Sequence[str] | None = None) -> None:
    """Make the bodies, fit, measure and write the page."""
    parts: dict[str, Callable[[Any], tuple[Rows, Rows]]] = {"bodies": body_rows, "volumes": volume_rows}
    parts |= {"single_pass": single_pass_rows, "sizes": size_rows, "errors": error_rows}
    defaults = {"weights_dir": "runs/any_network", "seed": 0, "split": "test", "minutes": 15.0, "iterations": 450, "scale": 1.0}
    defaults |= {"bundle": "bundles/cxr_lung_segmentation", "films_dir": str, "repeats": 3, "parts": tuple(parts)}
    experiment = Experiment("any_network", __doc__, argv, **defaults)
    options = experiment.options
    torch.set_num_threads(1)
    text, asked, *heads = note("any_network", options=options, size="x".join(map(str, SIZE)), **split_sizes(options.scale))
    figures, sections = [], []
    for name, head in zip(parts, heads, strict=True):
        if name in options.parts:
            settings = {**vars(options), "experiment": f"page_{name}", "parts": "", "code": code_digest()}
            rows, found = kept(options.weights_dir, settings, lambda: parts[name](options))  # noqa: B023
            figures += found
            sections.append(section(head, rows))
    experiment.write("Any network", [text, section(asked, figures), *sections], options.seed)


if __name__ == "__main__":
    main()
