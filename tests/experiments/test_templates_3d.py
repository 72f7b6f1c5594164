import importlib.metadata

import pytest
import torch
import torch.nn.functional as F

from docs.experiments.templates_3d import ball, direct_network, mni_volumes, recipes
from monai_diffeo.metrics import betti_numbers


def test_every_recipe_builds_and_gives_one_ball():
    image = torch.rand(1, 1, 16, 24, 16)
    for name, recipe in recipes(1).items():
        network = recipe.build(F.pad(torch.ones(1, 1, 8, 12, 8), (4, 4, 6, 6, 4, 4))).eval()
        with torch.no_grad():
            odds = network(image)
        assert odds.shape == image.shape and (not network.guard or betti_numbers((odds > 0)[0, 0].numpy()) == (1, 0, 0)), name
    assert direct_network()(image).shape == image.shape
    assert betti_numbers((ball()((20, 20, 20))[0, 0] > 0.5).numpy()) == (1, 0, 0)


def test_without_the_package_it_says_what_to_install():
    try:
        importlib.metadata.files("nilearn")
    except importlib.metadata.PackageNotFoundError:
        with pytest.raises(FileNotFoundError, match=r"pip install 'monai-diffeo\[experiments\]'"):
            mni_volumes()
    else:
        t1, tissue = mni_volumes()
        assert t1.shape == tissue.shape == (1, 1, 197, 233, 189) and 0.1 < tissue.mean() < 0.3
