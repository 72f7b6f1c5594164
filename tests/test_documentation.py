"""Examples in the documentation do what they say."""

import doctest
import importlib
import pathlib
import re

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[1]
MODULES = [
    "monai_diffeo.families.cpab.family",
    "monai_diffeo.families.cpab.basis",
    "monai_diffeo.families.cpab.flow",
    "monai_diffeo.families.cpab.tessellation",
    "monai_diffeo.networks.template.prior",
    "monai_diffeo.networks.template.transformer",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert result.attempted > 0 and result.failed == 0


def run_page(name):
    """What the Python blocks of a page leave behind, run one after another."""
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "how-to" / name).read_text(), re.S):
        exec(code, scope)
    return scope


def test_the_page_on_layers_runs():
    scope = run_page("move-what-a-network-sees.md")
    image = torch.rand(2, 1, 64, 64)
    assert scope["network"](image).shape == (2, 2)
    moved = scope["augment"]({"image": image[0], "label": (image[0] > 0.5).float()})
    assert moved["image"].shape == (1, 64, 64)


def test_the_page_on_templates_runs():
    scope = run_page("segment-with-a-template.md")
    assert (
        scope["log_odds"].shape == scope["masks"].shape == scope["direct"].shape == (1, 2, 128, 128)
        and scope["result"].intact.all()
    )
    assert scope["velocity"].shape == (1, 4, 2, 64, 64)
