"""The bundle of volumes: its made-up subjects, and what it writes for a volume on any grid."""

import json
import shutil

import numpy as np
import pytest
import torch

for package in ("ignite", "fire", "nibabel"):
    pytest.importorskip(package)

import nibabel  # noqa: E402
from monai.bundle import ConfigParser  # noqa: E402

from bundles.brain_3d.scripts.brains import (  # noqa: E402
    AFFINE,
    CLASSES,
    SIZE,
    brain_datalist,
    brains,
    deformations,
    read_template,
    write_volumes,
)
from monai_diffeo.cli.bundle import bundle_parser  # noqa: E402
from monai_diffeo.flow import folding_fraction, warp  # noqa: E402
from monai_diffeo.networks import save_weights  # noqa: E402
from tests.bundles.command import ROOT, run_here  # noqa: E402

BUNDLE = ROOT / "bundles" / "brain_3d"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Nested ellipsoids in place of the brain: no nilearn is needed."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SIZE), indexing="ij"))
    radius = np.sqrt((grid**2 / np.array([0.6, 0.7, 0.65]).reshape(3, 1, 1, 1) ** 2).sum(0))
    parts = np.clip(5 - 5 * radius, 0, 5)
    label = np.where(radius < 1, 1 + np.minimum(parts, 4.99).astype(int), 0)
    maps = np.stack([np.clip(1.2 - radius, 0, 1), *(label == k for k in range(len(CLASSES)))])
    path = tmp_path_factory.mktemp("template") / "template.npz"
    np.savez_compressed(path, maps=(maps * 255).round().astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The configurations, with random weights in half precision."""
    root = tmp_path_factory.mktemp("bundle") / "brain_3d"
    shutil.copytree(BUNDLE / "configs", root / "configs")
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    (root / "configs" / "metadata.json").write_text(json.dumps({**metadata, "sha256": {}}))
    config = json.loads((root / "configs" / "inference.json").read_text())
    torch.manual_seed(0)
    save_weights(
        ConfigParser({"network": config["network_def"]}).get_parsed_content("network"), root / "models" / "model.pt", half=True
    )
    return root


def test_a_subject_does_not_depend_on_how_many_there_are(template):
    two, one = brains(2, 5, template=template), brains(1, 5, template=template)
    assert all(torch.equal(two[name][:1], one[name]) for name in one)
    assert not torch.equal(two["label"][0], two["label"][1])
    assert not torch.equal(one["image"], brains(1, 6, template=template)["image"])


def test_a_deformed_subject_is_the_same_one_further_deformed(template):
    upright, deformed = brains(1, 5, template=template), brains(1, 5, True, template)
    masks = torch.nn.functional.one_hot(upright["label"][:, 0]).movedim(-1, 1).float()
    moved = warp(masks, deformed["ddf"], padding_mode="zeros")
    agree = moved.argmax(1, keepdim=True) == deformed["label"]
    assert agree.float().mean() > 0.97 > (upright["label"] == deformed["label"]).float().mean()
    assert folding_fraction(deformed["ddf"]) == 0 and not upright["ddf"].any()


def test_images_and_labels_are_what_the_network_expects(template):
    found = brains(1, 7, template=template)
    assert found["image"].shape == found["label"].shape == (1, 1, *SIZE)
    assert found["image"].amin() == 0 and found["image"].amax() == 1  # so that the bundle's scaling changes nothing
    assert found["label"].unique().tolist() == list(range(len(CLASSES)))
    assert found["label"][0, 0, 0].eq(0).all()  # what comes from outside the frame is background


def test_the_largest_turn_is_the_one_asked_for():
    ddf = deformations(1, torch.Generator().manual_seed(3), angle=(0.0, 0.0), scale=0.0, shift=0.0, flow=0.0)
    assert torch.allclose(ddf, torch.zeros_like(ddf), atol=1e-5)
    ddf = deformations(1, torch.Generator().manual_seed(3), angle=(20.0, 30.0), scale=0.0, shift=0.0, flow=0.0)
    centre = tuple(n // 2 for n in SIZE)
    jacobian = torch.stack([ddf[0, :, centre[0] + a, centre[1] + b, centre[2] + c] - ddf[(0, slice(None), *centre)]
                            for a, b, c in ((1, 0, 0), (0, 1, 0), (0, 0, 1))], 1) + torch.eye(3)  # fmt: skip
    assert torch.allclose(jacobian @ jacobian.T, torch.eye(3), atol=1e-3)
    turn = torch.rad2deg(torch.acos((jacobian.trace() - 1) / 2))
    assert 20 <= turn <= 30


def test_errors_name_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="write_template"):
        read_template(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="'split' must be one of"):
        brain_datalist("training", 1)


def test_labels_lie_on_the_grid_of_the_volume_and_a_bad_file_does_not_stop_the_others(bundle, template, tmp_path):
    data, output = tmp_path / "in", tmp_path / "out"
    image = brains(1, 5, template=template)["image"][0]
    write_volumes(data / "some", [image], "plain")
    other = AFFINE @ np.diag([-0.8, 1.1, 1.0, 1.0])[[1, 0, 2, 3]]  # another spacing, axes swapped, one of them reversed
    write_volumes(data, [image[:, :50, 8:72, 4:61]], "other", other)
    (data / "broken.nii.gz").write_bytes(b"no volume")
    status, lines = run_here(bundle, output, dataset_dir=str(data), enabled=False)
    assert status == 3 and lines["broken.nii.gz"]["status"] == "failed"
    for name, shape, affine in (("some/plain_00", SIZE, AFFINE), ("other_00", (50, 64, 57), other)):
        written = nibabel.load(output / f"{name}_labels.nii.gz")
        labels = np.asarray(written.dataobj)
        assert written.shape == shape and np.allclose(written.affine, affine, atol=1e-4) and labels.dtype == np.uint8
        line = lines[f"{name}.nii.gz"]
        assert line["mask"] == f"{name}_labels.nii.gz" and line["figure"] is None and line["decision"] == "not judged"
        assert line["areas"] == pytest.approx({c: (labels == k).mean() for k, c in enumerate(CLASSES) if k}, abs=1e-6)


def test_it_may_run_without_trust(bundle):
    assert bundle_parser(bundle, {"enabled": True})["reporter"]["_target_"].__name__ == "VolumeReporter"
