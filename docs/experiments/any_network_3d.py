"""Volumes under a canonicaliser that one command fitted: the bundle brain_3d, and one in the style of MONAI's model zoo."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from torch import Tensor, nn

from bundles.brain_3d.scripts.brains import SEEDS, brains, write_volumes
from docs.experiments.pages import Experiment, judged, section
from docs.experiments.templates import plus_minus
from docs.experiments.training import code_digest, kept, train
from monai_diffeo.canonicalize import load_canonicalizer
from monai_diffeo.files import sha256_below
from monai_diffeo.flow import folding_fraction, rotate_axes

OURS = Path(__file__).parents[2] / "bundles" / "brain_3d"
FOREIGN_OF_CLASS = (0, 0, 0, 1, 1, 2)  # the foreign network's labels: the middle of the brain, and the hindbrain
Rows = list[dict[str, str]]
Names = Mapping[str, list[str]]  # of files, by what was done to the subjects


class Truth(NamedTuple):
    """A volume that is shown, and its label, each ``(1, 1, *S)``; labels count from 0."""

    image: Tensor
    label: Tensor


def shown(count: int, template: str | None = None, seed: int = SEEDS["test"], rotations: int = 24) -> dict[str, list[Truth]]:
    """Subjects that nothing was trained on: upright, deformed, and in the orientations along the axes, one subject each."""
    upright, deformed = (brains(count, seed, bad, template) for bad in (False, True))
    pairs = {name: list(map(Truth, d["image"].split(1), d["label"].split(1))) for name, d in
             {"upright": upright, "deformed": deformed}.items()}  # fmt: skip
    turned = [(pairs["upright"][i % count], i) for i in range(rotations)]
    return {**pairs, "turned": [Truth(*(rotate_axes(values, index) for values in pair)) for pair, index in turned]}


def write_shown(folder: Path, truths: Mapping[str, Sequence[Truth]]) -> dict[str, list[str]]:
    """Write the volumes; the header is always that of an upright one. Gives the names, without their endings."""
    paths = {kind: write_volumes(folder, [truth.image[0] for truth in some], kind) for kind, some in truths.items()}
    return {kind: [path.name.removesuffix(".nii.gz") for path in some] for kind, some in paths.items()}


def dice_of(folder: Path, names: Sequence[str], truths: Sequence[Truth], of_class: Sequence[int] | None = None) -> Tensor:
    """Dice of written labels on each volume, mean over the structures; ``of_class`` makes the truth's labels the network's."""
    values = []
    for name, truth in zip(names, truths):
        (path,) = folder.rglob(f"{name}_*.nii.gz")
        found = torch.from_numpy(nibabel.load(str(path)).get_fdata()).round().long().view(truth.label.shape)
        wanted = truth.label if of_class is None else torch.tensor(of_class)[truth.label]
        count = int(max(of_class or (5,))) + 1
        masks = [F.one_hot(x[:, 0].long(), count).movedim(-1, 1) for x in (found, wanted)]
        values.append(compute_dice(*masks, include_background=False, ignore_empty=False).mean())
    return torch.stack(values)


def shell(command: str) -> str:
    """Run a command on one thread; what it printed."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(OURS.parents[1])}
    done = subprocess.run(["bash", "-c", command], env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def module(name: str, *words: object) -> str:
    """The command of a Python module."""
    return shlex.join([sys.executable, "-W", "ignore", "-m", name, *map(str, words)])


def bundle_command(bundle: Path) -> str:
    """The command that runs a bundle as its makers have it."""
    config = bundle / "configs" / "inference.json"
    return module("monai.bundle", "run", "--config_file", config, "--bundle_root", bundle, "--workflow_type", "infer")


def poses(option: str, count: int | None) -> str:
    """The option of the number of poses; None leaves it to the canonicaliser."""
    return "" if count is None else f" --{option} {count}"


def folds(fitted: Path, preprocessing: Callable[[Any], Any], files: Sequence[Path], device: str) -> dict[str, float]:
    """Volumes with a folded voxel, volumes that were moved, and seconds of the canonicaliser a volume."""
    canonicalizer, found, seconds = load_canonicalizer(fitted, device=device), [], 0.0
    for file in files:
        image = preprocessing({"image": str(file)})["image"].as_tensor()[None].to(device)
        began = time.perf_counter()
        result = canonicalizer(image)
        seconds += time.perf_counter() - began
        folded = max(float(folding_fraction(field)) for field in (result.ddf, result.inverse_ddf))
        found.append((folded > 0, bool(result.moved.all())))
    return {"folded": sum(a for a, _ in found), "moved": sum(b for _, b in found), "seconds": seconds / len(files)}


def measured(bundle: Path, folder: Path, truths: Mapping[str, Sequence[Truth]], runs: Mapping[str, str],
             canonicalizer: Path, device: str, of_class: Sequence[int] | None = None) -> dict[str, Any]:  # fmt: skip
    """Write the volumes, run the commands on them, and read the Dice of their labels, by method and kind of volume."""
    names, found = write_shown(folder / "shown", truths), {}
    for method, command in runs.items():
        began = time.perf_counter()
        shell(f"{command} {shlex.join(['--dataset_dir', str(folder / 'shown'), '--output_dir', str(folder / method)])}")
        seconds = (time.perf_counter() - began) / sum(map(len, names.values()))
        dice = {kind: dice_of(folder / method, names[kind], truths[kind], of_class).tolist() for kind in names}
        found[method] = {"dice": dice, "seconds": seconds}
    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    preprocessing = parser.get_parsed_content("preprocessing")
    files = [folder / "shown" / f"{name}.nii.gz" for some in names.values() for name in some]
    return {**found, "fields": folds(canonicalizer, preprocessing, files, device)}


def table(found: Mapping[str, Any], network: str) -> Rows:
    """A row a method."""
    rows = []
    for method in ("plain", "wrapped"):
        dice = {kind: torch.tensor(values) for kind, values in found[method]["dice"].items()}
        row = {"network": network, "method": method}
        row |= {f"Dice, {kind}": plus_minus(values, 4) for kind, values in dice.items()}
        row["lowest, turned"] = f"{dice['turned'].min():.4f}"
        row["seconds a volume, with loading"] = f"{found[method]['seconds']:.1f}"
        if method == "wrapped":
            fields, total = found["fields"], sum(map(len, dice.values()))
            row |= {"volumes with folds": f"{fields['folded']} of {total}", "moved": f"{fields['moved']} of {total}"}
            row["seconds of the canonicaliser"] = f"{fields['seconds']:.1f}"
        rows.append(row)
    return rows


def figures(found: Mapping[str, Any], network: str) -> Rows:
    """What was asked beside what was measured."""
    dice = {m: {k: torch.tensor(v).mean().item() for k, v in found[m]["dice"].items()} for m in ("plain", "wrapped")}
    plain, wrapped, folded = dice["plain"], dice["wrapped"], found["fields"]["folded"]
    gap = plain["upright"] - plain["deformed"]
    closed, share = (wrapped["deformed"] - plain["deformed"]) / gap, wrapped["turned"] / plain["upright"]
    text = f"{closed:.2f}: from {plain['deformed']:.4f} to {wrapped['deformed']:.4f} of {plain['upright']:.4f}"
    turned = f"{share:.4f}: from {plain['turned']:.4f} to {wrapped['turned']:.4f}"
    rows = [judged(f"{network}, deformed: share of the gap that is closed", "at least 0.7", text, closed >= 0.7)]
    rows.append(judged(f"{network}, 24 orientations: share of the upright Dice", "at least 0.98", turned, share >= 0.98))
    rows.append(judged(f"{network}: volumes with folds", "0", str(folded), folded == 0))
    if "cpu_minutes" in found:
        minutes = found["cpu_minutes"]
        rows.append(judged(f"{network}: CPU minutes of `fit`", "at most 20", f"{minutes:.1f}", minutes <= 20))
    return rows


def zoo_network() -> dict[str, Any]:
    """A small SegResNet as a configuration."""
    return {
        "_target_": "SegResNet", "spatial_dims": 3, "init_filters": 8, "in_channels": 1, "out_channels": 3,
        "blocks_down": [1, 1, 1, 1], "blocks_up": [1, 1, 1],
    }  # fmt: skip


def zoo_bundle(folder: Path, network: nn.Module | None = None) -> Path:
    """Write a bundle as the model zoo's spleen bundle is laid out; nothing of ours is in it."""
    keys = {"keys": "image"}
    preprocessing = [
        {"_target_": "LoadImaged", **keys},
        {"_target_": "EnsureChannelFirstd", **keys},
        {"_target_": "Orientationd", **keys, "axcodes": "RAS"},
        {"_target_": "Spacingd", **keys, "pixdim": [3.0, 3.0, 3.0], "mode": "bilinear"},
        {"_target_": "ScaleIntensityRanged", **keys, "a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1, "clip": True},
        {"_target_": "EnsureTyped", **keys},
    ]
    postprocessing = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False,
         "to_tensor": True},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "resample": False, "print_log": False},
    ]  # fmt: skip
    inference = {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": zoo_network(),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [64, 64, 64], "sw_batch_size": 2, "overlap": 0.25},
        "postprocessing": {"_target_": "Compose", "transforms": postprocessing},
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader", "network": "@network",
            "inferer": "@inferer", "postprocessing": "@postprocessing",
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)", "$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
    }  # fmt: skip
    metadata = {"version": "0.1.0", "monai_version": "1.6.1", "pytorch_version": "2.13.0", "numpy_version": "2.4.6"}
    for name, content in {"inference": inference, "metadata": metadata}.items():
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content, indent=4))
    if network is not None:
        (folder / "models").mkdir(exist_ok=True)
        torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


class PatchStep:
    """Dice and cross entropy on random cubes, as a network for sliding windows is trained; one subject at a time."""

    def __init__(self, side: int = 64, seed: int = 0) -> None:
        self.side, self.generator = side, torch.Generator().manual_seed(seed)
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True)

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        starts = [int(torch.randint(n - self.side + 1, (), generator=self.generator)) for n in batch["image"].shape[2:]]
        cube = (..., *(slice(start, start + self.side) for start in starts))
        return {"segmentation": self.loss(network(batch["image"][cube]), batch["label"][cube])}


def foreign(options: Any) -> dict[str, Any]:
    """Make the zoo's bundle and a folder of unlabelled volumes; then three commands, none of which edits a file."""
    folder = Path(options.weights_dir).absolute() / f"foreign_{options.subjects}_{options.iterations}_{options.seed}"
    bundle, volumes, device = folder / "spleen_style", folder / "volumes", options.device
    if not (bundle / "models" / "model.pt").is_file():
        data = brains(options.subjects, SEEDS["train"] + 10 * (options.seed + 1), template=options.template)
        write_volumes(volumes, data["image"])
        data = {"image": data["image"].to(device), "label": torch.tensor(FOREIGN_OF_CLASS)[data["label"]].to(device)}
        torch.manual_seed(options.seed)
        network = ConfigParser({"network": zoo_network()}).get_parsed_content("network").to(device)
        zoo_bundle(bundle, train(network, PatchStep(), data, options.iterations, options.seed, batch_size=1).cpu())
    fitted = folder / f"canonicalizer_{options.minutes:g}"

    def fit() -> dict[str, Any]:
        words = ("--dataset_dir", volumes, "--bundle_root", bundle, "--output_dir", fitted)
        shell(module("monai_diffeo", "fit", *words, "--minutes", options.minutes, "--device", device))
        return json.loads((fitted / "fit.json").read_text())["took"]

    spent = kept(folder, {"experiment": "fit", "minutes": options.minutes, "device": device}, fit)
    wrapped = shell(module("monai_diffeo", "wrap", bundle, "--canonicalizer", fitted)).strip()
    runs = {"plain": bundle_command(bundle), "wrapped": f"{wrapped}{poses('diffeo_tta_samples', options.tta_samples)}"}
    truths = shown(max(options.tested // 3, 1), options.template, rotations=options.rotations)  # its windows take long
    return {**measured(bundle, folder, truths, runs, fitted, device, FOREIGN_OF_CLASS), **spent}


def ours(options: Any) -> dict[str, Any]:
    """The bundle brain_3d as it lies in the repository."""
    command = f"{bundle_command(OURS)} --device {options.device}"
    runs = {"plain": f"{command} --enabled false", "wrapped": f"{command}{poses('tta_samples', options.tta_samples)}"}
    folder = Path(options.weights_dir).absolute() / "brain_3d"
    truths = shown(options.tested, options.template, rotations=options.rotations)
    return measured(OURS, folder, truths, runs, OURS / "models" / "energy", options.device)


PARTS = {"brain_3d": ours, "SegResNet of a foreign bundle": foreign}


def results(options: Any) -> tuple[Rows, Rows]:
    """The table, and what was asked beside what was measured."""
    rows, asked = [], []
    for name in options.parts:
        code = code_digest(), sha256_below(OURS / "models")
        settings = {**vars(options), "parts": "", "experiment": "volumes", "network": name, "code": code}
        found = kept(options.weights_dir, settings, partial(PARTS[name], options))
        rows += table(found, name)
        asked += figures(found, name)
    return rows, asked


DEFAULTS: dict[str, Any] = {"weights_dir": "runs/any_network_3d", "template": str, "device": "cpu", "seed": 0, "subjects": 40}
DEFAULTS |= {"iterations": 1000, "minutes": 20.0, "tested": 24, "rotations": 24, "tta_samples": int, "parts": tuple(PARTS)}


def rows(options: Any) -> dict[str, Rows]:
    """For the page of ``any_network``: the two tables, by this module's defaults and with the page's folder and seed."""
    words = ["--weights_dir", str(options.weights_dir), "--seed", str(options.seed)]
    volumes, asked = results(Experiment("any_network_3d", __doc__, words, **DEFAULTS).options)
    return {"volumes": volumes, "asked": asked}


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, measure and print."""
    options = Experiment("any_network_3d", __doc__, argv, **DEFAULTS).options
    torch.set_num_threads(1)
    table_rows, asked = results(options)
    section("## Volumes", table_rows)
    section("## Asked", asked)


if __name__ == "__main__":
    main()
