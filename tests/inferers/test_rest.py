"""Which of two answers counts: on the deformed image, or on the image that is only rotated."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.canonicalize.acceptance import agrees_better, prefer_motion
from monai_diffeo.families import AffineMatrix, ControlGrid
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.inferers.aggregation import choose_rows, overlap
from tests.helpers import Brightness, FixedTheta, Turned, blob, some_theta, tiny_canonicalizer

LIMITS = {"energy": 10.0, "disagreement": 0.5}


def canonicalizer(**settings):
    return tiny_canonicalizer(**{"tta_samples": 4, **settings})


def fickle(image):
    """Segments a blob in the middle; elsewhere it gives an answer that has nothing to do with the image."""
    rows = torch.linspace(-1, 1, image.shape[2]).view(-1, 1)
    middle = (image * rows).flatten(1).sum(1) / image.flatten(1).sum(1)
    noise = torch.rand(1, *image.shape[1:], generator=torch.Generator().manual_seed(0)) - 0.5
    return torch.where((middle.abs() > 0.2).view(-1, 1, 1, 1), noise, image - 0.3)


def shifting(**settings):
    """Moves every image by a quarter of the frame along axis 0."""
    theta, loose = torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.0, 0.0]]), {"max_energy_increase": None, "tta_samples": 4}
    return Canonicalizer(Brightness(), AffineMatrix(), predictor=FixedTheta(theta), **loose, **settings)


@pytest.mark.parametrize(
    "energy, moved, rest, kept",
    [
        (10.0, 0.951, 0.9, True),  # half of the disagreement
        (10.0, 0.94, 0.9, False),
        (10.1, 0.99, 0.9, False),
        (0.0, 1.0, 1.0, True),
        (0.0, float("nan"), 0.5, False),
        (99.0, 0.1, float("nan"), True),
    ],
)
def test_a_deformed_image_counts_where_it_looks_familiar_and_answers_agree_much_better(energy, moved, rest, kept):
    energy, moved, rest = (torch.tensor([value]) for value in (energy, moved, rest))
    assert prefer_motion(energy, moved, rest, LIMITS).tolist() == [kept]


def test_answers_agree_better_by_a_factor_of_their_disagreement():
    unknown = float("nan")
    found, others = torch.tensor([0.951, 0.94, 0.9, unknown, 0.1]), torch.tensor([0.9, 0.9, 0.951, 0.9, unknown])
    assert agrees_better(found, others, 0.5).tolist() == [True, False, False, False, True]
    assert agrees_better(found, found, 1.0).tolist() == [True, True, True, True, True]


@pytest.mark.parametrize("orientation", [None, Turned()])
def test_at_rest_an_image_is_rotated_and_nothing_else(orientation):
    image = blob(3, (20, 20), shift=torch.tensor([-0.4, 0.0, 0.4]), width=0.15)
    image[1] = 0.5  # constant: rejected
    middle = torch.linspace(-1, 1, 20).abs()
    energy = lambda x: (x * (middle[:, None] - middle)).flatten(1).mean(1) + x.flatten(1).mean(1)  # noqa: E731
    family = ControlGrid(2, controls=4)
    predictor, loose = FixedTheta(some_theta(family, 0.04)), {"max_energy_increase": None, "tta_samples": 4}
    made = Canonicalizer(energy, family, predictor=predictor, orientation=orientation, **loose)
    found = made(image)
    rest = made.at_rest(image, found)
    upright = image if orientation is None else torch.rot90(image, -1, (2, 3))
    assert_close(rest.image[[0, 2]], upright[[0, 2]], atol=1e-6, rtol=0)
    assert torch.equal(rest.image[1], image[1]) and rest.status == found.status
    assert_close(rest.energy_after[[0, 2]], energy(upright)[[0, 2]], atol=1e-6, rtol=0)
    answer = rest.image * 2
    assert_close(rest.warp_back(answer)[[0, 2]], 2 * image[[0, 2]], atol=1e-5, rtol=0)
    assert not rest.velocity.any() and not rest.folding_fraction.any() and ("rotation" in rest.notes[0]) == bool(orientation)
    assert rest.notes[0].endswith("not deformed: no better answers") and not rest.notes[1]
    if orientation is None:
        assert not rest.ddf.any() and not rest.inverse_ddf.any()
    assert (found.image[0] - rest.image[0]).abs().max() > 0.01


def test_each_image_gets_the_better_answer_and_a_batch_gives_what_its_images_give():
    """The first lies in the middle once it is moved, the second lies there as it is."""
    image, results, plain = blob(2, shift=torch.tensor([0.5, 0.0]), width=0.12), [], []
    made, limits = shifting(), {"energy": 10.0, "disagreement": 0.9}
    answer = DiffeoInferer(made, on_result=results.append, tta_samples=8, motion_limits=limits)(image, fickle)
    moved = DiffeoInferer(shifting(), on_result=plain.append)(image, fickle)
    rest = made.at_rest(image, plain[0])
    still = torch.stack([pose.warp_back(fickle(pose.image)) for pose in rest.tta_samples(image, 4)]).mean(0)
    assert [bool(note) for note in results[0].notes] == [False, True]
    assert_close(answer, torch.stack([moved[0], still[1]]), atol=1e-6, rtol=0)
    assert (results[0].agreement > 0.8).all() and plain[0].agreement[1] < 0.7
    assert results[0].largest_displacement[0] > 7 and results[0].largest_displacement[1] == 0
    assert results[0].status == ("canonicalized",) * 2
    for i in range(2):
        assert_close(
            DiffeoInferer(made, tta_samples=8, motion_limits=limits)(image[i : i + 1], fickle)[0], answer[i], atol=1e-4, rtol=0
        )
    strict = {"energy": -1.0, "disagreement": 0.9}
    assert_close(DiffeoInferer(made, tta_samples=8, motion_limits=strict)(image, fickle), still, atol=1e-6, rtol=0)


def test_at_rest_an_image_is_unlike_the_training_images_by_the_energy_that_it_then_has():
    made, image = shifting(ood_threshold=0.0), blob(2, shift=torch.tensor([0.5, 0.0]), width=0.12)
    energies = [found.energy_after.tolist() for found in (made(image), made.at_rest(image, made(image)))]
    for threshold in (min(map(min, energies)) - 1, sum(map(sum, energies)) / 4, max(map(max, energies)) + 1):
        made.ood_threshold = threshold
        found = made(image)
        for result, values in zip((found, made.at_rest(image, found)), energies):
            for note, energy in zip(result.notes, values):
                said = f"remains unlike the training images (energy {energy:.3g})"
                assert note.count("remains unlike") == (energy > threshold) and (said in note) == (energy > threshold)


@pytest.mark.parametrize("orientation", [None, Turned()])
def test_at_rest_an_energy_that_is_known_is_not_computed_again_and_the_callers_image_is_a_copy(orientation):
    made, image = canonicalizer(orientation=orientation), torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    found, seen = made(image), []
    made.energy.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    upright, as_given = made.at_rest(image, found), made.at_rest(image, found, rotated=False)
    assert seen == ([] if orientation is None else [2])
    for rest in (upright, as_given):
        assert_close(rest.energy_after, made.energy(rest.image))
    kept = image.clone()
    as_given.image.zero_()
    assert torch.equal(image, kept)


@pytest.mark.parametrize("limit, single", [(0.0, False), (1.01, True)])
def test_at_rest_the_answer_at_one_pose_counts_where_the_mean_over_poses_differs_from_it(limit, single):
    """The first counts as it is moved, whatever the limit; the second lies in the middle as it is."""
    image, made = blob(2, shift=torch.tensor([0.5, 0.0]), width=0.12), shifting()
    limits = {"energy": 10.0, "disagreement": 0.9}
    mean = DiffeoInferer(made, tta_samples=8, motion_limits=limits).infer(image, fickle)
    found = DiffeoInferer(made, tta_samples=8, motion_limits=limits | {"overlap": limit}).infer(image, fickle)
    assert mean.averaged is None and (mean.prediction[1] - fickle(image)[1]).abs().max() > 0.01
    assert_close(found.averaged, mean.prediction)
    assert_close(found.prediction[0], mean.prediction[0])
    assert_close(found.prediction[1], fickle(image)[1] if single else mean.prediction[1], atol=1e-5, rtol=0)
    assert found.records == mean.records


def test_the_overlap_of_two_predictions_is_the_dice_of_their_masks():
    one, other = (
        torch.tensor([[[1.0, 1.0, -1.0, -1.0]]] * 2)[..., None],
        torch.tensor([[[1.0, -1.0, -1.0, -1.0]]] * 2)[..., None],
    )
    assert_close(overlap(one, other), torch.tensor([2 / 3, 2 / 3]))
    assert overlap(-one.abs(), -one.abs()).isnan().all() and overlap(torch.rand(2, 3), torch.rand(2, 3)) is None


def lying(image):
    """Segments what is broader than high; of anything else it gives an answer that has nothing to do with the image."""
    rows, columns = (torch.linspace(-1, 1, n).square() for n in image.shape[2:])
    spread = [(image * w).flatten(1).sum(1) for w in (rows.view(-1, 1), columns)]
    noise = torch.rand(1, *image.shape[1:], generator=torch.Generator().manual_seed(0)) - 0.5
    return torch.where((spread[0] > spread[1]).view(-1, 1, 1, 1), noise, image - 0.3)


@pytest.mark.parametrize("size", [(32, 32), (32, 40)])
def test_a_rotation_counts_only_where_the_answers_agree_better_than_on_the_image_as_given(size):
    """The orientation network sees both rotated by 90 degrees: the first lies as it is, the second stands and lies then."""
    rows, columns = (torch.linspace(-1, 1, n) for n in size)
    first = torch.exp(-((rows[:, None] / 0.2).square() + (columns / 0.6).square()))
    second = torch.exp(-((rows[:, None] / 0.6).square() + (columns / 0.2).square()))
    image, results = torch.stack([first, second])[:, None], []
    family = ControlGrid(2, controls=4)
    loose = {"max_energy_increase": None, "tta_samples": 4, "orientation": Turned()}
    made = Canonicalizer(lambda x: 0 * x.flatten(1).mean(1), family, predictor=FixedTheta(some_theta(family, 0.0)), **loose)
    assert all(made(one[None]).rotations.tolist() == [1] for one in image)
    for one, turned in zip(image, (False, True)):
        inferer = DiffeoInferer(made, on_result=results.append, tta_samples=8, motion_limits=LIMITS)
        answer = inferer(one[None], lying)
        found = made(one[None])
        rest = made.at_rest(one[None], found, rotated=turned)
        poses = rest.tta_samples(one[None], 4)
        assert_close(answer, torch.stack([pose.warp_back(lying(pose.image)) for pose in poses]).mean(0), atol=1e-4, rtol=0)
        assert results[-1].rotations.tolist() == [int(turned)] and answer.shape == one[None].shape
        assert ("not rotated, not deformed" in results[-1].notes[0]) != turned
        assert ("rotation by 90 degrees corrected" in results[-1].notes[0]) == turned
    if size[0] == size[1]:
        both = DiffeoInferer(made, on_result=results.append, tta_samples=8, motion_limits=LIMITS)(image, lying)
        singles = [DiffeoInferer(made, tta_samples=8, motion_limits=LIMITS)(one[None], lying)[0] for one in image]
        assert_close(both, torch.stack(singles), atol=1e-4, rtol=0)


@pytest.mark.parametrize("count, each", [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2), (8, 4)])
def test_half_of_the_poses_are_of_the_image_at_rest(count, each):
    asked, image = [], blob(1)
    DiffeoInferer(canonicalizer(), tta_samples=count, motion_limits=LIMITS)(image, lambda x: asked.append(x) or x)
    found = canonicalizer()(image)
    expected = [pose.image for pose in found.tta_samples(image, each)]
    if count > 1:
        expected += [pose.image for pose in canonicalizer().at_rest(image, found).tta_samples(image, each)]
    assert len(asked) == len(expected)
    for one, other in zip(asked, expected):
        assert_close(one, other)


def test_one_pose_alone_has_no_agreement_and_the_deformed_image_counts():
    image, asked = blob(1), []
    answer = DiffeoInferer(canonicalizer(tta_samples=1), motion_limits=LIMITS)(image, lambda x: asked.append(x) or x)
    assert len(asked) == 1 and torch.equal(answer, DiffeoInferer(canonicalizer(tta_samples=1))(image, lambda x: x))


def test_rows_are_chosen_in_predictions_of_any_structure():
    first = {"map": torch.zeros(2, 1, 3, 3), "other": (torch.zeros(2, 4), "text"), "number": torch.tensor(0.0)}
    second = {"map": torch.ones(2, 1, 3, 3), "other": (torch.ones(2, 4), "words"), "number": torch.tensor(1.0)}
    chosen = choose_rows(torch.tensor([True, False]), first, second)
    assert chosen["map"].flatten(1).mean(1).tolist() == chosen["other"][0].mean(1).tolist() == [0.0, 1.0]
    assert chosen["other"][1] == "text" and chosen["number"] == 0


def test_a_result_that_knows_no_rotation_is_refused():
    made, image = canonicalizer(), blob(1)
    with pytest.raises(ValueError, match="'found' must be a result of this canonicalizer, it has no rotations"):
        made.at_rest(image, replace(made(image), rotations=None))


@pytest.mark.parametrize("limits", [{"energy": 3.0}, {"energy": 3.0, "disagreement": "0.5"}, {"energy": 1, "gain": 1}, 0.5])
def test_limits_without_meaning_are_refused(limits):
    with pytest.raises(ValueError, match="DiffeoInferer: 'motion_limits"):
        DiffeoInferer(canonicalizer(), motion_limits=limits)
