"""One film through each consumer of a bundle: is it the same mask?

MONAI Deploy and MONAI Label do not install beside our pins; name a Python that has each, see the page for how to make one.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export
from monai.transforms import Compose, SaveImaged

from docs.experiments.pages import Experiment, judged, note, section
from monai_diffeo.radiograph.packaged import packaged_film
from monai_diffeo.radiograph.reader import read_film

ROOT = Path(__file__).parents[2]
DRIVERS = Path(__file__).parent / "consumer_drivers"
THREADS = 4


def film_mask(folder: Path) -> np.ndarray:
    """The one mask below a folder of results, rows x columns, bool."""
    import nibabel

    (file,) = folder.rglob("*_lungs.nii.gz")
    return np.asarray(nibabel.load(file).dataobj).reshape(*nibabel.load(file).shape[:2]).T > 0


def run_process(command: Sequence[str], folder: Path, **environment: str) -> str:
    """What a process prints; an error with its last lines where it fails."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{command[1:4]} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def command_line(bundle: Path, film: Path, folder: Path) -> np.ndarray:
    """``python -m monai.bundle run``."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", bundle / "configs" / "inference.json"]
    command += [
        "--bundle_root",
        bundle,
        "--workflow_type",
        "infer",
        "--dataset_dir",
        film.parent,
        "--output_dir",
        folder / "out",
    ]
    run_process([*map(str, command)], folder)
    return film_mask(folder / "out")


def segment(bundle: Path, film: Path, folder: Path) -> np.ndarray:
    """``monai-diffeo segment``."""
    command = [sys.executable, "-m", "monai_diffeo", "segment", "--bundle_root", bundle, "--dataset_dir", film.parent]
    run_process([*map(str, command), "--output_dir", str(folder / "out")], folder)
    return film_mask(folder / "out")


def workflow(bundle: Path, film: Path, folder: Path) -> np.ndarray:
    """``ConfigWorkflow`` in this process, which goes on afterwards."""
    options = {"bundle_root": str(bundle), "dataset_dir": str(film.parent), "output_dir": str(folder / "out")}
    flow = ConfigWorkflow(str(bundle / "configs" / "inference.json"), workflow_type="infer", logging_file=False, **options)
    flow.initialize()
    flow.run()
    if flow.finalize() != [0]:
        raise RuntimeError("the workflow must finalize with status 0.")
    return film_mask(folder / "out")


def service(bundle: Path, film: Path, folder: Path) -> np.ndarray:
    """A web service: parts by name, no ``initialize``, several threads at once; all their masks must be the same."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser["bundle_root"] = str(bundle)
    names = ("preprocessing", "inferer", "network", "postprocessing")
    before, inferer, network, after = (parser.get_parsed_content(name) for name in names)
    after = Compose([step for step in after.transforms if not isinstance(step, SaveImaged)])

    def answer(path: str) -> np.ndarray:
        import torch

        data = before({"image": path})
        with torch.inference_mode():
            data["pred"] = inferer(data["image"][None], network.eval())[0]
        return np.asarray(after(data)["pred"])[0] > 0

    with ThreadPoolExecutor(THREADS) as pool:
        masks = list(pool.map(answer, [str(film)] * THREADS))
    if any(not np.array_equal(mask, masks[0]) for mask in masks):
        raise RuntimeError("threads gave different masks.")
    return masks[0]


def driver(name: str, python: str, bundle: Path, film: Path, folder: Path) -> np.ndarray:
    """The mask of a consumer with a Python of its own, rows x columns."""
    libraries = Path(python).parents[1].glob("lib/python3*/site-packages/nvidia/*/lib")
    holoscan = Path(python).parents[1].glob("lib/python3*/site-packages/holoscan/lib")
    environment = {"LD_LIBRARY_PATH": ":".join(map(str, [*libraries, *holoscan]))}
    print(
        run_process([python, "-W", "ignore", DRIVERS / f"{name}.py", bundle, film, folder / "mask.npy"], folder, **environment)
    )
    return np.load(folder / "mask.npy")[0] > 0


def torchscript(bundle: Path, folder: Path) -> Path:
    """The bundle as one file: network, metadata and configuration."""
    configs = bundle / "configs"
    file = folder / "model.ts"
    ckpt_export(
        "network_def",
        filepath=str(file),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=str(configs / "metadata.json"),
        config_file=[str(configs / "inference.json")],
        bundle_root=str(bundle),
    )
    return file


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap of two masks."""
    return 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())


def consumers(deploy: str | None, label: str | None) -> dict[str, Callable[[Path, Path, Path], np.ndarray] | None]:
    """Each consumer; None for one that cannot be had here."""

    def deploy_file(bundle: Path, film: Path, folder: Path) -> np.ndarray:
        return driver("deploy", str(deploy), torchscript(bundle, folder), film, folder)

    return {
        "`python -m monai.bundle run`": command_line,
        "`ConfigWorkflow`": workflow,
        "MONAI Deploy, the bundle's folder": deploy and (lambda *given: driver("deploy", deploy, *given)),
        "MONAI Deploy, TorchScript file": deploy and deploy_file,
        "MONAI Label": label and (lambda *given: driver("label", label, *given)),
        "`monai-diffeo segment`": segment,
        f"a service with {THREADS} threads": service,
    }


def measure(bundle: Path, film: Path, deploy: str | None, label: str | None) -> list[dict[str, str]]:
    """A row for each consumer, against the first."""
    rows, first = [], None
    for name, consume in consumers(deploy, label).items():
        if consume is None:
            rows.append({"what": name, "asked": "Dice >= .999", "measured": "not to be had here", "met": ""})
            continue
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            own = Path(folder) / "films" / "one film.dcm"  # neither in the bundle nor beside the packaged film
            own.parent.mkdir()
            shutil.copy(film, own)
            began = time.perf_counter()
            try:
                mask = consume(bundle, own, Path(folder))
            except Exception as error:
                rows.append(judged(name, "Dice >= .999", f"{type(error).__name__}: {error}"[:2000], False))
                continue
            first = mask if first is None else first
            same = dice(mask, first) if mask.shape == first.shape else 0.0
            measured = f"{same:.5f}, {time.perf_counter() - began:.0f} s"
            rows.append(judged(name, "Dice >= .999", measured, same >= 0.999))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    bundles = ["cxr_lung_segmentation", "cxr_lung_template"]
    run = Experiment("consumers", __doc__, argv, deploy_python=str, label_python=str, bundles=bundles)
    options, film = run.options, packaged_film()
    os.chdir(tempfile.gettempdir())  # no bundle is here
    print("rows x columns:", read_film(film).pixels.shape)
    tables = []
    for name in options.bundles:
        rows = measure(ROOT / "bundles" / name, film, options.deploy_python, options.label_python)
        tables.append(section(f"## `{name}`", rows))
    intro, *rest = note("consumers")
    changes = {name: "PYTHON" for name in ("deploy_python", "label_python") if getattr(options, name)}
    os.chdir(ROOT)
    run.write("The same mask from every consumer", [intro, *tables, *rest], **changes)


if __name__ == "__main__":
    main()
