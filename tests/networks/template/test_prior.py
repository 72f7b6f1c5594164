import math

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.errors import ShapeError
from monai_diffeo.metrics import betti_numbers
from monai_diffeo.networks import AtlasPrior, ShapePrior, TemplatePrior
from monai_diffeo.networks.template.prior import relative_grid

LUNGS = [[0.0, -0.4], [0.1, 0.4]]
AXES = [[0.6, 0.25], [0.5, 0.3]]
TILTED = [[[0.3, 0.05], [0.05, 0.08]], [[0.25, -0.04], [-0.04, 0.1]]]


def boundary(prior, count=50):
    """Points at Mahalanobis distance 1, ``(K, D, count)``, from the definition."""
    draw = torch.Generator().manual_seed(0)
    ball = torch.randn(prior.num_shapes, prior.spatial_dims, count, generator=draw)
    ball = ball / ball.norm(dim=1, keepdim=True)
    root = torch.linalg.cholesky(prior.covariance)
    return prior.mean[..., None] + root @ ball


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("kind, covariance", [("isotropic", AXES), ("diagonal", AXES), ("full", TILTED)])
def test_the_edge_is_at_distance_one_whatever_beta(kind, covariance, beta):
    prior = ShapePrior(LUNGS, covariance, beta, kind)
    points = boundary(prior)
    for k in range(2):
        assert_close(prior.at(points[k][None])[0, k], torch.full((50,), 0.5), atol=1e-4, rtol=0)
        assert_close(prior.log_odds(points[k][None])[0, k], torch.zeros(50), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_it_is_equation_five(dims):
    draw = torch.Generator().manual_seed(dims)
    root = torch.randn(2, dims, dims, generator=draw) * 0.4 + torch.eye(dims)
    sigma, mean, beta = root @ root.transpose(1, 2), torch.randn(2, dims, generator=draw) * 0.3, torch.tensor([0.8, 2.5])
    prior = ShapePrior(mean, sigma, beta.tolist(), "full")
    points = torch.rand(3, dims, 7, generator=draw) * 2 - 1
    offset = points[:, None] - mean[None, ..., None]
    squared = torch.einsum("bkin,kij,bkjn->bkn", offset, torch.linalg.inv(sigma), offset)
    expected = torch.exp(-(squared ** beta[:, None]) * math.log(2))
    assert_close(prior.at(points), expected, atol=1e-5, rtol=1e-4)
    assert_close(torch.sigmoid(prior.log_odds(points)), expected, atol=1e-5, rtol=1e-4)
    assert_close(prior.covariance, sigma)


def test_log_odds_are_finite_far_away_and_in_the_middle():
    prior = ShapePrior(LUNGS, AXES, 10.0, trained=["mean", "covariance", "beta"])
    points = torch.tensor([[0.0, 50.0, -0.0], [-0.4, 50.0, -0.3999]])[None].requires_grad_()
    odds = prior.log_odds(points)
    assert torch.isfinite(odds).all() and odds[0, 0, 0] > 5 and odds[0, 0, 1] < -1e3
    torch.nn.functional.binary_cross_entropy_with_logits(odds, (odds > 0).float()).backward()
    assert all(torch.isfinite(p.grad).all() for p in [points, *prior.parameters()] if p.numel())


def test_kinds_keep_the_volume_and_their_form():
    sigma = torch.tensor(TILTED)
    for kind in ("isotropic", "diagonal", "full"):
        found = ShapePrior(LUNGS, TILTED, kind=kind).covariance
        assert_close(torch.linalg.det(found), torch.linalg.det(sigma))
        assert kind == "full" or (found - torch.diag_embed(found.diagonal(dim1=1, dim2=2))).abs().max() == 0
        assert kind != "isotropic" or torch.allclose(found[:, 0, 0], found[:, 1, 1])


@pytest.mark.parametrize("trained", [(), ("mean",), ("covariance",), ("beta",), ("mean", "covariance", "beta")])
def test_only_what_is_trained_moves(trained):
    prior = ShapePrior(LUNGS, TILTED, 2.0, "full", trained)
    before = {"mean": prior.mean.clone(), "covariance": prior.covariance.clone(), "beta": prior.beta.clone()}
    parameters = [p for p in prior.parameters() if p.requires_grad]
    if parameters:
        optimizer = torch.optim.SGD(parameters, 0.05)
        (prior((16, 16)) - 0.3).square().sum().backward()
        optimizer.step()
    for name, old in before.items():
        assert ((getattr(prior, name) - old).abs().max() > 1e-5) == (name in trained), name
    assert (torch.linalg.eigvalsh(prior.covariance) > 0).all() and (prior.beta > 0).all()


@pytest.mark.parametrize("size", [(40, 60), (24, 30, 26)])
def test_an_ellipse_is_found_again_from_its_mask(size):
    dims = len(size)
    mean = torch.tensor([[0.1, -0.35, 0.05], [-0.1, 0.4, 0.0]])[:, :dims]
    root = torch.tensor([[0.5, 0.0, 0.0], [0.1, 0.3, 0.0], [0.0, 0.1, 0.4]])[:dims, :dims]
    prior = ShapePrior(mean, (root @ root.T).expand(2, -1, -1), kind="full")
    masks = (prior(size) > 0.5).float()
    found = ShapePrior.from_masks(torch.cat([masks, torch.zeros_like(masks), masks]))
    assert_close(found.mean, prior.mean, atol=0.01, rtol=0)
    assert_close(found.covariance, prior.covariance, atol=0.012, rtol=0)
    with pytest.raises(ValueError, match="not empty"):
        ShapePrior.from_masks(torch.zeros(2, 1, *size))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_outline_lies_on_the_edge_all_around(dims):
    mean = [[0.1, -0.2, 0.05][:dims], [-0.3, 0.2, 0.0][:dims]]
    tilted = torch.tensor([[0.3, 0.1, 0.0], [0.1, 0.2, 0.05], [0.0, 0.05, 0.1]])[:dims, :dims]
    prior = ShapePrior(mean, torch.stack([tilted, 0.5 * tilted.flip(0, 1)]), 3.0, "full")
    points = prior.outline(200)
    assert points.shape == (2, dims, 200)
    for k in range(2):
        assert_close(prior.at(points[k : k + 1])[0, k], torch.full((200,), 0.5), atol=1e-4, rtol=0)
    assert_close(points.mean(2), torch.tensor(mean), atol=5e-3, rtol=0)
    spread = torch.einsum("kin,kjn->kij", points - prior.mean[..., None], points - prior.mean[..., None]) / 200
    assert_close(spread, prior.covariance / dims, atol=5e-3, rtol=0)  # as for points spread evenly over a sphere


def test_one_prior_serves_every_resolution():
    prior = ShapePrior(LUNGS, TILTED, 3.0, "full")
    coarse, fine = prior((33, 33)), prior((65, 65))
    assert_close(fine[:, :, ::2, ::2], coarse, atol=1e-5, rtol=0)
    assert [betti_numbers(m) for m in (fine[0] > 0.5).numpy()] == [(1, 0), (1, 0)]


def test_an_atlas_keeps_the_edge_and_the_topology_of_the_mean_mask():
    masks = torch.cat(
        [(ShapePrior([[0.0, -0.4 + s], [0.0, 0.4 + s]], AXES)((48, 48)) > 0.5).float() for s in (-0.05, 0.0, 0.05)]
    )
    atlas = AtlasPrior.from_masks(masks, trained=True)
    shown = atlas((48, 48))
    assert ((shown[0] > 0.5) != (masks.mean(0) > 0.5)).float().mean() < 0.01
    assert [betti_numbers(m) for m in (shown[0] > 0.5).numpy()] == [(1, 0), (1, 0)]
    far = atlas.log_odds(torch.tensor([[0.0, 0.0], [0.9, 0.99]])[None, :, None])[0, 0, 0]
    assert far[1] < far[0] < -10  # it still pulls from the other side of the frame
    shown.sum().backward()
    assert atlas.log_width.grad.abs() > 0
    again = AtlasPrior.empty(2, (48, 48))
    again.load_state_dict(atlas.state_dict())
    assert torch.equal(again((20, 20)), atlas((20, 20)))


@pytest.mark.parametrize("size", [(33, 41), (21, 25, 29)])
def test_the_outline_of_an_atlas_lies_on_its_edge_all_around(size):
    dims = len(size)
    balls = ShapePrior([[0.1] * dims, [-0.2] * dims], [[0.6, 0.5, 0.4][:dims], [0.3, 0.4, 0.5][:dims]])
    atlas = AtlasPrior.from_masks((balls(size) > 0.5).float())
    points = atlas.outline(300)
    assert points.shape == (2, dims, 300)
    for k in range(2):
        odds = atlas.log_odds(points[k].view(1, dims, 300, *[1] * (dims - 1)))[0, k].flatten()
        assert_close(odds, torch.zeros(300), atol=1e-3, rtol=0)
    voxel = 2 / (min(size) - 1)
    gaps = torch.cdist(balls.outline(300).movedim(1, -1), points.movedim(1, -1)).amin(2)
    assert gaps.max() < 3 * voxel  # nowhere is a part of an edge without points
    assert_close(points.mean(2), balls.mean.detach(), atol=0.5 * voxel, rtol=0)
    with pytest.raises(ValueError, match="no edge inside the frame"):
        AtlasPrior.empty(1, size).outline(8)


def test_gradients_are_right():
    prior = ShapePrior(LUNGS, TILTED, 1.5, "full", ["mean", "covariance", "beta"]).double()
    points = (relative_grid((4, 5), dtype=torch.float64) + 0.03).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, *_: prior.log_odds(p), (points, *prior.parameters()))


def test_what_is_no_prior_is_refused():
    with pytest.raises(ShapeError, match="mean"):
        ShapePrior([0.0, 1.0], AXES)
    with pytest.raises(ShapeError, match="covariance"):
        ShapePrior(LUNGS, [[1.0, 1.0]])
    with pytest.raises(ValueError, match="positive definite"):
        ShapePrior([[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]])
    with pytest.raises(ValueError, match="'beta' must be positive"):
        ShapePrior(LUNGS, AXES, 0.0)
    with pytest.raises(ValueError, match="'kind' must be"):
        ShapePrior(LUNGS, AXES, kind="round")
    with pytest.raises(ValueError, match="got \\['sigma'\\]"):
        ShapePrior(LUNGS, AXES, trained=["mean", "sigma"])
    with pytest.raises(TypeError, match="must define log_odds"):
        TemplatePrior().log_odds(torch.zeros(1, 2, 3, 3))
