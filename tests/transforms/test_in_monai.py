"""What MONAI does with transforms and inferers besides calling them: keeps them on disk, augments, compiles around them."""

import pytest
import torch
from monai.data import (
    CacheDataset,
    DataLoader,
    MetaTensor,
    PersistentDataset,
    TestTimeAugmentation,
    ThreadDataLoader,
    decollate_batch,
)
from monai.transforms import Compose, EnsureTyped, Invertd, RandFlipd
from torch.testing import assert_close

from monai_diffeo.flow import exp, warp
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.transforms import Canonicalized, RandDiffeomorphismd
from tests.helpers import blob, tiny_canonicalizer


def items(count=3):
    return [{"image": MetaTensor(blob(1, (32, 32), shift=0.1 * i)[0], meta={"id": i})} for i in range(count)]


@pytest.mark.parametrize("loader", [DataLoader, ThreadDataLoader])
@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_cache_gives_what_no_cache_gives_and_its_items_come_back(cache, loader, tmp_path):
    before = Compose([EnsureTyped("image"), Canonicalized("image", tiny_canonicalizer())])
    after = Invertd("pred", before, orig_keys="image", nearest_interp=False)
    for _ in range(2):  # the second time the disk is read, by transforms that are built anew
        given = items()
        data = CacheDataset(given, before, progress=False) if cache == "memory" else PersistentDataset(given, before, tmp_path)
        for batch in loader(data, batch_size=3, num_workers=0):
            for i, item in enumerate(decollate_batch(batch)):
                expected = before(items()[i])["image"]
                assert torch.equal(item["image"].as_tensor(), expected.as_tensor())
                back = after({"image": item["image"], "pred": item["image"] * 2})["pred"]
                assert torch.equal(back.as_tensor(), before.inverse({"image": expected * 2})["image"].as_tensor())
        before = Compose([EnsureTyped("image"), Canonicalized("image", tiny_canonicalizer())])
        after = Invertd("pred", before, orig_keys="image", nearest_interp=False)


def augmented(transform, network, samples=4):
    tta = TestTimeAugmentation(
        Compose([transform]), 2, 0, network, "cpu", "image", orig_key="image", nearest_interp=False, progress=False
    )
    mode, mean, std, _ = tta({"image": blob(1, (32, 32), shift=0.2)[0]}, samples)
    return mean, std


def test_monais_test_time_augmentation_around_a_wrapped_network():
    """Always flipped: the mean is what one flipped image gives, flipped back."""
    inferer, network = DiffeoInferer(tiny_canonicalizer()), torch.nn.Conv2d(1, 2, 3, padding=1)
    image = blob(1, (32, 32), shift=0.2)
    with torch.no_grad():
        mean, std = augmented(RandFlipd("image", prob=1.0, spatial_axis=0), lambda x: inferer(x, network))
        expected = inferer(image.flip(2), network).flip(2)[0]
    assert_close(torch.as_tensor(mean), expected, atol=1e-6, rtol=0)
    assert torch.as_tensor(std).abs().max() < 1e-6


def test_monais_test_time_augmentation_by_a_random_diffeomorphism():
    mean, std = augmented(RandDiffeomorphismd("image", prob=1.0).set_random_state(0), lambda x: x, samples=6)
    error = (torch.as_tensor(mean) - blob(1, (32, 32), shift=0.2)[0]).abs()
    assert error.mean() < 0.01 and 0 < torch.as_tensor(std).abs().max() < 0.2


@pytest.mark.parametrize("dims", [2, 3])
def test_exp_and_warp_compile_in_one_graph(dims):
    size, draw = (12, 10, 8)[:dims], torch.Generator().manual_seed(0)
    v, image = torch.randn(1, dims, *size, generator=draw), torch.rand(1, 2, *size, generator=draw)
    labels = (image * 9).long()
    compiled = torch.compile(
        lambda v, x, y: (warp(x, exp(v, 3)), warp(y, exp(v, 3), "nearest")), fullgraph=True, backend="eager"
    )
    moved, mapped = compiled(v, image, labels)
    assert_close(moved, warp(image, exp(v, 3)), atol=1e-5, rtol=0)
    assert (mapped == warp(labels, exp(v, 3), "nearest")).float().mean() > 0.99 and mapped.dtype == labels.dtype
