"""The figures that the package promises, each measured anew on real films: ``pytest -m slow tests/test_acceptance.py``.

The films are in ``shared/data/cxr`` beside the repository, or in the folder that the variable MONAI_DIFFEO_DATA names.
"""

import os
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from docs.experiments.film_data import deform, load_films, segmentation_network
from docs.experiments.measures import answer, dice_of, plain, wrapped
from monai_diffeo.augmentation import random_svf, tps_protocol
from monai_diffeo.canonicalize import load_canonicalizer
from monai_diffeo.flow import exp, folding_fraction, inverse_error, warp
from monai_diffeo.flow.grid import centered_grid
from monai_diffeo.inferers import DiffeoInferer

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("MONAI_DIFFEO_DATA") or ROOT.parent / "shared" / "data") / "cxr"
MODELS = ROOT / "bundles" / "cxr_lung_segmentation" / "models"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def films():
    if not (DATA / "manifest.csv").is_file():
        pytest.skip(f"no films: {DATA / 'manifest.csv'} is missing")
    return load_films(DATA, "shenzhen", "test")


@pytest.fixture(scope="module")
def deformed(films):
    return deform(films, "TPS")[0].images[:8]


@pytest.fixture(scope="module")
def canonicalizer():
    return load_canonicalizer(MODELS / "energy")


@pytest.fixture(scope="module")
def network():
    return segmentation_network(MODELS / "baselines" / "baseline.pt")


def test_the_exponential_of_an_affine_velocity_is_the_matrix_exponential_and_errors_halve_a_step():
    matrix = torch.tensor([[0.05, -0.1], [0.1, -0.03]], dtype=torch.float64)
    grid = centered_grid((128, 128), dtype=torch.float64)
    v = torch.einsum("ij,jhw->ihw", matrix, grid)[None]
    exact = torch.einsum("ij,jhw->ihw", torch.linalg.matrix_exp(matrix) - torch.eye(2, dtype=torch.float64), grid)[None]
    errors = [(exp(v, n) - exact)[..., 24:-24, 24:-24].norm(dim=1).max().item() for n in range(4, 9)]
    assert errors[3] <= 2e-3  # voxels, 7 steps
    assert all(1.8 < a / b < 2.2 for a, b in zip(errors, errors[1:]))


def test_fifty_smooth_fields_of_twelve_voxels_are_inverted():
    v = random_svf(50, (128, 128), torch.Generator().manual_seed(0), amplitude=12 / 128, sigma=0.08)
    error = inverse_error(exp(v), exp(-v))
    assert error.mean() <= 0.02 and error.max() <= 0.25  # voxels


def test_two_thousand_random_fields_do_not_fold():
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert folding_fraction(tps_protocol(50, (128, 128), draw, fold_free=True)).sum() == 0
        assert folding_fraction(exp(random_svf(50, (128, 128), draw, amplitude=0.12))).sum() == 0


def test_a_thousand_canonicalisations_of_wildly_deformed_films_do_not_fold(canonicalizer, films):
    draw, moved = torch.Generator().manual_seed(0), 0
    for batch in films.images[torch.randint(len(films.images), (1000,), generator=draw)].split(50):
        ddf = tps_protocol(len(batch), tuple(batch.shape[2:]), draw, angle=60.0, jitter=0.25)
        result = canonicalizer(warp(batch, ddf, padding_mode="zeros"))
        assert folding_fraction(result.ddf).sum() == 0
        moved += int(result.moved.sum())
    assert moved > 900


def test_a_batch_of_eight_gives_what_eight_runs_give(canonicalizer, deformed):
    batch, alone = canonicalizer(deformed), [canonicalizer(film[None]) for film in deformed]
    assert [one.status[0] for one in alone] == list(batch.status)
    assert_close(torch.cat([one.ddf for one in alone]), batch.ddf, atol=1e-4, rtol=0)  # voxels


def test_two_runs_give_the_same_bits(canonicalizer, deformed):
    first, second = canonicalizer(deformed), canonicalizer(deformed)
    assert torch.equal(first.ddf, second.ddf) and torch.equal(first.image, second.image)


def test_switched_off_it_is_the_plain_network_to_the_bit(canonicalizer, network, deformed):
    with torch.no_grad():
        assert torch.equal(DiffeoInferer(canonicalizer, enabled="false")(deformed, network), network(deformed))


@pytest.mark.parametrize("protocol, gain", [("TPS", 0.06), ("plain", -0.003)])
def test_wrapping_raises_the_mean_dice_on_deformed_films_and_keeps_it_on_others(canonicalizer, network, films, protocol, gain):
    shown, _ = deform(films, protocol)
    methods = plain(network), wrapped(network, canonicalizer)
    baseline, ours = (dice_of(answer(method, shown.images).masks, shown.labels).mean() for method in methods)
    assert ours - baseline >= gain
