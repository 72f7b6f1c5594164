"""The canonicaliser with families that are flows, and with such as are not."""

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.canonicalize.search import Chain
from monai_diffeo.energies import DeformationRegularizer, WeightedEnergy
from monai_diffeo.families import (
    CPAB,
    AffineCPAB,
    AffineMatrix,
    ControlGrid,
    DiffeomorphicAffine,
    Homography,
    PiecewiseStationary,
    Siren,
    ThinPlateSpline,
)
from monai_diffeo.flow import folding_fraction, warp
from monai_diffeo.transforms import Canonicalize
from tests.helpers import Brightness, FixedTheta, FromTemplate, blob

FAMILIES = [
    AffineMatrix(2),
    DiffeomorphicAffine(2),
    Homography(),
    ThinPlateSpline(2, 3),
    CPAB((3, 3)),
    AffineCPAB((2, 2), "slide"),
    ControlGrid(2, 4),
    Siren(2, hidden=16, layers=1, scale=0.1),
    PiecewiseStationary(ControlGrid(2, 4), 3),
]


def drawn(family, spread=0.06, seed=0, batch=1):
    return family.sample(batch, spread, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_optimisation_lowers_the_energy_and_there_is_a_way_back(family):
    canonicalizer = Canonicalizer(
        WeightedEnergy({"template": FromTemplate(blob())}),
        family,
        DeformationRegularizer(smooth=0.1),
        steps=30,
        learning_rate=0.02,
    )
    image = blob(2, shift=torch.tensor([0.2, -0.15]))
    result = canonicalizer(image)
    assert result.status == ("canonicalized",) * 2
    assert (result.energy_after < 0.5 * result.energy_before).all()
    assert result.inverse_error.max() < 0.05 and result.velocity.shape == (2, 1, 2, 32, 32)
    assert (result.warp_back(result.image) - image).abs().max() < 0.06
    assert_close(result.forward.ddf((32, 32)), result.ddf)
    assert_close(result.inverse.ddf((32, 32)), result.inverse_ddf)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("search_family", [None, ControlGrid(2, 3)])
def test_a_prediction_and_a_search_of_another_family_compose(family, search_family):
    theta = drawn(family)
    steps = 0 if search_family is None else 2
    canonicalizer = Canonicalizer(
        Brightness(),
        family,
        DeformationRegularizer(),
        FixedTheta(theta),
        iterations=2,
        steps=steps,
        search_family=search_family,
        max_energy_increase=None,
    )
    image = blob(1, (40, 36))
    result = canonicalizer(image)
    flow = family(theta, (40, 36))
    twice = flow.after(flow)
    if steps == 0:
        assert_close(result.ddf, twice.ddf((40, 36)), atol=1e-4, rtol=0)
    assert result.velocity.shape[1] == 2 + (steps > 0)
    assert_close(result.image, warp(image, result.ddf))
    assert result.inverse_error.max() < 0.1 and result.ddf.abs().max() > 0.5


@pytest.mark.parametrize("family", [ThinPlateSpline(2, 4), AffineMatrix(2), Homography(), CPAB((4, 4))])
def test_never_folds_however_wild_the_prediction(family):
    for seed in range(3):
        canonicalizer = Canonicalizer(
            Brightness(), family, predictor=FixedTheta(drawn(family, 1.0, seed)), max_energy_increase=None
        )
        result = canonicalizer(torch.rand(1, 1, 32, 32))
        assert folding_fraction(result.ddf).item() == 0 == result.folding_fraction.item()
        assert result.status[0] == "canonicalized" or result.ddf.abs().max() == 0


def test_rows_that_are_not_moved_have_no_map_and_no_velocity():
    family = CPAB((2, 2))
    images = torch.cat([torch.full((1, 1, 16, 16), 0.5), torch.rand(1, 1, 16, 16)])
    result = Canonicalizer(Brightness(), family, predictor=FixedTheta(drawn(family)), max_energy_increase=None)(images)
    for flow in (result.forward, result.inverse):
        assert flow.ddf()[0].abs().max() == 0 < flow.ddf()[1].abs().max()
    assert result.velocity[0].abs().max() == 0 < result.velocity[1].abs().max()


@pytest.mark.parametrize("family", [ThinPlateSpline(2, 3), CPAB((3, 3))])
def test_the_transform_inverts_from_its_record(family):
    transform = Canonicalize(Canonicalizer(Brightness(), family, predictor=FixedTheta(drawn(family)), max_energy_increase=None))
    image = blob(1, (40, 40))[0]
    moved = transform(image)
    assert (moved.as_tensor() - image).abs().max() > 0.05
    assert_close(transform.inverse(moved).as_tensor(), image, atol=0.03, rtol=0)


def test_a_chain_and_its_way_back_cancel_and_a_milder_one_moves_less():
    family, other = CPAB((3, 3), "slide"), DiffeomorphicAffine(2)
    chain = Chain().then(other, drawn(other, 0.1, batch=2)).then(family, drawn(family, 0.1, batch=2))
    size = (64, 64)
    both = chain.forward(size).after(chain.inverse(size)).ddf(size)
    assert both[..., 20:-20, 20:-20].abs().max() < 0.05
    less = chain.scaled(torch.tensor([0.0, 0.5])).forward(size).ddf(size).abs().flatten(1).amax(1)
    assert less[0] == 0 and 0.5 < less[1] < 0.7 * chain.forward(size).ddf(size).abs()[1].max()
