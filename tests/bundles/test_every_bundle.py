"""What holds for every bundle: properties, metadata, files."""

import json
import warnings
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(path.parents[1] for path in (ROOT / "bundles").glob("*/configs/metadata.json"))


@pytest.fixture(params=BUNDLES, ids=[b.name for b in BUNDLES])
def bundle(request):
    return request.param


def test_the_workflow_has_the_properties_that_monai_asks_for(bundle, tmp_path):
    for package in ("ignite", "fire", "skimage", "pydicom", "data_store", "mlxtend"):
        pytest.importorskip(package)
    from monai.bundle import ConfigWorkflow

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = ConfigWorkflow(
            str(bundle / "configs" / "inference.json"),
            workflow_type="infer",
            logging_file=False,
            meta_file=str(bundle / "configs" / "metadata.json"),
            bundle_root=str(bundle),
            output_dir=str(tmp_path),
        )
        workflow.initialize()
        assert not workflow.check_properties()


def pinned(name):
    """Versions by package, on Python 3.11 and later."""
    lines = (line for line in (ROOT / name).read_text().splitlines() if "==" in line and 'version < "3.11"' not in line)
    return dict(line.partition(";")[0].split("==") for line in lines)


def test_metadata_has_what_the_schema_requires_and_speaks_the_truth(bundle):
    meta = json.loads((bundle / "configs" / "metadata.json").read_text())
    required = {
        "schema",
        "version",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "required_packages_version",
        "task",
        "description",
        "authors",
        "copyright",
        "network_data_format",
        "changelog",
        "intended_use",
        "data_source",
        "name",
    }
    assert required <= set(meta) and meta["version"] in meta["changelog"]
    pins = pinned("constraints.txt")
    for package, version in meta["required_packages_version"].items():
        assert package == "monai-diffeo" or pins[package] == version
    assert (pins["torch"], pins["monai"], pins["numpy"]) == (
        meta["pytorch_version"],
        meta["monai_version"],
        meta["numpy_version"],
    )


def test_files_are_small_enough_and_weights_are_plain_tensors(bundle):
    files = [p for p in bundle.rglob("*") if p.is_file() and "output" not in p.parts]
    assert sum(p.stat().st_size for p in files) < 40e6 and max(p.stat().st_size for p in files) < 25e6
    for path in (bundle / "models").rglob("*.pt"):
        state = torch.load(path, weights_only=True)
        assert all(isinstance(v, torch.Tensor) and torch.isfinite(v).all() for v in state.values()), path
    further = ["outlier.pt", "whole_lungs.pt"] if bundle.name == "cxr_lung_segmentation" else []
    names = sorted(p.name for p in (bundle / "models").glob("*.pt"))
    assert names == ["model.pt", *further]
    assert all(len(name) > len("model.pt") for name in further)  # MONAI Label takes the weights with the shortest name


def test_no_file_names_a_folder_of_the_machine_it_was_made_on(bundle):
    texts = [p for p in bundle.rglob("*") if p.suffix in (".json", ".md", ".txt", ".csv", ".conf") and "output" not in p.parts]
    assert texts and not [p for p in texts if any(word in p.read_text() for word in ("/work/", "/tmp/", "/home/"))]


def test_it_has_a_readme_a_licence_and_one_for_its_data(bundle):
    assert all((bundle / name).is_file() for name in ("LICENSE", "docs/README.md", "docs/data_license.txt"))


def test_the_mode_of_the_configuration_is_the_default_one_and_that_of_its_limits(bundle):
    folder = bundle / "models" / "energy"
    if not (folder / "canonicalizer.json").is_file():
        pytest.skip("no canonicaliser")
    mode = json.loads((bundle / "configs" / "inference.json").read_text())["mode"]
    settings = json.loads((folder / "canonicalizer.json").read_text())
    assert mode == settings["default_mode"]
    for file in folder.glob("limits*.json"):
        said = json.loads(file.read_text())["mode"]
        assert said == (mode if file.name == "limits.json" else file.stem.removeprefix("limits_")) and said in settings["modes"]
