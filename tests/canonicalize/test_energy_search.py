"""A search of another energy, on a frame of its own."""

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalizer, EnergySearch
from monai_diffeo.energies import AtlasEnergy, DeformationRegularizer
from monai_diffeo.errors import ShapeError
from monai_diffeo.families import ControlGrid
from monai_diffeo.flow import compose
from monai_diffeo.networks import ImageAtlas
from monai_diffeo.networks.predictor import resample_image
from tests.helpers import Brightness, FixedTheta, FromTemplate, blob, some_theta, template_canonicalizer
from tests.helpers_device import ClaimedDevice, claims

FAMILY = ControlGrid(2, controls=3)


def searched(energy, image_size, **settings):
    search = EnergySearch(energy, image_size, steps=40)
    settings = {"regularizer": DeformationRegularizer(smooth=0.1), "max_energy_increase": None, **settings}
    return Canonicalizer(Brightness(), FAMILY, search=search, **settings)


def test_on_the_whole_frame_it_finds_what_steps_find():
    image = blob(1, shift=0.2)
    ours = template_canonicalizer(patience=None, max_energy_increase=None)(image)
    assert_close(searched(FromTemplate(blob(1)), (32, 32))(image).ddf, ours.ddf, atol=1e-4, rtol=0)


def test_on_half_the_frame_it_moves_the_image_nearly_as_far():
    image = blob(2, shift=torch.tensor([0.2, -0.1]))
    whole, half = (searched(FromTemplate(blob(1, size)), size)(image) for size in ((32, 32), (16, 16)))
    unlike = FromTemplate(blob(1))
    assert (unlike(half.image) < 0.05 * unlike(image)).all() and (unlike(whole.image) < 0.01 * unlike(image)).all()
    assert half.ddf.shape == (2, 2, 32, 32)
    alone = searched(FromTemplate(blob(1, (16, 16))), (16, 16))(image[1:])
    assert_close(half.ddf[1:], alone.ddf, atol=1e-4, rtol=0)


def test_it_goes_on_from_where_the_predictor_ended():
    theta, seen = some_theta(FAMILY, 0.1), []
    predictor = FixedTheta(theta)
    image, resting = blob(1, shift=0.2), searched(lambda image: 0 * image.flatten(1).mean(1), (16, 16), predictor=predictor)
    assert_close(resting(image).ddf, FAMILY(theta, (32, 32), 7).ddf((32, 32)), atol=1e-5, rtol=0)
    atlas = AtlasEnergy(ImageAtlas((16, 16)).measure(blob(1)))
    searched(lambda moved: seen.append(moved.detach()) or atlas(moved), (16, 16), predictor=predictor)(image)
    assert_close(seen[0], resample_image(resting(image).image, (16, 16)), atol=0.05, rtol=0)
    assert (seen[0] - resample_image(image, (16, 16))).abs().max() > 0.15
    found = searched(atlas, (16, 16), predictor=predictor)(image)
    both = [link(image) for link in (resting, searched(atlas, (16, 16), predictor=predictor))]
    assert atlas(both[1].image) < 0.7 * atlas(both[0].image)
    assert_close(compose(found.ddf, found.inverse_ddf).abs().amax(), torch.zeros(()), atol=0.2, rtol=0)


def test_it_never_ends_above_where_it_began():
    energy = AtlasEnergy(ImageAtlas((16, 16)).measure(blob(1)))
    wild = EnergySearch(energy, (16, 16), steps=3, learning_rate=5.0)
    found = Canonicalizer(energy, FAMILY, search=wild, max_energy_increase=None)(blob(1))
    assert energy(found.image) <= energy(blob(1)) + 1e-4
    assert wild.energy is not energy and not any(value.requires_grad for value in wild.parameters())


@pytest.mark.parametrize("own", [False, True])
def test_on_cuda_a_batch_moves_at_once_in_double_precision_if_its_energy_can(own, monkeypatch):
    asked, lower = [], EnergySearch.lower
    monkeypatch.setattr(EnergySearch, "lower", lambda self, goal, tick: asked.append(goal.image) or lower(self, goal, tick))
    atlas = AtlasEnergy(ImageAtlas((16, 16)).measure(blob(1)))
    canonicalizer = searched((lambda image: atlas(image)) if own else atlas, (16, 16))  # whose precision nobody knows
    canonicalizer.energy = atlas
    assert canonicalizer._computes_double() is not own
    images = blob(3, shift=torch.tensor([0.2, 0.0, -0.1]))
    if not own:
        with ClaimedDevice():
            found, *alone = [canonicalizer.to("cuda")(some) for some in (images.to("cuda"), *images[:, None].to("cuda"))]
        assert [(len(image), image.dtype) for image in asked] == [(n, torch.float64) for n in (3, 1, 1, 1)] and claims(
            found.ddf
        )
        assert_close(found.ddf, torch.cat([one.ddf for one in alone]), atol=1e-4, rtol=0)
        assert {value.dtype for value in canonicalizer.buffers()} == {torch.float32}


def test_its_steps_are_counted_and_shown(capfd):
    pytest.importorskip("tqdm")
    found = searched(AtlasEnergy(ImageAtlas((16, 16)).measure(blob(1))), (16, 16), progress=True)(blob(2, shift=0.1))
    assert found.steps.tolist() == [40, 40] and "80/80" in capfd.readouterr().err


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"steps": 0}, "'steps' must be at least 1, got 0"),
        ({"steps": 2.5}, "'steps' must be a whole number, at least 1, got 2.5"),
        ({"learning_rate": -1.0}, "'learning_rate' must be at least 0.0, got -1.0"),
        ({"patience": 0}, "'patience' must be at least 1 or None, got 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, words):
    with pytest.raises(ValueError, match=f"^EnergySearch: {words}"):
        EnergySearch(Brightness(), (16, 16), **settings)


def test_a_frame_of_other_axes_is_refused():
    with pytest.raises(ShapeError, match=r"EnergySearch: 'image_size' must have shape \(2,\), got \(1,\)"):
        searched(Brightness(), (16,))(blob(1))
