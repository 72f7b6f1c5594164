"""What is usual of a fit's images: a decision on each further one, in the metadata, in the log and in a report."""

import json
import logging
import math

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer

from monai_diffeo.canonicalize import load_canonicalizer
from monai_diffeo.canonicalize.limits import SignLimits, load_limits
from monai_diffeo.errors import WeightsError
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.inferers.record import signs_of
from tests.helpers import blob, canonicalizer_folder

ROWS = [
    {
        "energy": float(i % 5),
        "energy_low": 3.0 - i % 5,
        "energy_before": 9.0,
        "displacement": 0.01 * i,
        "disagreement": math.nan if i % 2 else 0.001 * i,
    }
    for i in range(100)
]
NOISE = 50 * torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
LIMITS = SignLimits.of("single_pass", ROWS)


def test_a_limit_is_the_99_percent_quantile_and_what_is_unknown_does_not_count():
    assert LIMITS.limits["displacement"] == pytest.approx(0.9801) and LIMITS.medians["energy"] == 2.0
    assert LIMITS.limits["disagreement"] == pytest.approx(0.098, abs=0.001) and "change" not in LIMITS.limits
    assert LIMITS.limits["energy_before"] == 10.0  # at least a spread above the median
    inside = sum(LIMITS.decision(row) == "ok" for row in ROWS)
    assert inside >= 98


@pytest.mark.parametrize(
    "change, status, said",
    [
        ({}, "canonicalized", "ok"),
        ({"disagreement": math.nan, "change": 1.0}, "", "ok"),
        ({"disagreement": 0.5}, "", "review: the answers from several poses disagree (0.5, limit 0.097)"),
        ({"energy": 9.0}, "", "review: the canonical image is unlike the images of the fit (9, limit 4)"),
        ({"energy": 23.0}, "", "no result: the canonical image is unlike the images of the fit (23, limit 4)"),
        ({"energy_low": 7.0}, "", "review: the canonical image has an energy below those of the fit, as noise and even images "
         "may have (7, limit 3)"),
        ({"energy": math.inf}, "rejected: x", "no result: the canonical image is unlike the images of the fit (inf, limit 4); "
         "rejected: x"),
        ({}, "rejected: energy rose", "review: rejected: energy rose"),
    ],
)  # fmt: skip
def test_the_decision_by_limits(change, status, said):
    assert LIMITS.decision({"energy": 2.0, "displacement": 0.1, "disagreement": 0.01, **change}, status) == said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A canonicaliser with the limits of its own answers on blobs."""
    folder = canonicalizer_folder(tmp_path_factory.mktemp("limits") / "energy")
    found = load_canonicalizer(folder)(blob(12, shift=torch.linspace(-0.2, 0.2, 12)))
    SignLimits.of("single_pass", signs_of(found, None, None)).save(folder)
    return folder


def test_each_image_gets_a_decision_in_metadata_and_log_and_the_prediction_is_what_it_was(folder, caplog):
    caplog.set_level(logging.INFO)
    images = MetaTensor(torch.cat([blob(1), NOISE]))
    inferer = DiffeoInferer(load_canonicalizer(folder))
    prediction = inferer(images, torch.nn.Identity())
    first, second = prediction.meta["diffeo"]["decision"]
    assert first == "ok" and second.partition(":")[0] in ("review", "no result") and "unlike" in second
    assert [line.message.endswith(word) for line, word in zip(caplog.records, (first, second))] == [True, True]
    plain = load_canonicalizer(folder)
    plain.limits = None
    without = DiffeoInferer(plain)(images.as_tensor(), torch.nn.Identity())
    assert torch.equal(without, prediction.as_tensor())
    assert [inferer.infer(image, torch.nn.Identity()).records[0]["decision"] for image in images.as_tensor().split(1)] == [
        first,
        second,
    ]


def test_a_volume_has_the_worst_decision_of_its_slices(folder):
    volume = MetaTensor(torch.cat([blob(1), NOISE]).permute(1, 0, 2, 3)[None])
    inferer = DiffeoInferer(load_canonicalizer(folder), SliceInferer(roi_size=(32, 32), spatial_dim=0))
    each = [
        inferer.canonicalizer.limits.decision(row)
        for row in signs_of(inferer.canonicalizer(volume[0].movedim(1, 0)), None, None)
    ]
    result = inferer.infer(volume, torch.nn.Identity())
    assert "ok" in each and result.records[0]["decision"] == next(one for one in each if one != "ok")


def test_limits_hold_for_the_mode_and_settings_that_they_were_measured_with(folder):
    assert load_canonicalizer(folder).limits == load_limits(folder, "single_pass") != None  # noqa: E711
    assert load_canonicalizer(folder, progress=False).limits is not None
    assert load_canonicalizer(folder, "refine").limits is None and load_canonicalizer(folder, iterations=1).limits is None


@pytest.mark.parametrize(
    "change", [lambda c: c.pop("mode"), lambda c: c.update(more=1), lambda c: c["limits"].update(energy=math.nan),
               lambda c: c["limits"].update(colour=1.0), lambda c: c["medians"].pop("energy"), lambda c: c.update(limits=3)]
)  # fmt: skip
def test_the_file_is_read_strictly(tmp_path, change):
    LIMITS.save(tmp_path)
    assert load_limits(tmp_path, "single_pass") == LIMITS
    content = json.loads((tmp_path / "limits.json").read_text())
    change(content)
    (tmp_path / "limits.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="limits.json"):
        load_limits(tmp_path, "single_pass")


def test_each_mode_has_limits_and_the_file_of_the_default_one_comes_first(tmp_path):
    SignLimits.of("refine", ROWS[:4]).save(tmp_path, further=True)
    LIMITS.save(tmp_path)
    assert load_limits(tmp_path, "single_pass") == LIMITS and load_limits(tmp_path, "refine").images == 4
    SignLimits.of("refine", ROWS).save(tmp_path)  # the default now; what was measured for it before no longer counts
    assert load_limits(tmp_path, "refine").images == len(ROWS) and load_limits(tmp_path, "single_pass") is None
