"""From whatever a network answers to probabilities on the frame of the image, and what the answers' term then counts."""

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn
from torch.testing import assert_close

from monai_diffeo.errors import ShapeError
from monai_diffeo.families import ControlGrid
from monai_diffeo.training import AddAnswerd, PredictorStep, answer_activation
from monai_diffeo.training.answers import answer_loss, network_answer


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Gives(nn.Module):
    """A network that makes its output from the image by a function."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, image):
        return self.make(image)


def classes(image):
    """Odds of three classes."""
    return torch.cat([image, 2 * image - 1, 1 - image], 1)


def test_activations_have_names_and_others_are_refused():
    odds = torch.randn(2, 3, 4, 5, generator=seeded())
    assert torch.equal(answer_activation("sigmoid")(odds), torch.sigmoid(odds))
    assert_close(answer_activation("softmax")(odds), odds.exp() / odds.exp().sum(1, keepdim=True))
    assert torch.equal(answer_activation("none")(odds), odds)
    assert answer_activation(torch.tanh) is torch.tanh
    with pytest.raises(ValueError, match="expected sigmoid, softmax, none or a function, got 'softmx'"):
        answer_activation("softmx")
    with pytest.raises(ValueError, match="'softmax' needs two channels or more, got 1.*Use 'sigmoid'"):
        answer_activation("softmax")(odds[:, :1])


@pytest.mark.parametrize("size", [(8, 6), (6, 4, 8)])
def test_a_softmax_is_over_the_classes_of_a_film(size):
    """And not over the batch of one that ``AddAnswerd`` makes of a film."""
    image = torch.rand(1, *size, generator=seeded())
    answer = AddAnswerd(Gives(classes), "softmax")({"image": image})["answer"]
    assert answer.shape == (3, *size)
    assert_close(answer, classes(image[None])[0].softmax(0))


@pytest.mark.parametrize("who", ["AddAnswerd", "PredictorStep"])
def test_several_channels_need_a_named_activation(who):
    batch = {"image": torch.rand(2, 1, 8, 8), "answer": torch.rand(2, 3, 8, 8)}
    family = ControlGrid(2, 3)
    with pytest.raises(ValueError, match=f"{who}: 'activation' must be named for a network of 3 channels: 'softmax'"):
        if who == "AddAnswerd":
            AddAnswerd(Gives(classes))({"image": batch["image"][0]})
        else:
            PredictorStep(family, Gives(classes))(lambda x: torch.zeros(2, family.num_parameters), batch)


def test_the_first_map_of_the_finest_frame_is_taken_from_lists_and_dictionaries():
    image = torch.rand(2, 1, 8, 12, generator=seeded())
    coarse, vector, indices = image[..., ::2, ::2], image.mean((2, 3)), image.round().long()
    for output in (
        image,
        [image, coarse],
        (vector, image),
        {"class": vector, "features": coarse, "map": image, "other": 0 * image},
        {"all": [indices, {"deep": (image, -image)}]},
    ):
        assert torch.equal(network_answer("x", output, image, "none"), image)


@pytest.mark.parametrize("size", [(8, 12), (8, 4, 12)])
def test_a_coarse_answer_is_brought_to_the_frame_of_the_image(size):
    image = torch.rand(2, 1, *size)
    coarse = torch.full((2, 1, *[n // 2 for n in size]), 0.3)
    coarse[1] = -2
    answer = network_answer("x", coarse, image, None)
    assert answer.shape == image.shape
    assert_close(answer, torch.sigmoid(torch.tensor([0.3, -2.0])).view(2, *[1] * (image.ndim - 1)).expand_as(answer))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.mean((2, 3)),  # a classifier
        lambda x: nn.functional.interpolate(x, scale_factor=2.0),  # finer than the image
        lambda x: (x > 0.5).long(),  # labels
        lambda x: x[:1],  # another batch
        lambda x: [],
    ],
)
def test_other_answers_are_refused_in_a_sentence(make):
    with pytest.raises(ShapeError, match=r"who: 'network\(image\)' must have shape \(2, K, \*S\), S at most \(8, 12\).*got \("):
        network_answer("who", make(torch.rand(2, 1, 8, 12)), torch.rand(2, 1, 8, 12), "sigmoid")
    if make(torch.rand(2, 1, 8, 12)) != []:
        return
    with pytest.raises(ShapeError, match="AddAnswerd.*Give a network whose answer is a map"):
        AddAnswerd(Gives(make))({"image": torch.rand(1, 8, 12)})


def test_answers_of_another_number_of_classes_are_refused():
    family = ControlGrid(2, 3)
    step = PredictorStep(family, Gives(classes), "softmax")
    with pytest.raises(ShapeError, match=r"'answer' must have shape \(2, 3, 8, 8\), got \(2, 1, 8, 8\). Let AddAnswerd"):
        step(
            lambda x: torch.zeros(2, family.num_parameters), {"image": torch.rand(2, 1, 8, 8), "answer": torch.rand(2, 1, 8, 8)}
        )


def test_an_answer_may_come_from_an_inferer():
    torch.manual_seed(0)
    network, image, told = nn.Conv3d(1, 2, 3, padding=1), torch.rand(1, 12, 8, 10), []
    inferer = SlidingWindowInferer((8, 8, 8), overlap=0.5)
    answer = AddAnswerd(network, "softmax", lambda x, net: told.append(x.shape) or inferer(x, net))({"image": image})["answer"]
    assert told == [(1, 1, 12, 8, 10)]
    with torch.no_grad():
        assert_close(answer, inferer(image[None], network).softmax(1)[0])


@pytest.mark.parametrize("size", [(3, 5), (3, 2, 4)])
def test_the_entropy_of_a_softmax_counts_classes_and_that_of_sigmoids_channels(size):
    odds, other = (torch.randn(2, 3, *size, generator=seeded(k)) for k in (0, 1))
    given, wanted, axes = odds.softmax(1), other.softmax(1), tuple(range(2, 2 + len(size)))
    dice = 1 - ((2 * (given * wanted).sum(axes) + 1) / (given.sum(axes) + wanted.sum(axes) + 1)).mean()
    categorical = -(wanted * odds.log_softmax(1)).sum(1).mean()
    assert_close(answer_loss(given, wanted, "softmax"), dice + categorical)
    binary = nn.functional.binary_cross_entropy(given, wanted)
    for other_activation in ("sigmoid", "none", None, torch.sigmoid):
        assert_close(answer_loss(given, wanted, other_activation), dice + binary)


def test_the_answers_term_of_a_softmax_is_least_where_the_network_is_right():
    """A change of the right class costs; so does a class that wins where another should."""
    wanted = torch.zeros(1, 3, 4, 4)
    wanted[:, 0, :, :2] = wanted[:, 1, :, 2:] = 1
    right = answer_loss(wanted * 0.97 + 0.01, wanted, "softmax")
    assert right < answer_loss(wanted * 0.7 + 0.1, wanted, "softmax") < answer_loss(wanted.roll(1, 1), wanted, "softmax")
