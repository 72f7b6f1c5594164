"""Each bundle from its configuration to its files, on a device that refuses numpy: what it writes is what a CPU writes."""

import csv
from contextlib import nullcontext

import numpy as np
import pytest

for package in ("ignite", "fire", "nibabel", "pydicom", "PIL", "matplotlib", "skimage", "scipy", "mlxtend", "data_store"):
    pytest.importorskip(package)

from PIL import Image  # noqa: E402

from tests.bundles.command import ROOT, lines_of, workflow  # noqa: E402
from tests.helpers_device import ClaimedDevice, claims  # noqa: E402

FILMS = [
    ("cxr_lung_segmentation", {"accept_anything": True}),
    ("cxr_lung_template", {}),
    ("cxr_lung_template", {"enabled": True, "tta_samples": 2}),
]


def near(one, other):
    """The same but for rounding: networks take batches of another size on a GPU."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(near, one, other))
    return one == (pytest.approx(other, rel=1e-3, abs=1e-3) if isinstance(one, float) else other)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """One film of two dark ellipses on grey."""
    folder = tmp_path_factory.mktemp("films")
    y, x = np.mgrid[:120, :100]
    dark = sum((((y - 55) / 35) ** 2 + ((x - c) / 16) ** 2 < 1) for c in (28, 72))
    Image.fromarray((200 - 150 * dark + 20 * np.sin(y / 5)).astype(np.uint8)).save(folder / "film.png")
    return folder


@pytest.mark.parametrize("name, options", FILMS, ids=["segmentation", "template", "template canonicalised"])
def test_films(name, options, films, tmp_path):
    bundle, lines, masks = ROOT / "bundles" / name, {}, {}
    for device in ("cpu", "cuda"):
        output = tmp_path / device
        with ClaimedDevice() if device == "cuda" else nullcontext():
            flow = workflow(bundle, output_dir=str(output), dataset_dir=str(films), device=device, **options)
            flow.run()
            status = flow.finalize()
        assert status == [0], (output / "report.jsonl").read_text()
        assert all(claims(p) == (device == "cuda") for p in flow.evaluator.network.parameters())
        (lines[device],) = lines_of(output)[0].values()
        masks[device] = np.asarray(Image.open(output / lines[device]["mask"]))
        assert (output / lines[device]["figure"]).stat().st_size > 20_000
    assert lines["cuda"].pop("device") == "cuda" and lines["cpu"].pop("device") == "cpu"
    for line in lines.values():
        del line["seconds"], line["settings"]  # the device is one of them
    assert near(lines["cuda"], lines["cpu"]) and masks["cuda"].any() and (masks["cuda"] != masks["cpu"]).mean() < 1e-3


@pytest.mark.parametrize("mode", ["single_pass"])
def test_digits(mode, tmp_path):
    rows = []
    for device in ("cpu", "cuda"):
        with ClaimedDevice() if device == "cuda" else nullcontext():
            flow = workflow(
                ROOT / "bundles" / "mnist_genus", output_dir=str(tmp_path / device), device=device, mode=mode, digits=2
            )
            flow.run()
        assert claims(flow.evaluator.state.result.canonicalization.image) == (device == "cuda")
        with open(tmp_path / device / "genus.csv", newline="") as file:
            rows.append(list(csv.DictReader(file)))
    rows = [[{key: float(v) if v.replace(".", "").isdigit() else v for key, v in row.items()} for row in part] for part in rows]
    assert near(*rows) and len(rows[0]) == 2
