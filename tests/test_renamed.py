"""An old name raises our error with the new one in it."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from monai_diffeo.canonicalize.search import Chain
from monai_diffeo.command_line import _check_known
from monai_diffeo.renamed import RENAMED_MODULES, RenamedError
from tests.helpers import tiny_canonicalizer

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"
NAMES = [
    ("flow", "folding", "folding_fraction"),
    ("flow", "breaks", "nonpositive_cell_fraction"),
    ("flow", "exp_chain", "exp_affine_sequence"),
    ("flow", "inverse_chain", "inverse_affine_sequence"),
    ("families", "Coarse", "CoarseSampling"),
    ("families", "TimeDependent", "PiecewiseStationary"),
    ("energies", "MotionEnergy", "ResidualDeformationEnergy"),
    ("networks", "start_at_identity", "zero_init_last_layer_"),
    ("networks", "tame_log_odds", "compress_logits"),
    ("networks", "turn_image", "orient_images"),
]
CANONICALIZER = {
    "passes": "iterations",
    "views": "tta_samples",
    "gate": "skip_below",
    "max_rise": "max_energy_increase",
    "doubt_above": "ood_threshold",
    "sure": "min_confidence",
    "shrinkings": "max_halvings",
}
ARGUMENTS = [
    *(("canonicalize", "Canonicalizer", old, new) for old, new in CANONICALIZER.items()),
    ("inferers", "DiffeoInferer", "views", "tta_samples"),
    ("training", "PredictorStep", "passes", "iterations"),
    ("training", "TemplateStep", "tame", "compress"),
    ("networks", "TemplateTransformer", "calming", "guard_scales"),
    ("networks", "SegmentThenRegister", "lean", "uncertainty_bias"),
]


def said(error, old, new):
    return error.value.old == old and error.value.new == new and f"'{new}'" in str(error.value)


@pytest.mark.parametrize(("room", "old", "new"), NAMES)
def test_a_name_of_a_room(room, old, new):
    module = importlib.import_module(f"monai_diffeo.{room}")
    with pytest.raises(RenamedError) as error:
        getattr(module, old)
    assert said(error, old, new) and hasattr(module, new)
    with pytest.raises(RenamedError):  # and not Python's own "cannot import name"
        exec(f"from monai_diffeo.{room} import {old}")
    with pytest.raises(AttributeError):
        module.never_was_there  # noqa: B018


@pytest.mark.parametrize(("room", "name", "old", "new"), ARGUMENTS)
def test_an_argument(room, name, old, new):
    with pytest.raises(RenamedError) as error:
        getattr(importlib.import_module(f"monai_diffeo.{room}"), name)(**{old: 1})
    assert said(error, old, new) and str(error.value).startswith(f"{name}()")


@pytest.mark.parametrize(
    ("old", "new"), [("there", "forward"), ("back", "inverse"), ("folding", "folding_fraction"), ("views", "tta_samples")]
)
def test_an_attribute_of_a_result(old, new):
    result = tiny_canonicalizer()(torch.rand(1, 1, 16, 16))
    with pytest.raises(RenamedError) as error:
        getattr(result, old)
    assert said(error, old, new) and hasattr(result, new)


@pytest.mark.parametrize(("old", "new"), [("draw", "sample"), ("milder", "scaled")])
def test_a_method_of_a_family(old, new):
    family = tiny_canonicalizer().family
    with pytest.raises(RenamedError) as error:
        getattr(family, old)
    assert said(error, old, new) and hasattr(family, new)


@pytest.mark.parametrize("old", RENAMED_MODULES)
def test_a_module_that_moved(old):
    with pytest.raises(RenamedError) as error:
        importlib.import_module(f"monai_diffeo.{old}")
    name = re.match(r"monai_diffeo\.[\w.]+", error.value.new)
    assert name is None or importlib.import_module(name[0])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("monai_diffeo.never_was_there")


def test_a_deformation_that_was_found_and_an_option():
    for old in ("there", "back", "milder"):
        with pytest.raises(RenamedError):
            getattr(Chain(), old)
    with pytest.raises(RenamedError, match="--tta_samples"):
        _check_known("views", ConfigParser({"tta_samples": 1}))


def test_the_changelog_lists_every_old_name():
    text = CHANGELOG.read_text()
    for old, new in {(*pair[-2:],) for pair in (*NAMES, *ARGUMENTS)}:
        assert re.search(rf"`{old}`.*`{new}`", text), f"{old} -> {new}"
