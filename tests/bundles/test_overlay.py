"""Bundles of others under the overlay and in the file of ``wrap --write``, read as each consumer reads them."""

import ast
import copy
import json
import logging
import runpy
import shlex
import sys
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("ignite")

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch

from monai_diffeo.canonicalize import load_canonicalizer
from monai_diffeo.cli.wrap import wrapped_command, write_wrapped
from monai_diffeo.errors import ConfigError
from monai_diffeo.families import ControlGrid
from monai_diffeo.flow import warp
from monai_diffeo.inferers import DiffeoInferer, overlay_path
from monai_diffeo.networks import DeformationPredictor

SEEN = "$torch.save([type(@evaluator.inferer).__name__, @evaluator.state.output['pred']], 'seen.pt')"
FOREIGN = {  # as somebody else would write it: nothing of ours in it
    "imports": ["$import torch"],
    "bundle_root": ".",
    "device": "$torch.device('cpu')",
    "dataset_dir": ".",
    "network_def": {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 5, "padding": 2},
    "network": "$@network_def.to(@device).eval()",
    "dataset": {"_target_": "Dataset", "data": "$[{'image': torch.rand(1, 32, 32)} for _ in range(2)]"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 2},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [24, 24], "sw_batch_size": 4, "overlap": 0.5},
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "decollate": False,
    },
    "initialize": ["$torch.manual_seed(0)"],
    "run": ["$@evaluator.run()", SEEN],
}
CONV3D = {**FOREIGN["network_def"], "_target_": "torch.nn.Conv3d"}
VOLUMES = {"_target_": "Dataset", "data": "$[{'image': torch.rand(1, 24, 24, 16)}]"}
WINDOWS = {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.25}


def changed(changes, drop=()):
    return {key: value for key, value in {**copy.deepcopy(FOREIGN), **changes}.items() if key not in drop}


def in_validate():
    """An evaluator and an inferer under ids of their own, no device, another run id."""
    config = changed({}, ("evaluator", "inferer", "device", "run"))
    config["network"] = "$@network_def.eval()"
    evaluator = {**FOREIGN["evaluator"], "device": "cpu", "inferer": "@parts#windows"}
    config |= {"parts": {"windows": FOREIGN["inferer"]}, "validate": {"evaluator": evaluator}}
    return config | {"evaluating": [line.replace("@evaluator", "@validate::evaluator") for line in FOREIGN["run"]]}


KINDS = {  # configuration, its name, its own inferer, size and axes of the canonicaliser
    "3D sliding window": (
        changed({"network_def": CONV3D, "dataset": VOLUMES, "inferer": WINDOWS}), "inference.json", "SlidingWindowInferer", 3
    ),
    "2D classes": (
        changed({"network_def": {**FOREIGN["network_def"], "out_channels": 4}, "inferer": {"_target_": "SimpleInferer"},
                 "displayable_configs": {"theirs": 1}}),
        "inference.json", "SimpleInferer", 2,
    ),
    "slices": (
        changed({"dataset": VOLUMES, "inferer": {"_target_": "SliceInferer", "roi_size": [24, 24], "spatial_dim": 2}}),
        "inference.json", "SliceInferer", 2,
    ),
    "YAML, inferer inline": (
        changed({"evaluator": {**FOREIGN["evaluator"], "inferer": FOREIGN["inferer"]}}, ("inferer",)),
        "inference.yaml", "SlidingWindowInferer", 2,
    ),
    "ids of its own": (in_validate(), "inference.json", "SlidingWindowInferer", 2),
}  # fmt: skip


def small_folder(folder, dims):
    """A folder for ``load_canonicalizer`` whose predictor moves any image."""
    torch.manual_seed(1)
    count = ControlGrid(dims, 4).num_parameters
    settings = {"num_parameters": count, "image_size": [16] * dims, "channels": [4, 4], "spatial_dims": dims}
    predictor = DeformationPredictor(**settings)
    torch.nn.init.normal_(predictor.head[-1].bias, std=0.05)
    folder.mkdir(parents=True)
    torch.save(predictor.state_dict(), folder / "predictor.pt")
    mode = {"family": "@families::grid", "predictor": "@networks::predictor", "max_energy_increase": None, "standardize": False}
    motion = {"predictor": "@networks::predictor", "family": "@families::grid"}
    content = {
        "default_mode": "one",
        "families": {"grid": {"_target_": "monai_diffeo.families.ControlGrid", "spatial_dims": dims, "controls": 4}},
        "networks": {"predictor": {"_target_": "monai_diffeo.networks.DeformationPredictor", **settings}},
        "weights": {"predictor": "predictor.pt"},
        "energies": {"motion": {"_target_": "monai_diffeo.energies.ResidualDeformationEnergy", **motion}},
        "modes": {"one": {**mode, "energies": {"motion": 1.0}}, "two": {**mode, "iterations": 2, "energies": {"motion": 1.0}}},
    }
    (folder / "canonicalizer.json").write_text(json.dumps(content))


def make(root, config, name="inference.json", dims=2):
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    ConfigParser.export_config_file(config, str(root / "configs" / name), fmt=name.rpartition(".")[2])
    small_folder(root / "models" / "energy", dims)
    return root


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request, tmp_path_factory):
    config, name, own, dims = KINDS[request.param]
    root = make(tmp_path_factory.mktemp("foreign"), config, name, dims)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    written = write_wrapped(root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path != written} == before
    assert written.suffix == Path(name).suffix
    return root, config, own, written


def words_of(command):
    """The words behind ``python -m monai.bundle run``, as bash splits them."""
    words = shlex.split(command)
    return words[words.index("run") + 1 :]


def options_of(command):
    """The run id of a command, and its options by name."""
    words = words_of(command)
    run_id = words.pop(0) if not words[0].startswith("--") else "run"
    return run_id, dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2]))


def check(inferer, own, root):
    assert isinstance(inferer, DiffeoInferer) and type(inferer.inferer).__name__ == own
    assert inferer.canonicalizer.family.spatial_dims == load_canonicalizer(root / "models" / "energy").family.spatial_dims


def asked(inferer, config):
    """What an inferer says for an image of the size of the bundle's own, and that it is not what the inner one says."""
    target = config["network_def"]["_target_"]
    image = torch.rand(1, 1, 24, 24, 16) if config["dataset"] == VOLUMES else torch.rand(1, 1, 32, 32)
    network = ConfigParser({"net": config["network_def"]}).get_parsed_content("net")
    assert type(network).__name__ == target.rpartition(".")[2]
    with torch.no_grad():
        prediction, plain = inferer(inputs=image, network=network), inferer.inferer(image, network)
    assert prediction.shape == plain.shape and not torch.allclose(prediction, plain)


@pytest.fixture(params=["overlay", "one file"])
def workflow(request, kind, monkeypatch, tmp_path):
    """``ConfigWorkflow`` as a service makes it: with the overlay in the bundle's folder, or of the one file from anywhere."""
    root, _, _, written = kind
    monkeypatch.chdir(root if request.param == "overlay" else tmp_path)
    run_id, settings = options_of(wrapped_command(root, written=None if request.param == "overlay" else written)[0])
    files = settings.pop("config_file")
    files = ast.literal_eval(files) if request.param == "overlay" else [str(root / files)]
    settings |= {"bundle_root": str(root), "logging_file": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = ConfigWorkflow(files, run_id=run_id, **settings)
        made.initialize()
        yield made


def test_a_workflow_has_the_wrapped_inferer_and_its_evaluator_uses_it(workflow, kind):
    root, config, own, _ = kind
    check(workflow.inferer, own, root)
    asked(workflow.inferer, config)
    workflow.run()
    assert torch.load("seen.pt", weights_only=False)[0] == "DiffeoInferer"
    evaluator = workflow.parser.get_parsed_content("evaluator" if "evaluator" in config else "validate::evaluator")
    assert evaluator.inferer is workflow.inferer


def test_a_reader_like_deploys_has_the_wrapped_inferer(kind, monkeypatch, tmp_path):
    """Metadata and one configuration from another folder; nothing is initialized; the device is the operator's own."""
    root, config, own, written = kind
    monkeypatch.chdir(tmp_path)
    parser = ConfigParser()
    parser.read_meta(f=json.loads((root / "configs" / "metadata.json").read_text()))
    parser.read_config([written])
    parser.parse()
    inferer = parser.get_parsed_content("inferer")
    check(inferer, own, root)
    asked(inferer, config)


def test_a_reader_like_labels_has_the_wrapped_inferer_and_options_for_its_users(kind, monkeypatch, tmp_path):
    """One configuration; options are shown, and what a user sets comes back before the next request."""
    root, config, own, written = kind
    monkeypatch.chdir(tmp_path)
    parser = ConfigParser()
    parser.read_config(str(written))
    parser.config.update({"bundle_root": str(root)})
    shown = parser.get_parsed_content("displayable_configs", instantiate=True)
    assert shown == {**config.get("displayable_configs", {}), "diffeo_enabled": True, "diffeo_mode": "one"}
    check(parser.get_parsed_content("inferer", instantiate=True), own, root)
    for enabled, mode, steps in ((False, "one", 1), ("true", "two", 2)):
        data = {**shown, "diffeo_enabled": enabled, "diffeo_mode": mode}
        parser["displayable_configs"].update({key: data[key] for key in shown})
        parser.parse()
        inferer = parser.get_parsed_content("inferer", instantiate=True)
        assert inferer.enabled is bool(enabled) and inferer.canonicalizer.iterations == steps
    asked(inferer, config)


@pytest.mark.parametrize("one_file", [False, True], ids=["overlay", "one file"])
def test_the_command_line_runs_the_wrapped_inferer(one_file, kind, monkeypatch):
    """MONAI's own command with the words that ``wrap`` prints, in the bundle's folder."""
    pytest.importorskip("fire")
    root, _, _, written = kind
    monkeypatch.chdir(root)
    command, _ = wrapped_command(root, written=written if one_file else None)
    monkeypatch.setattr(sys, "argv", ["bundle", "run", *words_of(command)])
    (root / "seen.pt").unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=False)
    name, prediction = torch.load(root / "seen.pt", weights_only=False)
    assert name == "DiffeoInferer" and prediction.isfinite().all()


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    root = make(tmp_path / "foreign", FOREIGN)
    monkeypatch.chdir(root)
    return root


def run(bundle, files, **overrides):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = ConfigWorkflow(files, workflow_type="infer", logging_file=False, bundle_root=str(bundle), **overrides)
        workflow.initialize()
        workflow.run()
    return workflow.evaluator


OWN = "configs/inference.json"


def test_the_prediction_is_that_of_the_inner_inferer_at_the_canonical_pose_mapped_back(bundle):
    evaluator = run(bundle, [OWN, overlay_path()])
    result = load_canonicalizer(bundle / "models" / "energy")(evaluator.state.output["image"])
    assert result.status == ("canonicalized",) * 2
    with torch.no_grad():
        expected = warp(evaluator.inferer.inferer(result.image, evaluator.network), result.inverse_ddf)
    torch.testing.assert_close(evaluator.state.output["pred"], expected)


def test_switched_off_it_is_the_bundle_as_it_was(bundle):
    plain, off, on = (
        run(bundle, files, **options).state.output["pred"]
        for files, options in (([OWN], {}), ([OWN, overlay_path()], {"diffeo_enabled": "false"}), ([OWN, overlay_path()], {}))
    )
    assert torch.equal(plain, off) and not torch.equal(plain, on)


def test_another_mode_by_name(bundle):
    assert run(bundle, [OWN, overlay_path()], diffeo_mode="two").inferer.canonicalizer.iterations == 2


def test_the_reversed_order_of_files_is_an_error_that_says_so(bundle):
    with pytest.raises(KeyError, match="the overlay must be the last of the configuration files"):
        run(bundle, [overlay_path(), OWN])


def test_the_inferer_of_another_bundle_is_never_taken(bundle, tmp_path, monkeypatch):
    make(tmp_path / "other", FOREIGN)
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(RuntimeError) as caught:
        run(bundle, [str(bundle / OWN), overlay_path()])
    assert isinstance(caught.value.__cause__.__cause__ or caught.value.__cause__, (ConfigError, RuntimeError))
    assert "got another bundle" in str(caught.getrepr(chain=True))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=OWN):
        run(bundle, [str(bundle / OWN), overlay_path()])
    assert run(bundle, [str(bundle / OWN), overlay_path()], diffeo_inner=f"%{bundle / OWN}::inferer").state.epoch == 1


def test_an_option_of_the_own_inferer_is_not_swallowed(bundle):
    with pytest.raises(RuntimeError) as caught:
        run(bundle, [OWN, overlay_path()], **{"inferer::overlap": 0.1})
    assert "unexpected keyword argument 'overlap'" in str(caught.getrepr(chain=True))


def loaded(folder, count):
    """Images in files, as a loader and its preprocessing give them, and that preprocessing."""
    nibabel = pytest.importorskip("nibabel")
    from monai.transforms import Compose, LoadImaged, SpatialPadd

    for i in range(count):
        array = torch.rand(30, 32, generator=torch.Generator().manual_seed(i)).numpy()
        nibabel.save(nibabel.Nifti1Image(array, torch.diag(torch.tensor([2.0, 2, 1, 1])).numpy()), folder / f"{i}.nii")
    steps = Compose([LoadImaged("image", ensure_channel_first=True), SpatialPadd("image", (32, 32))])
    return Dataset([{"image": str(folder / f"{i}.nii")} for i in range(count)], steps), steps


def test_batches_that_carry_a_loaders_metadata_are_wrapped_and_decollate(bundle, tmp_path):
    (batch,) = DataLoader(loaded(tmp_path, 2)[0], batch_size=2)
    seen = []
    inferer = DiffeoInferer(load_canonicalizer(bundle / "models" / "energy"), tta_samples=2)
    out = inferer(batch["image"], lambda x: seen.append(x) or x * 2)
    assert all(x.is_batch for x in seen) and out.shape == (2, 1, 32, 32)
    items = decollate_batch({"pred": seen[0]})
    assert [str(i["pred"].meta["filename_or_obj"])[-5:] for i in items] == ["0.nii", "1.nii"]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_evaluators_outputs_and_files_say_what_happened(batch_size, bundle, tmp_path, caplog):
    """Through the loader, ``Invertd`` and ``SaveImaged``, as a bundle's post-processing has them; a log line for each image."""
    from monai.engines import SupervisedEvaluator
    from monai.transforms import Compose, Invertd, SaveImaged

    data, steps = loaded(tmp_path, 2)
    save = SaveImaged("pred", output_dir=str(tmp_path), output_postfix="seg", resample=False, print_log=False)
    post = Compose([Invertd("pred", steps, "image", nearest_interp=False), save])
    with caplog.at_level(logging.INFO, "monai_diffeo"):
        evaluator = SupervisedEvaluator(
            torch.device("cpu"), DataLoader(data, batch_size=batch_size), torch.nn.Identity(), postprocessing=post,
            inferer=DiffeoInferer(load_canonicalizer(bundle / "models" / "energy")),
        )  # fmt: skip
        evaluator.run()
    for output in evaluator.state.output:
        assert output["pred"].shape == (1, 30, 32)
        record = output["pred"].meta["diffeo"]
        assert record["status"] == "canonicalized" and record["largest_displacement"] > 0
        assert {type(value) for value in record.values()} <= {str, float, int, bool}
    assert sorted(p.name for p in tmp_path.rglob("*_seg.nii.gz")) == ["0_seg.nii.gz", "1_seg.nii.gz"]
    lines = [message for message in caplog.messages if message.startswith("DiffeoInferer: image")]
    assert len(lines) == 2 and {r.levelname for r in caplog.records if "image" in r.message} == {"INFO"}
    assert lines[-1].startswith(f"DiffeoInferer: image {batch_size} of {batch_size}: canonicalized; energy ")
    assert "largest displacement" in lines[0] and "nii" not in caplog.text  # a file's name may name a patient


def test_what_the_metadata_says_is_of_the_last_call(bundle):
    image = MetaTensor(torch.rand(1, 1, 32, 32), meta={"mine": 1})
    inferer, off = DiffeoInferer(load_canonicalizer(bundle / "models" / "energy")), DiffeoInferer(enabled=False)
    meta = image.meta
    for _ in range(2):
        assert inferer(image, lambda x: {"seg": [x]})["seg"][0].meta["diffeo"]["status"] == "canonicalized"
        assert meta.keys() == {"mine", *MetaTensor(torch.rand(1)).meta}  # a dictionary that others hold stays as it was
        out = off(image, lambda x: x)
        assert out is image and "diffeo" not in image.meta and image.meta["mine"] == 1
