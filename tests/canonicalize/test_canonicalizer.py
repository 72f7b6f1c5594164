import warnings

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.energies import DeformationRegularizer, WeightedEnergy
from monai_diffeo.errors import ShapeError
from monai_diffeo.families import ControlGrid, PiecewiseStationary, Siren
from monai_diffeo.flow import folding_fraction, warp
from tests.helpers import Brightness, FixedTheta, FromTemplate, blob, some_theta, template_canonicalizer, tiny_canonicalizer


def test_optimisation_brings_a_shifted_blob_back_and_energy_falls():
    result = template_canonicalizer()(blob(2, shift=torch.tensor([0.2, -0.15])))
    assert result.status == ("canonicalized",) * 2
    assert (result.energy_after < 0.2 * result.energy_before).all()
    assert_close(result.image, warp(blob(2, shift=torch.tensor([0.2, -0.15])), result.ddf))


def test_the_way_back_is_the_inverse():
    image = blob(2, shift=0.2)
    result = template_canonicalizer()(image)
    assert result.inverse_error.max() < 0.02
    assert (result.warp_back(result.image) - image).abs().max() < 0.05


@pytest.mark.parametrize("settings", [{"steps": 0}, {"steps": 15}])
def test_a_batch_gives_what_its_images_give_one_by_one(settings):
    family = ControlGrid(2, 3)
    build = lambda: Canonicalizer(  # noqa: E731
        WeightedEnergy({"t": FromTemplate(blob())}),
        family,
        DeformationRegularizer(),
        FixedTheta(some_theta(family, 0.03)),
        learning_rate=0.01,
        max_energy_increase=50.0,
        **settings,
    )
    images = torch.cat([blob(7, shift=torch.linspace(-0.3, 0.3, 7)), torch.zeros(1, 1, 32, 32)])
    batch = build()(images)
    for i, image in enumerate(images):
        alone = build()(image[None])
        assert alone.status[0] == batch.status[i]
        assert_close(alone.ddf[0], batch.ddf[i], atol=1e-4, rtol=0)
        assert alone.steps[0] == batch.steps[i]
    assert len(set(batch.status)) > 1


def test_two_runs_give_identical_bits():
    image = blob(3, shift=torch.tensor([0.1, 0.2, -0.2]))
    first, second = template_canonicalizer()(image), template_canonicalizer()(image)
    assert torch.equal(first.ddf, second.ddf) and torch.equal(first.image, second.image)


def test_works_inside_no_grad_inference_mode_and_autocast():
    image = blob(1, shift=0.2)
    expected = template_canonicalizer()(image).ddf
    with torch.no_grad():
        assert torch.equal(template_canonicalizer()(image).ddf, expected)
    with torch.inference_mode():
        made_inside = image + 0
        assert torch.equal(template_canonicalizer()(made_inside).ddf, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(template_canonicalizer()(image).ddf, expected)


def test_each_image_keeps_its_best_and_stops_by_itself():
    canonicalizer = template_canonicalizer(steps=60, patience=5)
    result = canonicalizer(torch.cat([blob(1), blob(1, shift=0.25)]))
    assert result.steps[0] < result.steps[1]
    assert (result.energy_after <= result.energy_before + 1e-6).all()


def test_unusable_images_are_rejected_in_words_and_do_not_stop_the_others():
    images = blob(4, shift=0.2)
    images[1, 0, 3, 3] = float("nan")
    images[2] = 0.5
    result = template_canonicalizer()(images)
    assert result.status[0] == result.status[3] == "canonicalized"
    assert "NaN" in result.status[1] and "constant" in result.status[2]
    assert torch.equal(result.image[1].nan_to_num(), images[1].nan_to_num()) and torch.equal(result.image[2], images[2])
    assert result.ddf[1:3].abs().max() == 0
    assert_close(result.ddf[0], template_canonicalizer()(images[:1]).ddf[0], atol=1e-4, rtol=0)


def test_an_image_within_the_gate_is_left_alone_bit_for_bit():
    images = torch.cat([blob(1), blob(1, shift=0.3)])
    result = template_canonicalizer(skip_below=0.5)(images)
    assert result.status[0].startswith("left alone") and result.status[1] == "canonicalized"
    assert torch.equal(result.image[0], images[0])
    prediction = torch.rand(2, 3, 32, 32)
    assert torch.equal(result.warp_back(prediction)[0], prediction[0])
    assert not torch.equal(result.warp_back(prediction)[1], prediction[1])


def test_a_result_of_higher_energy_is_rejected():
    family = ControlGrid(2, 3)
    away = torch.zeros(1, family.num_parameters)
    away[0, 2] = 0.4
    canonicalizer = Canonicalizer(FromTemplate(blob()), family, predictor=FixedTheta(away))
    result = canonicalizer(blob())
    assert "energy rose" in result.status[0] and result.ddf.abs().max() == 0
    assert result.energy_after == result.energy_before


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_never_folds_however_wild_the_prediction(scale):
    family = ControlGrid(2, 6)
    for seed in range(5):
        predictor = FixedTheta(some_theta(family, scale, seed))
        result = Canonicalizer(Brightness(), family, predictor=predictor, max_energy_increase=None, iterations=2)(
            torch.rand(1, 1, 48, 48)
        )
        assert folding_fraction(result.ddf).item() == 0 == result.folding_fraction.item()
        if result.status[0] != "canonicalized":
            assert "fold" in result.status[0] and result.ddf.abs().max() == 0


def test_a_thousand_canonicalisations_fold_nowhere():
    family = ControlGrid(2, 8)
    theta = some_theta(family, 0.12, batch=1000)
    theta[:, :6] *= 3

    class Drawn(torch.nn.Module):
        def forward(self, image):
            return theta[image[:, 0, 0, 0].long()]

    images = torch.rand(1000, 1, 32, 32)
    images[:, 0, 0, 0] = torch.arange(1000.0)
    canonicalizer = Canonicalizer(Brightness(), family, predictor=Drawn(), max_energy_increase=None)
    moved = 0
    for part in images.split(250):
        result = canonicalizer(part)
        assert (folding_fraction(result.ddf) == 0).all()
        moved += int(result.moved.sum())
    assert moved > 900


def test_three_dimensions_and_several_channels():
    result = tiny_canonicalizer(3)(torch.rand(2, 2, 16, 20, 24))
    assert result.ddf.shape == (2, 3, 16, 20, 24) and result.velocity.shape == (2, 1, 3, 16, 20, 24)
    assert result.status == ("canonicalized",) * 2


def test_siren_from_scratch_moves_towards_lower_energy():
    canonicalizer = Canonicalizer(
        WeightedEnergy({"t": FromTemplate(blob())}),
        Siren(hidden=32, layers=2, scale=0.05),
        DeformationRegularizer(0.01),
        steps=40,
        learning_rate=0.0039,
        patience=None,
    )
    result = canonicalizer(blob(1, shift=0.2))
    assert result.energy_after < 0.6 * result.energy_before


class TestWarpBack:
    def test_warps_maps_at_every_resolution_and_passes_the_rest(self, canonicalizer):
        result = canonicalizer(torch.rand(2, 1, 32, 32))
        full, half, vector, labels = (
            torch.rand(2, 2, 32, 32),
            torch.rand(2, 4, 16, 16),
            torch.rand(2, 5),
            torch.ones(2, 1, 32, 32).long(),
        )
        back = result.warp_back({"full": full, "rest": (half, None, vector, [labels, "word"])})
        assert_close(back["full"], warp(full, result.inverse_ddf))
        assert back["rest"][0].shape == half.shape and not torch.equal(back["rest"][0], half)
        assert back["rest"][1] is None and back["rest"][2] is vector and torch.equal(back["rest"][3][0], labels)
        assert back["rest"][3][1] == "word"

    def test_labels_maps_without_channels_and_stacked_heads_are_warped_too(self, canonicalizer):
        result = canonicalizer(torch.rand(2, 1, 32, 32))
        scores = torch.rand(2, 3, 32, 32)
        labels = scores.argmax(1, keepdim=True)
        assert (
            torch.equal(result.warp_back(labels), warp(labels, result.inverse_ddf, "nearest"))
            and result.warp_back(labels).dtype == torch.long
        )
        assert not torch.equal(result.warp_back(labels), labels)
        assert_close(result.warp_back(scores[:, 0]), result.warp_back(scores)[:, 0])
        assert_close(result.warp_back(scores[:, None]), result.warp_back(scores)[:, None])
        assert result.warp_back(labels == 1).dtype == torch.bool

    def test_low_resolution_agrees_with_full_resolution_on_a_smooth_map(self, canonicalizer):
        result = canonicalizer(torch.rand(1, 1, 33, 33))
        smooth = blob(1, (33, 33), width=0.5)
        coarse = result.warp_back(smooth[..., ::2, ::2])
        assert (coarse - smooth[..., ::2, ::2]).abs().max() > 0.05
        assert_close(coarse, result.warp_back(smooth)[..., ::2, ::2], atol=0.015, rtol=0)


def test_errors_say_what_to_do(canonicalizer):
    with pytest.raises(ShapeError, match=r"\(B, C, H, W\), got \(128, 128\).*image\[None, None\]"):
        canonicalizer(torch.rand(128, 128))
    with pytest.raises(ValueError, match="predictor"):
        Canonicalizer(Brightness(), ControlGrid())
    with pytest.raises(ValueError, match="regularizer"):
        Canonicalizer(Brightness(), ControlGrid(), steps=3)


def test_the_callers_image_is_not_written_to_and_half_precision_comes_back_as_it_came(canonicalizer):
    image = torch.rand(1, 1, 32, 32).half()
    kept = image.clone()
    result = canonicalizer(image)
    assert torch.equal(image, kept) and result.image.dtype == torch.float16 and result.ddf.dtype == torch.float32


def test_progress_bar_is_off_unless_asked_for(capsys):
    with warnings.catch_warnings():
        template_canonicalizer(steps=3)(blob())
        assert capsys.readouterr().err == ""
        template_canonicalizer(steps=3, progress=True)(blob())
    assert "canonicalize" in capsys.readouterr().err


def test_an_image_that_remains_unlike_the_training_images_is_noted():
    family = ControlGrid(2, 3)
    still = FixedTheta(torch.zeros(1, family.num_parameters))
    canonicalizer = Canonicalizer(FromTemplate(blob()), family, predictor=still, ood_threshold=1.0)
    result = canonicalizer(torch.cat([blob(), blob(shift=0.4)]))
    assert result.notes[0] == "" and "remains unlike the training images" in result.notes[1]


def test_bicubic_sampling_keeps_fine_lines_sharper_and_the_range_of_the_image():
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    fine = (0.5 + 0.5 * torch.sin(x + 0.5 * y))[None, None].clamp(0.1, 0.9)
    linear, cubic = tiny_canonicalizer()(fine), tiny_canonicalizer(sampling="bicubic")(fine)
    assert torch.equal(linear.ddf, cubic.ddf)
    where = torch.stack([y, x]) + cubic.ddf[0]
    exact = (0.5 + 0.5 * torch.sin(where[1] + 0.5 * where[0])).clamp(0.1, 0.9)
    error = lambda image: (image[0, 0] - exact)[4:-4, 4:-4].square().mean().sqrt()  # noqa: E731
    assert error(cubic.image) < 0.5 * error(linear.image)
    for pose in [cubic, *cubic.tta_samples(fine, 2)]:
        assert fine.amin() <= pose.image.amin() and pose.image.amax() <= fine.amax()
        assert (pose.image - warp(fine, pose.ddf)).abs().max() > 0.01
    assert torch.equal(linear.tta_samples(fine, 2)[0].image, warp(fine, linear.tta_samples(fine, 2)[0].ddf))


@pytest.mark.parametrize("dims, word", [(2, "nearest"), (3, "bicubic")])
def test_a_way_of_sampling_that_does_not_exist_is_refused(dims, word):
    with pytest.raises(ValueError, match=f"'sampling'.*{word}"):
        tiny_canonicalizer(dims, sampling=word)


@pytest.mark.parametrize(
    "setting, value",
    [
        ("iterations", 0),
        ("tta_samples", 0),
        ("steps", -1),
        ("max_halvings", -1),
        ("final_steps", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("min_confidence", -0.1),
        ("rotation_temperature", 0.0),
        ("rotation_temperature", float("inf")),
        ("min_confidence", 1.1),
        ("min_confidence", float("nan")),
        ("patience", 0),
        ("skip_below", float("nan")),
        ("max_energy_increase", float("nan")),
        ("ood_threshold", float("nan")),
        ("min_motion", -0.1),
    ],
)
def test_a_setting_without_meaning_is_refused(setting, value):
    with pytest.raises(ValueError, match=f"Canonicalizer: '{setting}' must be .*, got {value}"):
        tiny_canonicalizer(**{setting: value})


@pytest.mark.parametrize(
    "settings",
    [
        {
            "min_confidence": 0.0,
            "steps": 0,
            "iterations": 1,
            "patience": 1,
            "final_steps": 0,
            "max_halvings": 0,
            "tta_samples": 1,
        },
        {
            "min_confidence": 1.0,
            "patience": None,
            "skip_below": None,
            "max_energy_increase": -1.0,
            "ood_threshold": float("inf"),
            "min_motion": 0.015,
        },
    ],
)
def test_the_limits_of_the_settings_are_accepted(settings):
    canonicalizer = tiny_canonicalizer(**settings)
    assert {name: getattr(canonicalizer, name) for name in settings} == settings


def test_parts_of_another_kind_are_named():
    family = ControlGrid(2, 3)
    for settings in ({"energy": None}, {"polarity": "vae"}, {"family": None}, {"search_family": "siren"}):
        with pytest.raises(TypeError, match=f"Canonicalizer: '{next(iter(settings))}' must be of class"):
            Canonicalizer(**{"energy": Brightness(), "family": family, "predictor": FixedTheta(some_theta(family)), **settings})


@pytest.mark.parametrize("family", [ControlGrid(2, 4), PiecewiseStationary(ControlGrid(2, 4), 2), ControlGrid(2, 4, spacing=2)])
def test_the_squarings_of_what_is_returned_act_on_every_family(family):
    theta, image = some_theta(family, 0.1), blob(1)
    for steps in (0, 3, 9):
        settings = {"predictor": FixedTheta(theta), "max_energy_increase": None, "max_halvings": 0}
        result = Canonicalizer(Brightness(), family, final_steps=steps, **settings)(image)
        assert torch.equal(result.ddf, family(theta, (32, 32), steps).ddf((32, 32)))
        assert torch.equal(result.inverse_ddf, family.inverse(theta, (32, 32), steps).ddf((32, 32)))
    assert (family(theta, (32, 32), 0).ddf() - family(theta, (32, 32), 9).ddf()).abs().max() > 0.05


def test_an_energy_is_evaluated_once_before_and_once_after():
    calls = []

    class Counts(Brightness):
        def forward(self, image):
            calls.append(len(image))
            return super().forward(image)

    canonicalizer = tiny_canonicalizer()
    for energy, terms in ((WeightedEnergy({"a": Counts(), "b": Brightness()}, {"a": 3.0}), {"a", "b"}), (Counts(), set())):
        calls.clear()
        canonicalizer.energy = energy
        images = torch.rand(3, 1, 32, 32)
        result = canonicalizer(images)
        assert calls == [3, 3] and set(result.terms) == terms
        assert torch.equal(result.energy_before, energy(images)) and torch.equal(result.energy_after, energy(result.image))


def test_the_callers_networks_are_neither_changed_nor_followed():
    family = ControlGrid(2, 3)

    class Learns(torch.nn.Module):
        def __init__(self, start):
            super().__init__()
            self.start = torch.nn.Parameter(start)

        def forward(self, image):
            return self.start.expand(len(image), -1)

        def probabilities(self, image):
            return self.start.softmax(1).expand(len(image), -1), image.new_zeros(len(image))

    class Own(Brightness):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, image):
            return self.weight * super().forward(image)

    predictor, orientation = Learns(some_theta(family, 0.03)).train(), Learns(torch.tensor([[0.0, 9.0, 0.0, 0.0]])).train()
    regularizer, energy, image = DeformationRegularizer().train(), Own(), blob(1, shift=0.2)
    canonicalizer = Canonicalizer(
        energy, family, regularizer, predictor, orientation, steps=2, max_energy_increase=None, patience=None
    )
    before = canonicalizer(image)
    assert predictor.training and orientation.training and regularizer.training and "degrees corrected" in before.notes[0]
    assert all(p.requires_grad and p.grad is None for part in (predictor, orientation, energy) for p in part.parameters())
    assert not any(p.requires_grad for p in canonicalizer.predictor.parameters()) and not canonicalizer.predictor.training
    with torch.no_grad():
        predictor.start += 1.0
        orientation.start.zero_()
    predictor(image).sum().backward()
    assert torch.equal(canonicalizer(image).ddf, before.ddf)
    assert not canonicalizer.train().training and canonicalizer.energy is energy


def test_images_with_a_status_are_not_optimised_and_velocities_come_in_order():
    images = torch.cat([blob(1), torch.full((1, 1, 32, 32), 0.5), blob(1, shift=0.25)])
    result = template_canonicalizer(steps=5, skip_below=0.5, patience=None)(images)
    assert result.steps.tolist() == [0, 0, 5]
    assert [status.partition(":")[0] for status in result.status] == ["left alone", "rejected", "canonicalized"]
