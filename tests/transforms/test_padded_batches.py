"""Images of different sizes in one batch: what ``pad_list_data_collate`` put around them does not move anything."""

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, pad_list_data_collate
from monai.transforms import Compose, EnsureTyped, Flipd, Invertd, PadListDataCollate
from torch.testing import assert_close

from monai_diffeo.errors import ShapeError
from monai_diffeo.families import CPAB
from monai_diffeo.transforms import Canonicalize, Canonicalized, RandDiffeomorphismd
from tests.canonicalize.test_working_size import anatomy
from tests.helpers import tiny_canonicalizer

AFFINE = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0]))
IMAGES = [MetaTensor(anatomy(size)[0], affine=AFFINE) for size in ((48, 40), (64, 56), (37, 64))]
TRANSFORMS = {
    "canonicalized": lambda: Canonicalized("image", tiny_canonicalizer()),
    "svf": lambda: RandDiffeomorphismd("image", prob=1.0).set_random_state(0),
    "tps": lambda: RandDiffeomorphismd("image", "tps", prob=1.0).set_random_state(0),
    "family": lambda: RandDiffeomorphismd("image", CPAB((2, 2)), prob=1.0).set_random_state(0),
}


def batch_of(before, collate=pad_list_data_collate, workers=0):
    items = Dataset([{"image": image.clone()} for image in IMAGES], before)
    (batch,) = DataLoader(items, batch_size=3, num_workers=workers, collate_fn=collate)
    return batch


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", ["symmetric", "end"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_padded_prediction_comes_back_as_it_does_alone(name, method, workers):
    """The same bits, frame and affine as without a batch, with transforms before and after ours."""
    before = Compose([EnsureTyped("image"), Flipd("image", 0), TRANSFORMS[name](), EnsureTyped("image")])
    batch = batch_of(before, PadListDataCollate(method=method), workers)
    assert batch["image"].shape == (3, 1, 64, 64)
    batch["pred"] = torch.cat([batch["image"], batch["image"] ** 2], 1)
    after = Invertd("pred", before, orig_keys="image", nearest_interp=False)
    for item, given in zip(decollate_batch(batch), IMAGES):
        at = [op["class"] for op in item["image"].applied_operations].index("PadListDataCollate")
        there = item["image"]
        (top, _), (left, _) = item["image"].applied_operations[at]["extra_info"]["extra_info"]["padded"][1:]
        alone = MetaTensor(there[:, top : top + given.shape[1], left : left + given.shape[2]].as_tensor())
        alone = MetaTensor(torch.cat([alone, alone**2]), applied_operations=item["image"].applied_operations[:at])
        back = after(item)["pred"]
        expected = before.inverse({"image": alone})["image"]
        assert back.shape == (2, *given.shape[1:]) and torch.equal(back.as_tensor(), expected.as_tensor())
        assert_close(back.affine, given.affine.to(back.affine)) and back.applied_operations == []
        assert (back[0] - given[0]).abs()[4:-4, 4:-4].mean() < 0.02


def test_the_array_transform_too():
    before = Canonicalize(tiny_canonicalizer())
    items = [{"image": before(image.clone())} for image in IMAGES]
    batch = pad_list_data_collate(items)
    for item, given in zip(decollate_batch(batch), IMAGES):
        back = before.inverse(item["image"])
        assert back.shape == given.shape and (back - given).abs()[:, 4:-4, 4:-4].mean() < 0.02


def test_a_prediction_of_another_size_than_the_padded_one_is_refused():
    before = Compose([TRANSFORMS["canonicalized"]()])
    batch = batch_of(before)
    item = decollate_batch(batch)[0]
    item["pred"] = MetaTensor(torch.rand(1, 32, 32))
    with pytest.raises(RuntimeError) as raised:
        Invertd("pred", before, orig_keys="image", nearest_interp=False)(item)
    error = raised.value
    while not isinstance(error, ShapeError):
        error = error.__cause__
    assert "(K, 64, 64)" in str(error) and "pad_list_data_collate" in str(error)
