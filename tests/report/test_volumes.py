"""The line of a volume has the decision of the fit's limits, as that of a film has."""

import json

import pytest
import torch
from monai.data import MetaTensor

pytest.importorskip("nibabel")

from monai_diffeo.inferers import DiffeoResult
from monai_diffeo.report import VolumeReporter
from tests.report.helpers import known_result


@pytest.mark.parametrize(
    ("decision", "labelled", "expected"),
    [("ok", True, "ok"), ("review: far (9)", True, "review: far (9)"), ("ok", False, "review: no label was found")],
)
def test_limits_and_empty_labels_decide(tmp_path, decision, labelled, expected):
    volume, labels = tmp_path / "in" / "a.nii.gz", tmp_path / "out" / "a_labels.nii.gz"
    for path in (volume, labels):
        path.parent.mkdir()
        path.write_bytes(b"volume")
    reporter = VolumeReporter(labels.parent, volume.parent, ["one"])
    reporter.begin(1)
    pred = MetaTensor(torch.full((1, 4, 4, 4), float(labelled)), meta={"saved_to": str(labels)})
    result = DiffeoResult(pred[None], known_result(("canonicalized",), (4, 4)), records=({"decision": decision},))
    reporter.done(str(volume), {"image": torch.zeros(1, 1, 4, 4, 4)}, {"pred": pred}, result, 0.5)
    assert reporter.end() == 0
    line, _ = map(json.loads, (labels.parent / "report.jsonl").read_text().splitlines())
    assert line["decision"] == expected and line["areas"] == {"one": float(labelled)}
