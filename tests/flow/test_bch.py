import pytest
import scipy.linalg
import torch
from torch.testing import assert_close

from docs.experiments.bch import exact_growth
from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import bch, bch_sequence, compose, exp, lie_bracket
from monai_diffeo.flow.grid import voxel_grid
from tests.flow.exact_flows import SmoothVelocity, exact_bracket, exact_flow, slope
from tests.flow.flows import coordinates, interior, linear

DRAW = torch.Generator().manual_seed(0)
A, B, C = (torch.randn(2, 2, generator=DRAW, dtype=torch.float64) * 0.1 for _ in range(3))


def affine(matrix, size=(17, 20)):
    return linear(matrix, coordinates(size))[None]


def logarithm(*matrices):
    product = torch.eye(len(matrices[0]), dtype=torch.float64).numpy()
    for matrix in matrices:
        product = product @ scipy.linalg.expm(matrix.numpy())
    return torch.from_numpy(scipy.linalg.logm(product).real)


def commutator(a, b):
    return a @ b - b @ a


@pytest.mark.parametrize("dims", [2, 3])
def test_the_bracket_of_linear_velocities_is_the_commutator(dims):
    a, b = (torch.randn(dims, dims, generator=DRAW, dtype=torch.float64) for _ in range(2))
    size = (7, 8, 6)[:dims]
    assert_close(lie_bracket(affine(a, size), affine(b, size)), affine(commutator(a, b), size))


def test_the_bracket_is_bilinear_antisymmetric_and_satisfies_jacobi():
    a, b, c = affine(A), affine(B), affine(C)
    assert_close(lie_bracket(2 * a + c, b), 2 * lie_bracket(a, b) + lie_bracket(c, b))
    assert_close(lie_bracket(a, b), -lie_bracket(b, a))
    assert lie_bracket(a, a).abs().max() < 1e-12
    total = sum(lie_bracket(x, lie_bracket(y, z)) for x, y, z in ((a, b, c), (b, c, a), (c, a, b)))
    assert total.abs().max() < 1e-12


def test_the_bracket_is_the_first_term_by_which_flows_fail_to_commute():
    grid = voxel_grid((64, 64), dtype=torch.float64)
    v, w = (SmoothVelocity.random((64, 64), DRAW, shortest=24.0) for _ in range(2))
    found = []
    for size in (0.5, 0.25):
        there, back = exact_flow([v * size, w * size], grid), exact_flow([w * size, v * size], grid)
        error = (there - back)[None] / size**2 - lie_bracket(v(grid)[None], w(grid)[None])
        found.append(interior(error, 4).norm(dim=1).mean().item())
    bracket = interior(lie_bracket(v(grid)[None], w(grid)[None]), 4).norm(dim=1).mean().item()
    assert found[1] < 0.05 * bracket and found[1] < found[0]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_affine_flows_multiply_as_matrices_and_the_error_falls_with_the_order(order):
    sizes = (0.5, 0.25, 0.125)
    errors = []
    for s in sizes:
        z = bch(affine(A * s), affine(B * s), order)
        errors.append((z - affine(logarithm(A * s, B * s))).abs().max().item())
    assert slope(sizes, errors) == pytest.approx(order + 1, abs=0.15)


def test_the_flow_of_the_sum_is_the_composition_and_not_the_one_in_the_other_order():
    v, w = affine(A, (64, 64)), affine(B, (64, 64))
    z = exp(bch(v, w, 4), 9)
    right, wrong = compose(exp(v, 9), exp(w, 9)), compose(exp(w, 9), exp(v, 9))
    assert interior(z - right, 20).abs().max() < 0.05
    assert interior(z - wrong, 20).abs().max() > 0.2


def test_sampled_fields_come_closer_to_the_exact_flow_with_each_order():
    grid = voxel_grid((96, 96), dtype=torch.float64)
    v, w = (SmoothVelocity.random((96, 96), torch.Generator().manual_seed(s)) * 6 for s in (1, 2))
    exact = exact_flow([v, w], grid)[None]
    errors = [interior(exp(bch(v(grid)[None], w(grid)[None], k), 9) - exact, 8).norm(dim=1).mean().item() for k in (1, 2, 3)]
    assert errors[1] < 0.3 * errors[0] and errors[2] < 0.7 * errors[1]


def test_commuting_flows_need_the_sum_alone():
    v = affine(A)
    assert_close(bch(v, 3 * v, 4), 4 * v)
    assert_close(bch(v, -v, 4), torch.zeros_like(v))


@pytest.mark.parametrize("scheme", ["chain", "tree"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_sequence_is_the_logarithm_of_the_whole_product(scheme, count):
    matrices = [torch.randn(2, 2, generator=torch.Generator().manual_seed(t), dtype=torch.float64) * 0.02 for t in range(count)]
    fields = torch.stack([affine(m)[0] for m in matrices])[None]
    found = bch_sequence(fields, 4, scheme)
    assert_close(found, affine(logarithm(*matrices)), atol=2e-6, rtol=0)


def test_a_batch_gives_what_its_fields_give_alone_and_gradients_are_right():
    fields = torch.randn(3, 3, 2, 6, 7, generator=DRAW, dtype=torch.float64) * 0.1
    assert torch.equal(bch_sequence(fields, 3)[1:2], bch_sequence(fields[1:2], 3))
    v, w = (f.clone().requires_grad_() for f in fields[:1, :2].unbind(1))
    assert torch.autograd.gradcheck(lambda a, b: bch(a, b, 4), (v, w))


def test_what_is_no_pair_of_velocities_is_refused():
    v = torch.zeros(1, 2, 5, 5)
    with pytest.raises(ShapeError, match="lie_bracket.*'w'"):
        bch(v, torch.zeros(1, 2, 5, 6))
    with pytest.raises(ValueError, match="'order' must be 1, 2, 3 or 4, got 5"):
        bch(v, v, 5)
    with pytest.raises(ShapeError, match="fields"):
        bch_sequence(v)
    with pytest.raises(ValueError, match="'tree' or 'chain', got 'star'"):
        bch_sequence(v[:, None], scheme="star")


def test_the_bracket_of_formulas_is_that_of_their_samples_on_a_fine_lattice():
    draw = torch.Generator().manual_seed(3)
    v, w = (SmoothVelocity.random((64, 64), draw, shortest=48.0) for _ in range(2))
    grid = voxel_grid((64, 64), dtype=torch.float64)
    exact = exact_bracket(v, w)(grid)
    sampled = lie_bracket(v(grid)[None], w(grid)[None])[0]
    inner = (slice(None), slice(4, -4), slice(4, -4))
    assert (exact - sampled)[inner].abs().max() < 0.03 * exact.abs().max()
    assert_close(exact_bracket(w, v)(grid), -exact)


def test_errors_of_formulas_grow_with_the_order_and_one():
    assert exact_growth([1.0, 2.0], 1, orders=(1, 2, 3)) == pytest.approx({1: 2, 2: 3, 3: 4}, abs=0.2)
