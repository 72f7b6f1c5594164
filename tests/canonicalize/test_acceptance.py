"""Every rule by itself, then through the canonicaliser."""

import math

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalizer, acceptance
from monai_diffeo.energies import DeformationRegularizer, Energy, StandardizedEnergy, WeightedEnergy
from monai_diffeo.families import AffineMatrix, ControlGrid, Family
from monai_diffeo.flow import Deformation
from tests.canonicalize.test_any_family import FAMILIES
from tests.helpers import Brightness, FixedTheta, FromTemplate, blob, some_theta, tiny_canonicalizer

BAD = [math.nan, math.inf, -math.inf]


def shifted(family=None, **settings):
    """One translation by an eighth of the frame, whatever the image; no rule on energies unless given."""
    settings = {"energy": Brightness(), "max_energy_increase": None, **settings}
    theta = torch.tensor([[0.0, 0.0, 0.25, 0.0, 0.0, 0.0]])
    return Canonicalizer(family=family or AffineMatrix(), predictor=FixedTheta(theta), **settings)


# The rules


@pytest.mark.parametrize("bad", BAD)
def test_rows_are_finite_if_every_value_of_every_tensor_is(bad):
    first, second = torch.zeros(4, 2, 3), torch.zeros(4, 5)
    first[1, 1, 2], second[2, 0] = bad, bad
    assert acceptance.finite_rows(first, second).tolist() == [True, False, False, True]


@pytest.mark.parametrize("bad", BAD)
def test_an_image_that_is_not_finite_or_constant_is_refused(bad):
    images = torch.rand(4, 2, 5, 5)
    images[1, 1, 4, 4], images[2] = bad, 0.25
    images[3] = torch.tensor([0.0, 1.0]).view(2, 1, 1)  # constant in each channel, but not over all
    reasons = acceptance.refuse_unusable_image(images)
    assert reasons[0] is None and reasons[3] is None
    assert reasons[1].startswith("rejected: ") and "NaN or infinite" in reasons[1]
    assert reasons[2].startswith("rejected: ") and "constant" in reasons[2]


def test_an_energy_that_is_not_finite_is_refused():
    assert acceptance.refuse_nonfinite_energy(-3.0) is None
    assert all(acceptance.refuse_nonfinite_energy(bad).startswith("rejected: energy became") for bad in BAD)


def test_an_image_that_moved_by_more_than_a_share_of_its_frame_is_looked_at_again():
    ddf = torch.zeros(3, 2, 10, 20)
    ddf[0, 0], ddf[1, 1], ddf[2, 0, :, :10] = 0.5, 0.5, 0.5  # a twentieth, a fortieth, and a twentieth of half of the frame
    assert acceptance.looks_again(ddf, 0.03).tolist() == [True, False, False]
    assert acceptance.looks_again(ddf, 0.02).tolist() == [True, True, True]
    assert acceptance.looks_again(ddf, 0.05).tolist() == [False] * 3
    assert not acceptance.looks_again(torch.full((1, 2, 4, 4), math.nan), 0.0)[0]


@pytest.mark.parametrize(
    "energy, skip_below, skipped", [(0.5, 0.5, True), (0.4, 0.5, True), (0.6, 0.5, False), (0.4, None, False)]
)
def test_an_energy_up_to_the_threshold_is_skipped(energy, skip_below, skipped):
    reason = acceptance.skip_low_energy(energy, skip_below)
    assert (reason is not None) == skipped and (reason or "left alone:").startswith("left alone:")
    assert acceptance.skip_low_energy(math.nan, 0.5) is None


def test_a_negative_is_noted_below_the_ratio_of_its_energies():
    assert "negative (inverted, its energy is multiplied by 1.50)" in acceptance.negative_note(2.0, 3.0, 1.6)
    assert acceptance.negative_note(2.0, 3.0, 1.5) == "" == acceptance.negative_note(2.0, 3.0, 1.0)
    for energy, inverted in ((math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, math.inf), (0.0, 0.0), (1.0, -1.0)):
        assert acceptance.negative_note(energy, inverted, 1.5) == ""


def test_a_mirrored_film_is_noted_from_its_probability_on():
    assert "mirrored (probability 0.75)" in acceptance.mirrored_note(0.75, 0.75)
    assert acceptance.mirrored_note(0.74, 0.75) == "" == acceptance.mirrored_note(-1.0, 0.0)


def test_a_probability_in_single_precision_reaches_the_same_number_in_double_precision():
    row = torch.tensor([0.1, 0.9, 0.0, 0.0]).tolist()
    assert row[1] < 0.9 and acceptance.possible_rotations(row, 0.9, None) == [0, 1]
    assert acceptance.chosen_rotation(row, {0: 0.0, 1: 0.0}, 0.9, 1.0) == 1
    assert "mirrored" in acceptance.mirrored_note(row[1], 0.9)


def test_the_worst_folding_is_that_of_the_field_or_of_its_inverse():
    flat, folded = torch.zeros(1, 2, 6, 6), torch.zeros(1, 2, 6, 6)
    folded[0, 0] = -2 * torch.arange(6.0)[:, None]
    for ddf, inverse, share in ((flat, flat, 0.0), (folded, flat, 1.0), (flat, folded, 1.0), (flat, flat * math.nan, 1.0)):
        assert acceptance.worst_folding(ddf, inverse).item() == share


def test_any_share_of_folds_is_refused():
    assert acceptance.refuse_folding(0.0, 4) is None
    assert acceptance.refuse_folding(0.25, 4) == "rejected: 25.00% of the voxels still fold after 4 halvings"
    assert acceptance.refuse_folding(1e-9, 4).startswith("rejected") and acceptance.refuse_folding(math.nan, 4)


def test_a_deformation_that_is_not_finite_is_refused():
    assert acceptance.refuse_nonfinite_deformation(True) is None
    assert acceptance.refuse_nonfinite_deformation(False).startswith("rejected: the deformation holds NaN")


@pytest.mark.parametrize(
    "before, after, increase, refused",
    [
        (1.0, 3.0, 2.0, False),
        (1.0, 3.1, 2.0, True),
        (1.0, 1.0, 0.0, False),
        (1.0, 1.1, 0.0, True),
        (1.0, 0.1, -0.5, False),
        (1.0, 0.6, -0.5, True),
        (-2.0, -1.5, 1.0, False),
        (1.0, 1e9, None, False),
        (1.0, math.nan, 2.0, True),
        (math.nan, 1.0, 2.0, True),
    ],
)
def test_energy_may_rise_by_so_much_and_no_more(before, after, increase, refused):
    reason = acceptance.refuse_energy_increase(before, after, increase)
    assert (reason is not None) == refused and (reason or "rejected: energy rose").startswith("rejected: energy rose")


def test_a_high_energy_is_noted():
    assert acceptance.high_energy_note(2.5, 2.0) == "remains unlike the training images (energy 2.5)"
    assert acceptance.high_energy_note(2.0, 2.0) == "" == acceptance.high_energy_note(9.0, None)


# Through the canonicaliser


@pytest.mark.parametrize("family", [*FAMILIES, ControlGrid(2, 4, spacing=2)], ids=lambda family: type(family).__name__)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_predictor_that_answers_no_number_is_rejected_and_the_others_go_on(family, bad):
    theta = some_theta(family, 0.01, batch=2)

    class Answers(torch.nn.Module):
        def forward(self, image):
            return torch.where(image[:, :1, 0, 0] > 0, theta[:1], bad * torch.ones_like(theta[:1]))

    images = torch.cat([blob(2, (20, 16)), blob(1, (20, 16), shift=0.2)])
    images[:, 0, 0, 0] = torch.tensor([1.0, 0.0, 1.0])
    result = Canonicalizer(Brightness(), family, predictor=Answers(), max_energy_increase=None)(images)
    assert [s.split(":")[0] for s in result.status] == ["canonicalized", "rejected", "canonicalized"]
    assert "NaN or infinite" in result.status[1]
    assert torch.equal(result.image[1], images[1]) and result.energy_after[1] == result.energy_before[1]
    for tensor in (result.ddf, result.inverse_ddf, result.velocity, result.forward.ddf(), result.inverse.ddf()):
        assert tensor[1].abs().max() == 0 and tensor.isfinite().all()
    for tensor in (result.folding_fraction, result.inverse_error, result.forward.matrix, result.inverse.matrix):
        assert tensor.isfinite().all()
    assert result.ddf[0].abs().max() > 0 and result.tta_samples(images, 2)[0].ddf.isfinite().all()


class Stub(Family):
    """A displacement along axis 0 in each direction, ``slope * theta`` times the row, and a velocity."""

    spatial_dims, num_parameters = 2, 1

    def __init__(self, forward=0.0, inverse=0.0):
        super().__init__()
        self.slopes = (forward, inverse)

    def _deformation(self, slope, theta, size):
        ddf = torch.zeros(len(theta), 2, *size)
        ddf[:, 0] = slope * theta[:, :, None] * torch.arange(float(size[0]))[:, None]
        return Deformation(torch.eye(2, 3).repeat(len(theta), 1, 1), ddf)

    def forward(self, theta, spatial_size, steps=None):
        return self._deformation(self.slopes[0], theta, spatial_size)

    def inverse(self, theta, spatial_size, steps=None):
        return self._deformation(self.slopes[1], theta, spatial_size)


@pytest.mark.parametrize("slopes", [(-3.0, 0.1), (0.1, -3.0)])
def test_a_field_is_halved_and_rejected_while_it_or_its_inverse_folds(slopes):
    image, one = blob(1, shift=0.2), FixedTheta(torch.ones(1, 1))
    build = lambda n: Canonicalizer(  # noqa: E731
        Brightness(), Stub(*slopes), predictor=one, max_halvings=n, max_energy_increase=None
    )
    for halvings in (0, 1):  # 1 - 3 theta is positive from theta = 1/4 on
        result = build(halvings)(image)
        assert result.status == (f"rejected: 100.00% of the voxels still fold after {halvings} halvings",)
        assert result.ddf.abs().max() == 0 == result.inverse_ddf.abs().max()
    for halvings in (2, 4):
        result = build(halvings)(image)
        assert result.status == ("canonicalized",)
        assert_close(result.ddf[0, 0, 1, 0].item(), slopes[0] / 4)
        assert_close(result.inverse_ddf[0, 0, 1, 0].item(), slopes[1] / 4)


@pytest.mark.parametrize("slopes", [(math.nan, 0.0), (0.0, math.nan), (math.inf, 0.0), (0.0, -math.inf)])
def test_neither_field_nor_inverse_field_may_be_anything_but_finite(slopes):
    result = Canonicalizer(Brightness(), Stub(*slopes), predictor=FixedTheta(torch.ones(1, 1)), max_energy_increase=None)(
        blob()
    )
    assert "the deformation holds NaN" in result.status[0] and result.inverse_ddf.abs().max() == 0 == result.ddf.abs().max()


def test_only_the_rows_that_fold_are_halved():
    theta = torch.tensor([[1.0], [0.2]])

    class Two(torch.nn.Module):
        def forward(self, image):
            return theta

    result = Canonicalizer(Brightness(), Stub(-3.0, 0.0), predictor=Two(), max_energy_increase=None)(blob(2))
    assert_close(result.ddf[:, 0, 1, 0], torch.tensor([-0.75, -0.6]))


@pytest.mark.parametrize("bad", BAD)
def test_an_image_that_is_not_finite_has_no_energy_and_disturbs_no_other(bad):
    canonicalizer = tiny_canonicalizer()
    canonicalizer.energy = WeightedEnergy({"bright": Brightness(), "template": FromTemplate(blob())}, {"bright": 2.0})
    images = blob(3, shift=torch.tensor([0.1, 0.0, -0.2]))
    images[1, 0, 3, 3] = bad
    result = canonicalizer(images)
    for value in (result.energy_before, result.energy_after, *result.terms.values()):
        assert value.isnan().tolist() == [False, True, False]
    good = canonicalizer(images[[0, 2]])
    assert torch.equal(result.ddf[[0, 2]], good.ddf) and torch.equal(result.energy_before[[0, 2]], good.energy_before)
    assert torch.equal(result.image[1].nan_to_num(), images[1].nan_to_num()) and "NaN or infinite" in result.status[1]


def test_a_constant_image_keeps_its_own_energy():
    result = tiny_canonicalizer()(torch.cat([blob(1), torch.full((1, 1, 32, 32), 0.25)]))
    assert "constant" in result.status[1] and result.energy_before[1] == 0.25 == result.energy_after[1]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("steps", [0, 2])
def test_an_energy_that_is_not_finite_rejects_the_image(bad, moment, steps):
    class Breaks(Energy):
        def forward(self, image):
            original = (image.detach() == images).flatten(1).all(1)
            return torch.where(original == (moment == "before"), bad, 0.0) + 0 * image.sum()

    images = blob(1, shift=0.2)
    settings = {"steps": steps, "regularizer": DeformationRegularizer(), "skip_below": -1.0}
    result = shifted(energy=Breaks(), **settings)(images)
    assert result.status[0].startswith("rejected: energy became") and result.ddf.abs().max() == 0
    assert result.steps.item() == 0 or moment == "after"


def test_an_energy_of_exactly_the_threshold_leaves_the_image_alone():
    image = (torch.arange(64).view(1, 1, 8, 8) % 2).float()  # mean 1/2
    assert shifted(skip_below=0.5)(image).status[0].startswith("left alone")
    assert shifted(skip_below=0.4999)(image).status == ("canonicalized",)


def test_the_energy_may_rise_by_the_setting_and_no_more():
    image = torch.linspace(0, 1, 33)[:, None].expand(33, 33)[None, None]  # brighter by 1/8 four rows down, less at the border
    rise = (shifted()(image).energy_after - image.mean()).item()
    assert rise > 0.1
    assert shifted(max_energy_increase=rise + 0.01)(image).status == ("canonicalized",)
    assert "energy rose" in shifted(max_energy_increase=rise - 0.01)(image).status[0]
    darker = 1 - image
    assert shifted(max_energy_increase=-rise + 0.01)(darker).status == ("canonicalized",)
    assert "energy rose" in shifted(max_energy_increase=-rise - 0.01)(darker).status[0]


def test_a_negative_is_noted_at_the_canonical_pose_and_never_changed():
    given = blob(4, shift=torch.tensor([0.25, 0.25, 0.25, -0.25]))  # the first is moved onto the centre
    given[1] = 1 - given[1]
    given[2] = 0.5
    settings = {"polarity": FromTemplate(blob()), "min_polarity_ratio": 1.8}
    plain, noted = (shifted(**part)(given) for part in ({}, settings))
    assert plain.notes == ("",) * 4  # off unless set
    assert noted.notes[0] == "" == noted.notes[2] and noted.status[2].endswith("constant")
    assert noted.notes[1].startswith("looks like a negative (inverted, its energy is multiplied by 0.0")
    assert torch.equal(noted.image, plain.image) and torch.equal(noted.ddf, plain.ddf) and noted.status == plain.status
    assert torch.equal(noted.energy_after, plain.energy_after)
    energy = settings["polarity"]
    away, centred = ((energy(1 - image) / energy(image))[0].item() for image in (given, plain.image))
    assert away < centred / 2
    assert shifted(polarity=energy, min_polarity_ratio=(away + centred) / 2)(given).notes[0] == ""
    broken = given.clone()
    broken[1, 0, 0, 0] = math.nan
    assert shifted(**settings)(broken).notes[1] == ""
    rejected = shifted(**settings, max_energy_increase=-9.0)(given)  # as it was given
    ratio = (settings["polarity"](1 - given) / settings["polarity"](given))[3].item()
    assert (rejected.notes[3] != "") == (ratio < 1.8) and rejected.status[3].startswith("rejected")
    for part, error in (({"polarity": "vae"}, TypeError), ({**settings, "min_polarity_ratio": -1.0}, ValueError)):
        with pytest.raises(error, match="polarity"):
            shifted(**part)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("increase", [0.0, -1e9])
def test_an_energy_that_is_the_polarity_too_is_not_asked_again(scaled, increase):
    shown, broken = [], torch.full((1, 1, 32, 32), math.nan)
    images = torch.cat([blob(1, shift=-0.1), 1 - blob(1, shift=-0.4), blob(1, shift=0.4), broken])
    polarity, other = FromTemplate(blob()), FromTemplate(blob())
    term = StandardizedEnergy(polarity, 3.0, 0.2) if scaled else polarity
    energy = WeightedEnergy({"other": Brightness(), "blob": term}, level=-9.0)
    settings = {"energy": energy, "min_polarity_ratio": 1e9, "max_energy_increase": increase}  # so all are noted
    expected = shifted(**settings, polarity=other)(images)
    polarity.register_forward_hook(lambda _, given, value: shown.append(len(value)))
    assert shifted(**settings, polarity=polarity)(images).notes == expected.notes
    assert all("negative" in text for text in expected.notes[:3]) and shown == [4, 4, 4]  # before, after, and inverted
    kinds = ["rejected", "canonicalized", "canonicalized", "rejected"]
    assert [status.split(":")[0] for status in expected.status] == (kinds if increase == 0 else ["rejected"] * 4)


@pytest.mark.parametrize(
    "given, rotated, number", [(1.0, 2.0, 0), (2.0, 1.0, 3), (1.0, 1.0, 3), (1.0, math.nan, 0), (math.nan, 1.0, 0)]
)
def test_without_a_temperature_a_rotation_has_to_lower_the_energy(given, rotated, number):
    assert acceptance.chosen_rotation([0, 0, 0, 1.0], {0: given, 3: rotated}, 0.9, None) == number


@pytest.mark.parametrize(
    "probabilities, temperature, asked",
    [
        ([0.1, 0.9, 0.0, 0.0], None, [0, 1]),
        ([0.2, 0.8, 0.0, 0.0], None, []),
        ([0.95, 0.05, 0.0, 0.0], None, []),
        ([math.nan] * 4, None, []),
        ([0.2, 0.78, 0.015, 0.005], 5.0, [0, 1, 2]),
        ([0.9, 0.1, 0.0, 0.0], 5.0, []),
        ([0.005, 0.0, 0.0, 0.995], 5.0, [0, 3]),
    ],
)
def test_energies_are_asked_of_the_rotations_that_are_possible(probabilities, temperature, asked):
    assert acceptance.possible_rotations(probabilities, 0.9, temperature) == asked


@pytest.mark.parametrize("confidence", [0.0, 0.3])
def test_with_little_confidence_the_likeliest_rotation_is_asked(confidence):
    assert acceptance.possible_rotations([0.1, 0.35, 0.55, 0.0], confidence, None) == [0, 2]
    assert acceptance.possible_rotations([0.35, 0.6, 0.05, 0.0], confidence, 5.0) == [0, 1, 2]
    assert acceptance.possible_rotations([0.6, 0.35, 0.05, 0.0], confidence, None) == []
    assert acceptance.possible_rotations([0.6, 0.35, 0.05, 0.0], confidence, 5.0) == []


def test_a_rotation_is_chosen_by_the_rule_of_bayes():
    chosen = lambda p, energies, t=5.0, c=0.9: acceptance.chosen_rotation(p, dict(enumerate(energies)), c, t)  # noqa: E731
    prior, log = [0.2, 0.5, 0.3], math.log
    assert chosen(prior, [7.0] * 3) == 0 and chosen(prior, [7.0] * 3, c=0.5) == 1  # equal energies say nothing
    for shift in (0.0, 1e4):  # 0.5 against 0.5 exp(-log 9): exactly 0.9
        assert chosen([0.5, 0.5], [shift + 5 * log(9.01), shift]) == 1
        assert chosen([0.5, 0.5], [shift + 5 * log(8.99), shift]) == 0
    assert chosen([0.5, 0.5], [2 * 5 * log(8.99), 0.0]) == 1
    assert chosen([0.5, 0.5], [5 * log(9.01), 0.0], t=10.0) == 0
    assert chosen(prior, [9.0, math.nan, 8.0], c=0.5) == 2 and chosen(prior, [math.nan] * 3) == 0
    assert chosen([0.02, 0.98], [0.0, 60.0]) == 0  # the energy overrules a network that is sure


def test_two_looks_at_a_mirrored_image_multiply_their_odds():
    first, again = torch.tensor([0.9, 0.9, 0.9, 0.5, 1.0]), torch.tensor([0.5, 0.9, 0.1, 0.5, 0.0])
    assert_close(acceptance.mirrored_in_two_looks(first, again), torch.tensor([0.9, 81 / 82, 0.5, 0.5, 0.5]))
    assert_close(acceptance.mirrored_in_two_looks(first, again), acceptance.mirrored_in_two_looks(again, first))


def test_a_turn_is_noted_only_where_it_was_made():
    class Sideways(torch.nn.Module):
        def probabilities(self, image):
            turns = torch.tensor([[0.05, 0.95, 0.0, 0.0], [0.0, 0.0, 0.95, 0.05], [0.8, 0.2, 0.0, 0.0]])
            return turns[: len(image)], torch.tensor([0.8, 0.1, 0.1])[: len(image)]

    images = torch.cat([blob(1, shift=-0.4), torch.full((1, 1, 32, 32), 0.5), blob(1, shift=-0.4)])
    result = shifted(orientation=Sideways(), ood_threshold=-1.0, energy=lambda image: image.new_zeros(len(image)))(images)
    assert result.notes[0].startswith(
        "looks mirrored (probability 0.94) and is not changed; rotation by 90 degrees corrected; remains"
    )
    assert result.notes[1].startswith("remains unlike") and result.notes[2].startswith("remains unlike")
    turned = torch.rot90(images[:1], -1, (2, 3))
    expected = shifted()(turned).image
    assert_close(result.image[:1], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["steps", "iterations", "final_steps", "max_halvings", "tta_samples", "patience"])
@pytest.mark.parametrize("value", [1.5, True, float("inf")])
def test_counts_are_whole_numbers(name, value):
    with pytest.raises(ValueError, match=f"'{name}' must be a whole number"):
        tiny_canonicalizer(**{name: value})
