"""`monai-diffeo fit`: the command line, its exit status and last line, and a bundle's network."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

PIL = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from monai_diffeo.cli import program  # noqa: E402
from monai_diffeo.cli.fit_network import network_of_bundle  # noqa: E402
from monai_diffeo.errors import ConfigError  # noqa: E402
from monai_diffeo.fit import fitting  # noqa: E402

ROOT = Path(__file__).parents[2]


def invoke(*words):
    """Exit status, lines of standard output and of standard error."""
    done = CliRunner().invoke(program, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout.splitlines(), done.stderr.splitlines()


@pytest.fixture
def pictures(tmp_path):
    """Eight oblong colour pictures with masks of two classes, and a manifest."""
    folder, random = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    y, x = np.mgrid[:40, :48]
    rows = [("image", "mask")]
    for i in range(8):
        mask = ((y - 20 - i % 3) ** 2 + (x - 20) ** 2 < 80).astype(np.uint8) + 2 * ((y - 20) ** 2 + (x - 38) ** 2 < 40)
        image = np.clip(60 * mask[..., None] * [1.0, 0.5, 1.5] + random.integers(1, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
        PIL.fromarray(image).save(folder / f"i{i}.png")
        PIL.fromarray(mask.astype(np.uint8)).save(folder / f"m{i}.png")
        rows.append((f"i{i}.png", f"m{i}.png"))
    with open(folder / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture
def bundle(tmp_path):
    root = tmp_path / "bundle"
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    network = {"spatial_dims": 2, "in_channels": 3, "out_channels": 3, "channels": [4, 8], "strides": [2]}
    loads = {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True}
    scales, resizes = ({"_target_": name, "keys": "image"} for name in ("ScaleIntensityd", "Resized"))
    softmax = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
    config = {
        "bundle_root": ".",
        "network_def": {"_target_": "UNet", **network},
        "preprocessing": {"_target_": "Compose", "transforms": [loads, scales, {**resizes, "spatial_size": [32, 40]}]},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32]},
        "postprocessing": {"_target_": "Compose", "transforms": [softmax]},
    }
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    torch.save(UNet(**network).state_dict(), root / "models" / "model.pt")
    return root


@pytest.mark.parametrize(
    "words, says",
    [
        ("fit --datasetdir x", "Did you mean '--dataset_dir'?"),
        ("fit --minuets 3", "Did you mean '--minutes'?"),
        ("fti --dataset_dir x", "Did you mean 'fit'?"),
        ("fit --output_dir x", "--dataset_dir is needed"),
        ("fit --dataset_dir x", "--output_dir is needed"),
        ("fit --dataset_dir x --output_dir y --dims 4", "'4' is not one of '2', '3'"),
        ("fit --dataset_dir x --output_dir y --minutes 0", "0.0 is not in the range x>0"),
        ("fit --dataset_dir x --output_dir y --size big", "--size must be numbers with commas, such as 128,112, got 'big'"),
        ("fit --dataset_dir x --output_dir y --activation softmax", "--activation needs a --bundle_root"),
        ("fit --dataset_dir x --output_dir y --network_weights w", "--network_weights needs a --bundle_root"),
        ("fit --dataset_dir /no/such --output_dir y", "fit: the images must be a folder"),
        ("fit --dataset_dir . --output_dir y --bundle_root /no/such", "or the name of a bundle ("),
    ],
)
def test_a_wrong_command_line_does_nothing_and_says_why_in_its_last_line(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, lines = invoke(*words.split())
    assert status == 1 and says in lines[-1] and not any("Traceback" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_help_is_quick_and_documents_the_exit_status():
    command = [sys.executable, "-X", "importtime", "-m", "monai_diffeo", "fit", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and not re.search(r"\| +(torch|monai|numpy)$", done.stderr, re.M)
    assert all(f"  {status} " in done.stdout for status in ("0", "1", "130"))


def test_a_bundle_gives_preprocessing_network_inferer_and_activation(bundle, pictures):
    network, transform = network_of_bundle(bundle, None, None, False)
    assert (network.activation, network.stated, network.source) == ("softmax", True, "UNet of bundle")
    assert type(network.inferer).__name__ == "SlidingWindowInferer"
    image = transform({"image": str(pictures / "i0.png")})["image"]
    assert image.shape == (3, 32, 40) and network.ask(image, torch.device("cpu")).sum(0).allclose(torch.ones(32, 40))
    assert network_of_bundle(bundle, None, "sigmoid", False)[0].activation == "sigmoid"
    file = bundle / "configs" / "inference.json"
    config = json.loads(file.read_text())
    for steps, read in (
        ([{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}], "softmax"),
        ([{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}], "sigmoid"),
        ([{"_target_": "EnsureTyped", "keys": "pred"}], None),
    ):
        file.write_text(json.dumps({**config, "postprocessing": {"_target_": "Compose", "transforms": steps}}))
        assert network_of_bundle(bundle, None, None, False)[0].activation == read
    del config["preprocessing"]
    file.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="must have preprocessing or dataset::transform"):
        network_of_bundle(bundle, None, None, False)


def test_a_fit_with_a_bundle_end_to_end_and_the_folder_is_not_overwritten(bundle, pictures, tmp_path):
    words = ["--dataset_dir", pictures, "--output_dir", tmp_path / "out", "--bundle_root", bundle, "--minutes", "0.05"]
    status, lines, errors = invoke("fit", *words, "--size", "32,32")
    assert status == 0, errors
    assert lines[0].startswith("images        8, 2 of them held back; channels 3, frame 32 x 40")
    assert "UNet of bundle, softmax (as given)" in lines[2] and lines[-1].startswith("Did it work? ")
    assert "with masks, 2 images" in (tmp_path / "out" / "README.md").read_text()
    status, _, errors = invoke("fit", *words, "--size", "32,32")
    assert status == 1 and "must not hold a canonicaliser" in errors[-1]


def test_an_interruption_says_that_resume_goes_on(pictures, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "train_part", interrupted)
    status, _, errors = invoke("fit", "--dataset_dir", pictures, "--output_dir", tmp_path / "out", "--minutes", "0.05")
    assert status == 130 and errors[-1].startswith("Interrupted.") and "--resume goes on" in errors[-1]
