import pytest
import torch
from scipy.interpolate import RBFInterpolator
from torch.testing import assert_close

from monai_diffeo.errors import NumericalError
from monai_diffeo.flow import thin_plate_slopes, thin_plate_spline


def scene(seed, k=9, batch=2, n=200, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    control = torch.rand(k, 2, generator=draw, dtype=dtype) - 0.5
    targets = control + 0.1 * torch.randn(batch, k, 2, generator=draw, dtype=dtype)
    return control, targets, torch.rand(n, 2, generator=draw, dtype=dtype) * 1.4 - 0.7


@pytest.mark.parametrize("k", [4, 9, 30])
@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_scipy(seed, k):
    control, targets, points = scene(seed, k)
    spline = thin_plate_spline(control, targets, points)
    for row, wanted in zip(spline, targets):
        exact = RBFInterpolator(control.numpy(), wanted.numpy(), kernel="thin_plate_spline", degree=1)(points.numpy())
        assert_close(row, torch.from_numpy(exact), atol=1e-8, rtol=0)


@pytest.mark.parametrize("dtype, rounding", [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_control_points_reach_their_targets(dtype, rounding):
    control, targets, _ = scene(0, dtype=dtype)
    assert_close(thin_plate_spline(control, targets, control), targets, atol=rounding, rtol=0)


def test_affine_maps_are_reproduced_everywhere():
    control, _, points = scene(1)
    matrix, shift = torch.tensor([[1.2, -0.4], [0.3, 0.8]], dtype=torch.float64), torch.tensor([0.1, -0.2], dtype=torch.float64)
    spline = thin_plate_spline(control, (control @ matrix.T + shift)[None], points)
    assert_close(spline[0], points @ matrix.T + shift, atol=1e-10, rtol=0)


def test_each_row_may_have_its_own_points():
    control, targets, points = scene(2)
    own = torch.stack([points, points.flip(0)])
    spline = thin_plate_spline(control, targets, own)
    for i in range(2):
        assert_close(spline[i], thin_plate_spline(control, targets[i : i + 1], own[i])[0], atol=1e-10, rtol=0)


def test_it_is_linear_in_the_targets():
    control, targets, points = scene(3)
    a, b = targets[:1], targets[1:]
    both = thin_plate_spline(control, 2 * a - 3 * b, points)
    apart = 2 * thin_plate_spline(control, a, points) - 3 * thin_plate_spline(control, b, points)
    assert_close(both, apart, atol=1e-10, rtol=0)


FLAT = torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0], [0.2, 0.2]])
SAME = torch.tensor([[0.0, 0.0], [0.5, 0.1], [1.0, 0.0], [0.5, 0.1]])


@pytest.mark.parametrize("function", [thin_plate_spline, thin_plate_slopes])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("control", "words"),
    [
        (FLAT, "one line"),
        (SAME, "same"),
        (SAME[:2], "keep 3 or more"),
        (SAME[:0], "keep 3 or more"),
        (SAME * 1e-3 + 7, "same"),
    ],
    ids=["flat", "same", "two", "none", "small and far"],
)
def test_points_without_a_spline_are_an_error_of_ours(function, dtype, control, words):
    control = control.to(dtype)
    with pytest.raises(NumericalError, match=f"{function.__name__}.*'control'.*{words}"):
        function(control, control[None], control)


def test_a_flat_set_of_points_in_space_is_refused_too():
    control = torch.cat([torch.rand(8, 2), torch.full((8, 1), 0.3)], 1)
    with pytest.raises(NumericalError, match="line or plane"):
        thin_plate_spline(control, control[None], control)


@pytest.mark.parametrize("apart", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("kind", ["flat", "close"])
@pytest.mark.parametrize("dims", [2, 3])
def test_points_that_nearly_coincide_or_lie_nearly_flat_still_reach_their_targets(apart, kind, dims):
    draw = torch.Generator().manual_seed(0)
    control = torch.rand(9, dims, generator=draw, dtype=torch.float64)
    targets = control + 0.05 * torch.randn(9, dims, generator=draw, dtype=torch.float64)
    if kind == "flat":
        control[:, -1] = control[:, 0] / 2 + apart * control[:, -1]
    else:
        control[1], targets[1] = control[0] + apart / dims**0.5, targets[0] + apart
    control, targets = control.float(), targets.float()
    moved = thin_plate_spline(control, targets[None], control)
    assert moved.dtype == torch.float32
    assert_close(moved[0], targets, atol=2e-6, rtol=0)
