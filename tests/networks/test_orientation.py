import torch
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.energies import WeightedEnergy
from monai_diffeo.families import ControlGrid
from monai_diffeo.flow import exp_affine, warp
from monai_diffeo.networks import FilmOrientation, rot90_generator, rot90_image
from tests.helpers import FixedTheta, FromTemplate


def network():
    torch.manual_seed(0)
    net = FilmOrientation(image_size=(16, 16), channels=(8, 8)).eval()
    torch.nn.init.normal_(net.head[-1].weight, std=1.0)
    return net


def test_the_generator_turns_back_what_was_turned():
    image, turns = torch.rand(4, 1, 32, 32), torch.arange(4)
    turned = rot90_image(image, turns, torch.zeros(4, dtype=torch.bool))
    ddf = exp_affine(rot90_generator(turns), torch.zeros(4, 2, 32, 32)).ddf()
    assert_close(warp(turned, ddf), image, atol=1e-4, rtol=0)
    assert (turned[1] - image[1]).abs().max() > 0.5


def test_mirroring_comes_before_turning_counter_clockwise():
    image = torch.tensor([[1, 2], [3, 4]]).expand(5, 1, 2, 2)
    turned = rot90_image(image, torch.tensor([0, 1, 2, 3, 1]), torch.tensor([False, False, False, False, True]))
    assert turned[:, 0].tolist() == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]], [[1, 3], [2, 4]]]


def test_a_turned_film_gets_the_same_probabilities_turned_and_a_mirrored_one_mirrored():
    net, image = network(), torch.rand(3, 1, 16, 16)
    turns, mirrored = net.probabilities(image)
    assert (turns.amax(1) > 0.26).all()
    for k in range(4):
        again, same = net.probabilities(torch.rot90(image, k, (2, 3)))
        assert_close(again, turns.roll(k, 1), atol=1e-5, rtol=1e-4)
        assert_close(same, mirrored, atol=1e-5, rtol=1e-4)
    _, other = net.probabilities(image.flip(-1))
    assert_close(other, 1 - mirrored, atol=1e-5, rtol=1e-4)


class Knows(torch.nn.Module):
    """Says of every film that it lies at the given turn, and whether it is mirrored."""

    def __init__(self, turn, mirrored=0.0, min_confidence=1.0):
        super().__init__()
        self.turn, self.mirrored, self.min_confidence = turn, mirrored, min_confidence

    def probabilities(self, image):
        turns = torch.full((4,), (1 - self.min_confidence) / 3)
        turns[self.turn] = self.min_confidence
        return turns.expand(len(image), 4), torch.full((len(image),), self.mirrored)


def build(orientation):
    family, upright = ControlGrid(2, 4), corner()
    still = FixedTheta(torch.zeros(1, family.num_parameters))
    energy = WeightedEnergy({"template": FromTemplate(upright)})
    return Canonicalizer(energy, family, predictor=still, orientation=orientation, max_energy_increase=None)


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
    result = build(Knows(0, mirrored=0.99))(corner())
    assert "looks mirrored (probability 0.99)" in result.notes[0]
    assert_close(result.image, corner(), atol=1e-5, rtol=0)
