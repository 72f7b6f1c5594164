"""The foreground of images within a constant border is enlarged."""

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.canonicalize.acceptance import ENLARGED
from monai_diffeo.canonicalize.framing import Enlarging
from monai_diffeo.families import AffineMatrix, ControlGrid
from monai_diffeo.flow import Deformation, warp
from monai_diffeo.inferers import DiffeoInferer
from tests.helpers import Brightness, FixedTheta, Turned

LOOSE = {"max_energy_increase": None, "enlarge_below": 0.75}


def waves(size, count=1):
    """Smooth images without a constant border."""
    axes = torch.meshgrid(*(torch.linspace(0, 1, n) for n in size), indexing="ij")
    phase = torch.arange(1.0, count + 1).view(-1, *[1] * len(size))
    return (sum(torch.sin((3 + 2 * i) * x + phase) for i, x in enumerate(axes)) + 3)[:, None]


def framed(image, size, low, value=0.0):
    """The image at the voxel ``low`` of a frame of one value."""
    frame = torch.full((*image.shape[:2], *size), value)
    frame[(..., *(slice(start, start + n) for start, n in zip(low, image.shape[2:])))] = image
    return frame


def still(dims=2, **settings):
    family = ControlGrid(dims, controls=4)
    predictor = FixedTheta(torch.zeros(1, family.num_parameters))
    return Canonicalizer(Brightness(), family, predictor=predictor, **{**LOOSE, **settings})


@pytest.mark.parametrize(
    "size, part, low", [((32, 32), (16, 16), (3, 12)), ((24, 40), (12, 20), (0, 9)), ((16,) * 3, (8,) * 3, (2, 5, 8))]
)
@pytest.mark.parametrize("border", [0.0, 7.0])
def test_what_lies_within_the_border_fills_the_frame(size, part, low, border):
    whole = waves(size)
    small = torch.nn.functional.interpolate(whole, part, mode="bilinear" if len(size) == 2 else "trilinear")
    image = framed(small, size, low, border)
    enlarging = Enlarging(image, 0.75)
    assert enlarging.rows.tolist() == [True]
    inner = (..., *(slice(2, -2) for _ in size))
    assert_close(enlarging(image, "bilinear")[inner], whole[inner], atol=0.2, rtol=0)
    assert (enlarging(image, "bilinear") - border).abs().amin() > 0.1  # nothing of the border is left


@pytest.mark.parametrize(
    "image",
    [
        waves((32, 32)),
        framed(waves((32, 16)), (32, 32), (0, 8)),  # a letter box
        framed(waves((26, 26)), (32, 32), (3, 3)),  # more than the share
        framed(waves((2, 2)), (32, 32), (9, 9)),  # a marker
        framed(waves((16, 16)), (32, 32), (0, 0)),  # in a corner
        framed(waves((16, 16)), (32, 32), (16, 16)),  # in another
        torch.ones(1, 1, 32, 32),
    ],
)
def test_other_images_stay_as_they_are(image):
    enlarging = Enlarging(image, 0.75)
    assert enlarging.rows.tolist() == [False] and enlarging(image, "bilinear") is image
    maps = Deformation.identity(1, (32, 32)), Deformation.identity(1, (40, 40))
    assert all(one is other for one, other in zip(enlarging.maps(*maps), maps))


def test_noise_of_a_hundredth_is_still_a_border_and_without_a_share_there_is_none():
    draw = torch.Generator().manual_seed(0)
    image = framed(waves((16, 16)), (32, 32), (4, 7))
    image = image + 0.02 * torch.rand(image.shape, generator=draw)
    assert Enlarging(image, 0.75).rows.item() and not Enlarging(image, None).rows.item()


@pytest.mark.parametrize("orientation", [None, Turned()])
def test_a_batch_gives_what_its_images_give_and_the_way_back_is_exact(orientation):
    image = torch.cat([framed(waves((16, 16)), (32, 32), (5, 9)), waves((32, 32)), torch.ones(1, 1, 32, 32)])
    canonicalizer = still(orientation=orientation)
    found = canonicalizer(image)
    assert [ENLARGED in note for note in found.notes] == [True, False, False]
    for i in range(3):
        one = canonicalizer(image[i : i + 1])
        for name in ("image", "ddf", "inverse_ddf", "energy_after"):
            assert_close(getattr(one, name), getattr(found, name)[i : i + 1], atol=1e-4, rtol=1e-5)
    assert_close(found.image[0], warp(image, found.ddf)[0])
    assert found.inverse_error.max() < 1e-3 and not found.ddf[2].any()
    inside = found.warp_back(found.image)[0, 0, 7:19, 11:23]
    assert_close(inside, image[0, 0, 7:19, 11:23], atol=0.02, rtol=0)
    without = still(orientation=orientation, enlarge_below=None)(image)
    assert torch.equal(without.image[1:], found.image[1:]) and without.notes[1:] == found.notes[1:]


@pytest.mark.parametrize("orientation", [None, Turned()])
@pytest.mark.parametrize("size, part, low", [((32, 32), (16, 16), (5, 9)), ((24, 40), (12, 20), (3, 9))])
def test_at_rest_an_image_stays_enlarged(orientation, size, part, low):
    image = framed(waves(part, 2).transpose(0, 1), size, low)
    canonicalizer = still(tta_samples=4, orientation=orientation)
    found = canonicalizer(image)
    for rotated in (True, False):
        rest = canonicalizer.at_rest(image, found, rotated=rotated)
        turned = rotated and orientation is not None
        expected = found.image if turned or orientation is None else still()(image).image
        assert_close(rest.image, expected, atol=1e-4, rtol=0)
        assert_close(rest.image, rest.moved_image(image))
        assert_close(rest.energy_after, canonicalizer.energy(rest.image))
        assert rest.inverse_error.max() < 1e-3 and ENLARGED in rest.notes[0] and ("corrected" in rest.notes[0]) == turned


@pytest.mark.parametrize("overlap", [{}, {"overlap": 0.0}])
def test_the_plain_prediction_of_an_enlarged_image_is_that_of_the_image_as_given(overlap):
    image, canonicalizer = framed(waves((16, 16)), (32, 32), (5, 9)), still(tta_samples=4)
    rows = torch.arange(32.0).view(-1, 1)
    result = DiffeoInferer(canonicalizer, motion_limits={"energy": -99.0, "disagreement": 0.0, **overlap}).infer(
        image, lambda x: x * rows, plain=True
    )
    assert torch.equal(result.plain, image * rows) and not torch.equal(result.prediction, result.plain)
    assert_close(result.rest.image, canonicalizer(image).image)


def test_the_network_sees_the_enlarged_image():
    image, canonicalizer, asked = framed(waves((16, 16)), (32, 32), (5, 9)), still(tta_samples=1), []
    answer = DiffeoInferer(canonicalizer)(image, lambda x: asked.append(x) or x)
    found = canonicalizer(image)
    assert_close(asked[0], found.image)
    assert_close(answer, found.warp_back(found.image))


def test_a_deformation_must_not_raise_the_energy_of_the_enlarged_image():
    """Moved half out of the frame, it is still brighter than with its border."""
    image = framed(torch.ones(1, 1, 12, 12), (32, 32), (10, 10))
    predictor = FixedTheta(torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.0, 0.0]]))
    energy = lambda x: 1 - x.flatten(1).mean(1)  # noqa: E731
    found, loose = (
        Canonicalizer(energy, AffineMatrix(), predictor=predictor, enlarge_below=0.6, max_energy_increase=most)(image)
        for most in (0.1, None)
    )
    assert "energy rose from 0.0" in found.status[0] and torch.equal(found.image, image)
    assert 0.2 < loose.energy_after < found.energy_before - 0.2


def test_an_image_that_is_rejected_is_not_enlarged():
    image = framed(waves((16, 16)), (32, 32), (5, 9))
    canonicalizer = still(max_energy_increase=-99.0)
    found = canonicalizer(image)
    assert "rejected" in found.status[0] and torch.equal(found.image, image) and not found.notes[0]
    assert not found.ddf.any() and not canonicalizer.at_rest(image, found).ddf.any()


def test_a_weak_channel_counts_as_much_as_a_strong_one():
    strong, weak = framed(1000 * waves((8, 8)), (32, 32), (12, 12)), framed(waves((20, 20)), (32, 32), (4, 4))
    assert Enlarging(torch.cat([strong, weak], 1), 0.7).share.tolist() == [[0.625, 0.625]]
    assert Enlarging(torch.cat([strong, weak], 1).double(), 0.7)(strong.double(), "bilinear").dtype == torch.float64


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.0, 60, "0.6"])
def test_what_is_no_share_of_an_axis_is_refused(share):
    with pytest.raises(ValueError, match="'enlarge_below'"):
        still(enlarge_below=share)
