"""What is measured on held-back images, and the rule that says whether a fit worked."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from monai_diffeo.canonicalize import load_canonicalizer
from monai_diffeo.errors import ConfigError
from monai_diffeo.fit import NetworkUnderTest, fit_limits
from monai_diffeo.fit import outcome as module
from monai_diffeo.fit.network import dice_of_masks, masks_of_label
from monai_diffeo.fit.outcome import FitOutcome, Overlap, keeps_orientation, measure, measure_orientation, measure_overlap
from monai_diffeo.flow import compose, invert, rotate_axes
from tests.helpers import blob, canonicalizer_folder, tiny_canonicalizer

GOOD = FitOutcome(10, 0.0, 10.0, 4.0, 0.6, 1.0, 0.0, 0.1)
DICE = Overlap("masks", 5, 8, 0.9, 0.9, 0.7, 0.85)
CPU = torch.device("cpu")


def test_the_rule_takes_half_of_the_energy_gap_no_fold_and_half_of_the_displacement_or_a_third_of_the_dice():
    both = replace(GOOD, overlap=DICE)
    assert GOOD.closed == pytest.approx(0.6) and GOOD.reasons() == both.reasons() == replace(both, undone=0.0).reasons() == []
    closes = "Yes: canonicalisation closes 60% of the energy gap that deformation opens"
    assert GOOD.sentence() == f"{closes}, undoes 60% of the displacement, and nothing folds."
    assert both.sentence() == f"{closes}, raises the Dice on deformed images from 0.700 to 0.850, and nothing folds."
    for good, change, words in [
        (GOOD, {"energy_canonical": 6.0}, "40% of the energy gap is closed, less than 50%"),
        (GOOD, {"energy_deformed": -1.0}, "0% of the energy gap is closed"),
        (GOOD, {"undone": 0.4}, "40% of the displacement is undone"),
        (GOOD, {"folding": 1e-3}, "up to 0.10% of a field folds"),
        (both, {"overlap": replace(DICE, deformed=0.69)}, "on deformed images the Dice falls from 0.700 to 0.690"),
        (both, {"overlap": replace(DICE, deformed=0.76)}, "30% of the Dice that deformation costs is regained, less than 33%"),
        (both, {"overlap": replace(DICE, upright=0.86)}, "on undeformed images the Dice falls from 0.900 to 0.860"),
    ]:
        bad = replace(good, **change)
        assert len(bad.reasons()) == 1 and bad.sentence().startswith(f"No: {words}") and not bad.as_dict()["worked"]
    own = replace(DICE, reference="its own answers", upright_plain=1.0, upright=0.86)
    assert replace(GOOD, overlap=own).reasons() == []  # other answers are not worse ones
    robust = replace(DICE, deformed_plain=0.885, deformed=0.887)
    assert replace(GOOD, overlap=robust).reasons() == []  # there is hardly a gap to close
    assert GOOD.as_dict()["worked"] and GOOD.as_dict()["closed"] == pytest.approx(0.6)


@pytest.mark.parametrize("shares, kept", [((0.95, 0.8), True), ((0.94, 1.0), False), ((1.0, 0.79), False)])
def test_an_orientation_network_is_used_if_it_leaves_upright_images_and_finds_rotations(shares, kept):
    assert keeps_orientation(*shares) is kept


class Undoes(nn.Module):
    """Moves every image by a share of the inverse of the deformation that was drawn for it; undeformed images not at all."""

    def __init__(self, inverses, share):
        super().__init__()
        self.inverses, self.share, self.calls = inverses, share, 0

    def __call__(self, image):
        found = tiny_canonicalizer()(image)
        i, self.calls = self.calls, self.calls + 1
        ddf = self.share * self.inverses[i // 2][None] if i % 2 else torch.zeros_like(found.ddf)
        return replace(found, ddf=ddf)


def test_undone_is_1_for_the_inverse_and_0_for_the_identity(monkeypatch):
    images = blob(3, (32, 48))
    inverses = invert(module.twin_deformations(3, (32, 48), 5))
    exact, none = (measure(Undoes(inverses, share), images, 5, 100.0)[0] for share in (1.0, 0.0))
    assert exact.undone > 0.85 and none.undone == pytest.approx(0)
    assert exact.images == 3 and exact.seconds > 0


def test_twins_in_the_same_pose_are_undone_wherever_that_pose_is():
    there, other = module.twin_deformations(2, (32, 32), 3).split(1)
    found = [SimpleNamespace(ddf=ddf) for ddf in (0.5 * other, compose(invert(there), 0.5 * other))]
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    assert module._undone(image, there, *found) > 0.85 and module._undone(image, there, found[0], found[0]) < 0.6


def test_displacement_of_an_even_background_does_not_count():
    image, ddf = torch.zeros(1, 1, 32, 32), torch.ones(1, 2, 32, 32)
    image[..., 4:8, 4:8] = 1.0
    still, half = SimpleNamespace(ddf=torch.zeros(1, 2, 32, 32)), SimpleNamespace(ddf=torch.zeros(1, 2, 32, 32))
    half.ddf[..., :16] = -1.0  # undone where the image is not even
    assert module._undone(image, ddf, still, half) == pytest.approx(1)


def test_measures_of_a_canonicalizer_are_of_these_images_before_and_after():
    images = blob(3, (32, 32))
    signs = []
    outcome, deformed, canonical = measure(tiny_canonicalizer(), images, 0, 100.0, signs)
    assert len(signs) == 2 * 3 and "change" not in signs[0]
    assert outcome.energy == pytest.approx(images.mean().item(), rel=1e-4)  # of tests.helpers.Brightness
    assert outcome.energy_deformed == pytest.approx(deformed.flatten(1).mean(1).median().item(), rel=1e-4)
    assert outcome.energy_canonical == pytest.approx(canonical.flatten(1).mean(1).median().item(), rel=1e-4)
    assert outcome.canonicalized == 1 and outcome.folding == 0
    assert not torch.equal(measure(tiny_canonicalizer(), images, 1, 100.0)[1], deformed), "the seed draws the deformations"
    assert measure(tiny_canonicalizer(), images, 0, 0.0)[0].images == 2, "two are measured however little time is left"


class SeesCorner(nn.Module):
    """Sees a bright first corner's rotation; a dim image it takes for one turned by 180 degrees."""

    num_rotations = 4

    def probabilities(self, image):
        corners = [rotate_axes(image, (4 - k) % 4)[0, 0, 0, 0] for k in range(4)]
        scores = torch.eye(4)[2 if max(corners) < 0.1 else int(torch.stack(corners).argmax())]
        return 0.95 * scores[None] + 0.0125, torch.zeros(1)


def test_orientations_are_counted_on_upright_and_on_turned_images():
    images = torch.zeros(4, 1, 6, 6)
    images[:, 0, 0, 0] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    kept, found = measure_orientation(SeesCorner(), images, 0)
    assert kept == 0.75 and found >= 0.75


def test_dice_by_hand_and_labels_of_numbers_or_masks():
    a = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    b = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    assert dice_of_masks(a, b) == pytest.approx((2 / 3 + 0) / 2)  # a class that is in neither does not count
    assert dice_of_masks(a[1:2], b[1:2]) == 1
    assert masks_of_label(torch.tensor([[[0, 1], [2, 1]]]), 2).tolist() == [[[0, 1], [0, 1]], [[0, 0], [1, 0]]]
    assert masks_of_label(torch.tensor([[[0, 255]]]), 1).tolist() == [[[0, 1]]]
    assert masks_of_label(torch.tensor([[[0, 3]]]), 2) is None and masks_of_label(torch.ones(3, 2, 2), 2) is None


@pytest.mark.parametrize("channels, activation", [(1, "sigmoid"), (3, "softmax")])
def test_the_activation_follows_the_channels_unless_it_is_said(channels, activation):
    image = torch.rand(1, 8, 8)
    net = NetworkUnderTest(nn.Conv2d(1, channels, 1))
    answer = net.ask(image, CPU)
    assert net.activation == activation and not net.stated
    assert net.classes(answer).shape[0] == net.masks(answer).shape[0] == (channels if channels == 1 else channels - 1)
    stated = NetworkUnderTest(nn.Conv2d(1, channels, 1), activation="sigmoid")
    assert stated.stated and stated.masks(stated.ask(image, CPU)).shape[0] == channels
    with pytest.raises(ConfigError, match="'activation' must be 'sigmoid' or 'softmax', got 'relu'"):
        NetworkUnderTest(nn.Conv2d(1, 1, 1), activation="relu")


def test_a_network_that_cannot_take_the_image_says_so():
    with pytest.raises(ConfigError, match=r"fit: the network cannot take an image \(1, 8, 8\): .*Give a bundle"):
        NetworkUnderTest(nn.Conv2d(2, 1, 1)).ask(torch.rand(1, 8, 8), CPU)


class Threshold(nn.Module):
    def forward(self, image):
        return 100 * (image - 0.5)


def test_overlap_is_of_masks_or_of_own_answers_plain_and_canonicalised():
    net, images = NetworkUnderTest(Threshold()), blob(3, (32, 32))
    canonicalizer = tiny_canonicalizer(tta_samples=2)
    signs = []
    own = measure_overlap(canonicalizer, net, [(image, None) for image in images], 0, CPU, 100.0, signs)
    assert len(signs) == 2 * 3 and all(0 <= row[n] < 0.5 for row in signs for n in ("disagreement", "change"))
    assert max(row["change"] for row in signs) > 0 < max(row["disagreement"] for row in signs)
    still = canonicalizer(images[:1])
    assert signs[0]["energy"] == float(still.energy_after) and signs[0]["displacement"] > 0 == signs[0]["folding"]
    assert own.reference == "its own answers" and own.images == 3 and own.tta_samples == 2
    assert own.upright_plain == 1 and 0.5 < own.upright <= 1 and 0.8 < own.deformed_plain < 1
    wrong = [(image, torch.ones(1, 32, 32)) for image in images]
    masks = measure_overlap(canonicalizer, net, wrong, 0, CPU, 0.0)
    share = float((images[0] > 0.5).float().mean())
    assert (
        masks.reference == "masks"
        and masks.images == 2
        and masks.upright_plain == pytest.approx(2 * share / (1 + share), rel=1e-3)
    )
    assert measure_overlap(canonicalizer, net, [(images[0], torch.full((1, 32, 32), 7.0).repeat(2, 1, 1))], 0, CPU, 1.0) is None


def test_limits_of_a_folder_that_was_fitted_earlier(tmp_path):
    folder, network = canonicalizer_folder(tmp_path / "energy"), nn.Sequential(Threshold(), nn.Dropout(0.9))
    assert load_canonicalizer(folder).limits is None
    batches = list(blob(6, shift=torch.linspace(-0.2, 0.2, 6)).split(2))
    limits = fit_limits(folder, batches, network)
    assert limits == load_canonicalizer(folder).limits and limits.images == 2 * 6 and not network.training
    assert set(limits.limits) == {
        "energy",
        "energy_low",
        "energy_before",
        "displacement",
        "folding",
        "change",
    } and limits == fit_limits(folder, batches, network)
    assert fit_limits(folder, batches, network, seed=1) != limits
    before = (folder / "limits.json").read_bytes()
    assert fit_limits(folder, batches, network, mode="refine") == load_canonicalizer(folder, "refine").limits
    assert (folder / "limits.json").read_bytes() == before
