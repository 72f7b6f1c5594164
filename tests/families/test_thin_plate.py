import pytest
import torch
from scipy.interpolate import RBFInterpolator
from skimage.transform import ThinPlateSplineTransform
from torch.testing import assert_close

from monai_diffeo.families import ThinPlateSpline
from monai_diffeo.flow import folding_fraction, thin_plate_slopes, thin_plate_spline
from monai_diffeo.flow.grid import centered_grid


def sample(family, spread=0.1, batch=2, seed=0):
    return family.sample(batch, spread, torch.Generator().manual_seed(seed)).double()


def control_points(controls, dims):
    axis = torch.linspace(-1, 1, controls, dtype=torch.float64)
    return torch.stack(torch.meshgrid(*[axis] * dims, indexing="ij"), -1).flatten(0, -2)


@pytest.mark.parametrize("controls", [2, 4])
def test_it_is_the_spline_of_scikit_image(controls):
    family, size = ThinPlateSpline(2, controls), (24, 30)
    theta, control = sample(family), control_points(controls, 2)
    half = torch.tensor([(n - 1) / 2 for n in size], dtype=torch.float64)
    x = (centered_grid(size, dtype=torch.float64).flatten(1) / half[:, None]).T
    for row, ddf in zip(theta, family(theta, size).ddf(size)):
        spline = ThinPlateSplineTransform.from_estimate(control.numpy(), (control + row.view(2, -1).T).numpy())
        wanted = (torch.from_numpy(spline(x.numpy())) - x) * half
        assert_close(ddf.flatten(1).T, wanted, atol=1e-5, rtol=0)


def test_in_space_it_is_the_spline_of_scipy():
    family, size = ThinPlateSpline(3, 3), (8, 9, 7)
    theta, control = sample(family, batch=1), control_points(3, 3)
    half = torch.tensor([(n - 1) / 2 for n in size], dtype=torch.float64)
    x = (centered_grid(size, dtype=torch.float64).flatten(1) / half[:, None]).T
    spline = RBFInterpolator(control.numpy(), theta[0].view(3, -1).T.numpy(), kernel="linear", degree=1)
    assert_close(family(theta, size).ddf(size)[0].flatten(1).T, torch.from_numpy(spline(x.numpy())) * half, atol=1e-8, rtol=0)


@pytest.mark.parametrize("dims, size", [(2, (25, 33)), (3, (9, 13, 17))])
def test_control_points_move_by_theta(dims, size):
    family = ThinPlateSpline(dims, 3)
    theta = sample(family)
    ddf = family(theta, size).ddf(size)
    at = ddf[(..., *[slice(None, None, (n - 1) // 2) for n in size])].flatten(2)
    half = torch.tensor([(n - 1) / 2 for n in size], dtype=torch.float64)
    assert_close(at, theta.view(2, dims, -1) * half[:, None], atol=1e-9, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("own", [False, True])
def test_slopes_are_those_of_finite_differences(dims, own):
    draw_from = torch.Generator().manual_seed(0)
    control = torch.rand(7, dims, generator=draw_from, dtype=torch.float64)
    targets = torch.rand(2, 7, dims, generator=draw_from, dtype=torch.float64)
    x = torch.rand(*([2] if own else []), 20, dims, generator=draw_from, dtype=torch.float64)
    columns = [
        thin_plate_spline(control, targets, x + e) - thin_plate_spline(control, targets, x - e)
        for e in 1e-6 * torch.eye(dims, dtype=torch.float64)
    ]
    assert_close(thin_plate_slopes(control, targets, x), torch.stack(columns, -1) / 2e-6, atol=1e-6, rtol=1e-6)


def test_the_error_of_the_inverse_falls_with_the_square_of_the_voxel():
    family, control = ThinPlateSpline(2, 4), control_points(4, 2)
    theta = sample(family, 0.12, batch=1, seed=3)
    errors = []
    for n in (33, 65, 129):
        half, middle = (n - 1) / 2, slice(n // 4, n - n // 4)
        assert folding_fraction(family(theta, (n, n)).ddf((n, n))).max() == 0
        x = centered_grid((n, n), dtype=torch.float64)
        back = ((family.inverse(theta, (n, n)).ddf((n, n)) + x)[0, :, middle, middle].flatten(1) / half).T
        forth = (
            back + thin_plate_spline(control, theta.view(1, 2, -1).transpose(1, 2), back)[0]
        )  # the spline itself, not samples of it
        errors.append(float((forth.T * half - x[:, middle, middle].flatten(1)).norm(dim=0).mean()) / half)
    assert errors[0] < 5e-3
    for coarse, fine in zip(errors, errors[1:]):
        assert 3 < coarse / fine < 5.5


def test_the_gradient_of_the_inverse_is_that_of_finite_differences():
    family, size = ThinPlateSpline(2, 3), (41, 41)
    theta = sample(family, 0.08, batch=1).requires_grad_()
    inside = (..., slice(8, -8), slice(8, -8))
    weight = torch.randn(1, 2, 25, 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (family.inverse(theta, size).ddf(size)[inside] * weight).sum().backward()
    for k in range(0, 18, 5):
        step = torch.zeros_like(theta)
        step[0, k] = 1e-3
        with torch.no_grad():
            apart = [(family.inverse(theta + s * step, size).ddf(size)[inside] * weight).sum() for s in (1, -1)]
        assert_close(theta.grad[0, k], (apart[0] - apart[1]) / 2e-3, atol=0.02 * float(theta.grad.abs().max()), rtol=0)


def test_it_refuses_a_single_control_point():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        ThinPlateSpline(2, 1)
