import csv

import pytest
import torch

pytest.importorskip("ignite")
pytest.importorskip("matplotlib")

from monai.data import DataLoader, Dataset
from monai.transforms import Activationsd

from bundles.mnist_genus.scripts.reporter import GenusReporter
from monai_diffeo.canonicalize import CANONICALIZED
from monai_diffeo.canonicalize.limits import SignLimits
from monai_diffeo.engines import DiffeoEvaluator
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.report import SWITCHED_OFF
from monai_diffeo.trust import NOT_JUDGED
from tests.helpers import blob, tiny_canonicalizer


class TopHalf(torch.nn.Module):
    """Class 1 if the upper half is brighter than the lower, class 0 if not, never 2."""

    def forward(self, image):
        top, bottom = image[:, 0, :14].mean((1, 2)), image[:, 0, 14:].mean((1, 2))
        return 1000 * torch.stack([bottom, top, torch.zeros_like(top)], 1)


def run(folder, canonicalizer, **settings):
    images = blob(5, (28, 28), shift=torch.tensor([-0.5, -0.4, 0.0, 0.4, 0.5]))
    items = [
        {"image": image, "label": torch.tensor(i % 2), "digit": torch.tensor(i), "id": f"digit{i}"}
        for i, image in enumerate(images)
    ]
    evaluator = DiffeoEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items), batch_size=2),
        network=TopHalf(),
        inferer=DiffeoInferer(canonicalizer, enabled=canonicalizer is not None, tta_samples=2),
        postprocessing=Activationsd("pred", softmax=True),
        val_handlers=[GenusReporter(folder, **settings)],
        plain=True,
    )
    evaluator.run()
    with open(folder / "genus.csv", newline="") as file:
        return list(csv.DictReader(file)), images


def test_every_digit_has_a_line_with_both_answers_and_what_was_found(tmp_path, capsys):
    canonicalizer = tiny_canonicalizer()
    rows, images = run(tmp_path / "new", canonicalizer)
    assert [r["id"] for r in rows] == [f"digit{i}" for i in range(5)] and [r["genus"] for r in rows] == list("01010")
    plain = TopHalf()(images).argmax(1)
    with torch.no_grad():
        moved = DiffeoInferer(canonicalizer, tta_samples=2)(images, TopHalf())
    assert [int(r["plain_answer"]) for r in rows] == plain.tolist()
    assert [int(r["answer"]) for r in rows] == moved.argmax(1).tolist()
    found = canonicalizer(images)
    for i, row in enumerate(rows):
        assert sum(float(row[f"p{k}"]) for k in range(3)) == pytest.approx(1, abs=2e-4)
        assert row["status"] == CANONICALIZED and row["folding_fraction"] == "0.0" and 0 <= float(row["agreement"]) <= 1
        assert float(row["displacement"]) == pytest.approx(found.largest_displacement[i].item(), abs=1e-3)
        assert float(row["energy_after"]) == pytest.approx(found.energy_after[i].item(), abs=1e-3)
    assert {row["decision"] for row in rows} == {""}  # nothing was fitted
    canonicalizer.limits = SignLimits("single_pass", 9, {"energy": 0.0}, {"energy": float(found.energy_after.median())})
    decisions = [row["decision"].partition(" (")[0] for row in run(tmp_path / "judged", canonicalizer, figures="false")[0]]
    high = "review: the canonical image is unlike the images of the fit"
    assert decisions == [high if e > found.energy_after.median() else "ok" for e in found.energy_after]
    right = sum(r["answer"] == r["genus"] for r in rows)
    assert f"5 digits: genus right for {right} (" in capsys.readouterr().out
    assert (tmp_path / "new" / "genus.png").read_bytes().startswith(b"\x89PNG")


def test_switched_off_both_answers_are_one_and_the_status_says_so(tmp_path):
    rows, _ = run(tmp_path, None, figures="false")
    assert all(r["answer"] == r["plain_answer"] and r["status"] == SWITCHED_OFF and r["energy_before"] == "" for r in rows)
    assert {r["decision"] for r in rows} == {NOT_JUDGED}
    assert [p.name for p in tmp_path.iterdir()] == ["genus.csv"]
