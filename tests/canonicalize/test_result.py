"""Poses around the canonical one."""

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalization, Canonicalizer
from monai_diffeo.canonicalize.result import mean_inverse_error, resize_ddf
from monai_diffeo.families import AffineMatrix
from monai_diffeo.flow import warp
from tests.helpers import Brightness, FixedTheta, blob, tiny_canonicalizer


def unmoved(size):
    """A canonicalisation that moves nothing, and its images."""
    still = FixedTheta(torch.zeros(1, 6))
    images = blob(2, size, width=0.4)
    return Canonicalizer(Brightness(), AffineMatrix(), predictor=still, max_energy_increase=None)(images), images


@pytest.mark.parametrize("size", [(33, 33), (17, 49), (65, 21)])
@pytest.mark.parametrize("settings", [{}, {"spread": 0.1, "shift": 0.0}, {"spread": 0.0, "shift": 0.2}, {"seed": 3}])
def test_samples_are_flows_of_random_affine_velocities_in_halves_of_the_frame(size, settings):
    spread, shift, seed = ({"spread": 0.06, "shift": 0.047, "seed": 0} | settings).values()
    result, images = unmoved(size)
    samples = result.tta_samples(images, 4, **settings)
    draw, half = torch.Generator().manual_seed(seed), (torch.tensor(size) - 1) / 2
    relative = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, n) for n in size], indexing="ij")).flatten(1)
    for k in range(2):
        generator = torch.zeros(3, 3)
        generator[:2, :2] = torch.randn(2, 2, generator=draw) * spread
        generator[:2, 2:] = torch.randn(2, 1, generator=draw) * shift
        for sign, sample in zip((1, -1), samples[2 * k : 2 * k + 2]):
            for ddf, direction in ((sample.ddf, sign), (sample.inverse_ddf, -sign)):
                matrix = torch.linalg.matrix_exp(direction * generator)
                expected = (matrix[:2, :2] @ relative + matrix[:2, 2:] - relative) * half[:, None]
                assert_close(ddf, expected.view(1, 2, *size).expand_as(ddf), atol=1e-4, rtol=0)
            assert torch.equal(sample.image, warp(images, sample.ddf))


def test_a_sample_is_a_small_map_first_and_then_the_canonical_map():
    theta = torch.tensor([[0.4, 0.0, 0.0, 0.0, 0.0, 0.3]])
    images = blob(1, (33, 33))
    result = Canonicalizer(Brightness(), AffineMatrix(), predictor=FixedTheta(theta), max_energy_increase=None)(images)
    small = unmoved((33, 33))[0].tta_samples(images.expand(2, -1, -1, -1), 2)[0]
    sample = result.tta_samples(images, 2)[0]
    x = torch.stack(torch.meshgrid(*[torch.arange(33.0) - 16] * 2, indexing="ij"))
    inner = x + small.ddf[0]
    assert_close(x + sample.ddf[0], torch.stack([1.4 * inner[0], inner[1] + 4.8]), atol=1e-4, rtol=0)
    assert mean_inverse_error(sample.ddf, sample.inverse_ddf).item() < 1e-3


def test_an_odd_number_begins_with_the_canonical_pose_and_rows_left_alone_stay():
    images = torch.cat([blob(1), torch.full((1, 1, 32, 32), 0.5)])
    result = tiny_canonicalizer()(images)
    for count in (1, 2, 3, 4):
        samples = result.tta_samples(images, count)
        assert len(samples) == count and (samples[0] is result) == (count % 2 == 1)
        assert all(torch.equal(sample.image[1], images[1]) and sample.ddf[1].abs().max() == 0 for sample in samples)
    assert result.tta_samples(images, 2)[0].inverse_ddf[1].abs().max() == 0


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_than_one_sample_is_refused(count):
    for image in (blob(1), torch.full((1, 1, 32, 32), 0.5)):
        with pytest.raises(ValueError, match=f"'count' must be at least 1, got {count}"):
            tiny_canonicalizer()(image).tta_samples(image, count)


def test_the_inverse_error_is_the_mean_distance_over_the_voxels_whose_way_stays_in_the_frame():
    ddf, inverse = torch.zeros(1, 2, 8, 4), torch.zeros(1, 2, 8, 4)
    inverse[:, 0], ddf[:, 0], ddf[:, 1] = 3.0, -3.0, 4.0
    assert_close(mean_inverse_error(ddf, inverse), torch.tensor([4.0]))
    ddf[:, 0, 4:] = 0.0  # the way from rows 0 to 4 leads to rows 3 to 7, of which four are wrong by 3 and 4: 5
    assert_close(mean_inverse_error(ddf, inverse), torch.tensor([(4.0 + 4 * 5.0) / 5]))


def test_a_displacement_on_other_voxels_covers_the_same_frame_corners_on_corners():
    ddf = torch.full((1, 2, 5, 3), 1.0)  # a quarter of the frame along rows, half of it along columns
    assert_close(resize_ddf(ddf, (9, 9))[0, :, 4, 4], torch.tensor([2.0, 4.0]))


def test_images_that_needed_more_looks_are_joined_with_others():
    image = blob(1, (16, 16))
    one, three = (tiny_canonicalizer(iterations=n)(image) for n in (1, 3))
    joined = Canonicalization.join([one, three])
    assert joined.velocity.shape == (2, 3, 2, 16, 16)
    assert torch.equal(joined.velocity[0, :1], one.velocity[0]) and not joined.velocity[0, 1:].any()
    assert torch.equal(joined.velocity[1], three.velocity[0]) and torch.equal(joined.ddf[0], one.ddf[0])
