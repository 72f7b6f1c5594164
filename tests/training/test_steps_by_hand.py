"""One step of each kind on tiny tensors and networks made by hand, against values computed by hand."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from monai_diffeo.augmentation import random_strength_tps
from monai_diffeo.families import Family
from monai_diffeo.flow import Deformation, warp
from monai_diffeo.networks import ImageOrientation, compress_logits
from monai_diffeo.training import (
    AddAnswerd,
    ClassificationStep,
    CriticStep,
    OrientationStep,
    PredictorStep,
    SegmentationStep,
    TemplateStep,
    VAEStep,
    steps,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def shift(count, size, rows=0.0, columns=0.0):
    """The displacement that pulls from ``rows`` further down and ``columns`` further right, voxels."""
    return torch.tensor([rows, columns]).view(1, 2, 1, 1).expand(count, 2, *size)


def dice_and_entropy(odds, label):
    """One minus Dice, a mean over images and channels, plus cross entropy: of one channel binary, of several by a softmax."""
    p = 1 / (1 + torch.exp(-odds))
    dice = (2 * (p * label).sum((2, 3)) + 1e-5) / (p.sum((2, 3)) + label.sum((2, 3)) + 1e-5)
    if odds.shape[1] == 1:
        return (1 - dice).mean() - (label * p.log() + (1 - label) * (1 - p).log()).mean()
    softmax = odds.exp() / odds.exp().sum(1, keepdim=True)
    return (1 - dice).mean() - (label * softmax.log()).sum(1).mean()


def soft_dice(a, b):
    return 1 - ((2 * (a * b).sum((2, 3)) + 1) / (a.sum((2, 3)) + b.sum((2, 3)) + 1)).mean()


# segmentation and classification


def test_segmentation_is_dice_plus_cross_entropy():
    odds, label = 2 * torch.randn(2, 1, 3, 4, generator=seeded()), torch.zeros(2, 1, 3, 4)
    label[0, :, 1:, :2] = label[1, :, 0] = 1
    loss = SegmentationStep()(lambda image: 3 * image, {"image": odds / 3, "label": label})
    assert_close(loss["segmentation"], dice_and_entropy(odds, label))


def test_films_and_their_masks_are_deformed_alike():
    """Where film and mask are equal, the deformed mask is where the deformed film is above one half, zero outside the frame."""
    label, seen, wanted = torch.zeros(6, 1, 24, 24), [], []
    label[:, :, 3:22, 10:] = 1
    step = SegmentationStep(strength=1.5)
    step.loss = lambda odds, mask: wanted.append(mask) or odds.sum() * 0
    step(lambda image: seen.append(image) or image, {"image": label, "label": label})
    ddf = random_strength_tps(6, (24, 24), seeded(), 1.5)
    assert_close(seen[0], warp(label, ddf, padding_mode="zeros"))
    assert torch.equal(wanted[0], (seen[0] > 0.5).float())
    assert (seen[0][..., -1] == 0).any()  # something came in from outside


def test_classification_is_the_cross_entropy_of_deformed_images():
    image, seen = torch.rand(3, 1, 16, 16, generator=seeded()), []
    odds = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    batch = {"image": image, "label": torch.tensor([0, 2, 1])}
    loss = ClassificationStep(0.5, seed=3)(lambda x: seen.append(x) or odds, batch)["classification"]
    rows = [math.log(1 + math.exp(-1) + math.exp(-2)), math.log(math.exp(2) + 2), math.log(3)]
    assert loss.item() == pytest.approx(sum(rows) / 3)
    assert_close(seen[0], warp(image, random_strength_tps(3, (16, 16), seeded(3), 0.5), padding_mode="zeros"))


# VAE


def test_the_vae_pays_squared_errors_and_beta_times_the_divergence_summed_over_a_film():
    image = torch.zeros(2, 1, 1, 2)
    answer = (
        torch.tensor([[1.0, 2.0], [0.0, 3.0]]).view(2, 1, 1, 2),
        torch.tensor([[1.0, 2.0], [0.0, 0.0]]),
        torch.tensor([[0.0, 0.0], [math.log(2.0), 0.0]]),
    )
    losses = VAEStep(beta=0.25, intensity=0.0)(lambda x: answer, {"image": image})
    assert losses["reconstruction"].item() == pytest.approx((1 + 4 + 9) / 2)
    assert losses["divergence"].item() == pytest.approx(0.25 * (5 / 2 + (2 - 1 - math.log(2)) / 2) / 2)


def test_with_varied_grey_values_the_vae_rebuilds_what_it_sees_standardised():
    seen = []

    def network(x):
        seen.append(x)
        return torch.zeros_like(x), torch.zeros(2, 3), torch.zeros(2, 3)

    losses = VAEStep()(network, {"image": torch.rand(2, 1, 8, 8, generator=seeded())})
    assert losses["reconstruction"].item() == pytest.approx(63, rel=1e-4)  # 64 values of unbiased variance 1 and mean 0
    assert losses["divergence"] == 0 and seen[0].mean().abs() < 1e-5


# critic


def critic_on(monkeypatch, network, image, ddf=None, **settings):
    told = {}

    def deformation(count, size, generator, **more):
        told.update(more)
        return shift(count, size, columns=2.0) if ddf is None else ddf

    monkeypatch.setattr(steps, "random_training_deformation", deformation)
    losses = CriticStep(**settings)(network, {"image": image})
    assert told == {"identity_share": 0.0, "framing_share": 0.0}
    return losses


def test_the_critic_wants_low_scores_of_films_and_high_ones_of_deformed_films(monkeypatch):
    weight = torch.tensor([3.0, 0.0, 0.0, 4.0], requires_grad=True)
    image = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]).view(2, 1, 1, 4) / 8
    losses = critic_on(monkeypatch, lambda x: (x * weight).sum((1, 2, 3)), image, penalty=10.0, intensity=0.0)
    real, fake = (3 * 1 + 4 * 4 + 3 * 5 + 4 * 8) / 16, (3 * 3 + 3 * 7) / 16  # eighths, shifted films: 3 4 0 0 and 7 8 0 0
    assert losses["wasserstein"].item() == pytest.approx(real - fake)
    assert losses["penalty"].item() == pytest.approx(10 * (5 - 1) ** 2)  # the gradient of a linear critic is its weight
    losses["penalty"].backward()
    assert_close(weight.grad, 10 * 2 * 4 * torch.tensor([0.6, 0.0, 0.0, 0.8]))


def test_the_penalty_looks_between_each_film_and_its_deformed_one(monkeypatch):
    image, seen = torch.rand(5, 1, 3, 6, generator=seeded()), []
    losses = critic_on(
        monkeypatch, lambda x: seen.append(x) or x.square().sum((1, 2, 3)) / 2, image, penalty=3.0, intensity=0.0
    )
    between, real, fake = (x.detach() for x in seen)
    assert torch.equal(real, image)
    assert_close(fake, warp(image, shift(5, (3, 6), columns=2.0), padding_mode="zeros"))
    share = ((between - fake) * (real - fake)).sum((1, 2, 3)) / (real - fake).square().sum((1, 2, 3))
    assert ((share > 0) & (share < 1)).all() and share.unique().numel() == 5
    assert_close(between, fake + share.view(-1, 1, 1, 1) * (real - fake))
    assert_close(losses["penalty"].detach(), 3 * (between.flatten(1).norm(dim=1) - 1).square().mean())


def test_with_varied_grey_values_the_critic_sees_standardised_films(monkeypatch):
    seen = []
    image = torch.rand(3, 1, 12, 12, generator=seeded())
    critic_on(monkeypatch, lambda x: seen.append(x) or x.sum((1, 2, 3)), image)
    for film in seen[1:]:
        assert_close(film.flatten(1).mean(1), torch.zeros(3), atol=1e-5, rtol=0)
        assert_close(film.flatten(1).std(1), torch.ones(3), atol=1e-3, rtol=0)


# orientation


def lies_at(image, upright):
    """Of which of the eight orientations of ``upright`` an image is: mirrored first, then quarter turns."""
    for mirrored in range(2):
        for turns in range(4):
            if torch.allclose(image, torch.rot90(upright.flip(-1) if mirrored else upright, turns, (-2, -1)), atol=1e-5):
                return mirrored, turns
    raise AssertionError("none of the eight orientations")


def test_the_class_of_a_film_is_its_mirroring_and_its_turns(monkeypatch):
    def small(count, size, generator, angle):
        assert angle == 30.0  # further, and a film between two quarter turns has no class
        return shift(count, size)

    monkeypatch.setattr(steps, "random_training_deformation", small)
    image, found = torch.rand(64, 1, 6, 6, generator=seeded()), []

    def perfect(seen):
        found.extend(lies_at(film, upright) for film, upright in zip(seen, image))
        scores = torch.zeros(64, 2, 4)
        for row, (mirrored, turns) in enumerate(found):
            scores[row, mirrored, turns] = 50
        return scores

    step = OrientationStep((6, 6), intensity=0.0)
    assert step(perfect, {"image": image})["orientation"] < 1e-6
    assert len(set(found)) == 8
    assert step(lambda seen: torch.zeros(64, 2, 4), {"image": image})["orientation"].item() == pytest.approx(math.log(8))


def test_the_probabilities_of_an_equivariant_network_are_its_own():
    """Averaging over the eight orientations changes nothing where all of them agree."""
    upright = torch.rand(1, 1, 6, 6, generator=seeded())
    scores = torch.randn(2, 4, generator=seeded(1)).log_softmax(0).flatten().log_softmax(0).view(2, 4)

    class Equivariant(ImageOrientation):
        def forward(self, image):
            return torch.stack([self.of(row) for row in image])

        def of(self, row):
            mirrored, turns = lies_at(row, upright[0])
            moved = scores.flip(0)[:, [0, 3, 2, 1]] if mirrored else scores
            return 3 + moved.roll(turns, 1)  # scores need not be normalised

    turns, mirrored = Equivariant(image_size=(6, 6), channels=(8,)).probabilities(upright)
    assert_close(turns[0], scores.exp().sum(0))
    assert_close(mirrored[0], scores.exp()[1].sum())


# predictor


class ScaleAndShift(Family):
    """``x -> (1 + theta_0) x + theta_1`` along the columns, voxels from the centre: such maps do not commute."""

    spatial_dims, num_parameters = 2, 2

    def forward(self, theta, spatial_size):
        matrix = torch.eye(2, 3).repeat(len(theta), 1, 1)
        matrix = matrix + torch.stack([torch.zeros_like(theta), theta], 1) @ torch.tensor([[0.0, 1, 0], [0, 0, 1]])
        return Deformation(matrix, torch.zeros(len(theta), 2, *spatial_size))


class Answers(nn.Module):
    """Gives one answer after another, whatever it sees, and keeps what it saw."""

    def __init__(self, *answers):
        super().__init__()
        self.answers, self.seen = [torch.tensor(a, requires_grad=True) for a in answers], []

    def forward(self, image):
        self.seen.append(image)
        return self.answers[len(self.seen) - 1].expand(len(image), -1)


ONE = dict.fromkeys(("grid", "image", "overlap", "answer", "smooth"), 1.0)


def predictor_step(g=0.0, **settings):
    """A step whose films are deformed by ``g`` voxels along the columns."""
    settings = {"weights": ONE, "intensity": 0.0, "deformation": lambda n, size, draw: shift(n, size, columns=g), **settings}
    return PredictorStep(ScaleAndShift(), **settings)


def middle(values, width=16):
    """An image ``(1, 1, 2, width)`` of zeros with ``values`` in the middle columns of both rows."""
    image, first = torch.zeros(1, 1, 2, width), (width - len(values)) // 2
    image[..., first : first + len(values)] = torch.tensor(values)
    return image


def test_every_term_of_the_predictor():
    """Deformed by 3 columns, undone by 2: what is left is a shift by 1."""
    image, answer = middle([0.2, 0.9, 0.4, 1.0]), middle([0.1, 0.8, 0.6, 0.3])

    class Under(nn.Module):
        def forward(self, x):
            return 4 * x - 2

    given = predictor_step(3.0, network=Under(), iterations=1)(Answers([0.0, -2.0]), {"image": image, "answer": answer})
    film = (image - image.mean()) / image.std()
    moved, left, seen = (torch.cat([x[..., 1:], x[..., -1:]], -1) for x in (film, answer, image))
    p = torch.sigmoid(4 * seen - 2)
    wanted = {
        "grid": torch.tensor(math.sqrt((128 / 16) ** 2 + 1) - 1),
        "image": (moved - film).square().mean(),
        "smooth": torch.tensor(4.0),
        "overlap": soft_dice(left, answer),
        "answer": soft_dice(p, left) - (left * p.log() + (1 - left) * (1 - p).log()).mean(),
    }
    assert set(given) == set(wanted)
    for name, value in wanted.items():
        assert_close(given[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_weights_scale_their_own_terms_and_others_are_refused():
    batch = {"image": middle([0.2, 0.9, 0.4, 1.0]), "answer": middle([0.1, 0.8, 0.6, 0.3])}
    settings = {"g": 3.0, "network": nn.Identity(), "iterations": 1}
    plain = predictor_step(**settings)(Answers([0.0, -2.0]), batch)
    for weights, factor in (
        (None, {"grid": 0.02, "image": 0.5, "overlap": 1.0, "answer": 1.0, "smooth": 0.02}),
        ({"grid": 7.0}, {"grid": 7.0, "image": 0.5, "overlap": 1.0, "answer": 1.0, "smooth": 0.02}),
    ):
        given = predictor_step(**settings, weights=weights)(Answers([0.0, -2.0]), batch)
        assert {name: value.item() for name, value in given.items()} == pytest.approx(
            {name: factor[name] * value.item() for name, value in plain.items()}
        )
    with pytest.raises(ValueError, match="'weights' may name grid, image, overlap, answer, smooth; got 2 and .*gird"):
        predictor_step(weights={"gird": 1.0})
    with pytest.raises(ValueError, match="'iterations' must be at least 1.*got 0"):
        predictor_step(iterations=0)
    with pytest.raises(ValueError, match="needs batch\\['answer'\\]; add AddAnswerd"):
        predictor_step(network=nn.Identity())(Answers([0.0, 0.0]), {"image": batch["image"]})


def grid_of(scale, offset, width=16):
    """The grid term of the map ``scale x + offset``."""
    x = torch.arange(width) - (width - 1) / 2
    return ((((scale - 1) * x + offset) * 128 / width).square() + 1).sqrt().mean() - 1


def test_iterations_compose_after_what_is_found_and_g_comes_last():
    """``g(first(second(x)))`` with ``g(x) = x + 3``, and the terms of both iterations count half."""
    first, second = [0.2, 1.0], [-0.5, 2.0]
    network = Answers(first, second)
    image = middle([0.2, 0.9, 0.4, 1.0])
    losses = predictor_step(3.0)(network, {"image": image})
    wanted = (grid_of(1.2, 1.0 + 3) + grid_of(1.2 * 0.5, 1.2 * 2.0 + 1.0 + 3)) / 2
    assert_close(losses["grid"], wanted, atol=1e-4, rtol=1e-5)
    assert_close(losses["smooth"], torch.tensor((0.2**2 + 1 + 0.25 + 4) / 2))
    shown = network.seen[0]
    assert_close(shown, warp(image, shift(1, (2, 16), columns=3.0)))
    x = torch.arange(16) - 7.5
    seen = warp(shown, torch.stack([0 * x, 0.2 * x + 1.0]).view(1, 2, 1, 16).expand(1, 2, 2, 16))
    assert_close(network.seen[1], seen)  # the second iteration sees what the first has moved
    assert not network.seen[1].requires_grad


def test_what_g_does_is_looked_up_where_the_prediction_points():
    """For ``phi`` found and ``g`` a stretch: ``g(phi(x)) = 1.5 (x + 2)``, and not ``1.5 x + 2``."""
    x = torch.arange(16) - 7.5
    g = torch.stack([0 * x, 0.5 * x]).view(1, 2, 1, 16).expand(1, 2, 2, 16)
    step = predictor_step(iterations=1, deformation=lambda n, size, draw: g)
    point = (x + 2).clamp(max=7.5)  # displacements continue beyond the frame with their border value
    wanted = (((2 + 0.5 * point) * 8).square() + 1).sqrt().mean() - 1
    assert_close(step(Answers([0.0, 2.0]), {"image": middle([1.0, 2.0])})["grid"], wanted, atol=1e-4, rtol=1e-5)


def test_an_iteration_teaches_its_own_prediction_alone():
    batch, both, alone = {"image": middle([0.2, 0.9, 0.4, 1.0])}, Answers([0.1, 1.0], [-0.2, 0.5]), Answers([0.1, 1.0])
    sum(predictor_step(3.0)(both, batch).values()).backward()
    sum(predictor_step(3.0, iterations=1)(alone, batch).values()).backward()
    assert_close(both.answers[0].grad, alone.answers[0].grad / 2)
    assert both.answers[1].grad.abs().min() > 0


@pytest.mark.parametrize("kind", ["predictor", "orientation"])
def test_seven_films_in_ten_are_black_outside_their_frame(kind, monkeypatch):
    seen, ones = [], {"image": torch.ones(1, 1, 4, 4)}
    deformation = lambda n, size, draw, **more: shift(n, size, columns=9.0)  # noqa: E731
    monkeypatch.setattr(steps, "random_training_deformation", deformation)
    if kind == "predictor":
        step = predictor_step(9.0, iterations=1)
        network = lambda x: seen.append(x) or torch.zeros(1, 2)  # noqa: E731
    else:
        step = OrientationStep((4, 4), intensity=0.0)
        network = lambda x: seen.append(x) or torch.zeros(1, 2, 4)  # noqa: E731
    for _ in range(300):
        step(network, ones)
    black = torch.cat(seen).flatten(1).amax(1) == 0
    assert 0.62 < black.float().mean() < 0.78
    assert (torch.cat(seen)[~black] == 1).all()


@pytest.mark.parametrize("build", [lambda net: PredictorStep(ScaleAndShift(), net), AddAnswerd])
def test_the_callers_network_is_copied_and_stays_in_training(build):
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout(0.5)).train()
    owner = build(network)
    assert network.training and all(p.requires_grad for p in network.parameters())
    assert not owner.network.training and not any(p.requires_grad for p in owner.network.parameters())
    assert torch.equal(owner.network[0].weight, network[0].weight)
    with torch.no_grad():
        network[0].weight += 1
    assert not torch.equal(owner.network[0].weight, network[0].weight)


# template


class Template:
    """Log-odds, a direct answer and a displacement made by hand."""

    def __init__(self, odds, slope=0.0, direct=None, points=None):
        self.odds, self.slope, self.direct, self.points = odds, slope, direct, points

    def read(self, image):
        return "velocity", self.direct

    def integrate(self, velocity):
        rows = torch.arange(5.0).view(1, 1, 5, 1).expand(1, 1, 5, 5)
        return torch.cat([self.slope * rows, torch.zeros_like(rows)], 1)

    def warp_prior(self, ddf, size):
        return self.odds

    def outline(self, velocity, size, count):
        return self.points


def template_losses(odds, label, network=None, **settings):
    return TemplateStep(**settings)(
        network or Template(odds), {"image": torch.zeros(len(label), 1, *label.shape[2:]), "label": label}
    )


def test_a_template_pays_dice_and_cross_entropy_of_compressed_log_odds():
    odds, label = 5 * torch.randn(2, 2, 4, 6, generator=seeded()), torch.zeros(2, 2, 4, 6)
    label[:, 0, 1:3, :3] = label[:, 1, 1:3, 3:] = 1
    squeezed = odds.sign() * 4 * torch.log(1 + odds.abs() / 4)
    assert_close(compress_logits(odds), squeezed)
    assert_close(template_losses(odds, label)["segmentation"], dice_and_entropy(squeezed, label))
    assert_close(template_losses(odds, label, compress=None)["segmentation"], dice_and_entropy(odds, label))
    direct = torch.randn(2, 2, 2, 3, generator=seeded(1))
    smaller = torch.zeros(2, 2, 2, 3)  # blocks of 2 x 2, of which more than half is inside
    found = template_losses(odds, label.roll(1, 2), Template(odds, direct=direct), direct=0.5)["direct"]
    smaller[:, 0, 1, 0] = smaller[:, 1, 1, 2] = 1  # the middle block is inside by half only, for each shape
    assert_close(found, 0.5 * dice_and_entropy(direct, smaller))


@pytest.mark.parametrize("slope, cost", [(-0.9, 0.2), (-1.5, 0.8), (-0.7, 0.0), (0.5, 0.0)])
def test_folds_cost_what_their_determinants_lack(slope, cost):
    """The map is 1 + slope times the rows: so is each of its determinants, and 0.3 is the margin."""
    zeros = torch.zeros(1, 1, 5, 5)
    assert template_losses(zeros, zeros, Template(zeros, slope))["folding"].item() == pytest.approx(20 * cost, abs=1e-4)
    half = template_losses(zeros, zeros, Template(zeros, slope), folding=10.0, margin=0.3)["folding"].item()
    assert half == pytest.approx(10 * cost, abs=1e-4)


def test_the_outline_costs_in_halves_of_the_longest_side():
    label = torch.zeros(1, 1, 5, 9)
    label[..., 2, 4] = 1
    points = torch.tensor([[2.0], [7.0]]).view(1, 1, 2, 1)  # three columns from the only voxel
    losses = template_losses(label, label, Template(label, points=points), outline=2.0, power=1.0, folding=0.0)
    distance = (3 + math.sqrt(9.01)) / 2 + 0.1  # least distance: 0.1
    assert losses["outline"].item() == pytest.approx(2.0 * distance / 4, rel=1e-5)
