"""The canonicaliser works on its own frame: the same image on another lattice, on an oblong frame, or with its axes rotated."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.energies import DeformationRegularizer, WeightedEnergy
from monai_diffeo.errors import ShapeError
from monai_diffeo.families import ControlGrid
from monai_diffeo.flow import axis_rotations, rotate_axes
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.networks.predictor import resample_image, resample_once_more
from monai_diffeo.transforms import Canonicalized
from tests.helpers import FixedTheta, FromTemplate

OBLONG = {2: (24, 36), 3: (12, 20, 16)}


def anatomy(size, channels=1):
    """A smooth image without any symmetry."""
    axes = torch.meshgrid(*[(torch.arange(n) + 0.5) / n - 0.5 for n in size], indexing="ij")
    blob = sum((axis - shift) ** 2 for axis, shift in zip(axes, (-0.15, 0.1, 0.05)))
    image = torch.exp(-blob * 12) + 0.6 * axes[0] * axes[-1] + 0.3 * axes[0]
    return image.expand(1, channels, *size).clone()


def moving(dims, generator, seed=0):
    """The parameters of one smooth deformation."""
    family = ControlGrid(dims, 4)
    theta = 0.04 * torch.randn(1, family.num_parameters, generator=torch.Generator().manual_seed(seed))
    theta[:, : dims * (dims + 1)] *= generator
    return family, FixedTheta(theta)


def build(dims=2, size=None, orientation=None, scale=1.0, **settings):
    family, predictor = moving(dims, scale)
    energy = WeightedEnergy({"template": FromTemplate(anatomy(size or OBLONG[dims]))})
    shared = {"predictor": predictor, "orientation": orientation, "max_energy_increase": None, "working_size": size}
    return Canonicalizer(energy, family, **{**shared, **settings})


class Turned(torch.nn.Module):
    """Says of every image that it shows this rotation."""

    def __init__(self, rotation, count):
        super().__init__()
        self.answer = F.one_hot(torch.tensor(rotation), count).float()

    def probabilities(self, image):
        return self.answer.expand(len(image), -1), torch.zeros(len(image))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_same_image_on_a_finer_lattice_gets_the_same_field_and_energies(dims):
    size = OBLONG[dims]
    canonicalizer = build(dims, size)
    small, large = canonicalizer(anatomy(size)), canonicalizer(anatomy([4 * n for n in size]))
    assert large.image.shape[2:] == tuple(4 * n for n in size) and large.status == small.status == ("canonicalized",)
    assert_close(large.energy_before, small.energy_before, atol=0.01, rtol=0)
    assert_close(large.energy_after, small.energy_after, atol=0.01, rtol=0.02)
    for name in ("ddf", "inverse_ddf"):
        pooled = (F.avg_pool2d if dims == 2 else F.avg_pool3d)(getattr(large, name), 4) / 4
        assert (pooled - getattr(small, name)).abs().max() < 0.05 and getattr(small, name).abs().max() > 0.5
    assert_close(resample_image(large.image, size), small.image, atol=0.03, rtol=0)
    assert large.inverse_error.item() < 0.2


def test_at_its_own_size_it_computes_what_it_computes_without_one():
    image = anatomy(OBLONG[2])
    assert torch.equal(build(2, OBLONG[2])(image).image, build(2, None)(image).image)


def test_an_image_is_taken_to_be_averaged_once_already():
    canonicalizer, seen, image = build(2, OBLONG[2]), [], torch.rand(1, 1, 48, 72)
    canonicalizer.energy.energies["template"].register_forward_hook(lambda module, given, out: seen.append(given[0]))
    canonicalizer(image)
    assert torch.equal(seen[0], resample_once_more(image, OBLONG[2])) and not torch.equal(
        seen[0], resample_image(image, OBLONG[2])
    )


def test_refining_sees_the_working_size_only():
    settings = {"regularizer": DeformationRegularizer(), "steps": 3, "max_energy_increase": None}
    canonicalizer, seen = build(2, OBLONG[2], **settings), []
    canonicalizer.energy.register_forward_hook(lambda module, given, out: seen.append(tuple(given[0].shape[2:])))
    canonicalizer(anatomy((96, 150)))
    assert set(seen) == {OBLONG[2]} and len(seen) >= 4


@pytest.mark.parametrize("dims, rotation", [(2, 1), (2, 2), (2, 3), *[(3, k) for k in (1, 4, 9, 15, 22)]])
def test_an_oblong_image_with_rotated_axes_comes_to_the_frame_and_the_pose_that_it_had(dims, rotation):
    size = OBLONG[dims]
    upright, count = anatomy(size, channels=2), len(axis_rotations(dims))
    turned = rotate_axes(upright, rotation)
    there, same = build(dims, size, Turned(rotation, count))(turned), build(dims, size)(upright)
    assert_close(there.image, same.image, atol=1e-4, rtol=0)
    assert there.status == ("canonicalized",) and "corrected" in there.notes[0]
    back = there.warp_back(there.image)
    assert back.shape == turned.shape
    assert_close(back, rotate_axes(same.warp_back(same.image), rotation), atol=2e-3, rtol=0)
    assert_close(there.inverse_error, same.inverse_error, atol=1e-3, rtol=0)
    assert_close(there.warp_input(turned), there.image, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dims, rotation", [(2, 0), (2, 1), (3, 9)])
def test_without_deforming_a_rotation_alone_is_undone(dims, rotation):
    upright, count = anatomy(OBLONG[dims], channels=2), len(axis_rotations(dims))
    given = rotate_axes(upright, rotation)
    found = build(dims, OBLONG[dims], Turned(rotation, count), deform=False)(given)
    assert found.status == ("canonicalized",) and found.rotations.tolist() == [rotation] and not found.velocity.any()
    assert_close(found.image, upright, atol=1e-5, rtol=0)
    assert_close(found.warp_back(found.image), given, atol=1e-5, rtol=0)
    assert build(dims, OBLONG[dims])(upright).velocity.any()


@pytest.mark.parametrize("dims, rotation", [(2, 1), (3, 9)])
def test_a_head_of_lower_resolution_comes_back_with_rotated_axes(dims, rotation):
    size = OBLONG[dims]
    turned, count = rotate_axes(anatomy(size), rotation), len(axis_rotations(dims))
    result = build(dims, size, Turned(rotation, count), scale=0.0)(turned)
    half = resample_image(result.image, [n // 2 for n in result.image.shape[2:]])
    back = result.warp_back(half)
    assert back.shape[2:] == tuple(n // 2 for n in turned.shape[2:])
    full = resample_image(result.warp_back(result.image), back.shape[2:])
    assert (back - full).abs().mean() < 0.03


def test_the_inferer_gives_an_oblong_rotated_image_the_prediction_of_the_upright_one_rotated():
    upright, shapes = anatomy(OBLONG[2]), []

    def network(image):
        shapes.append(tuple(image.shape[2:]))
        return {"map": image.cumsum(2), "class": image.mean((2, 3))}

    inferer = DiffeoInferer(build(2, OBLONG[2], Turned(1, 4)), tta_samples=4)
    once = inferer(rotate_axes(upright, 1), network)
    wanted = DiffeoInferer(build(2, OBLONG[2]), tta_samples=4)(upright, network)
    assert_close(once["map"], rotate_axes(wanted["map"], 1), atol=0.02, rtol=1e-3)
    assert_close(once["class"], wanted["class"], atol=1e-4, rtol=0)
    assert set(shapes) == {OBLONG[2]}
    pair = inferer(rotate_axes(upright, 1).repeat(2, 1, 1, 1), network)
    assert torch.equal(pair["map"], once["map"].repeat(2, 1, 1, 1)) and len(pair["class"]) == 2


class ByBrightness(Turned):
    """Bright images are turned once, dark ones are not."""

    def probabilities(self, image):
        turn = (image.flatten(1).mean(1) > 0.5).long()
        return F.one_hot(turn, 4).float(), torch.zeros(len(image))


def test_a_batch_whose_frames_come_to_differ_is_one_for_the_inferer_and_an_error_for_the_canonicaliser():
    canonicalizer = build(2, OBLONG[2], ByBrightness(0, 4))
    batch = torch.cat([anatomy(OBLONG[2]), rotate_axes(anatomy(OBLONG[2][::-1]), 1) + 1])
    with pytest.raises(ShapeError, match="one by one"):
        canonicalizer(batch)
    result = DiffeoInferer(canonicalizer).infer(batch, torch.nn.Identity())
    alone = [DiffeoInferer(canonicalizer)(row, torch.nn.Identity()) for row in batch.split(1)]
    assert torch.equal(result.prediction, torch.cat(alone)) and result.canonicalization is None


def test_a_rotated_image_that_is_rejected_comes_out_bit_for_bit_on_its_own_frame():
    canonicalizer = build(2, OBLONG[2], Turned(1, 4), max_energy_increase=-1e6)  # rejects everything
    image = rotate_axes(anatomy(OBLONG[2][::-1]), 1)
    result = canonicalizer(image)
    assert result.status[0].startswith("rejected: energy rose") and torch.equal(result.image, image)
    assert not result.ddf.any() and not result.inverse_ddf.any() and result.ddf.shape[2:] == OBLONG[2]
    assert torch.equal(result.forward.ddf(OBLONG[2]), result.ddf) and "corrected" not in result.notes[0]


@pytest.mark.parametrize("dims, rotation", [(2, 1), (2, 2), (3, 7), (3, 16)])
def test_a_rotation_is_undone_only_where_the_energy_falls(dims, rotation):
    size, cube = OBLONG[dims], (20,) * dims
    canonicalizer = build(dims, size, Turned(rotation, {2: 4, 3: 24}[dims]))
    upright = anatomy(cube)
    turned = rotate_axes(upright, rotation)
    found = canonicalizer(torch.cat([upright, turned]))
    assert found.notes[0] == "" and found.notes[1].startswith("rotation")
    assert_close(found.image[1], found.image[0], atol=0.02, rtol=0)
    assert_close(found.image[:1], build(dims, size)(upright).image)


def test_the_transform_inverts_a_rotated_oblong_image():
    canonicalizer, upright = build(2, OBLONG[2], Turned(3, 4)), anatomy(OBLONG[2])
    turned = rotate_axes(upright, 3)
    transform = Canonicalized("image", canonicalizer)
    data = transform({"image": turned[0]})
    assert data["image"].shape[1:] == OBLONG[2]
    assert_close(
        transform.inverse(data)["image"].as_tensor()[None], canonicalizer(turned).warp_back(canonicalizer(turned).image)
    )


@pytest.mark.parametrize("size", [(24,), (24, 36, 8), (24, 1)])
def test_a_working_size_must_be_a_frame(size):
    with pytest.raises(ValueError, match="'working_size' must be 2 numbers of at least 2"):
        build(2, working_size=size)
