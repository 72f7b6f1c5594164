import torch
from torch.testing import assert_close

from monai_diffeo.augmentation.deformations import random_svf
from monai_diffeo.flow import compose, dense_velocity, exp, exp_affine, exp_affine_sequence, inverse_affine_sequence, warp
from tests.helpers import blob

SIZE = (48, 40)


def velocities(batch=2, times=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    fields = random_svf(batch * times, SIZE, draw, amplitude=0.06, sigma=0.15).view(batch, times, 2, *SIZE)
    generators = torch.randn(batch, times, 2, 3, generator=draw) * torch.tensor([0.05, 0.05, 1.0])
    return generators, fields


def test_a_chain_of_one_is_the_exponential():
    generators, fields = velocities(times=1)
    assert torch.equal(exp_affine_sequence(generators, fields).ddf(), exp_affine(generators[:, 0], fields[:, 0]).ddf())


def test_a_chain_is_the_composition_of_its_flows_in_order():
    _, fields = velocities(times=2)
    still = torch.zeros(2, 2, 2, 3)
    expected = compose(exp(fields[:, 0]), exp(fields[:, 1]))
    assert_close(exp_affine_sequence(still, fields).ddf(), expected, atol=1e-3, rtol=0)
    swapped = exp_affine_sequence(still, fields.flip(1)).ddf()
    assert (swapped - expected).abs().max() > 0.1


def test_warping_along_a_chain_is_warping_along_its_flows_one_after_another():
    generators, fields = velocities()
    image = blob(2, SIZE, width=0.4)
    step_by_step = image
    for t in range(3):
        step_by_step = warp(step_by_step, exp_affine(generators[:, t], fields[:, t]).ddf())
    at_once = warp(image, exp_affine_sequence(generators, fields).ddf())
    assert_close(at_once[..., 8:-8, 8:-8], step_by_step[..., 8:-8, 8:-8], atol=0.02, rtol=0)
    assert (at_once - image).abs().max() > 0.2


def test_the_inverse_chain_leads_back():
    generators, fields = velocities()
    there, back = exp_affine_sequence(generators, fields), inverse_affine_sequence(generators, fields)
    for error in (there.after(back).ddf(), back.after(there).ddf()):
        assert error[..., 8:-8, 8:-8].abs().max() < 0.1
    assert there.ddf().abs().max() > 2


def test_the_dense_velocity_is_the_affine_field_plus_the_rest_cropped_to_the_frame():
    generators, fields = velocities(batch=1, times=1)
    v = dense_velocity(generators, fields, (40, 32))
    assert v.shape == (1, 1, 2, 40, 32)
    row, column = 7, 3
    x = torch.tensor([row - 19.5, column - 15.5])
    expected = generators[0, 0, :, :2] @ x + generators[0, 0, :, 2] + fields[0, 0, :, row + 4, column + 4]
    assert_close(v[0, 0, :, row, column], expected)
