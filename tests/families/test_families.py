import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from monai_diffeo.families import (
    CPAB,
    AffineCPAB,
    AffineMatrix,
    ControlGrid,
    DiffeomorphicAffine,
    Family,
    Homography,
    PiecewiseStationary,
    Siren,
    ThinPlateSpline,
    VelocityFamily,
    Whitened,
)
from monai_diffeo.flow import folding_fraction
from monai_diffeo.flow.grid import centered_grid
from monai_diffeo.flow.kept import _kept

SIREN = {"hidden": 16, "layers": 2, "last": 0.5, "scale": 0.15}  # as an optimiser leaves it, not as it starts


def grid_theta(family, batch=2, seed=0, size=0.12):
    return size * torch.randn(batch, family.num_parameters, generator=torch.Generator().manual_seed(seed))


def siren_theta(family, batch=2, seed=0):
    return torch.cat([family.identity(1, seed=seed + i) for i in range(batch)])


def drawn(family, batch=2, seed=0, size=0.12):
    return family.sample(batch, size, torch.Generator().manual_seed(seed))


def small(family, batch=2, seed=0):
    return drawn(family, batch, seed, 0.06)  # a piece


CASES = [
    pytest.param(ControlGrid(2, controls=4), grid_theta, (64, 64), id="grid-2d"),
    pytest.param(ControlGrid(2, controls=4, affine=False), grid_theta, (48, 64), id="grid-2d-without-affine"),
    pytest.param(ControlGrid(3, controls=3), grid_theta, (24, 22, 26), id="grid-3d"),
    pytest.param(Siren(2, **SIREN), siren_theta, (64, 56), id="siren-2d"),
    pytest.param(Siren(3, **SIREN), siren_theta, (22, 24, 20), id="siren-3d"),
    pytest.param(PiecewiseStationary(ControlGrid(2, controls=4), pieces=3), small, (64, 48), id="time-dependent-2d"),
    pytest.param(PiecewiseStationary(ControlGrid(3, controls=3), pieces=2), small, (24, 22, 26), id="time-dependent-3d"),
    pytest.param(
        PiecewiseStationary(ControlGrid(2, controls=4), pieces=4, order=2), small, (48, 64), id="time-dependent-series"
    ),
    pytest.param(AffineMatrix(2), drawn, (48, 64), id="affine-2d"),
    pytest.param(AffineMatrix(3), drawn, (12, 14, 10), id="affine-3d"),
    pytest.param(DiffeomorphicAffine(2), drawn, (64, 48), id="diffeomorphic-affine-2d"),
    pytest.param(DiffeomorphicAffine(3), drawn, (12, 14, 10), id="diffeomorphic-affine-3d"),
    pytest.param(Homography(), drawn, (48, 64), id="homography"),
    pytest.param(Homography(exponential=True), drawn, (48, 64), id="homography-exponential"),
    pytest.param(ThinPlateSpline(2), drawn, (64, 48), id="thin-plate-2d"),
    pytest.param(ThinPlateSpline(3, controls=2), drawn, (14, 12, 16), id="thin-plate-3d"),
    pytest.param(CPAB((4, 4)), drawn, (64, 56), id="cpab-2d"),
    pytest.param(CPAB((3, 2), "slide"), drawn, (48, 64), id="cpab-2d-slide"),
    pytest.param(CPAB((2, 2, 2), "free"), drawn, (16, 14, 18), id="cpab-3d"),
    pytest.param(AffineCPAB((2, 2)), drawn, (48, 40), id="affine-cpab-2d"),
    pytest.param(AffineCPAB((1, 1, 1), "free", diffeomorphic=False), drawn, (14, 16, 12), id="affine-cpab-3d"),
]


def inside(field, share=0.2):
    return field[(..., *[slice(round(share * n), n - round(share * n)) for n in field.shape[2:]])]


@pytest.mark.parametrize("family, draw, size", CASES)
def test_a_family_starts_at_the_identity(family, draw, size):
    start = Siren(family.spatial_dims, hidden=16) if isinstance(family, Siren) else family
    zero = start.identity(3)
    ddf = start(zero, size).ddf(size)
    assert ddf.shape == (3, len(size), *size)
    assert ddf.abs().max() <= (2e-3 if isinstance(family, Siren) else 2e-5) and folding_fraction(ddf).max() == 0
    assert family(draw(family), size).ddf(size).abs().max() > 1  # other parameters move


@pytest.mark.parametrize("family, draw, size", CASES)
def test_the_inverse_undoes_the_deformation(family, draw, size):
    theta = draw(family)
    forward, back = family(theta, size), family.inverse(theta, size)
    for product in (forward.after(back), back.after(forward)):
        assert inside(product.ddf(size)).abs().max() <= 0.12  # voxels
    assert inside(forward.after(forward).ddf(size)).abs().max() > 1


@pytest.mark.parametrize("family, draw", [(c.values[0], c.values[1]) for c in CASES if c.values[0].spatial_dims == 2])
def test_the_same_parameters_are_the_same_deformation_at_any_resolution(family, draw):
    theta = draw(family)
    coarse = family(theta, (64, 64)).ddf((64, 64)) / 31.5  # in half frames
    fine = family(theta, (128, 128)).ddf((128, 128)) / 63.5
    error = F.interpolate(coarse, (128, 128), mode="bicubic", align_corners=True) - fine
    assert error.abs().max() * 63.5 <= 0.25  # voxels at 128; both integrate to first order
    assert fine.abs().max() * 63.5 > 5


def test_the_same_parameters_stretch_with_an_oblong_frame():
    family = ControlGrid(2, controls=4)
    theta = grid_theta(family)
    square, oblong = family(theta, (64, 64)).ddf((64, 64)), family(theta, (64, 128)).ddf((64, 128))
    half = torch.tensor([31.5, 63.5]).view(1, 2, 1, 1)
    error = F.interpolate(square / 31.5, (64, 128), mode="bicubic", align_corners=True) - oblong / half
    assert error.abs().max() * 63.5 <= 0.25


@pytest.mark.parametrize("family, draw, size", CASES)
def test_a_batch_gives_what_its_images_give_one_by_one(family, draw, size):
    theta = draw(family, batch=3)
    together = family(theta, size).ddf(size)
    assert (together[0] - together[1]).abs().max() > 0.5
    for i in range(3):
        assert_close(together[i : i + 1], family(theta[i : i + 1], size).ddf(size), atol=1e-3, rtol=0)


@pytest.mark.parametrize("family, draw, size", CASES)
def test_every_parameter_is_felt(family, draw, size):
    theta = draw(family).requires_grad_()
    family(theta, size).ddf(size).square().sum().backward()
    assert torch.isfinite(theta.grad).all()
    assert (theta.grad != 0).float().mean() > 0.99


TINY = [
    ControlGrid(2, controls=2, steps=2),
    Siren(2, hidden=3, layers=1, last=0.5, scale=0.4, steps=2),
    AffineMatrix(3),
    DiffeomorphicAffine(2),
    Homography(),
    Homography(exponential=True),
    ThinPlateSpline(2, controls=3),
    ThinPlateSpline(3, controls=2),
    CPAB((2, 1), "slide"),
    AffineCPAB((1, 1), diffeomorphic=False),
    PiecewiseStationary(ControlGrid(2, controls=2, steps=2), pieces=2),
    PiecewiseStationary(ControlGrid(2, controls=2, steps=2), pieces=2, order=3),
]


@pytest.mark.parametrize("family", TINY)
def test_gradients_with_respect_to_the_parameters_are_right(family):
    theta = (siren_theta(family, 1) if isinstance(family, Siren) else drawn(family, 1)).double().requires_grad_()
    size = (4, 5, 3)[: family.spatial_dims] if family.spatial_dims == 3 else (5, 6)
    assert torch.autograd.gradcheck(lambda t: family(t, size).ddf(size), theta)


@pytest.mark.parametrize("family", TINY[2:])
def test_gradients_of_the_inverse_are_right(family):
    if isinstance(family, ThinPlateSpline):
        pytest.skip("found on sampled data: see test_thin_plate.py")
    theta = drawn(family, 1).double().requires_grad_()
    size = (4, 3, 3)[: family.spatial_dims]
    assert torch.autograd.gradcheck(lambda t: family.inverse(t, size).ddf(size), theta)


@pytest.mark.parametrize("family, draw, size", CASES)
def test_the_jacobian_is_that_of_the_map(family, draw, size):
    """Between differences from the left and from the right, which differ by the curvature, but for voxels where cells meet."""
    theta = draw(family)
    found = family.jacobian(theta, size)
    assert found.shape == (2, len(size), len(size), *size)
    points = family(theta, size).ddf(size) + centered_grid(size)
    for axis in range(len(size)):
        slope = points.diff(dim=2 + axis)
        n = size[axis]
        left, right = slope.narrow(2 + axis, 0, n - 2), slope.narrow(2 + axis, 1, n - 2)
        off = (found.select(2, axis).narrow(2 + axis, 1, n - 2) - (left + right) / 2).abs()
        assert off.mean() <= 0.02 and (off <= (left - right).abs() + 0.02).float().mean() > 0.97
    assert (found - torch.eye(len(size)).view(len(size), len(size), *[1] * len(size))).abs().max() > 0.05


@pytest.mark.parametrize("family, draw, size", CASES)
def test_milder_deformations_lie_on_the_way_from_the_identity(family, draw, size):
    theta = draw(family)
    whole = family(theta, size).ddf(size).flatten(1).norm(dim=1)
    some = family(family.scaled(theta, torch.tensor([0.0, 0.5])), size).ddf(size).flatten(1).norm(dim=1)
    assert some[0] <= 1e-4 * whole[0] and 0.3 * whole[1] < some[1] < 0.7 * whole[1]


@pytest.mark.parametrize("family, draw, size", CASES)
def test_random_parameters_spread_as_asked_and_repeat_with_their_generator(family, draw, size):
    family = Siren(family.spatial_dims, hidden=16, scale=1.0) if isinstance(family, Siren) else family
    one, two = (drawn(family, 2, seed=3) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, drawn(family, 2, seed=4))
    moved = family(family.sample(2, torch.tensor([0.0, 0.1])), size).ddf(size).abs().flatten(1).amax(1)
    assert moved[0] <= 1e-4 and moved[1] > 0.1


@pytest.mark.parametrize("family, draw, size", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_callers_autocast_and_half_parameters_give_single_precision(family, draw, size, dtype):
    theta = draw(family)
    exact = family(theta, size).ddf(size), family.inverse(theta, size).ddf(size)
    with torch.autocast("cpu", dtype=dtype):
        mixed = family(theta, size).ddf(size), family.inverse(theta, size).ddf(size)
    for a, b in zip(mixed, exact):
        assert_close(a, b, atol=0, rtol=0)
    rounded = family(theta.to(dtype), size).ddf(size)
    assert rounded.dtype == torch.float32
    assert_close(rounded, family(theta.to(dtype).float(), size).ddf(size), atol=0, rtol=0)


@pytest.mark.parametrize("family, draw, size", CASES)
def test_it_serves_autograd_after_inference_mode(family, draw, size):
    _kept.clear()
    with torch.inference_mode():
        quiet = family(draw(family), size).ddf(size)
    theta = draw(family).requires_grad_()
    loud = family(theta, size).ddf(size)
    loud.sum().backward()
    assert theta.grad.abs().max() > 0
    assert_close(quiet.clone(), loud.detach(), atol=0, rtol=0)


@pytest.mark.parametrize("family, draw, size", CASES)
def test_a_family_survives_pickling(family, draw, size):
    theta = draw(family)
    assert torch.equal(pickle.loads(pickle.dumps(family))(theta, size).ddf(size), family(theta, size).ddf(size))


@pytest.mark.parametrize("dims, controls", [(2, 5), (3, 3)])
def test_the_splines_vanish_at_the_widened_frame_with_their_slope(dims, controls):
    family = ControlGrid(dims, controls=controls, margin=0.125)
    generator, field = family.velocity(grid_theta(family, size=1.0).double(), (32,) * dims)
    assert field.shape[2:] == (40,) * dims  # four more voxels at each side
    for axis in range(2, 2 + dims):
        for edge in (field, field.flip(axis)):
            value, slope = edge.select(axis, 0), edge.select(axis, 1) - edge.select(axis, 0)
            assert value.abs().max() == 0
            assert slope.abs().max() <= 0.01 * field.abs().max()  # curvature vanishes as well: cubic in the distance
    assert field.abs().max() > 5


def test_the_splines_sum_to_one_in_the_middle():
    from monai_diffeo.families.control_grid import _spline_basis

    basis = _spline_basis(101, 7, torch.device("cpu"), torch.float64)
    knots = torch.arange(101) / 10
    middle = (knots >= 3) & (knots <= 7)
    assert_close(basis.sum(1)[middle], torch.ones(int(middle.sum()), dtype=torch.float64), atol=1e-12, rtol=0)
    assert basis.min() >= 0 and basis[0].abs().max() == 0 and basis[-1].abs().max() == 0


@pytest.mark.parametrize("size", [(48, 48), (40, 60)])
def test_the_first_numbers_of_theta_are_the_affine_generator(size):
    family = ControlGrid(2, controls=3)
    theta = torch.zeros(2, family.num_parameters)
    theta[0, 2] = 0.25  # first row, last column: a quarter of half the frame along axis 0
    theta[1, 4] = math.log(1.1)  # second row, second column: stretch axis 1
    shift, stretch = family(theta, size).ddf(size)
    assert_close(shift[0], torch.full(size, 0.25 * (size[0] - 1) / 2))
    assert shift[1].abs().max() == 0
    x = torch.arange(float(size[1])) - (size[1] - 1) / 2
    assert_close(stretch[1], (0.1 * x).expand(size), atol=5e-4, rtol=0)
    assert stretch[0].abs().max() <= 1e-5


def test_the_number_of_parameters_is_what_it_says():
    assert ControlGrid(2, controls=5).num_parameters == 6 + 2 * 25
    assert ControlGrid(3, controls=4).num_parameters == 12 + 3 * 64
    assert ControlGrid(3, controls=4, affine=False).num_parameters == 3 * 64
    assert Siren(2, hidden=256, layers=3).num_parameters == (2 * 256 + 256) + 2 * (256 * 256 + 256) + (256 * 2 + 2)
    for family in (ControlGrid(2, controls=5), Siren(3, hidden=7, layers=2)):
        assert family.identity(3).shape == (3, family.num_parameters)


def test_a_siren_starts_the_same_for_all_images_and_differs_by_seed():
    family = Siren(2, hidden=16)
    theta = family.identity(3, seed=4)
    assert torch.equal(theta[0], theta[1]) and torch.equal(theta[0], theta[2])
    assert torch.equal(family.identity(3, seed=4), theta)
    assert not torch.equal(family.identity(3, seed=5), theta)
    state = torch.get_rng_state()
    family.identity(1)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's generator is left alone


def test_a_siren_starts_within_its_published_bounds():
    family = Siren(2, hidden=64, layers=3)
    bounds = [1 / 2, (6 / 64) ** 0.5, (6 / 64) ** 0.5, 1e-4]
    for part, bound in zip(family.identity(1)[0].split([r * (c + 1) for r, c in family.shapes]), bounds):
        assert 0.9 * bound < part.abs().max() <= bound


def test_a_siren_is_the_network_it_says():
    family = Siren(2, hidden=5, layers=2, first_omega=1.6, omega=0.7, last=0.5, scale=0.3)
    theta = family.identity(1, seed=1)[0]
    parts = theta.split([n for r, c in family.shapes for n in (r * c, r)])
    y, x = torch.meshgrid(torch.linspace(-1, 1, 9), torch.linspace(-1, 1, 7), indexing="ij")
    signal = torch.stack([y, x], -1)
    for i, (rows, columns) in enumerate(family.shapes):
        signal = signal @ parts[2 * i].view(rows, columns).T + parts[2 * i + 1]
        signal = torch.sin((1.6, 0.7)[i] * signal) if i < 2 else signal
    generator, field = family.velocity(theta[None], (9, 7))
    assert generator.abs().max() == 0
    assert_close(field[0], 0.3 * 4 * signal.movedim(-1, 0), atol=1e-5, rtol=0)  # half the longest side is 4 voxels


def test_the_bases_say_what_is_missing():
    with pytest.raises(TypeError, match="Family must define forward"):
        Family()(torch.zeros(1, 1), (4, 4))
    with pytest.raises(TypeError, match="Family must define inverse"):
        Family().inverse(torch.zeros(1, 1), (4, 4))
    with pytest.raises(TypeError, match="VelocityFamily must define velocity"):
        VelocityFamily()(torch.zeros(1, 1), (4, 4))


STEPPED = [
    ControlGrid(2, 4),
    Siren(2, hidden=16, layers=1, scale=0.1),
    PiecewiseStationary(ControlGrid(2, 4), 2),
    PiecewiseStationary(ControlGrid(2, 4), 2, order=2),
    ControlGrid(2, 4, spacing=2),
]
CLOSED = [
    AffineMatrix(2),
    DiffeomorphicAffine(2),
    Homography(),
    ThinPlateSpline(2, 3),
    CPAB((2, 2)),
    AffineCPAB((2, 2)),
    Whitened(CPAB((2, 2))),
]


@pytest.mark.parametrize("family", STEPPED + CLOSED)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_squarings_act_on_every_family_that_integrates_and_are_ignored_by_closed_forms(family, direction):
    theta = family.sample(2, 0.2, torch.Generator().manual_seed(0))
    coarse, fine, own = (getattr(family, direction)(theta, (20, 16), steps).ddf() for steps in (0, 7, None))
    assert torch.equal(fine, own)
    assert torch.equal(coarse, fine) == (family in CLOSED)
