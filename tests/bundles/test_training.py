"""Every training configuration of every bundle, run as ``python -m monai.bundle run`` runs it, on a little data."""

import hashlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("ignite")
pytest.importorskip("fire")
pytest.importorskip("skimage")
import ignite.distributed
from monai.bundle import ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from torch.testing import assert_close

from monai_diffeo.canonicalize import load_canonicalizer
from monai_diffeo.errors import NumericalError
from monai_diffeo.networks import ImageAtlas, load_weights
from monai_diffeo.networks.predictor import resample_image
from monai_diffeo.networks.weights import trained_part

ROOT = Path(__file__).parents[2]
BUNDLES = ROOT / "bundles"
CONFIGS = sorted(
    (path.parents[1].name, path.stem.removeprefix("train").removeprefix("_"))
    for path in BUNDLES.glob("*/configs/train*.json")
    if path.stem != "train_statistics"
)
NAMES = [f"{bundle}-{config or 'train'}" for bundle, config in CONFIGS]
MAIN = sorted({bundle for bundle, _ in CONFIGS})
ATLASES = sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/atlas.json"))
PARALLEL = sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/multi_gpu_train.json"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with films and masks, and with digits, all made up."""
    folder = tmp_path_factory.mktemp("data")
    y, x = np.mgrid[0:64, 0:64]
    for k in range(4):
        lungs = (((y - 30) / 20) ** 2 + ((x - 18 + k) / 9) ** 2 < 1) | (((y - 32 + k) / 20) ** 2 + ((x - 46) / 9) ** 2 < 1)
        Image.fromarray((lungs * 255).astype(np.uint8)).save(folder / f"m{k}.png")
        Image.fromarray((255 - lungs * (180 - 20 * k)).astype(np.uint8)).save(folder / f"a{k}.png")
    rows = [f"a{k}.png,m{k}.png,{'train' if k < 2 else 'val'},shenzhen,{k}\n" for k in range(4)]
    rows += [f"a{k}.png,m{k}.png,val,paediatric_gz,child{k}\n" for k in range(4)]
    (folder / "manifest.csv").write_text("image,mask,split,source,id\n" + "".join(rows))
    (folder / "listed.txt").write_text("child0\nchild1\n")
    digits = np.random.default_rng(0).integers(0, 256, (10008, 28, 28), dtype=np.uint8)
    np.savez(folder / "mnist.npz", x_train=digits, y_train=np.arange(10008) % 10)
    return folder


@pytest.fixture
def copy_of(tmp_path):
    """A bundle's own copy: what a training leaves in it can be compared with what was shipped."""

    def copy(bundle):
        shutil.copytree(BUNDLES / bundle, tmp_path / bundle, ignore=shutil.ignore_patterns("parts", "output", "eval", "docs"))
        return tmp_path / bundle

    return copy


def settings(bundle, data):
    """Options that make a training of it short."""
    if bundle == "brain_3d":
        made = "{'image': (torch.rand(1, 32, 32, 32, generator=torch.Generator().manual_seed(k))), "
        made += "'label': torch.arange(k, k + 32).view(32, 1, 1).expand(1, 32, 32, 32) % 6}"
        parts = {"train": (0, 1), "validate": (2, 3)}
        return {"epochs": 1, **{f"{part}::dataset::data": f"$[{made} for k in {numbers}]" for part, numbers in parts.items()}}
    size = {"batch_size": 4, "val_digits": 8} if bundle == "mnist_genus" else {"batch_size": 2}
    return {"dataset_dir": str(data), "epochs": 1, **size}


def workflow(root, config, data, *further, **options):
    files = [root / "configs" / "train.json", *([root / "configs" / f"train_{config}.json"] if config else [])]
    if root.name == "brain_3d":
        options = {"run": ["$@train#trainer.run()"], **options}  # without the fit that follows
    if config == "whole":
        options = {"listed": str(data / "listed.txt"), **options}
    if (first := root / "models" / "model.pt").is_file() and config in ("second", "third"):
        options = {"initial_weights": str(first), **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flow = ConfigWorkflow(
            [*map(str, files), *further],
            workflow_type="train",
            logging_file=False,
            bundle_root=str(root),
            **{**settings(root.name, data), **options},
        )
        flow.initialize()
    return flow


def files_below(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(flow):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flow.run()


def failure_of(flow, error=None):
    """What ended a run, without MONAI's own sentence around it; ``error`` is raised after the first iteration."""
    from ignite.engine import Events

    def fail(engine):
        raise error

    if error is not None:
        flow.parser.get_parsed_content("train::trainer").add_event_handler(Events.ITERATION_COMPLETED, fail)
    with pytest.raises(BaseException) as failure:
        run(flow)
    return failure.value.__cause__ or failure.value


@pytest.mark.parametrize("bundle, config", CONFIGS, ids=NAMES)
def test_it_has_monais_properties_and_a_failure_leaves_the_weights_that_were_there(bundle, config, copy_of, data):
    root = copy_of(bundle)
    flow = workflow(root, config, data, val_interval=0)
    assert not flow.check_properties()
    wanted = ("bundle_root", "device", "dataset_dir", "train::dataset::data", "train::handlers", "val_interval")
    wanted += ("validate::evaluator", "validate::handlers", "validate::dataset::data", "validate::key_metric")
    assert not [name for name in wanted if name not in flow.parser]
    target = root / flow.parser.get_parsed_content("output_file")
    target.parent.mkdir(exist_ok=True)
    target.exists() or target.write_bytes(b"weights of before")
    before = files_below(root)
    error = (RuntimeError, KeyboardInterrupt, SystemExit)[CONFIGS.index((bundle, config)) % 3]
    assert isinstance(failure_of(flow, error("stop")), error)
    assert files_below(root) == before


def measured_atlas(root, bundle, data, **further):
    """What a bundle's ``atlas.json`` gave for made-up data."""
    files = [str(root / "configs" / name) for name in ("train.json", "atlas.json")]
    options = {"workflow_type": "train", "logging_file": False, "bundle_root": str(root), **settings(bundle, data), **further}
    flow = ConfigWorkflow(files, **options)
    flow.initialize()
    run(flow)
    return flow


@pytest.mark.parametrize("bundle", ATLASES)
def test_the_atlas_is_the_mean_of_the_training_images(bundle, copy_of, data):
    root = copy_of(bundle)
    flow = measured_atlas(root, bundle, data)
    atlas = load_canonicalizer(root / "models" / "energy", "refine").search.energy.atlas  # its SHA-256 is looked at
    images = [item["image"][None] for item in flow.parser.get_parsed_content("train::dataset")]
    expected = torch.cat([resample_image(image, atlas.image_size) for image in images]).mean(0, keepdim=True)
    assert_close(atlas.image, expected, atol=1e-3, rtol=0)


def test_the_label_atlas_is_the_mean_of_the_training_masks(copy_of, data):
    root = copy_of("cxr_lung_segmentation")
    name = "models/energy/label_atlas.pt"
    before = (root / name).read_bytes()
    flow = measured_atlas(root, "cxr_lung_segmentation", data, atlas_of="label", output_file=name)
    atlas = load_weights(ImageAtlas((64, 64)), root / name)  # its SHA-256 is looked at
    masks = [item["label"][None] for item in flow.parser.get_parsed_content("train::dataset")]
    expected = torch.cat([resample_image(mask, (64, 64)) for mask in masks]).mean(0, keepdim=True)
    assert_close(atlas.image, expected, atol=1e-3, rtol=0)
    assert (root / name).read_bytes() != before and 0 < atlas.image.mean() < 0.6 and atlas.image.max() == 1


@pytest.mark.parametrize("bundle", MAIN)
def test_a_training_that_diverges_leaves_the_weights_that_were_there(bundle, copy_of, data):
    root = copy_of(bundle)
    before = files_below(root / "models")
    options = {"optimizer::_target_": "torch.optim.SGD", "learning_rate": 1e38, "val_interval": 0, "epochs": 3}
    failure = failure_of(workflow(root, "", data, **options))
    assert isinstance(failure, NumericalError), failure
    assert files_below(root / "models") == before


def test_the_products_training_that_was_cut_short_goes_on_where_it_was(copy_of, data):
    from ignite.engine import Events

    root, seen = copy_of("cxr_lung_segmentation"), {}
    before = (root / "models" / "model.pt").read_bytes()

    def part(name, stop=None, **options):
        flow = workflow(root, "product", data, val_interval=0, epochs=7, **options)
        trainer, state = flow.parser.get_parsed_content("train::trainer"), flow.parser.get_parsed_content("state")

        def note(engine):
            rate, draws = state["optimizer"].param_groups[0]["lr"], state["step"].generator.get_state()
            seen.setdefault(name, []).append((engine.state.epoch, rate, draws))
            if engine.state.epoch == stop:
                raise KeyboardInterrupt

        trainer.add_event_handler(Events.EPOCH_STARTED, note)
        failure_of(flow) if stop else run(flow)
        return state

    part("first", stop=7)
    assert (root / "models" / "model.pt").read_bytes() == before
    state = part("second", resume=True)
    assert [epoch for epoch, *_ in seen["second"]] == [6, 7]  # a checkpoint is written every fifth epoch
    assert seen["second"][0][1] == seen["first"][5][1] and torch.equal(seen["second"][0][2], seen["first"][5][2])
    rows = (root / "docs" / "curves" / "model.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3", "4", "5", "6", "6", "7"]
    written = torch.load(root / "models" / "model.pt", weights_only=True)
    mean, last = state["average"].state_dict(), state["network"].state_dict()
    assert all(torch.equal(values, mean[name].half()) for name, values in written.items())
    assert any(not torch.equal(mean[name], last[name]) for name in written)  # the mean over steps, not the last step


class LineHandler(logging.Handler):
    """Keeps the lines of a logger."""

    def __init__(self, lines):
        super().__init__()
        self.lines = lines

    def emit(self, record):
        self.lines.append(record.getMessage())


class Recorder:
    """What a TensorBoard writer is asked to write."""

    def __init__(self):
        self.scalars = []

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def add_scalars(self, *args):
        raise AssertionError("not expected")

    def flush(self):
        pass

    def close(self):
        pass


@pytest.mark.parametrize("bundle, config", CONFIGS, ids=NAMES)
def test_a_training_that_ends_well_writes_its_weights_and_every_handler_sees_its_losses(bundle, config, copy_of, data):
    root, recorder, logged = copy_of(bundle), Recorder(), {"seen": [], "as_the_zoo_logs": []}
    for name, lines in logged.items():
        logging.getLogger(name).handlers = [LineHandler(lines)]
    transform = DEFAULT_MLFLOW_SETTINGS["configs"]["trainer"]["output_transform"]
    handlers = [
        {"_target_": "StatsHandler", "name": "seen"},
        {"_target_": "StatsHandler", "name": "as_the_zoo_logs", "tag_name": "train_loss", "output_transform": transform},
        {"_target_": "TensorBoardStatsHandler", "summary_writer": "@recorder"},
    ]
    (root / "logged.json").write_text(json.dumps({"recorder": None, "+train::handlers": handlers}))
    flow = workflow(root, config, data, str(root / "logged.json"), val_interval=0, recorder=recorder)
    target = root / flow.parser.get_parsed_content("output_file")
    before = target.read_bytes() if target.exists() else b""
    run(flow)
    (output,) = flow.parser.get_parsed_content("train::trainer").state.output
    assert set(output) > {"loss"} and all(any(f"{name}: " in line for line in logged["seen"]) for name in output)
    assert f"train_loss: {output['loss']:.4f}" in logged["as_the_zoo_logs"][-1]
    assert {name for name, *_ in recorder.scalars} >= set(output)
    assert target.read_bytes() != before
    recorded = json.loads((root / "configs" / "metadata.json").read_text())["sha256"]
    assert recorded[target.relative_to(root).as_posix()] == hashlib.sha256(target.read_bytes()).hexdigest()
    network = flow.parser.get_parsed_content("average" if config == "product" else "network_def")
    saved = torch.load(target, weights_only=True)
    network = trained_part(network) if config == "whole" else network.state_dict()
    assert list(saved) == list(network)
    assert all(torch.allclose(saved[name].float(), value.float(), atol=1e-3) for name, value in network.items())


@pytest.mark.parametrize("bundle", MAIN)
def test_validation_changes_no_weight_and_counts_what_the_network_answers(bundle, copy_of, data):
    root, weights = copy_of(bundle), []
    for interval in (0, 1):
        flow = workflow(root, "", data, val_interval=interval, epochs=2)
        run(flow)
        weights.append(torch.load(root / flow.parser.get_parsed_content("output_file"), weights_only=True))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    evaluator = flow.parser.get_parsed_content("validate::evaluator")
    ((name, metric),) = evaluator.state.metrics.items()
    assert name == ("val_accuracy" if bundle == "mnist_genus" else "val_mean_dice")
    network, items = flow.parser.get_parsed_content("network_def").eval(), flow.parser.get_parsed_content("validate::dataset")
    assert items and not any(item is other for item in items for other in flow.parser.get_parsed_content("train::dataset"))
    found = []
    for item in items:
        with torch.no_grad():
            answer, label = network(item["image"][None])[0], torch.as_tensor(item["label"])
        if bundle == "mnist_genus":
            found.append(float(answer.argmax() == label))
            continue
        masks = [answer > 0, label > 0.5] if bundle != "brain_3d" else [one_hot(answer.argmax(0)), one_hot(label[0])]
        both, sizes = (masks[0] & masks[1]).flatten(1).sum(1), masks[0].flatten(1).sum(1) + masks[1].flatten(1).sum(1)
        found.append(float((2 * both / sizes)[masks[1].flatten(1).any(1)].mean()))
    assert metric == pytest.approx(sum(found) / len(found), abs=1e-4)


def one_hot(label):
    return torch.stack([label == k for k in range(1, 6)])


@pytest.mark.parametrize("bundle", MAIN)
def test_films_without_a_validation_split_say_what_to_do(bundle, copy_of, data, tmp_path):
    if "cxr" not in bundle:
        pytest.skip("digits and brains always have one")
    shutil.copytree(data, tmp_path / "train_only")
    manifest = tmp_path / "train_only" / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",val,", ",train,"))
    assert "--val_interval 0" in str(failure_of(workflow(copy_of(bundle), "", tmp_path / "train_only")))


TRACKED = [pytest.param(*pair, marks=pytest.mark.slow if pair[1] else ()) for pair in CONFIGS]


@pytest.mark.parametrize("bundle, config", TRACKED, ids=NAMES)
def test_tracking_by_mlflow_records_losses_and_metric(bundle, config, copy_of, data):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    root = copy_of(bundle)
    run(workflow(root, config, data, tracking="mlflow", **({} if config not in ("", "augmented") else {"val_interval": 1})))
    client = mlflow.MlflowClient(f"sqlite:///{root}/eval/mlruns.db")
    (found,) = client.search_runs([client.get_experiment_by_name("monai_experiment").experiment_id])
    assert np.isfinite(found.data.metrics["train_loss"]) and found.info.status == "FINISHED"
    if config in ("", "augmented"):
        assert {"val_mean_dice", "val_accuracy"} & set(found.data.metrics)


def in_parallel(bundle, data):
    """Options of a training of two items, and those for one of them, or both, in a batch."""
    given = {**settings(bundle, data), "epochs": 2, "val_interval": 1}
    given |= {
        "optimizer::_target_": "torch.optim.SGD",
        "learning_rate": 0.1,
    }  # Adam makes steps of the noise of a gradient of 0
    one, both = {"batch_size": 1}, {"batch_size": 2}
    if bundle == "mnist_genus":  # batch normalisation and dropout would differ
        given |= {"digits": 2, "network_def::norm": "instance", "network_def::dropout": 0.0}
    elif bundle == "brain_3d":
        given["run"] = ["$@train#trainer.run()"]
        one, both = ({f"train::dataloader::{name}": n for name, n in some.items()} for some in (one, both))
    return given, one, both


def assert_as_alone(root, data, given, both):
    """The weights in ``two.pt`` are those of a training in one process, with both items in a batch."""
    run(workflow(root, "", data, **{**given, **both, "output_file": "models/one.pt"}))
    two, one = (torch.load(root / "models" / f"{name}.pt", weights_only=True) for name in ("two", "one"))
    assert list(two) == list(one)
    apart = max(float((value.float() - one[name].float()).abs().max()) for name, value in two.items())
    assert apart < (2e-3 if root.name == "brain_3d" else 1e-5)  # in half precision, and not


@pytest.mark.parametrize("bundle", PARALLEL)
def test_the_overlay_for_several_processes_trains_in_one_as_without_it(bundle, copy_of, data, monkeypatch):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch is built without gloo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    root, (given, _, both) = copy_of(bundle), in_parallel(bundle, data)
    overlay = str(root / "configs" / "multi_gpu_train.json")
    flow = workflow(root, "", data, overlay, **{**given, **both, "output_file": "models/two.pt"})
    try:
        assert torch.distributed.is_initialized() and not flow.check_properties()
        run(flow)
    finally:
        ignite.distributed.finalize()  # it would remember the group in this process
        flow.finalize()
    assert_as_alone(root, data, given, both)


@pytest.mark.slow
@pytest.mark.parametrize("bundle", PARALLEL)
def test_two_processes_train_as_one_with_twice_the_batch(bundle, copy_of, data, tmp_path):
    """Of two items each process has one: the mean of their gradients is that of the batch of both."""
    root, (given, half, both) = copy_of(bundle), in_parallel(bundle, data)
    (root / "two.json").write_text(json.dumps({**given, **half, "output_file": "models/two.pt"}))
    files = [str(root / name) for name in ("configs/train.json", "configs/multi_gpu_train.json", "two.json")]
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", str(files), "--bundle_root", str(root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len((root / "docs" / "curves" / "two.csv").read_text().splitlines()) == 3  # a header, and the epochs of one process
    assert_as_alone(root, data, given, both)
