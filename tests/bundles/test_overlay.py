import json
import warnings

import pytest
import torch

pytest.importorskip("ignite")

from monai.bundle import ConfigWorkflow

from monai_diffeo.canonicalize import load_canonicalizer
from monai_diffeo.flow import warp
from monai_diffeo.inferers import DiffeoInferer, overlay_path
from tests.helpers import canonicalizer_folder

FOREIGN = {  # as somebody else would write it: nothing of ours in it
    "imports": ["$import torch"],
    "bundle_root": ".",
    "device": "$torch.device('cpu')",
    "dataset_dir": ".",
    "network_def": {
        "_target_": "BasicUNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "features": [4, 4, 8, 8, 8, 4],
    },
    "network": "$@network_def.to(@device).eval()",
    "dataset": {"_target_": "Dataset", "data": "$[{'image': torch.rand(1, 64, 64)} for _ in range(2)]"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 2},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32], "sw_batch_size": 4, "overlap": 0.5},
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "decollate": False,
    },
    "initialize": ["$torch.manual_seed(0)"],
    "run": ["$@evaluator.run()"],
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("foreign")
    (root / "configs").mkdir()
    (root / "configs" / "inference.json").write_text(json.dumps(FOREIGN))
    canonicalizer_folder(root / "models" / "energy")
    return root


def run(bundle, files, **overrides):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = ConfigWorkflow(
            [str(bundle / "configs" / "inference.json"), *files],
            workflow_type="infer",
            logging_file=False,
            bundle_root=str(bundle),
            **overrides,
        )
        workflow.initialize()
        workflow.run()
    return workflow


def test_wraps_the_inferer_of_a_bundle_that_is_not_ours(bundle):
    workflow = run(bundle, [overlay_path()])
    inferer = workflow.evaluator.inferer
    assert isinstance(inferer, DiffeoInferer) and type(inferer.inferer).__name__ == "SlidingWindowInferer"
    output = workflow.evaluator.state.output
    result = load_canonicalizer(bundle / "models" / "energy")(output["image"])
    assert result.status == ("canonicalized",) * 2
    with torch.no_grad():
        expected = warp(inferer.inferer(result.image, workflow.network_def), result.inverse_ddf)
    torch.testing.assert_close(output["pred"].as_tensor() if hasattr(output["pred"], "as_tensor") else output["pred"], expected)


def test_switched_off_it_is_the_bundle_as_it_was(bundle):
    plain, off = run(bundle, []), run(bundle, [overlay_path()], diffeo_enabled="false")
    assert torch.equal(plain.evaluator.state.output["pred"], off.evaluator.state.output["pred"])
    assert not torch.equal(plain.evaluator.state.output["pred"], run(bundle, [overlay_path()]).evaluator.state.output["pred"])


def test_another_mode_by_name(bundle):
    assert run(bundle, [overlay_path()], diffeo_mode="refine").evaluator.inferer.canonicalizer.steps == 3


def test_batches_that_carry_a_loaders_metadata_are_wrapped_and_decollate(bundle, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    from monai.data import DataLoader, Dataset, decollate_batch
    from monai.transforms import LoadImaged

    for i in range(2):
        nibabel.save(
            nibabel.Nifti1Image(torch.rand(32, 32).numpy(), torch.diag(torch.tensor([2.0, 2, 1, 1])).numpy()),
            tmp_path / f"{i}.nii",
        )
    data = Dataset([{"image": str(tmp_path / f"{i}.nii")} for i in range(2)], LoadImaged("image", ensure_channel_first=True))
    (batch,) = DataLoader(data, batch_size=2)
    seen = []
    inferer = DiffeoInferer(load_canonicalizer(bundle / "models" / "energy"), tta_samples=2)
    out = inferer(batch["image"], lambda x: seen.append(x) or x * 2)
    assert all(x.is_batch for x in seen) and out.shape == (2, 1, 32, 32)
    items = decollate_batch({"pred": seen[0]})
    assert [str(i["pred"].meta["filename_or_obj"])[-5:] for i in items] == ["0.nii", "1.nii"]
