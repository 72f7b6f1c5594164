"""A canonicaliser of 2D images around ``SliceInferer``: each slice of a volume is one image."""

import copy
import logging

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.inferers import SliceInferer, SlidingWindowInferer

from monai_diffeo.inferers import DiffeoInferer, PartsInPlace
from monai_diffeo.networks import ImageAtlas
from tests.helpers import tiny_canonicalizer

NETWORK = torch.nn.Conv2d(1, 2, 5, padding=2).requires_grad_(False)


def volumes(batch=2, size=(14, 12, 10)):
    return torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("roi", [(-1, -1), (8, 6)], ids=["whole", "windows"])
@pytest.mark.parametrize("poses", [1, 2])
def test_it_equals_a_loop_over_slices(axis, roi, poses):
    """Windows are cut from the canonical slice, along any axis and whatever number of slices is asked about at once."""
    images, canonicalizer = volumes(), tiny_canonicalizer()
    inner = SliceInferer(axis, roi, sw_batch_size=5, overlap=0.25)
    slices = DiffeoInferer(canonicalizer, inner, tta_samples=poses)
    alone = DiffeoInferer(canonicalizer, SlidingWindowInferer(roi, overlap=0.25), tta_samples=poses)
    before = copy.deepcopy(vars(inner))
    out = slices(images, NETWORK)
    assert vars(inner) == before  # it may serve several threads
    expected = torch.stack([alone(image, NETWORK) for image in images.unbind(axis + 2)], axis + 2)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(out, inner(images, NETWORK), atol=1e-2)


def test_each_slice_keeps_its_own_parts():
    images, canonicalizer = volumes(), tiny_canonicalizer()
    parts = PartsInPlace(ImageAtlas((8, 8)).measure([torch.ones(1, 8, 8)]))
    network = lambda x: 8 * (NETWORK(x) - NETWORK(x).mean((2, 3), keepdim=True))  # noqa: E731
    out = DiffeoInferer(canonicalizer, SliceInferer(2, (-1, -1), sw_batch_size=5), parts=parts)(images, network)
    alone = DiffeoInferer(canonicalizer, parts=parts)
    torch.testing.assert_close(out, torch.stack([alone(image, network) for image in images.unbind(4)], 4), atol=1e-5, rtol=0)
    assert not torch.allclose(out, DiffeoInferer(canonicalizer, SliceInferer(2, (-1, -1)))(images, network), atol=1e-2)


def test_switched_off_or_with_a_canonicaliser_of_volumes_the_inner_inferer_gets_the_volume():
    images, inner = volumes(), SliceInferer(2, (-1, -1))
    assert torch.equal(DiffeoInferer(None, inner, enabled=False)(images, NETWORK), inner(images, NETWORK))
    whole = tiny_canonicalizer(3)
    found = whole(images)
    expected = found.warp_back(inner(found.image, NETWORK))
    assert torch.equal(DiffeoInferer(whole, inner)(images, NETWORK), expected)


def test_answers_in_a_dictionary_a_condition_and_the_plain_answer_are_volumes_too():
    images, inner = volumes(), SliceInferer(2, (-1, -1), sw_batch_size=4)
    inferer = DiffeoInferer(tiny_canonicalizer(), inner)

    def network(x, condition):
        return {"a": x - condition, "b": x[:, :, ::2, ::2]}

    result = inferer.infer(images, network, condition=images.clone(), plain=True)
    assert result.prediction["a"].abs().max() == 0 and result.prediction["b"].shape == (2, 1, 7, 6, 10)
    assert torch.equal(result.plain["b"], images[:, :, ::2, ::2])
    assert result.canonicalization.image.shape == (20, 1, 14, 12)


def test_one_line_a_volume_and_its_metadata(caplog):
    items = [{"image": MetaTensor(v, meta={"filename_or_obj": str(i)})} for i, v in enumerate(volumes())]
    items[1]["image"][..., :2] = 0  # slices without content
    (batch,) = DataLoader(Dataset(items), batch_size=2)
    with caplog.at_level(logging.INFO, "monai_diffeo"):
        out = DiffeoInferer(tiny_canonicalizer(), SliceInferer(2, (-1, -1)))(batch["image"], NETWORK)
    assert [r.levelname for r in caplog.records] == ["INFO", "WARNING"]
    assert "image 1 of 2: canonicalized; energy" in caplog.messages[0]
    first, second = (item["pred"].meta for item in decollate_batch({"pred": out}))
    assert first["filename_or_obj"] == "0" and first["diffeo"]["status"] == "canonicalized"
    assert second["diffeo"]["status"] == "8 slices canonicalized; 2 slices rejected: the image is constant"
    assert {type(value) for value in second["diffeo"].values()} == {str, float}
