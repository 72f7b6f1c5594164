import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Resized
from torch.testing import assert_close

from monai_diffeo.transforms import ResizeFilmd
from tests.helpers import blob


def film(size=(60, 48)):
    return MetaTensor(
        torch.rand(1, *size, generator=torch.Generator().manual_seed(0)), affine=torch.diag(torch.tensor([2.0, 3, 1, 1]))
    )


@pytest.mark.parametrize("size", [(20, 16), (7, 100), (60, 48)])
def test_a_film_is_shrunk_with_antialiasing_and_described_as_monai_does(size):
    given = film()
    kept = given.clone()
    out, theirs = (
        ResizeFilmd("image", size)({"image": given})["image"],
        Resized("image", size, mode="bilinear", anti_aliasing=True)({"image": given})["image"],
    )
    assert_close(out.as_tensor(), theirs.as_tensor(), atol=1e-5, rtol=0)
    assert torch.equal(out.affine, theirs.affine) and torch.equal(given, kept)


def test_a_fine_pattern_becomes_its_mean_and_a_rotated_film_the_rotated_result():
    stripes = (torch.arange(400) % 2).float().expand(1, 400, 400)
    shrunk = ResizeFilmd("image", (40, 40))({"image": stripes})["image"]
    assert (shrunk - 0.5)[:, 4:-4, 4:-4].abs().max() < 0.03  # every other column alone would give 0 or 1
    image = film((64, 64)).as_tensor()
    there, turned = (ResizeFilmd("image", (16, 16))({"image": x})["image"] for x in (image, torch.rot90(image, 1, (1, 2))))
    assert_close(turned, torch.rot90(there, 1, (1, 2)), atol=1e-6, rtol=0)


def test_invertd_brings_an_answer_back_to_the_film():
    given = MetaTensor(blob(1, (90, 60))[0])
    steps = Compose([ResizeFilmd("image", (45, 30))])
    item = steps({"image": given})
    back = Invertd("pred", steps, orig_keys="image", nearest_interp=False)({**item, "pred": item["image"].clone()})["pred"]
    assert back.shape == given.shape
    assert_close(back.as_tensor(), given.as_tensor(), atol=0.02, rtol=0)
