import math

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.errors import NumericalError
from monai_diffeo.families import CPAB, AffineMatrix, CoarseSampling, ControlGrid, Whitened


@pytest.mark.parametrize("size", [(42, 42), (31, 24)])
def test_a_coarse_affine_map_is_the_affine_map(size):
    family = AffineMatrix()
    theta = family.sample(3, 0.3, torch.Generator().manual_seed(0))
    coarse = CoarseSampling(family, 3)
    assert_close(coarse(theta, size).ddf(size), family(theta, size).ddf(size), atol=1e-4, rtol=0)
    assert_close(coarse.inverse(theta, size).ddf(size), family.inverse(theta, size).ddf(size), atol=1e-4, rtol=0)


def test_a_coarse_flow_nears_the_flow_with_finer_points():
    family = CPAB((4, 4))
    theta = family.sample(4, 0.2, torch.Generator().manual_seed(0))
    exact = family(theta, (42, 42)).ddf()
    errors = [(CoarseSampling(family, factor)(theta, (42, 42)).ddf() - exact).abs().mean().item() for factor in (1, 2, 3, 6)]
    assert errors[0] < 1e-5 and errors[0] < errors[1] < errors[2] < errors[3] and errors[2] < 0.1  # voxels


@pytest.mark.parametrize("size", [(42, 31), (17, 12, 19)])
def test_a_coarse_grid_nears_the_grid_with_finer_points_and_its_affine_part_is_exact(size):
    family = ControlGrid(len(size), 3)
    theta = family.sample(3, 0.1, torch.Generator().manual_seed(0))
    exact = family(theta, size).ddf(size)
    coarse = [ControlGrid(len(size), 3, spacing=spacing) for spacing in (2, 3)]
    errors = [(grid(theta, size).ddf(size) - exact).abs().mean().item() for grid in coarse]
    assert 0 < errors[0] < errors[1] and errors[0] < 0.03 * exact.abs().mean()
    theta[:, family.num_affine :] = 0
    for grid in coarse:
        assert_close(grid(theta, size).ddf(size), family(theta, size).ddf(size), atol=1e-4, rtol=0)
        assert_close(grid.inverse(theta, size).ddf(size), family.inverse(theta, size).ddf(size), atol=1e-4, rtol=0)


def test_coarse_points_are_for_families_without_a_margin():
    with pytest.raises(ValueError, match="ControlGrid must cover the frame .* 'spacing'"):
        CoarseSampling(ControlGrid(), 2)(torch.zeros(1, 206), (64, 64))


def test_parameters_in_spreads_are_drawn_as_the_prior_draws():
    family = CPAB((2, 2))
    noise = torch.randn(20000, family.num_parameters, generator=torch.Generator().manual_seed(0))
    theta = noise @ Whitened(family, 0.3).root.T.float()
    assert_close(family.prior(0.3).energy(theta).mean(), torch.tensor(family.num_parameters / 2.0), atol=0.2, rtol=0)
    assert_close(Whitened(family, 0.3)(noise[:3], (9, 9)).ddf(), family(theta[:3], (9, 9)).ddf())
    for absurd in (101.0, math.nan):
        with pytest.raises(NumericalError, match="at most 100"):
            Whitened(family)(torch.full((1, family.num_parameters), absurd), (9, 9))
    with torch.no_grad():
        assert torch.isfinite(Whitened(family, most=None)(torch.full((1, family.num_parameters), 101.0), (3, 3)).ddf()).all()
    there, back = Whitened(family)(0.5 * noise[:3], (32, 32)), Whitened(family).inverse(0.5 * noise[:3], (32, 32))
    assert there.after(back).ddf()[..., 8:-8, 8:-8].abs().max() < 0.5 < there.ddf().abs().max()


def test_a_coarse_family_in_space():
    family = AffineMatrix(3)
    theta = family.sample(2, 0.3, torch.Generator().manual_seed(0))
    assert_close(CoarseSampling(family, 4)(theta, (17, 12, 9)).ddf(), family(theta, (17, 12, 9)).ddf(), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        CoarseSampling(family, 0)


def test_slopes_of_whitened_fields_are_those_of_cpab():
    family = CPAB((2, 2))
    whitened = Whitened(family)
    theta = whitened.sample(2, 0.5, torch.Generator().manual_seed(1))
    assert_close(whitened.jacobian(theta, (9, 9)), family.jacobian(whitened.coefficients(theta), (9, 9)))
    assert_close(theta.std(), torch.tensor(0.5), atol=0.2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_whitened_fields_are_computed_in_full_precision_under_autocast(dtype):
    family = CoarseSampling(Whitened(CPAB((2, 2))), 2)
    theta = family.family.sample(2, 0.5, torch.Generator().manual_seed(1))
    exact = family(theta, (17, 17)).ddf()
    with torch.autocast("cpu", dtype=dtype):
        assert_close(family(theta, (17, 17)).ddf(), exact)


def test_families_built_in_inference_mode_train_afterwards():
    with torch.inference_mode():
        family = Whitened(CPAB((3, 2)))
        family(family.sample(1, 0.5), (9, 9))
    theta = family.sample(1, 0.5).double().requires_grad_()
    family(theta, (9, 9)).ddf().sum().backward()
    CPAB((3, 2)).prior(0.3).energy(theta).sum().backward()
    assert theta.grad.abs().max() > 0
