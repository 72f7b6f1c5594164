import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.testing import assert_close

from monai_diffeo.augmentation.deformations import random_svf
from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import affine_deformation, compose, exp, exp_affine, inverse, inverse_error, warp
from monai_diffeo.flow.grid import centered_grid, voxel_grid
from monai_diffeo.flow.kept import _kept
from tests.flow.flows import AFFINE, Affine, Translation, coordinates, interior, linear, smooth_image


def smooth(seed, spatial_size=(128, 128), voxels=12.0, batch=1):
    amplitude = voxels / min(spatial_size)
    return random_svf(batch, spatial_size, torch.Generator().manual_seed(seed), amplitude=amplitude, sigma=0.08)


def affine_error(steps):
    return interior(exp(AFFINE.v, steps) - AFFINE.ddf_exact, 24).abs().max().item()


def test_a_constant_velocity_is_a_translation():
    for flow in (Translation((3.5, -2.25), (9, 14)), Translation((1.5, -2.0, 0.75), (5, 8, 6))):
        for steps in (0, 1, 7):
            assert_close(exp(flow.v, steps), flow.ddf_exact, atol=1e-12, rtol=0)


def test_an_affine_velocity_follows_the_matrix_exponential():
    assert affine_error(7) <= 2e-3  # voxels; measured 1.5e-3, largest displacement 12.7


def test_an_affine_velocity_in_3d_follows_the_matrix_exponential():
    flow = Affine(((0.03, -0.06, 0.02), (0.06, -0.02, 0.01), (-0.02, 0.03, 0.04)), (40, 36, 44))
    assert interior(exp(flow.v, 8) - flow.ddf_exact, 8).abs().max() <= 2e-3


def test_the_error_halves_with_each_step():
    steps = np.arange(3, 8)
    slope = np.polyfit(steps, [math.log2(affine_error(int(n))) for n in steps], 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize("spatial_size", [(8, 9), (1, 6), (4, 5, 7)])
def test_the_flow_of_no_velocity_is_the_identity(spatial_size):
    zero = torch.zeros(2, len(spatial_size), *spatial_size)
    assert exp(zero).abs().max() <= 1e-6 * max(spatial_size)


@pytest.mark.parametrize("seed", range(3))
def test_two_half_flows_make_a_whole(seed):
    v = smooth(seed)
    half = exp(v / 2, 6)
    assert_close(compose(half, half), exp(v, 7), atol=1e-4, rtol=0)  # the last squaring, by another road
    half = exp(v / 2, 7)
    assert_close(compose(half, half), exp(v, 7), atol=0.05, rtol=0)  # measured 0.022


@pytest.mark.parametrize("seed", range(8))
def test_the_flow_of_minus_v_is_the_inverse(seed):
    v = smooth(seed)
    for there, back in ((exp(v), exp(-v)), (exp(-v), inverse(-v))):
        error = inverse_error(there, back)
        assert error.mean() <= 0.02 and error.max() <= 0.25  # voxels for 12
    assert inverse_error(exp(v), -exp(v)).max() > 3  # the law would notice the cheap inverse


@pytest.mark.filterwarnings("ignore:Using PyTorch native grid_sample")
@pytest.mark.parametrize("spatial_size", [(64, 64), (33, 50), (31, 17), (16, 21, 18), (15, 15, 15)])
def test_it_agrees_with_monai(spatial_size):
    from monai.networks.blocks import DVF2DDF, Warp

    v = smooth(0, spatial_size, voxels=3.0, batch=2)
    v = v + torch.linspace(-2, 2, v.shape[1]).view(1, -1, *[1] * len(spatial_size))  # asks for voxels outside the frame too
    ddf = exp(v)
    assert_close(ddf, DVF2DDF(num_steps=7, padding_mode="border")(v), atol=1e-4, rtol=0)
    image = smooth_image(spatial_size, channels=2, batch=2)
    for padding in ("border", "zeros"):
        assert_close(warp(image, ddf, padding_mode=padding), Warp(padding_mode=padding)(image, ddf), atol=1e-4, rtol=0)
    assert_close(
        warp(coordinates(spatial_size, torch.float32)[None].repeat(2, *[1] * v[0].ndim), ddf),
        Warp()(coordinates(spatial_size, torch.float32)[None].repeat(2, *[1] * v[0].ndim), ddf),
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("dims", [2, 3])
def test_an_affine_generator_is_integrated_exactly_everywhere(dims, steps):
    draw = torch.Generator().manual_seed(dims)
    generator = 0.4 * torch.randn(3, dims, dims + 1, generator=draw, dtype=torch.float64)
    generator[..., -1] *= 10
    size = (17, 24, 12)[:dims]
    ddf = exp_affine(generator, torch.zeros(3, dims, *size, dtype=torch.float64), steps).ddf()
    grid = coordinates(size)
    for row, g in zip(ddf, generator):
        square = torch.cat([g, torch.zeros(1, dims + 1, dtype=torch.float64)])
        for power in (torch.linalg.matrix_exp(square), torch.from_numpy(scipy.linalg.expm(square.numpy()))):
            exact = linear(power[:dims, :dims], grid) + power[:dims, -1].view(-1, *[1] * dims) - grid
            assert_close(row, exact, atol=1e-9, rtol=1e-9)


def test_a_generator_of_half_pi_is_a_quarter_turn():
    image = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    generator = torch.tensor([[[0.0, -math.pi / 2, 0.0], [math.pi / 2, 0.0, 0.0]]])
    turned = warp(image, exp_affine(generator, torch.zeros(1, 2, 48, 48)).ddf())
    assert_close(turned, torch.rot90(image, -1, (2, 3)), atol=1e-3, rtol=0)


def test_without_a_generator_it_is_exp():
    v = smooth(0, (48, 65), voxels=6.0, batch=2)
    assert_close(exp_affine(torch.zeros(2, 2, 3), v).ddf(), exp(v), atol=1e-4, rtol=0)


def test_a_generator_and_a_field_together_follow_their_sum():
    a = torch.tensor(AFFINE.matrix)
    v = smooth(1, voxels=5.0)
    both = v + linear(a, coordinates((128, 128), torch.float32))[None]
    ddf = exp_affine(torch.cat([a, torch.zeros(2, 1)], 1)[None], v, 9).ddf()
    assert_close(interior(ddf, 32), interior(exp(both, 9), 32), atol=0.05, rtol=0)  # two roads, both first order


def test_the_affine_flow_of_minus_v_is_the_inverse():
    draw = torch.Generator().manual_seed(5)
    generator = 0.15 * torch.randn(2, 2, 3, generator=draw)
    generator[..., -1] = torch.randn(2, 2, generator=draw) * 3
    v = smooth(3, (96, 96), voxels=6.0, batch=2)
    forward, back = exp_affine(generator, v), exp_affine(-generator, -v)
    assert interior(forward.ddf(), 24).abs().amax() > 5
    for product in (forward.after(back), back.after(forward)):
        assert_close(product.matrix, torch.eye(2, 3).expand(2, 2, 3), atol=1e-4, rtol=0)
        assert interior(product.ddf(), 24).abs().max() <= 0.15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_single_precision_out(dtype):
    v = smooth(0, (64, 64), voxels=6.0)
    ddf = exp(v.to(dtype))
    assert ddf.dtype == torch.float32
    assert_close(ddf, exp(v), atol=0.1, rtol=0)  # what rounding v alone costs
    assert_close(ddf, exp(v.to(dtype).float()), atol=0, rtol=0)
    flow = exp_affine(torch.full((1, 2, 3), 0.05, dtype=dtype), v.to(dtype))
    assert flow.matrix.dtype == flow.residual.dtype == flow.ddf().dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_callers_autocast_changes_nothing(dtype):
    v, generator = smooth(0, (64, 64), voxels=6.0), torch.full((1, 2, 3), 0.05)
    plain = exp(v), exp_affine(generator, v).ddf(), exp_affine(generator, v).after(exp_affine(generator, v)).ddf()
    with torch.autocast("cpu", dtype=dtype):
        mixed = exp(v), exp_affine(generator, v).ddf(), exp_affine(generator, v).after(exp_affine(generator, v)).ddf()
    for a, b in zip(mixed, plain):
        assert_close(a, b, atol=0, rtol=0)


def test_double_precision_stays_double():
    assert exp(smooth(0, (16, 16)).double()).dtype == torch.float64


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_runs_without_a_graph_and_serves_autograd_afterwards(mode):
    _kept.clear()
    v, generator = smooth(0, (20, 22), voxels=2.0), torch.full((1, 2, 3), 0.05)
    with mode():
        quiet = exp(v), exp_affine(generator, v).ddf(), warp(v, v)
    v, generator = v.clone().requires_grad_(), generator.clone().requires_grad_()
    loud = exp(v), exp_affine(generator, v).ddf(), warp(v, v)
    sum(x.square().sum() for x in loud).backward()
    assert v.grad.abs().max() > 0 and generator.grad.abs().min() > 0
    for a, b in zip(quiet, loud):
        assert not a.requires_grad
        assert_close(a.clone(), b.detach(), atol=0, rtol=0)


def test_a_grid_first_asked_for_in_inference_mode_may_be_saved_for_backward():
    for grid in (voxel_grid, centered_grid):
        _kept.clear()
        with torch.inference_mode():
            grid((4, 5))
        factor = torch.ones((), requires_grad=True)
        (grid((4, 5)) * factor).square().sum().backward()
        assert factor.grad > 0


def test_a_batch_gives_what_its_fields_give_one_by_one():
    v = torch.cat([smooth(s, (40, 33), voxels=4.0) for s in range(3)])
    generator = 0.1 * torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    together, flows = exp(v), exp_affine(generator, v).ddf()
    for i in range(3):
        assert_close(together[i : i + 1], exp(v[i : i + 1]), atol=1e-5, rtol=0)
        alone = exp_affine(generator[i : i + 1], v[i : i + 1]).ddf()
        assert_close(flows[i : i + 1], alone, atol=1e-3, rtol=0)  # torch picks the degree of matrix_exp by the batch


def test_gradients_of_exp_are_right():
    v = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: exp(v, 3), v)
    v = torch.randn(1, 3, 3, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: exp(0.3 * v, 2), v)


def test_gradients_of_exp_affine_are_right():
    draw = torch.Generator().manual_seed(1)
    generator = (0.2 * torch.randn(2, 2, 3, generator=draw, dtype=torch.float64)).requires_grad_()
    v = torch.randn(2, 2, 5, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g, v: exp_affine(g, v, 3).ddf(), (generator, v))


@pytest.mark.parametrize("size", [(40, 33), (3, 16, 16)])
def test_flows_on_coarser_points_near_the_flow_and_keep_translations(size):
    generator = torch.Generator().manual_seed(0)
    constant = torch.ones(1, len(size), *size)
    assert_close(exp(constant, spacing=4), constant)
    flow = exp_affine(torch.zeros(1, len(size), len(size) + 1), constant, spacing=4)
    assert_close(flow.ddf(size), constant)
    if len(size) == 2:
        v = random_svf(2, size, generator, amplitude=0.05, sigma=0.15)
        errors = [(exp(v, spacing=n) - exp(v)).abs().mean().item() for n in (2, 4)]
        assert 0 < errors[0] < errors[1] < 0.2 * exp(v).abs().mean()
    with pytest.raises(ValueError, match="'spacing' must be at least 1, got 0"):
        exp(constant, spacing=0)


@pytest.mark.parametrize("shape", [(1, 2, 8), (1, 3, 8, 8), (2, 8, 8), (1, 2, 8, 8, 8), (1, 4, 3, 3, 3, 3)])
def test_a_field_of_the_wrong_shape_is_named(shape):
    for call in (exp, lambda v: exp_affine(torch.zeros(1, 2, 3), v)):
        with pytest.raises(ShapeError) as caught:
            call(torch.zeros(shape))
        assert caught.value.actual == shape and "(B, D, *S)" in caught.value.expected
        assert str(shape) in str(caught.value) and "'v'" in str(caught.value)
        assert isinstance(caught.value, ValueError)


def test_a_generator_that_does_not_fit_is_named():
    with pytest.raises(ShapeError, match="'generator'") as caught:
        exp_affine(torch.zeros(1, 3, 4), torch.zeros(1, 2, 8, 8))
    assert caught.value.actual == (1, 3, 4)


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="steps"):
        exp(torch.zeros(1, 2, 4, 4), -1)
    with pytest.raises(ValueError, match="steps"):
        exp_affine(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4, 4), -1)


def test_it_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exp(smooth(0, (9, 9)))
        exp_affine(torch.zeros(1, 2, 3), smooth(0, (9, 9)))


@pytest.mark.parametrize("steps", [0, 7, 12])
def test_matrices_are_integrated_in_double_precision(steps):
    """Rounding would double at every squaring: in float32 twelve squarings lose three digits."""
    draw = torch.Generator().manual_seed(0)
    generator = torch.randn(20, 2, 3, generator=draw) * torch.tensor([0.5, 0.5, 40.0])
    exact = torch.linalg.matrix_exp(torch.nn.functional.pad(generator.double(), (0, 0, 0, 1)))[:, :2]
    for flow in (exp_affine(generator, torch.zeros(20, 2, 4, 4), steps), affine_deformation(generator, (4, 4))):
        assert flow.matrix.dtype == torch.float32
        assert_close(flow.matrix, exact.float(), atol=0, rtol=1.2e-7)  # one rounding, at the end
