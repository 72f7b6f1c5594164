"""Examples in the documentation of families and layers do what they say."""

import doctest
import importlib
import pathlib
import re

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[2]
MODULES = [
    "monai_diffeo.families.cpab", "monai_diffeo.families.cpa.basis", "monai_diffeo.families.cpa.flow", "monai_diffeo.families.cpa.tessellation",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert result.attempted > 0 and result.failed == 0


def test_the_page_on_layers_runs():
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to/move-what-a-network-sees.md").read_text(), re.S):
        exec(code, scope)
    image = torch.rand(2, 1, 64, 64)
    assert scope["network"](image).shape == (2, 2)
    moved = scope["augment"]({"image": image[0], "label": (image[0] > 0.5).float()})
    assert moved["image"].shape == (1, 64, 64)
