import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.energies import WeightedEnergy
from monai_diffeo.errors import ShapeError
from monai_diffeo.families import ControlGrid
from monai_diffeo.flow import axis_rotations, mirror, rotate_axes
from monai_diffeo.networks import ImageOrientation, orient_images
from tests.helpers import FixedTheta, FromTemplate


def network(dims=2):
    torch.manual_seed(0)
    net = ImageOrientation(dims, image_size=(16,) * dims, channels=(8, 8)).eval()
    torch.nn.init.normal_(net.head[-1].weight, std=1.0)
    return net


def test_mirroring_comes_before_turning_counter_clockwise():
    image = torch.tensor([[1, 2], [3, 4]]).expand(5, 1, 2, 2)
    turned = orient_images(image, torch.tensor([0, 1, 2, 3, 1]), torch.tensor([False, False, False, False, True]))
    assert turned[:, 0].tolist() == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]], [[1, 3], [2, 4]]]


def test_oblong_images_are_not_oriented_on_a_frame_that_they_do_not_keep():
    with pytest.raises(ShapeError, match="Resample it"):
        orient_images(torch.rand(1, 1, 4, 6), torch.tensor([1]), torch.tensor([False]))


@pytest.mark.parametrize("size", [(1,), (16, 8), (16, 16, 8)])
def test_the_network_has_a_square_or_cubic_frame(size):
    with pytest.raises(ValueError, match="equal numbers"):
        ImageOrientation(2, image_size=size)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_rotated_image_gets_the_same_probabilities_rotated_and_a_mirrored_one_mirrored(dims):
    net, image, maps = network(dims), torch.rand(2, 1, *(16,) * dims), axis_rotations(dims)
    given, mirrored = net.probabilities(image)
    assert (given.amax(1) > 1.05 / len(maps)).all()
    for k in (1, 2, len(maps) - 1):
        again, same = net.probabilities(rotate_axes(image, k))
        moved = [int((maps - maps[g] @ maps[k]).abs().sum((1, 2)).argmin()) for g in range(len(maps))]
        assert_close(again[:, moved], given, atol=1e-5, rtol=1e-4)
        assert_close(same, mirrored, atol=1e-5, rtol=1e-4)
    _, other = net.probabilities(mirror(image))
    assert_close(other, 1 - mirrored, atol=1e-5, rtol=1e-4)


def test_an_oblong_image_is_seen_on_the_square():
    net, image = network(), torch.rand(2, 1, 16, 16)
    wide = image.repeat_interleave(2, 3)
    assert_close(net.probabilities(wide)[0], net.probabilities(image)[0], atol=0.05, rtol=0)
    assert_close(
        net.probabilities(torch.rot90(wide, 1, (2, 3)))[0], net.probabilities(wide)[0].roll(1, 1), atol=1e-4, rtol=1e-3
    )


class Knows(torch.nn.Module):
    """Says of every film that it lies at the given turn, and whether it is mirrored."""

    def __init__(self, turn, mirrored=0.0, min_confidence=1.0):
        super().__init__()
        self.turn, self.mirrored, self.min_confidence = turn, mirrored, min_confidence

    def probabilities(self, image):
        turns = torch.full((4,), (1 - self.min_confidence) / 3)
        turns[self.turn] = self.min_confidence
        return turns.expand(len(image), 4), torch.full((len(image),), self.mirrored)


def build(orientation, **settings):
    family, upright = ControlGrid(2, 4), corner()
    still = FixedTheta(torch.zeros(1, family.num_parameters))
    energy = WeightedEnergy({"template": FromTemplate(upright)})
    return Canonicalizer(energy, family, predictor=still, orientation=orientation, max_energy_increase=None, **settings)


def corner():
    axes = torch.meshgrid(torch.linspace(0, 1, 24), torch.linspace(0, 1, 24), indexing="ij")
    return (axes[0] * axes[1])[None, None]


def test_a_turned_film_is_turned_back_and_the_note_says_so():
    film = torch.rot90(corner(), 1, (2, 3))
    result = build(Knows(1))(film)
    assert_close(result.image, corner(), atol=1e-4, rtol=0)
    assert_close(result.warp_back(result.image), film, atol=1e-4, rtol=0)
    assert result.notes == ("rotation by 90 degrees corrected",) and result.status == ("canonicalized",)


def test_a_turn_that_is_not_sure_is_not_taken():
    result = build(Knows(2, min_confidence=0.8))(corner())
    assert_close(result.image, corner(), atol=1e-5, rtol=0)
    assert result.notes == ("",)


def test_a_mirrored_film_is_noted_and_never_changed():
    result = build(Knows(0, mirrored=0.8))(corner())  # odds of 4, twice
    assert "looks mirrored (probability 0.94)" in result.notes[0]
    assert_close(result.image, corner(), atol=1e-5, rtol=0)


def test_what_is_not_deformed_is_not_looked_at_twice():
    assert build(Knows(0, mirrored=0.8), deform=False)(corner()).notes == ("",)
    assert "looks mirrored (probability 0.99)" in build(Knows(0, mirrored=0.99), deform=False)(corner()).notes[0]


def test_only_an_image_that_may_be_mirrored_is_looked_at_twice():
    class Changes(Knows):
        """Whether an image is mirrored by its brightest voxel, and with much larger odds at every further look."""

        def probabilities(self, image):
            looked.append(len(image))
            mirrored = image.flatten(1).amax(1) if len(looked) == 1 else torch.full((len(image),), 0.9999)
            return super().probabilities(image)[0], mirrored

    looked, images = [], corner() * torch.tensor([0.009, 0.5, 0.02]).view(3, 1, 1, 1)
    noted = build(Changes(0))(images).notes
    assert looked == [3, 2] and noted[0] == "" and "mirrored" in noted[1] and "mirrored" in noted[2]
    looked.clear()
    assert build(Changes(0))(images[:1]).notes == ("",) and looked == [1]


def test_what_is_left_as_it_came_is_not_looked_at_twice():
    left = build(Knows(0, mirrored=0.8), skip_below=1e9)(corner())
    assert left.status[0].startswith("left alone") and left.notes == ("",)


class Doubts(torch.nn.Module):
    """Holds every rotation of every image possible, and upright the likeliest."""

    def probabilities(self, image):
        number = 4 if image.ndim == 4 else 24
        p = torch.full((len(image), number), 0.4 / (number - 1))
        p[:, 0] = 0.6
        return p, torch.full((len(image),), 0.1)


def doubting(upright, **settings):
    """A canonicaliser that tells by the energy alone how an image is rotated."""
    family, energy = ControlGrid(upright.ndim - 2, 3), WeightedEnergy({"template": FromTemplate(upright)})
    still, settings = FixedTheta(torch.zeros(1, family.num_parameters)), {"max_energy_increase": None, **settings}
    return Canonicalizer(energy, family, predictor=still, orientation=Doubts(), rotation_temperature=1e-4, **settings)


def lopsided(*size):
    axes = torch.meshgrid(*(torch.linspace(0, 1, n) for n in size), indexing="ij")
    return sum(d * axis**2 for d, axis in enumerate(axes, 1))[None, None]


@pytest.mark.parametrize("deform", [True, False])
@pytest.mark.parametrize("dims, numbers", [(2, [0, 1, 3]), (3, [0, 5, 17])])
def test_every_image_of_a_batch_gets_its_own_rotation(dims, numbers, deform):
    upright = lopsided(*[12] * dims)
    canonicalizer, batch = doubting(upright, deform=deform), torch.cat([rotate_axes(upright, k) for k in numbers])
    together, alone = canonicalizer(batch), [canonicalizer(one) for one in batch.split(1)]
    assert together.rotations.tolist() == numbers == [int(one.rotations) for one in alone]
    assert_close(together.image, upright.expand_as(batch), atol=1e-4, rtol=0)
    assert_close(together.image, torch.cat([one.image for one in alone]), atol=0, rtol=0)


def test_oblong_images_get_their_own_rotations():
    image = torch.rot90(lopsided(16, 24), 1, (2, 3))
    result = doubting(lopsided(24, 24), working_size=(24, 24))(image)
    assert result.rotations.tolist() == [1] and result.image.shape[2:] == (16, 24)


def test_images_that_are_refused_are_asked_no_energies():
    asked = []
    canonicalizer = build(Knows(1, min_confidence=0.6), rotation_temperature=1.0)
    canonicalizer.energy.energies["template"].register_forward_hook(lambda *_: asked.append(1))
    canonicalizer(torch.full((1, 1, 24, 24), 0.5))
    assert len(asked) == 2  # before the search and after it


@pytest.mark.parametrize("temperature, taken", [(None, False), (1e6, False), (1.0, True)])
def test_a_rotation_in_doubt_is_taken_if_the_energy_speaks_for_it(temperature, taken):
    film = torch.rot90(corner(), 1, (2, 3)).repeat(2, 1, 1, 1)
    result = build(Knows(1, min_confidence=0.6), rotation_temperature=temperature)(film)
    assert result.rotations.tolist() == [taken, taken]
    assert_close(result.image, corner().expand_as(film) if taken else film, atol=1e-4, rtol=0)
