import importlib.metadata

import pytest
import torch
import torch.nn.functional as F

from bundles.brain_3d.scripts.brains import nilearn_volumes
from docs.experiments import template_recipes, templates_3d
from docs.experiments.measures import dice_of
from docs.experiments.template_recipes import trained_template
from docs.experiments.templates_3d import (
    BIAS,
    after,
    aligned,
    ball,
    direct_answers,
    direct_network,
    figures,
    random_map,
    recipes,
    registrations,
)
from monai_diffeo.metrics import betti_numbers
from monai_diffeo.networks import ShapePrior


def test_every_recipe_builds_and_gives_one_ball():
    image = torch.rand(1, 1, 16, 24, 16)
    for name, recipe in recipes(1).items():
        network = recipe.build(F.pad(torch.ones(1, 1, 8, 12, 8), (4, 4, 6, 6, 4, 4))).eval()
        with torch.no_grad():
            odds = network(image)
        assert odds.shape == image.shape and (not network.guard or betti_numbers((odds > 0)[0, 0].numpy()) == (1, 0, 0)), name
    assert direct_network()(image).shape == image.shape
    assert betti_numbers((ball()((20, 20, 20))[0, 0] > 0.5).numpy()) == (1, 0, 0)


def test_registration_is_trained_on_answers_and_serves_any_network():
    torch.manual_seed(0)
    label = F.pad(torch.ones(1, 1, 8, 12, 8), (4, 4, 6, 6, 4, 4))
    registered, direct = registrations(1)[0].build(label).eval(), direct_network().eval()
    assert not any(isinstance(layer, torch.nn.InstanceNorm3d) for layer in registered.backbone.registration.modules())
    image = torch.rand(1, 1, 16, 24, 16)
    with torch.no_grad():
        whole = after(direct, registered)
        assert registered.backbone.uncertainty_bias == 0 > whole.backbone.uncertainty_bias == BIAS
        assert whole.gain < registered.gain and whole.limit[-1] < registered.limit[-1]
        registered.backbone.uncertainty_bias, registered.gain, registered.limit = BIAS, whole.gain, whole.limit
        assert torch.equal(whole(image), registered(direct(image)))
        assert torch.equal(whole.read(image)[1], direct(image)) and registered.backbone.segmentation is not direct
        registered.gain = 1e-3  # an untrained network that moves nothing: the mean shape is left
        odds = registered(8 * label - 4)
    assert betti_numbers((odds > 0)[0, 0].numpy()) == (1, 0, 0) and dice_of((odds > 0).float(), label).item() > 0.95


def test_the_second_part_of_the_training_begins_with_the_first(tmp_path, monkeypatch):
    label, stems = F.pad(torch.ones(2, 1, 8, 12, 8), (4, 4, 6, 6, 4, 4)), []

    def kept(path, build, *rest, **settings):
        stems.append(path.stem)
        return build()

    monkeypatch.setattr(template_recipes, "trained", kept)
    parts, data = registrations(24), {"image": label, "label": label}
    first, _ = trained_template("row", parts[0], data, tmp_path, 0)
    second, _ = trained_template("row", parts[1], data, tmp_path, 0, before=(parts[0], first))
    assert second is not first and second.limit[-1] < first.limit[-1] and [part.epochs for part in parts] == [24, 2]
    assert all(torch.equal(second.state_dict()[name], values) for name, values in first.state_dict().items())
    trained_template("row", parts[1], data, tmp_path, 0, before=(parts[1], first))
    trained_template("row", parts[1], data, tmp_path, 0)
    assert len(set(stems)) == 4


def test_answers_are_those_of_the_moved_volumes(monkeypatch):
    monkeypatch.setattr(templates_3d, "SIZE", (16, 20, 16))
    label = F.pad(torch.ones(2, 1, 8, 10, 8), (4, 4, 5, 5, 4, 4))
    data = {"image": 0.5 * label, "label": label}
    found = direct_answers(lambda image: image - 0.25, data, 2, torch.Generator().manual_seed(0))
    assert torch.equal(found["image"][:2], data["image"] - 0.25) and torch.equal(found["label"][:2], label)
    assert found["label"].shape == (4, 1, 16, 20, 16) and torch.equal((found["image"] > 0).float(), found["label"])
    assert (found["label"][2:] - label).abs().flatten(1).sum(1).min() > 20
    first, second, again = (random_map(torch.Generator().manual_seed(seed)) for seed in (0, 1, 0))
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_affine_copies_of_a_shape_fall_together():
    size = (32, 36, 32)
    halves, matrix = torch.tensor([0.5, 0.3, 0.4]), torch.tensor([[1.1, 0.1, 0.0], [0.1, 0.9, -0.1], [0.0, -0.1, 1.0]])
    poses = [(torch.eye(3), 0.0), (matrix, 0.2), (matrix.inverse(), -0.2)]  # symmetric, as what second moments determine
    shapes = [ShapePrior([[shift, 0.0, shift / 2]], (m @ halves.square().diag() @ m.T)[None]) for m, shift in poses]
    masks = torch.cat([(shape(size) > 0.5).float() for shape in shapes])
    overlap = []
    for some in (masks, aligned(masks)):
        first, *others = ((mask > 0.5).float() for mask in some.split(1))
        overlap.append(torch.cat([dice_of(other, first) for other in others]))
    assert overlap[0].max() < 0.8 and overlap[1].min() > 0.94


def test_every_figure_can_be_missed():
    names = ("dice", "hausdorff", "exact", "holes", "cavities", "acted", "folding_fraction", "broken")
    direct = {"dice": torch.tensor([0.9, 0.9]), "hausdorff": torch.tensor([2.0, 2.0])}
    good = dict(zip(names, torch.tensor([[0.896, 0.9], [1.0, 2.0], [1, 1], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0]])))
    assert [row["met"] for row in figures(good, direct, 4.0)] == ["yes"] * 5
    bad = dict(zip(names, torch.tensor([[0.88, 0.9], [2.0, 2.0], [1, 1], [0, 1], [0, 0], [1, 0], [0, 0], [0, 0.1]])))
    assert [row["met"] for row in figures(bad, direct, 4.0)] == ["**no**"] * 5


def test_without_the_package_it_says_what_to_install():
    try:
        importlib.metadata.files("nilearn")
    except importlib.metadata.PackageNotFoundError:
        with pytest.raises(FileNotFoundError, match=r"pip install 'monai-diffeo\[experiments\]'"):
            nilearn_volumes()
    else:
        t1, grey, white = nilearn_volumes()
        assert t1.shape == grey.shape == white.shape == (197, 233, 189) and 0.1 < (grey + white).mean() < 0.3
