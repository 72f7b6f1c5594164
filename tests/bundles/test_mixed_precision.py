"""`--amp true`: the networks of each bundle run in bfloat16, and nothing of the canonicaliser does."""

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

for package in ("ignite", "nibabel", "pydicom", "PIL", "skimage", "data_store"):
    pytest.importorskip(package)

import nibabel  # noqa: E402

from monai_diffeo.inferers.aggregation import mask_dice  # noqa: E402
from tests.bundles.command import ROOT, lines_of, workflow  # noqa: E402

LUNGS = ROOT / "bundles" / "cxr_lung_segmentation"
IMAGES = {
    "cxr_lung_segmentation": (128, 128),
    "cxr_lung_template": (128, 128),
    "brain_3d": (32, 32, 32),
    "mnist_genus": (28, 28),
}


@pytest.mark.parametrize("name, size", IMAGES.items(), ids=IMAGES)
def test_the_network_of_each_bundle_answers_in_float32_near_that_without_it(name, size):
    image, answers = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0)), []

    def network(**options):
        parser = ConfigParser()
        parser.read_config(ROOT / "bundles" / name / "configs" / "inference.json")
        parser.update({"bundle_root": str(ROOT / "bundles" / name), **options})
        if "reporter::settings" in parser:  # by which a run that resumes sees that another precision was asked for
            assert parser.get_parsed_content("reporter::settings::amp") is (options.get("amp") == "true")
        return parser.get_parsed_content("network")

    for options, dtype in (({}, torch.float32), ({"amp": "false"}, torch.float32), ({"amp": "true"}, torch.bfloat16)):
        seen, made = set(), network(**options)
        for part in made.modules():
            if isinstance(part, (nn.Conv2d, nn.Conv3d)):
                part.register_forward_hook(lambda _, __, answer, seen=seen: seen.add(answer.dtype))
        with torch.no_grad():
            answers.append(made(image))
        assert seen == {dtype} and answers[-1].dtype == torch.float32
    assert torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])
    assert (answers[0] - answers[2]).abs().mean() < 0.05 * answers[0].abs().mean()
    with pytest.raises(Exception) as failed:
        network(amp="perhaps")
    assert "expected true or false, got 'perhaps'" in str(failed.value.__cause__ or failed.value)


def test_a_film_of_the_lung_bundle(tmp_path):
    lines, masks, predictions = {}, {}, {}
    for amp in (None, "false", "true"):
        seen = set()
        given = {} if amp is None else {"amp": amp}
        flow = workflow(LUNGS, output_dir=str(tmp_path / str(amp)), figures=False, **given)
        judge, evaluator = flow.evaluator.judge, flow.evaluator
        halves = {"network": evaluator.network, "second": judge.second, "whole": judge.whole}
        owners = {**halves, "detector": judge.outlier}
        owner = {id(part): name for name, network in owners.items() for part in network.modules()}

        def noted(part, _, answer, owner=owner, seen=seen):
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                seen.add((owner.get(id(part), "canonicaliser"), torch.is_autocast_enabled("cpu"), answer.dtype))

        handle = register_module_forward_hook(noted)
        flow.run()
        handle.remove()
        flow.finalize()
        half = (True, torch.bfloat16) if amp == "true" else (False, torch.float32)
        single = {(name, False, torch.float32) for name in ("canonicaliser", "detector")}
        assert seen == {*((name, *half) for name in halves), *single}
        result = predictions[amp] = evaluator.state.result
        of = [result.prediction, result.plain, result.second, result.canonicalization.ddf, result.canonicalization.agreement]
        assert all(tensor.dtype == torch.float32 for tensor in of)
        (lines[amp],) = lines_of(tmp_path / str(amp))[0].values()
        mask = nibabel.load(tmp_path / str(amp) / lines[amp]["mask"])
        masks[amp] = torch.from_numpy(np.asarray(mask.dataobj) > 0)
    assert torch.equal(predictions[None].prediction, predictions["false"].prediction)
    before, same, after = lines.values()
    assert {**before, "seconds": 0} == {**same, "seconds": 0}
    assert torch.equal(masks[None], masks["false"]) and 0.998 < mask_dice(masks[None], masks["true"], 0) < 1
    assert before["settings"] != after["settings"]
    exact = ["status", "energy_before", "energy_after", "largest_displacement", "folding_fraction"]
    assert [before[name] for name in exact] == [after[name] for name in exact]
    assert before["decision"] == after["decision"] == "ok" and before["signs"] != after["signs"]
