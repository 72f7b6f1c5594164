import math

import pytest
import scipy.integrate
import scipy.linalg
import torch
from torch.testing import assert_close

import monai_diffeo.families.cpab.flow as flow_module
from monai_diffeo.errors import NumericalError, ShapeError
from monai_diffeo.families.cpab import BOUNDARIES, CPAPrior, cpa_flow, cpa_jacobian, cpa_space, cpa_velocity, grid_tessellation
from monai_diffeo.flow.kept import _kept
from tests.families.cpab.shapes import delaunay, field, points

GRIDS = [(5,), (3, 3), (2, 2, 2)]


def on_a_line(nodes, values, x):
    """Where x goes in time one along the piecewise-linear velocity; the time to the next node is a logarithm."""
    left = 1.0
    while left > 0:
        k = min(max(sum(x >= n for n in nodes) - 1, 0), len(nodes) - 2)
        velocity = values[k] + (values[k + 1] - values[k]) * (x - nodes[k]) / (nodes[k + 1] - nodes[k])
        if x == nodes[k] and velocity < 0 and k > 0:
            k -= 1
        slope = (values[k + 1] - values[k]) / (nodes[k + 1] - nodes[k])
        goal = nodes[k + 1] if velocity > 0 else nodes[k]
        outward = (velocity > 0 and k == len(nodes) - 2) or (velocity < 0 and k == 0)
        there = velocity + slope * (goal - x)
        time = math.inf
        if not outward and velocity != 0 and there * velocity > 0:
            time = math.log(there / velocity) / slope if abs(slope) > 1e-12 else (goal - x) / velocity
        if time >= left:
            growth = math.expm1(slope * left) / slope if abs(slope) > 1e-12 else left
            return x + velocity * growth
        x, left = goal, left - time
    return x


@pytest.mark.parametrize("seed", range(4))
def test_on_a_line_it_is_the_closed_form(seed):
    tessellation, velocities = field((6,), "free", 1.0, seed=seed, margins=())
    x = points(60, 1, seed)
    x[:7, 0] = torch.arange(7) / 6  # nodes too
    nodes, values = tessellation.vertices[:, 0].tolist(), velocities[0, :, 0].tolist()
    wanted = [on_a_line(nodes, values, p) for p in x[:, 0].tolist()]
    assert_close(
        cpa_flow(tessellation, velocities, x)[0, :, 0], torch.tensor(wanted, dtype=torch.float64), atol=1e-12, rtol=1e-12
    )
    single = cpa_flow(tessellation, velocities.float(), x.float())[0, :, 0]
    assert_close(single.double(), torch.tensor(wanted, dtype=torch.float64), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("cells", GRIDS)
@pytest.mark.parametrize("margins", [(), (1.0, 64.0)])
def test_an_affine_velocity_gives_the_matrix_exponential_outside_too(cells, margins):
    dims = len(cells)
    tessellation = grid_tessellation(cells, margins)
    draw = torch.Generator().manual_seed(1)
    matrix = torch.randn(dims, dims + 1, generator=draw, dtype=torch.float64) * 0.4
    velocities = (tessellation.vertices @ matrix[:, :dims].T + matrix[:, dims])[None]
    x = torch.rand(200, dims, generator=draw, dtype=torch.float64) * 1.4 - 0.2
    square = torch.zeros(dims + 1, dims + 1, dtype=torch.float64)
    square[:dims] = matrix
    whole = torch.from_numpy(scipy.linalg.expm(square.numpy()))
    assert_close(cpa_flow(tessellation, velocities, x)[0], x @ whole[:dims, :dims].T + whole[:dims, dims], atol=1e-12, rtol=0)


@pytest.mark.parametrize("cells, boundary", [((3, 3), "free"), ((4, 4), "slide"), ((2, 2, 2), "linear"), ("delaunay", "slide")])
def test_it_agrees_with_a_general_solver(cells, boundary):
    tessellation, velocities = field(delaunay(9, 2) if cells == "delaunay" else cells, boundary)
    x = points(6, tessellation.spatial_dims)

    def speed(_, y):
        return cpa_velocity(tessellation, velocities, torch.from_numpy(y)[None])[0, 0].numpy()

    for p, moved in zip(x, cpa_flow(tessellation, velocities, x)[0]):
        solution = scipy.integrate.solve_ivp(speed, (0, 1), p.numpy(), method="RK45", rtol=1e-9, atol=1e-10, max_step=0.05)
        assert_close(moved, torch.from_numpy(solution.y[:, -1]), atol=1e-6, rtol=0)
        assert (moved - p).abs().max() > 1e-3


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("cells", GRIDS)
@pytest.mark.parametrize("dtype, speed, rounding", [(torch.float64, 0.8, 1e-12), (torch.float32, 0.3, 5e-6)])
def test_group_laws_hold_to_rounding(cells, boundary, dtype, speed, rounding):
    tessellation, v = field(cells, boundary, speed, batch=3, dtype=dtype)
    x = points(200, len(cells), dtype=dtype)
    zero = cpa_flow(tessellation, torch.zeros_like(v), x)
    assert torch.equal(zero, x.expand(3, -1, -1))
    there = cpa_flow(tessellation, v, x)
    assert (there - x).abs().max() > 0.1
    assert_close(cpa_flow(tessellation, -v, there), x.expand(3, -1, -1), atol=rounding, rtol=0)
    halves = cpa_flow(tessellation, v / 2, cpa_flow(tessellation, v / 2, x))
    assert_close(halves, there, atol=rounding, rtol=0)


@pytest.mark.parametrize("cells", [(5,), (4, 4), (3, 3, 3)])
def test_the_frame_is_mapped_onto_itself_by_fields_that_slide(cells):
    tessellation, v = field(cells, "slide", 3.0)
    moved = cpa_flow(tessellation, v, points(500, len(cells)))
    assert moved.min() > -1e-12 and moved.max() < 1 + 1e-12
    edge = points(100, len(cells))
    edge[:, 0] = 1.0
    assert (cpa_flow(tessellation, v, edge)[..., 0] - 1).abs().max() < 1e-12


def test_points_outside_a_fixed_frame_stay():
    tessellation, v = field((3, 3), "fixed", 2.0)
    outside = points(50, 2) + torch.tensor([1.0, 0.3])
    assert torch.equal(cpa_flow(tessellation, v, outside)[0], outside)


@pytest.mark.parametrize("cells", ["fan", (2, 2)])
def test_points_on_vertices_edges_and_axes_of_symmetry_find_their_way(cells):
    tessellation, v = field(delaunay(1, 2) if cells == "fan" else cells, "slide" if cells == "fan" else "free", 0.9, batch=4)
    middles = tessellation.vertices[tessellation.cells[:, :2]].mean(1)
    x = torch.cat([tessellation.vertices, middles])
    x = x[(x >= 0).all(1) & (x < 1).all(1)]
    moved = cpa_flow(tessellation, v, x)
    near = cpa_flow(tessellation, v, x + 1e-9)
    assert_close(moved, near, atol=1e-7, rtol=0)


def test_whirls_sources_and_sinks_at_a_vertex():
    tessellation = grid_tessellation((2, 2), ())
    x = points(100, 2)
    away = tessellation.vertices - 0.5
    quarter = torch.tensor([[0.0, -math.pi / 2], [math.pi / 2, 0.0]], dtype=torch.float64)
    turned = cpa_flow(tessellation, (away @ (4 * quarter).T)[None], 0.25 + x / 2)[
        0
    ]  # four quarter turns about a vertex of eight cells
    assert_close(turned, 0.25 + x / 2, atol=1e-12, rtol=0)
    shrunk = cpa_flow(tessellation, -20 * away[None], x)[0]
    assert_close(shrunk, 0.5 + math.exp(-20) * (x - 0.5), atol=1e-12, rtol=0)


@pytest.mark.parametrize("speed", [2.0, 8.0])
def test_strong_fields_stay_exact(speed):
    tessellation, v = field((4, 4), "slide", speed)
    x = points(100, 2)
    pieces = x
    for _ in range(10):
        pieces = cpa_flow(tessellation, v / 10, pieces)
    assert_close(cpa_flow(tessellation, v, x), pieces, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "tessellation, boundary",
    [
        (grid_tessellation((3,)), "free"),
        (grid_tessellation((2, 1), ()), "free"),
        (grid_tessellation((1, 1, 1), ()), "free"),
        (delaunay(1, 2), "slide"),
        (grid_tessellation((2, 2)), "linear"),
    ],
)
def test_gradients_with_respect_to_coefficients_and_points_are_right(tessellation, boundary):
    space = cpa_space(tessellation, boundary)
    theta = torch.randn(1, space.num_parameters, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = (theta * 0.7 / space.velocities(theta).abs().max()).requires_grad_()
    x = points(3, tessellation.spatial_dims, seed=2)[None].requires_grad_()

    def moved(theta, x):
        return cpa_flow(tessellation, space.velocities(theta), x)

    assert (tessellation.locate(moved(theta, x))[0] != tessellation.locate(x)[0]).any()
    assert torch.autograd.gradcheck(moved, (theta, x), atol=1e-6, rtol=1e-4)


def test_gradients_of_shared_points_add_up_over_the_batch():
    tessellation, v = field((2, 2), batch=3)
    x = points(5, 2).requires_grad_()
    cpa_flow(tessellation, v, x).sum().backward()
    own = x.detach().expand(3, -1, -1).clone().requires_grad_()
    cpa_flow(tessellation, v, own).sum().backward()
    assert_close(x.grad, own.grad.sum(0))


def test_single_precision_gradients_are_those_of_double_precision():
    tessellation, v = field((4, 4), "free", 0.6, batch=2)
    x, weight = points(300, 2), torch.randn(2, 300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        leaf = v.to(dtype, copy=True).requires_grad_()
        (cpa_flow(tessellation, leaf, x.to(dtype)) * weight.to(dtype)).sum().backward()
        gradients.append(leaf.grad.double())
    assert_close(gradients[1], gradients[0], atol=1e-4 * float(gradients[0].abs().max()), rtol=0)


@pytest.mark.parametrize("cells", [(4,), (3, 3), (2, 2, 1)])
def test_the_jacobian_is_that_of_finite_differences_and_its_determinant_positive(cells):
    tessellation, v = field(cells, "free", 0.5, batch=2)
    x, dims = points(40, len(cells)), len(cells)
    found = cpa_jacobian(tessellation, v, x)
    unit = 1e-6 * torch.eye(dims, dtype=torch.float64)
    columns = [(cpa_flow(tessellation, v, x + e) - cpa_flow(tessellation, v, x - e)) / 2e-6 for e in unit]
    assert_close(found, torch.stack(columns, -1), atol=1e-6, rtol=1e-6)
    assert torch.linalg.det(found).min() > 0 and not found.requires_grad


def test_volumes_are_kept_where_every_matrix_has_trace_zero():
    space = cpa_space(grid_tessellation((3, 3)), "slide", volume_preserving=True)
    theta = torch.randn(2, space.num_parameters, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = cpa_jacobian(space.tessellation, space.velocities(theta), points(100, 2))
    assert_close(torch.linalg.det(jacobian), torch.ones(2, 100, dtype=torch.float64), atol=1e-10, rtol=0)
    assert (jacobian - torch.eye(2)).abs().max() > 0.1


def test_a_batch_gives_what_its_rows_give_one_by_one():
    tessellation, v = field((3, 3), batch=4, dtype=torch.float32)
    own = torch.rand(4, 50, 2, generator=torch.Generator().manual_seed(0))
    for x in (own, own[0]):
        together = cpa_flow(tessellation, v, x)
        for i in range(4):
            alone = cpa_flow(tessellation, v[i : i + 1], x[i : i + 1] if x.ndim == 3 else x)
            assert_close(together[i : i + 1], alone, atol=1e-6, rtol=0)


def test_many_points_are_worked_on_in_parts(monkeypatch):
    tessellation, v = field((3, 3), batch=2)
    x = points(60, 2)
    results = []
    for size in (2**17, 7):
        monkeypatch.setitem(flow_module.CHUNK, "cpu", size)
        leaf, start = v.clone().requires_grad_(), x.clone().requires_grad_()
        moved = cpa_flow(tessellation, leaf, start)
        moved.square().sum().backward()
        results.append((moved.detach(), leaf.grad, start.grad))
    for a, b in zip(*results):
        assert_close(a, b)


def test_numbers_that_are_none_come_out_as_such_and_absurd_ones_are_refused(monkeypatch):
    tessellation, v = field((2, 2), batch=2)
    v[0] = math.nan
    moved = cpa_flow(tessellation, v, points(20, 2))
    assert torch.isnan(moved[0]).all() and torch.isfinite(moved[1]).all()
    monkeypatch.setattr(flow_module, "ROUNDS", 50)
    with pytest.raises(NumericalError, match="still under way after 50 stretches.*Bound the parameters"):
        cpa_flow(tessellation, 1e4 * v[1:], points(20, 2))


def test_it_works_under_inference_mode_and_serves_autograd_afterwards():
    _kept.clear()
    tessellation, v = field((2, 2))
    with torch.inference_mode():
        quiet = cpa_flow(tessellation, v, points(10, 2))
    loud = cpa_flow(tessellation, v.requires_grad_(), points(10, 2))
    loud.sum().backward()
    assert torch.equal(quiet.clone(), loud.detach()) and v.grad.abs().max() > 0


def test_errors_say_what_to_do():
    tessellation, v = field((2, 2))
    with pytest.raises(ShapeError, match=r"'velocities' must have shape \(B, 85, 2\), one at each vertex"):
        cpa_flow(tessellation, v[:, :-1], points(3, 2))
    with pytest.raises(ShapeError, match=r"'points' must have shape \(N, 2\) or \(1, N, 2\)"):
        cpa_flow(tessellation, v, points(3, 3))


class TestPrior:
    def test_it_is_the_gaussian_process_where_nothing_is_constrained(self):
        space = cpa_space(grid_tessellation((2, 2), ()), "free")
        prior = CPAPrior(space, length_scale=0.3, std=0.2)
        covariance = torch.linalg.inv(prior.precision)
        at = torch.einsum("vdp,pq,weq->vdwe", space.nodal, covariance, space.nodal)
        apart = torch.cdist(space.tessellation.vertices, space.tessellation.vertices)
        assert_close(at[:, 0, :, 0], 0.04 * torch.exp(-apart.square() / 0.18), atol=1e-6, rtol=0)
        assert at[:, 0, :, 1].abs().max() < 1e-8

    @pytest.mark.parametrize("boundary", BOUNDARIES)
    def test_samples_densities_and_energies_belong_together(self, boundary):
        space = cpa_space(grid_tessellation((2, 2)), boundary)
        prior = CPAPrior(space, 0.4, 0.1)
        theta = prior.sample(4000, torch.Generator().manual_seed(0))
        normal = torch.distributions.MultivariateNormal(
            torch.zeros(space.num_parameters).double(), precision_matrix=prior.precision
        )
        assert_close(prior.log_density(theta.double()), normal.log_prob(theta.double()), atol=1e-4, rtol=1e-6)
        energy = prior.energy(theta)
        assert energy.shape == (4000,) and energy.dtype == torch.float32
        assert_close(energy.mean().item(), space.num_parameters / 2, atol=0.03 * space.num_parameters, rtol=0)  # chi squared
        assert torch.equal(theta, prior.sample(4000, torch.Generator().manual_seed(0)))
        assert prior.energy(torch.zeros(1, space.num_parameters)) == 0

    def test_long_scales_make_smooth_fields(self):
        space = cpa_space(grid_tessellation((4, 4)), "free")
        slopes = []
        for scale in (0.1, 1.0):
            theta = CPAPrior(space, scale, 0.1).sample(50, torch.Generator().manual_seed(0))
            slopes.append(space.matrices(theta)[..., :2].square().mean())
        assert slopes[0] > 20 * slopes[1]

    def test_it_refuses_nonsense(self):
        with pytest.raises(ValueError, match="larger than 0, got 0.0 and 0.1"):
            CPAPrior(cpa_space(grid_tessellation((2, 2)), "free"), 0.0)


def test_a_device_is_asked_for_nothing_but_which_points_are_under_way(monkeypatch):
    """Tensors on "meta" have no values and mix with no others: reading one, or computing on the host, fails."""
    with pytest.raises(RuntimeError):
        torch.ones(1, device="meta").item()
    asked, nonzero = [], torch.Tensor.nonzero

    def first_all_then_none(mask):
        if mask.device.type != "meta":
            return nonzero(mask)
        asked.append(mask.numel())
        return torch.arange(mask.numel() if len(asked) < 5 else 0, device="meta")[:, None]

    monkeypatch.setattr(torch.Tensor, "nonzero", first_all_then_none)
    (grid, velocities), where = field((3, 3), batch=2), points(50, 2)
    start = grid.locate(where)
    there = [x.to("meta") for x in (velocities, where, *start)]
    there[0].requires_grad_(), there[1].requires_grad_()
    moved = flow_module._Displacement.apply(*there, grid)
    moved.sum().backward()
    assert asked == [100] * 5  # those that stay in their cell, those that do not, and three rounds
    assert moved.device.type == there[0].grad.device.type == there[1].grad.device.type == "meta"
    assert (moved.shape, there[0].grad.shape, there[1].grad.shape) == ((2, 2, 50), velocities.shape, where.shape)
