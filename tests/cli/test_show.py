"""`monai-diffeo show`: the content of a canonicaliser's folder."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from monai_diffeo.canonicalize import load_canonicalizer
from monai_diffeo.cli import program
from monai_diffeo.cli.show import describe

ROOT = Path(__file__).parents[2]
ENERGY = ROOT / "bundles" / "cxr_lung_segmentation" / "models" / "energy"


def invoke(*words):
    done = CliRunner().invoke(program, ["show", *map(str, words)])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path):
    """A canonicaliser in no bundle."""
    shutil.copytree(ENERGY, tmp_path / "own")
    return tmp_path / "own"


def test_networks_have_the_size_and_the_hash_of_their_files():
    networks = describe(ENERGY)["networks"]
    built = {"predictor": "predictor", "orientation": "orientation", "vae": "energy.energies.vae.energy.vae"}
    canonicalizer = load_canonicalizer(ENERGY)
    for name, path in built.items():
        assert networks[name]["parameters"] == sum(p.numel() for p in canonicalizer.get_submodule(path).parameters())
        assert networks[name]["sha256"] == hashlib.sha256((ENERGY / f"{name}.pt").read_bytes()).hexdigest()


@pytest.mark.parametrize("words", [("cxr",), (str(ENERGY),), (str(ENERGY.parents[1]),)])
def test_the_page_fits_on_a_screen_and_names_everything(words):
    status, page, error = invoke(*words)
    lines = page.splitlines()
    settings = json.loads((ENERGY / "canonicalizer.json").read_text())
    assert status == 0 and error == "" and len(lines) < 45
    for section in ("families", "networks", "energies", "modes"):
        below = page.partition(f"{section.capitalize()}:\n")[2]
        assert [f"  {name} " in below for name in settings[section]] == [True] * len(settings[section])
    assert "data_license.txt" in page and "Non-commercial research only" in page and "mean 934.8, spread 276 of 354" in page
    assert re.search(r"predictor +DeformationPredictor, 1,157,582 parameters, predictor.pt 06aadc83d5da", page)
    assert re.search(r"single_pass +default, .*tta_samples 8", page.replace("\n              ", ""))


def test_a_folder_outside_of_a_bundle_has_no_licence_and_json_has_the_same(folder):
    status, page, _ = invoke(folder)
    assert status == 0 and "Licences: none in the folder" in page and "bundle" not in page.splitlines()[0]
    status, page, _ = invoke(folder, "--json")
    assert status == 0 and json.loads(page) == json.loads(json.dumps(describe(folder)))


def test_settings_that_it_does_not_know_are_shown(folder):
    settings = json.loads((folder / "canonicalizer.json").read_text())
    settings["modes"]["single_pass"]["working_size"] = [192, 160]
    (folder / "canonicalizer.json").write_text(json.dumps(settings))
    assert "working_size [192, 160]" in re.sub(r"\s+", " ", invoke(folder)[1])


def test_what_is_missing_or_damaged_is_the_last_line(folder, tmp_path):
    for name, says in (
        ("vae.pt", "show: no weights of 'vae' in"),
        ("statistics.json", "show: cannot read statistics.json"),
        ("canonicalizer.json", "show: cannot read canonicalizer.json"),
    ):
        (folder / name).write_bytes(b"{")
        status, page, error = invoke(folder)
        assert status == 1 and page == "" and error.startswith(f"Error: {says}") and "Traceback" not in error, error
    status, _, error = invoke(tmp_path / "nothing")
    assert status == 1 and "the name of a bundle (" in error
    shutil.copytree(ENERGY.parents[1] / "configs", tmp_path / "changed" / "configs")
    shutil.copytree(ENERGY, tmp_path / "changed" / "models" / "energy")
    (tmp_path / "changed" / "models" / "energy" / "critic.pt").write_bytes(b"x")
    status, _, error = invoke(tmp_path / "changed")
    assert status == 1 and "models/energy/critic.pt must have the SHA-256" in error


def test_it_needs_torch_but_not_monai():
    command = [sys.executable, "-X", "importtime", "-m", "monai_diffeo", "show", "cxr"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0 and not re.search(r"\| +(monai|matplotlib|ignite)$", done.stderr, re.M)
