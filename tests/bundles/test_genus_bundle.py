"""The genus bundle on the command line, from a copy."""

import csv
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

for package in ("ignite", "fire", "skimage", "matplotlib", "mlxtend"):
    pytest.importorskip(package)

from monai.bundle import ConfigWorkflow  # noqa: E402

from monai_diffeo.report import SWITCHED_OFF  # noqa: E402
from tests.bundles.command import workflow  # noqa: E402

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "mnist_genus"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    copy = tmp_path_factory.mktemp("genus") / "mnist_genus"
    shutil.copytree(BUNDLE, copy, ignore=shutil.ignore_patterns("output", "eval"))
    return copy


def rows_of(bundle):
    with open(bundle / "output" / "genus.csv", newline="") as file:
        return list(csv.DictReader(file))


def accuracy(rows, column):
    return sum(r[column] == r["genus"] for r in rows) / len(rows)


def test_under_the_tps_protocol_the_wrapped_classifier_is_right_far_more_often(bundle):
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--workflow_type", "infer", "--digits", "300"]
    command += ["--config_file", str(bundle / "configs" / "inference.json"), "--bundle_root", str(bundle)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=bundle, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    rows, said = rows_of(bundle), done.stdout
    wrapped, plain = accuracy(rows, "answer"), accuracy(rows, "plain_answer")
    assert len(rows) == 300 and wrapped >= 0.96 and wrapped >= plain + 0.05, (wrapped, plain)
    assert f"300 digits: genus right for {round(wrapped * 300)} " in said
    assert all(float(r["folding_fraction"]) == 0 for r in rows) and {r["genus"] for r in rows} == set("012")
    assert (bundle / "output" / "genus.png").stat().st_size > 50_000


def test_undeformed_and_switched_off_it_is_the_plain_classifier(bundle):
    workflow(bundle, enabled="FALSE", tps_strength=0, figures="false").run()
    rows = rows_of(bundle)
    assert len(rows) == 64 and accuracy(rows, "answer") >= 0.96
    assert all(r["answer"] == r["plain_answer"] and r["status"] == SWITCHED_OFF for r in rows)


def test_the_seed_decides_how_digits_are_deformed(bundle):
    energies = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(energies))  # whatever the process has drawn before
        workflow(bundle, mode="single_pass", digits=2, tta_samples=1, figures="false", seed=seed).run()
        energies.append([row["energy_before"] for row in rows_of(bundle)])
    assert energies[0] == energies[1] != energies[2]


@pytest.mark.parametrize("mode", ["refine", "faithful"])
def test_other_modes_and_the_other_genus_run(bundle, mode):
    flow = workflow(bundle, mode=mode, genus="euler", digits=2, network_weights=str(bundle / "models" / "euler" / "euler.pt"))
    flow.run()
    (used,) = [r for r in rows_of(bundle) if r["id"] == "mlxtend0000"]
    assert used["status"] == "canonicalized" and 0 <= int(used["genus"]) <= 2


def test_training_runs_from_its_configuration(bundle, tmp_path):
    import numpy as np

    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "mnist.npz", x_train=draw.integers(0, 256, (10008, 28, 28), dtype=np.uint8), y_train=np.arange(10008) % 10
    )
    for name, weights in (
        ("predictor", "energy/predictor.pt"),
        ("vae", "energy/vae.pt"),
        ("critic", "energy/critic.pt"),
        ("augmented", "baselines/augmented.pt"),
        ("euler", "euler/euler.pt"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flow = ConfigWorkflow(
                [str(bundle / "configs" / "train.json"), str(bundle / "configs" / f"train_{name}.json")],
                workflow_type="train",
                logging_file=False,
                bundle_root=str(tmp_path),
                dataset_dir=str(tmp_path),
                epochs=1,
                batch_size=4,
            )
            flow.initialize()
            flow.run()
        trained, shipped = (torch.load(root / "models" / weights, weights_only=True) for root in (tmp_path, bundle))
        assert {k: v.shape for k, v in trained.items()} == {k: v.shape for k, v in shipped.items()}, name
