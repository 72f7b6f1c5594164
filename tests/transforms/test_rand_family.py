"""RandDiffeomorphism with a family of deformations."""

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, Invertd
from torch.testing import assert_close

from monai_diffeo.errors import ShapeError
from monai_diffeo.families import (
    CPAB,
    AffineCPAB,
    AffineMatrix,
    ControlGrid,
    DiffeomorphicAffine,
    Homography,
    Siren,
    ThinPlateSpline,
)
from monai_diffeo.flow import folding_fraction, warp
from monai_diffeo.transforms import RandDiffeomorphism, RandDiffeomorphismd
from tests.helpers import blob

SIZE = (48, 40)
FAMILIES = [
    AffineMatrix(2),
    DiffeomorphicAffine(2),
    Homography(),
    ThinPlateSpline(2),
    CPAB((4, 4)),
    CPAB((3, 3), "fixed"),
    AffineCPAB((2, 2)),
    ControlGrid(2, 5),
    Siren(2, hidden=16, layers=2, scale=0.3),
]


def transform(family, seed=0, **settings):
    return RandDiffeomorphism(family, prob=1.0, **{"spread": 0.08, **settings}).set_random_state(seed=seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_inverse_brings_the_image_back(family):
    image = blob(1, SIZE, width=0.2)[0]
    rand = transform(family)
    moved = rand(image)
    assert (moved.as_tensor() - image).abs().max() > 0.01
    assert_close(rand.inverse(moved).as_tensor(), image, atol=0.06, rtol=0)
    assert rand.inverse(rand(image)).applied_operations == []


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_drawn_repeats_with_the_seed_and_is_remembered(family):
    image = torch.rand(1, *SIZE)
    first, second, other = transform(family)(image), transform(family)(image), transform(family, seed=1)(image)
    assert torch.equal(first.as_tensor(), second.as_tensor()) and not torch.equal(first.as_tensor(), other.as_tensor())
    record = first.applied_operations[0]["extra_info"]
    assert record["theta"].shape == (family.num_parameters,)
    assert_close(first.as_tensor(), warp(image[None], family(record["theta"][None], SIZE).ddf(SIZE))[0])


@pytest.mark.parametrize("family", [ThinPlateSpline(2), AffineMatrix(2), Homography()])
def test_what_folds_is_made_milder_until_it_does_not(family):
    rand = transform(family, spread=2.0)
    for _ in range(10):
        rand.randomize()
        record, ddf = rand.field(SIZE)
        assert folding_fraction(ddf[None]) == 0
    assert torch.isfinite(record["theta"]).all()


def test_spreads_are_drawn_from_their_range():
    rand, sizes = transform(CPAB((3, 3)), spread=(0.0, 0.2)), []
    for _ in range(20):
        rand.randomize()
        sizes.append(float(rand.field(SIZE)[1].abs().max()))
    assert min(sizes) < 1 < 3 < max(sizes)
    with pytest.raises(ValueError, match="'spread'"):
        RandDiffeomorphism(CPAB((3, 3)), spread=-1)


def test_all_keys_move_alike_and_come_back_through_a_loader():
    torch.manual_seed(0)  # the loader draws the seeds of its transforms from torch
    rand = RandDiffeomorphismd(
        ("image", "label"), CPAB((4, 4)), prob=1.0, mode=("bilinear", "nearest"), spread=0.1
    ).set_random_state(seed=0)
    image = MetaTensor(blob(1, SIZE)[0])
    label = (image > 0.5).float()
    items = decollate_batch(
        next(iter(DataLoader(Dataset([{"image": image, "label": label}] * 2, Compose([rand])), batch_size=2)))
    )
    assert not torch.equal(items[0]["image"], items[1]["image"])
    for item in items:
        moved = (item["image"] > 0.5).float()
        assert (moved != item["label"]).float().mean() < 0.01
        back = Invertd("image", rand, nearest_interp=False)(item)["image"]
        error = (back.as_tensor() - image.as_tensor()).abs()
        assert error.mean() < 0.01 and error.max() < 0.1  # sampled twice


def test_a_key_of_another_size_covers_the_same_frame():
    rand = RandDiffeomorphismd(("image", "small"), CPAB((4, 4)), prob=1.0, spread=0.1).set_random_state(seed=0)
    image = blob(1, (65, 65))[0]
    out = rand({"image": image, "small": image[:, ::2, ::2]})
    assert_close(out["small"].as_tensor(), out["image"].as_tensor()[:, ::2, ::2], atol=0.01, rtol=0)


def test_not_moving_records_the_same_keys():
    rand = RandDiffeomorphism(CPAB((2, 2)), prob=0.0)
    image = torch.rand(1, *SIZE)
    still = rand(image)
    assert torch.equal(still.as_tensor(), image) and torch.equal(rand.inverse(still).as_tensor(), image)
    keys = transform(CPAB((2, 2)))(image).applied_operations[0]["extra_info"].keys()
    assert rand(image).applied_operations[0]["extra_info"].keys() == keys


def test_volumes_and_the_wrong_number_of_axes():
    rand = transform(CPAB((2, 1, 2), "slide"), spread=0.2)
    volume = torch.rand(1, 12, 14, 10)
    assert (rand(volume).as_tensor() - volume).abs().max() > 0.05
    with pytest.raises(ShapeError, match=r"\(C, H, W, D\) with at least 2 voxels"):
        rand(torch.rand(1, *SIZE))
