"""What the continuous integration of MONAI's model zoo asks of every bundle: files, shapes, export, packages."""

import json
import re
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from tests.bundles.test_every_bundle import BUNDLES, ROOT

pytest.importorskip("ignite")
pytest.importorskip("fire")

NO_TORCHSCRIPT = "does not support TorchScript"
NAMES = [bundle.name for bundle in BUNDLES]


def options(bundle, **further):
    configs = {
        f"{name}_file": str(bundle / "configs" / f"{file}.json")
        for name, file in (("meta", "metadata"), ("config", "inference"))
    }
    return {"net_id": "network_def", "bundle_root": str(bundle), **configs, **further}


@pytest.mark.parametrize("bundle", BUNDLES, ids=NAMES)
def test_files_have_the_names_and_tensors_the_keys_that_the_zoo_asks_for(bundle):
    assert all(
        (bundle / name).is_file() for name in ("LICENSE", "models/model.pt", "configs/inference.json", "configs/logging.conf")
    )
    meta = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert meta["version"] in meta["changelog"] and isinstance(meta["supported_apps"], dict)
    keys = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"}
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        (tensor,) = [value for key, value in meta["network_data_format"][side].items() if key == name]
        assert keys <= set(tensor) and tensor["num_channels"] == len(tensor["channel_def"])


@pytest.mark.parametrize("bundle", BUNDLES, ids=NAMES)
def test_the_network_answers_in_the_shape_and_type_of_its_metadata(bundle):
    from monai.bundle import verify_net_in_out

    verify_net_in_out(**options(bundle))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bundle", BUNDLES, ids=NAMES)
def test_the_weights_export_to_torchscript_or_the_bundle_says_why_they_do_not(bundle, tmp_path):
    from monai.bundle import ConfigParser, ckpt_export

    readme = (bundle / "docs" / "README.md").read_text()
    if NO_TORCHSCRIPT in readme:  # the zoo keeps a list of such bundles, and asks for this sentence
        assert bundle.name == "cxr_lung_template" and "guard" in readme.split(NO_TORCHSCRIPT)[1].split("\n\n")[0]
        return
    weights, meta = bundle / "models" / "model.pt", json.loads((bundle / "configs" / "metadata.json").read_text())
    ckpt_export(filepath=str(tmp_path / "model.ts"), ckpt_file=str(weights), **options(bundle))
    network = (
        ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text())).get_parsed_content("network_def").eval()
    )
    network.load_state_dict(torch.load(weights, weights_only=True))
    size = [n if isinstance(n, int) else 32 for n in meta["network_data_format"]["inputs"]["image"]["spatial_shape"]]
    image = torch.rand(1, 1, *size)
    with torch.no_grad():
        assert torch.allclose(torch.jit.load(tmp_path / "model.ts").eval()(image), network(image), atol=1e-4)


def closure(names):
    """Installed distributions that these need, by normalised name."""
    found, rest = {}, list(names)
    while rest:
        name = re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", rest.pop()).group()).lower()
        if name in found or name == "monai-diffeo":
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of another platform
        rest += [line for line in found[name].requires or () if "extra ==" not in line]
    return found


@pytest.mark.parametrize("name", ["cxr_lung_segmentation", "cxr_lung_template"])
def test_the_default_film_comes_with_the_packages_of_the_metadata(name, monkeypatch):
    from monai_diffeo.radiograph import packaged

    meta = json.loads((ROOT / "bundles" / name / "configs" / "metadata.json").read_text())
    there, files = closure(meta["required_packages_version"]), metadata.files
    monkeypatch.setattr(packaged.metadata, "files", lambda package: files(package) if package in there else None)
    assert packaged.packaged_film().is_file()


@pytest.mark.slow
@pytest.mark.parametrize("bundle", BUNDLES, ids=NAMES)
def test_the_packages_of_the_metadata_suffice_for_the_default_run(bundle, tmp_path):
    meta = json.loads((bundle / "configs" / "metadata.json").read_text())
    site = tmp_path / "site"
    site.mkdir()
    for found in closure(["torch", "monai", "numpy", "click", *meta["required_packages_version"]]).values():
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(found.locate_file(top))
    code = f"import sys, runpy; sys.path[:0] = [{str(site)!r}, {str(ROOT)!r}]; sys.argv[0] = 'monai.bundle'; "
    code += "runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)"
    config, output = bundle / "configs" / "inference.json", tmp_path / "output"
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", code, "run", "--config_file", str(config)]
    command += ["--bundle_root", str(bundle), "--workflow_type", "infer", "--output_dir", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    written = {path.suffix for path in output.rglob("*") if path.is_file()}
    assert written >= ({".csv", ".png"} if bundle.name == "mnist_genus" else {".gz", ".jsonl"}), done.stdout
