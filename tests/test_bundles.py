"""Where the bundles are and what they are called; that a wheel and a source distribution bring them."""

import fnmatch
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from monai_diffeo import bundles, load_canonicalizer
from monai_diffeo.errors import WeightsError

ROOT = Path(__file__).parents[1]
LUNGS = ROOT / "bundles" / "cxr_lung_segmentation"


def packed():
    """Files of the bundles that setup.cfg names, from the folder of the bundles."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["monai_diffeo._bundles"].split()
    files = subprocess.run(["git", "ls-files", "bundles"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    names = [name.removeprefix("bundles/") for name in files]
    depth = str.count
    return {n for n in names for p in patterns if fnmatch.fnmatch(n, p) and depth(n, "/") == depth(p, "/")}, set(names)


def test_a_bundle_has_a_short_name_and_that_of_its_folder():
    names = bundles.bundle_names()
    assert names["cxr"] == LUNGS and names["mnist"] == ROOT / "bundles" / "mnist_genus"
    assert set(names.values()) == {path.parents[1] for path in (ROOT / "bundles").glob("*/configs/metadata.json")}
    assert bundles.find_bundle("cxr") == bundles.find_bundle("cxr_lung_segmentation") == LUNGS


def test_a_canonicaliser_is_found_by_name_by_bundle_and_by_folder(tmp_path):
    energy = LUNGS / "models" / "energy"
    for name in ("cxr", "cxr_lung_segmentation", LUNGS, str(LUNGS), energy):
        assert bundles.canonicalizer_folder(name) == energy
    assert bundles.canonicalizer_folder(tmp_path) == tmp_path
    assert load_canonicalizer("cxr", steps=3).steps == 3


def test_a_folder_of_the_user_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cxr").write_text("a file is no folder")
    assert bundles.find_bundle("cxr") == LUNGS
    (tmp_path / "cxr").unlink()
    (tmp_path / "cxr").mkdir()
    assert bundles.find_bundle("cxr") == Path("cxr")
    with pytest.raises(WeightsError, match="cannot read canonicalizer.json in cxr"):
        load_canonicalizer("cxr")


def test_an_unknown_name_lists_the_names_that_have_what_is_asked_for():
    with pytest.raises(WeightsError, match=r"find_bundle\(\): .*\(.*cxr, cxr_lung_template, mnist\), got 'xray'"):
        bundles.find_bundle("xray")
    with pytest.raises(WeightsError, match=r"load_canonicalizer\(\): .*\(.*cxr, mnist\), got 'cxr_lung_template'"):
        load_canonicalizer("cxr_lung_template")


def test_the_bundles_of_a_wheel_come_before_a_folder_beside_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "__file__", str(tmp_path / "monai_diffeo" / "bundles.py"))
    (tmp_path / "monai_diffeo").mkdir()
    assert bundles.bundles_folder() == tmp_path / "bundles" and bundles.bundle_names() == {}
    with pytest.raises(WeightsError):
        bundles.find_bundle("cxr")
    (tmp_path / "monai_diffeo" / "_bundles").mkdir()
    assert bundles.bundles_folder() == tmp_path / "monai_diffeo" / "_bundles"


def test_what_is_left_out_of_the_wheel_is_for_training_and_comparison_only():
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone")
    brought, files = packed()
    left_out = {name.partition("/")[2] for name in files - brought}
    assert all(name.startswith(("models/baselines/", "docs/curves/")) for name in left_out), left_out


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_wheel_and_a_source_distribution_hold_every_file_that_is_named(kind, tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone")
    pytest.importorskip("setuptools", "77")
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n"):
        if name and not name.startswith(("tests/", "docs/")):
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "copy" / name)
    (tmp_path / "copy" / "bundles" / "mnist_genus" / "output").mkdir()
    (tmp_path / "copy" / "bundles" / "mnist_genus" / "output" / "report.jsonl").touch()
    code = f"import setuptools.build_meta as b; b.build_{kind}({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "copy", check=True, capture_output=True, timeout=300)
    if kind == "sdist":
        with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
            names = {name.partition("/bundles/")[2] for name in archive.getnames() if "/bundles/" in name}
            assert {"setup.py", "constraints.txt"} <= {Path(name).name for name in archive.getnames()}
    else:
        with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
            names = {name.removeprefix("monai_diffeo/_bundles/") for name in archive.namelist() if "/_bundles/" in name}
            about = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
        licences = [name for name in packed()[0] if name.endswith(("LICENSE", "data_license.txt"))]
        assert licences and all(f"License-File: bundles/{name}\n" in about for name in licences)
    assert packed()[0] <= names and not any("__pycache__" in name or "/output/" in name for name in names)
