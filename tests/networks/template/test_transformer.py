import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.networks.nets import UNet
from torch import nn
from torch.testing import assert_close

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import exp, exp_sequence, folding_fraction, nonpositive_cell_fraction
from monai_diffeo.flow.warp import sample
from monai_diffeo.metrics import betti_numbers, connected_components
from monai_diffeo.networks import AtlasPrior, SegmentThenRegister, ShapePrior, TemplateTransformer
from monai_diffeo.networks.template import transformer
from monai_diffeo.networks.template.backbone import add_uncertainty_bias, blocks_to_channels, uncertain_fraction
from monai_diffeo.networks.template.guard import intact_level
from monai_diffeo.networks.template.prior import relative_grid
from monai_diffeo.networks.template.transformer import _folding, _interpolate

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = (48, 48)


def lungs(**settings):
    return ShapePrior([[0.0, -0.45], [0.0, 0.45]], [[0.6, 0.3], [0.6, 0.3]], 3.0, **settings)


def ball():
    return ShapePrior([[0.0, 0.0, 0.0]], [[0.5, 0.6, 0.4]], 2.0)


class Says(nn.Module):
    """A backbone that answers the same whatever it sees, scaled by the first voxel of each image."""

    def __init__(self, answer):
        super().__init__()
        self.register_buffer("answer", answer)

    def forward(self, image):
        return self.answer * image[(slice(None), slice(0, 1), *[slice(0, 1)] * (image.ndim - 2))]


def wild(pieces, dims=2, scale=4.0, seed=0, coarse=6):
    answer = torch.randn(1, pieces * dims, *[coarse] * dims, generator=torch.Generator().manual_seed(seed)) * scale
    return Says(nn.functional.interpolate(answer, scale_factor=2))


def network(backbone=None, prior=None, **settings):
    torch.manual_seed(0)
    settings = {"pieces": 2, "flow_size": 32, "control_size": 12, "steps": 5, **settings}
    return TemplateTransformer(backbone or UNet(2, 3, 4, (4, 8), (2,)), prior or lungs(), **settings).eval()


def parts(log_odds, connectivity="face"):
    return [connected_components((o > 0).any(0).numpy(), connectivity)[1] for o in log_odds]


def test_zero_velocities_give_the_prior():
    net = network(Says(torch.zeros(1, 4, 12, 12)))
    odds = net(torch.ones(2, 1, *SIZE))
    assert_close(torch.sigmoid(odds[:1]), lungs()(SIZE))
    assert torch.equal(odds[0], odds[1])


def test_a_constant_velocity_moves_the_prior_by_it():
    answer = torch.zeros(1, 4, 12, 12)
    answer[:, 1], answer[:, 3] = 2.0, 1.0  # both pieces along the columns
    net = network(Says(answer), limit=0.3, gain=0.05)
    shift = 0.3 * (np.tanh(0.1 / 0.3) + np.tanh(0.05 / 0.3))
    moved = lungs()
    moved.mean.data[:, 1] -= shift
    assert_close(torch.sigmoid(net(torch.ones(1, 1, *SIZE))), moved(SIZE), atol=1e-4, rtol=0)


def test_the_tangent_limits_each_piece():
    net = network(Says(torch.full((1, 4, 12, 12), 1e6)), limit=0.1)
    assert_close(net.velocities(torch.ones(1, 1, *SIZE)), torch.full((1, 2, 2, 32, 32), 0.1 * 15.5))


def test_splines_are_smooth_keep_constants_and_lines_and_need_no_axis_of_equal_length():
    line = torch.linspace(-1, 1, 9).view(1, 1, 9, 1, 1).expand(1, 1, 9, 5, 7)
    drawn = _interpolate(line, (33, 12, 20))
    assert drawn.shape == (1, 1, 33, 12, 20)
    assert_close(drawn[0, 0, 6:-6, 3, 4], torch.linspace(-1, 1, 33)[6:-6], atol=1e-5, rtol=0)
    assert_close(_interpolate(torch.ones(1, 2, 4, 4), (11, 11)), torch.ones(1, 2, 11, 11))


@pytest.mark.parametrize("scale", [1.0, 4.0, 20.0, 400.0])
def test_the_components_are_the_priors_whatever_the_backbone_says(scale):
    image = torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 1, *SIZE)
    free, guarded = (network(wild(2, scale=scale), limit=1.0, guard=guard) for guard in (False, True))
    result = guarded.segment(image)
    assert parts(result.log_odds) == parts(result.log_odds, "full") == [2] * 6
    assert all(betti_numbers((o > 0).numpy()) == (1, 0) for answer in result.log_odds for o in answer)
    assert result.intact.all() and result.nonpositive_cell_fraction.max() == 0 and result.folding_fraction.max() == 0
    if scale >= 4:
        assert (result.factor < 1).any()  # it had to act
        raw = free.segment(image)
        assert raw.nonpositive_cell_fraction.max() > 0 and (raw.factor == 1).all() and raw.intact is None
    untouched = (result.factor == 1) & (result.level == 0)
    assert torch.equal(result.log_odds[untouched], free(image)[untouched])


@given(st.integers(0, 1000), st.floats(0.5, 50.0), st.sampled_from([(40, 40), (33, 52)]))
def test_topology_is_kept_for_any_field_and_frame(seed, scale, size):
    net = network(wild(2, scale=scale, seed=seed), limit=0.6)
    result = net.segment(torch.ones(1, 1, *size))
    assert parts(result.log_odds, "face") == parts(result.log_odds, "full") == [2]
    assert result.nonpositive_cell_fraction.item() == 0


def test_in_space_too():
    net = network(wild(2, 3, 30.0), ball(), limit=0.8, flow_size=16, control_size=6, sees_prior=False)
    result = net.segment(torch.ones(2, 1, 20, 22, 18))
    assert [betti_numbers((o > 0)[0].numpy()) for o in result.log_odds] == [(1, 0, 0)] * 2
    assert (result.factor < 1).all() and result.nonpositive_cell_fraction.max() == 0 and result.folding_fraction.max() == 0


def test_a_level_is_tried_before_the_velocities_are_calmed():
    near = ShapePrior([[0.0, -0.31], [0.0, 0.31]], [[0.6, 0.3], [0.6, 0.3]], 4.0)  # they touch on this lattice
    assert parts(near.log_odds(relative_grid((24, 24))), "full") == [1]
    net = network(Says(torch.zeros(1, 4, 12, 12)), near)
    result = net.segment(torch.ones(1, 1, 24, 24))
    assert result.level.item() > 0 and result.factor.item() == 1 and parts(result.log_odds, "full") == [2]


def test_a_level_is_the_nearest_one_that_leaves_the_shapes_whole():
    odds = torch.full((1, 7, 9), -5.0)
    odds[0, 2:5, 1:8] = 3.0
    assert intact_level(odds) == 0.0
    odds[0, :, 4] = odds[0, :, 4].clamp(max=-0.3)  # a neck below 0
    assert intact_level(odds) == -0.5
    odds[0, 3, 2] = -4.0  # and a hole that no level closes
    assert intact_level(odds) is None


def test_a_batch_gives_what_its_images_give_alone():
    torch.manual_seed(3)
    net = network(gain=2.0, limit=0.5)
    image = torch.rand(4, 1, *SIZE)
    with torch.no_grad():
        batch = net.segment(image)
        alone = [net.segment(image[i : i + 1]) for i in range(4)]
    assert_close(batch.log_odds, torch.cat([a.log_odds for a in alone]), atol=1e-3, rtol=1e-3)
    assert batch.factor.tolist() == [a.factor.item() for a in alone] and batch.level.tolist() == [a.level.item() for a in alone]


def test_training_sees_no_guard_and_every_parameter_gets_a_gradient():
    prior = lungs(kind="full", trained=["mean", "covariance", "beta"])
    net = network(prior=prior, gain=1.0).train()
    image = torch.rand(2, 1, *SIZE)
    label = (prior(SIZE) > 0.6).float().expand(2, -1, -1, -1)
    nn.functional.binary_cross_entropy_with_logits(net(image), label).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters() if p.requires_grad)
    assert all(p.grad.abs().max() > 0 for p in prior.parameters())


def test_it_learns_to_move_the_prior():
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    shift = torch.linspace(-0.2, 0.2, 8).view(8, 1, 1)
    label = (((y - shift) / 0.5) ** 2 + (x / 0.4) ** 2 < 1).float()[:, None]
    prior = ShapePrior([[0.0, 0.0]], [[0.5, 0.4]], 3.0, trained=["mean", "covariance"])
    net = TemplateTransformer(UNet(2, 2, 4, (8, 16), (2,)), prior, pieces=2, control_size=8, flow_size=24, steps=4, gain=0.2)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)

    def overlap():
        with torch.no_grad():
            inside = net.eval()(label) > 0
        return (2 * (inside & (label > 0)).sum() / (inside.sum() + label.sum())).item()

    before = overlap()
    for _ in range(40):
        net.train()
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(net(label), label).backward()
        optimizer.step()
    assert overlap() > max(before + 0.03, 0.93)


@pytest.mark.parametrize(
    "settings, channels",
    [({}, 3), ({"unshuffle": 2}, 6), ({"sees_prior": False}, 1), ({"unshuffle": 4, "sees_prior": False}, 16)],
)
def test_blocks_become_channels_and_nothing_is_lost(settings, channels):
    seen = []

    class Look(nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.zeros(x.shape[0], 4, *x.shape[2:])

    net = network(Look(), **settings)
    image = torch.rand(1, 1, *SIZE)
    net(image)
    side = settings.get("unshuffle", 1)
    assert seen[0].shape == (1, channels, 48 // side, 48 // side)
    blocks = seen[0][:, : side**2]
    assert_close(blocks.flatten().sort().values, image.flatten().sort().values)
    assert_close(blocks.mean(1), nn.functional.avg_pool2d(image, side)[:, 0])


def test_published_and_older_variants():
    answer = wild(4, scale=1.0)
    field = {"control_size": None, "flow_size": None, "pieces": 4, "guard": False, "limit": 0.5}
    backbone = Says(nn.functional.interpolate(answer.answer, SIZE, mode="bilinear"))
    image = torch.ones(1, 1, *SIZE)
    exact = network(backbone, **field).segment(image)
    assert_close(exact.ddf, exp_sequence(exact.velocity, 5))
    published = network(backbone, order=2, **field).segment(image)
    assert 0 < (published.ddf - exact.ddf).abs().mean() < 0.2
    older = network(backbone, diffeomorphic=False, **{**field, "guard": True}).segment(image)
    assert_close(older.ddf, older.velocity.sum(1))
    assert older.intact is None  # there is nothing to guard
    assert (folding_fraction(older.ddf) == older.folding_fraction).all() and (
        nonpositive_cell_fraction(older.ddf) == older.nonpositive_cell_fraction
    ).all()


def test_the_prior_is_asked_at_the_point_and_not_interpolated():
    """A larger frame shows the same warped shape with a smooth edge, the displacement being the bilinear one."""
    net = network(wild(2, scale=1.0), limit=0.2)
    result = net.segment(torch.ones(1, 1, 32, 32))
    fine = net.warp_prior(result.ddf, (125, 125))
    assert_close(fine[:, :, ::4, ::4], net.warp_prior(result.ddf, (32, 32)), atol=1e-3, rtol=1e-3)
    assert parts(fine) == [2]


def test_atlas_priors_work_too():
    masks = (lungs()(SIZE) > 0.5).float()
    result = network(wild(2, scale=30.0), AtlasPrior.from_masks(masks), limit=0.6).segment(torch.ones(1, 1, *SIZE))
    assert parts(result.log_odds, "full") == [2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fields_are_computed_in_full_precision_under_autocast(dtype):
    net = network()
    image = torch.rand(1, 1, *SIZE)
    with torch.autocast("cpu", dtype=dtype), torch.inference_mode():
        result = net.segment(image)
    assert result.ddf.dtype == result.log_odds.dtype == torch.float32


def test_what_does_not_fit_is_said():
    with pytest.raises(ShapeError, match=r"TemplateTransformer: 'image' must have shape \(B, C, H, W\)"):
        network()(torch.rand(1, *SIZE))
    with pytest.raises(ShapeError, match="4 pieces of 2 components"):
        network(pieces=4)(torch.rand(1, 1, *SIZE))
    with pytest.raises(ShapeError, match="divisible by unshuffle = 5"):
        network(unshuffle=5)(torch.rand(1, 1, *SIZE))


def test_the_backbone_sees_the_prior_as_it_is_now():
    seen = []

    class Look(Says):
        def forward(self, image):
            seen.append(image[:, 1:].clone())
            return super().forward(image)

    net = network(Look(wild(2).answer))
    image = torch.rand(1, 1, *SIZE)
    with torch.inference_mode():
        net(image)
    with torch.no_grad():
        net(image)
        net.prior.mean += 0.1
        net(image)
    assert_close(seen[0], seen[1], atol=0, rtol=0)
    assert (seen[1] - seen[2]).abs().max() > 0.1
    assert_close(seen[2], net.prior(seen[2].shape[2:]).detach())
    net.load_state_dict(network().state_dict(), strict=False)
    net(image)
    assert_close(seen[3], seen[0])


def ring(thickness=0.2):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 48), indexing="ij")
    return AtlasPrior.from_masks((((x**2 + y**2).sqrt() - 0.5).abs() < thickness)[None, None].float())


@pytest.mark.parametrize("seed", range(4))
def test_a_ring_stays_a_ring(seed):
    free, guarded = (network(wild(2, scale=30.0, seed=seed), ring(), limit=0.6, guard=guard) for guard in (False, True))
    image = torch.ones(1, 1, 48, 48)
    result = guarded.segment(image)
    assert (
        betti_numbers((result.log_odds[0, 0] > 0).numpy()) == (1, 1)
        and result.intact.all()
        and result.nonpositive_cell_fraction.item() == 0
    )
    assert free.segment(image).nonpositive_cell_fraction.item() > 0


def test_shapes_that_touch_go_on_touching_and_the_network_can_be_copied_and_saved(tmp_path):
    halves = torch.zeros(1, 2, 32, 32)
    halves[0, 0, 8:16, 8:24] = halves[0, 1, 16:24, 8:24] = 1
    net = network(wild(2, scale=8.0, seed=2), AtlasPrior.from_masks(halves), limit=0.4)
    result = copy.deepcopy(net).segment(torch.ones(1, 1, *SIZE))
    assert parts(result.log_odds) == [1] and [betti_numbers(m.numpy()) for m in result.log_odds[0] > 0] == [(1, 0)] * 2
    net.segment(torch.ones(1, 1, *SIZE))
    torch.save(net, tmp_path / "net.pt")
    again = torch.load(tmp_path / "net.pt", weights_only=False).segment(torch.ones(1, 1, *SIZE))
    assert torch.equal(again.log_odds, result.log_odds)


def test_a_frame_too_coarse_for_the_prior_is_said_of_each_image_every_time(caplog):
    net = network(Says(torch.zeros(1, 4, 12, 12)), ring(0.08))
    for _ in range(2):
        caplog.clear()
        assert not net.segment(torch.ones(2, 1, 7, 7)).intact.any()
        lines = [r.getMessage() for r in caplog.records if r.name == "monai_diffeo.networks.template.transformer"]
        assert [f"image {k} of 2" in line and "Take a finer frame" in line for k, line in enumerate(lines, 1)] == [True, True]


def test_a_backbone_that_segments_and_then_registers():
    torch.manual_seed(0)
    backbone = SegmentThenRegister(UNet(2, 4, 2, (8, 16), (2,)), UNet(2, 16, 4, (8, 16), (2,)), in_channels=4, unshuffle=2)
    net = network(backbone, unshuffle=2, gain=1.0)
    image = torch.rand(2, 1, *SIZE)
    velocity, direct = net.read(image)
    assert direct.shape == (2, 2, 24, 24) and torch.equal(velocity, net.velocities(image))
    assert torch.equal(direct, backbone.segmentation(blocks_to_channels(image, 2)))
    assert network().read(image)[1] is None
    result = net.segment(image)
    assert result.intact.all() and result.log_odds.shape == (2, 2, *SIZE)
    assert ((result.agreement >= 0) & (result.agreement < 1)).all() and network().segment(image).agreement is None
    backbone.segmentation = nn.Sequential(UNet(2, 4, 8, (8, 16), (2,)), nn.PixelShuffle(2))  # an answer on a finer frame
    assert net.read(image)[1].shape == (2, 2, *SIZE) and net.segment(image).intact.all()
    backbone.segmentation = UNet(2, 4, 3, (8, 16), (2,))
    with pytest.raises(ShapeError, match="SegmentThenRegister: 'segmentation\\(image\\)' must have shape \\(2, 2, 24, 24\\)"):
        net(image)


def test_velocities_do_not_depend_on_the_film_but_on_the_direct_answer():
    torch.manual_seed(0)
    backbone = SegmentThenRegister(Says(torch.randn(1, 2, *SIZE)), UNet(2, 4, 4, (8, 16), (2,)))
    net = network(backbone, gain=1.0)
    image = torch.rand(2, 1, *SIZE)
    image[:, :, :1, :1] = 0.5  # all that this segmentation looks at
    with torch.no_grad():
        one, other = net.velocities(image)
    assert_close(one, other)
    assert one.abs().max() > 1e-3


class Sees(nn.Module):
    """Answers the same whatever it sees, and keeps what it saw."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.seen = answer, None

    def forward(self, inputs):
        self.seen = inputs
        return self.answer.expand(len(inputs), -1, -1, -1)


def test_each_pass_sees_the_prior_as_those_before_it_have_moved_it():
    torch.manual_seed(0)
    passes = [Sees(torch.randn(1, k, 12, 12)) for k in (4, 2)]
    net = network(SegmentThenRegister(Says(torch.randn(1, 2, *SIZE)), passes), pieces=3, control_size=(4, 4, 12), gain=1.0)
    image = torch.rand(2, 1, *SIZE)
    velocity, direct = net.read(image)
    assert_close(passes[0].seen[:, :2], torch.sigmoid(direct))
    assert_close(passes[0].seen[:, 2:], lungs()(SIZE).expand(2, -1, -1, -1))
    assert torch.equal(passes[1].seen[:, :2], passes[0].seen[:, :2])
    assert_close(passes[1].seen[:, 2:], torch.sigmoid(net.warp_prior(net.integrate(velocity[:, :2]), SIZE)))
    assert (passes[1].seen - passes[0].seen).abs().max() > 0.1
    for channels in ((3, 3), (8, 2)):
        wrong = SegmentThenRegister(Says(torch.randn(1, 2, *SIZE)), [Sees(torch.randn(1, k, 12, 12)) for k in channels])
        with pytest.raises(
            ShapeError, match=f"must have shape \\(B, 6, \\*S\\).*got \\(2, {channels[0]}, 12, 12\\).*whole pieces"
        ):
            network(wrong, pieces=3).read(image)
    with pytest.raises(ValueError, match="several networks need 'moved'"):
        net.backbone(torch.rand(2, 3, *SIZE))
    alone = network(Says(torch.cat([p.answer for p in passes], 1)), pieces=3, control_size=(4, 4, 12), gain=1.0)
    assert_close(alone.velocities(torch.ones(2, 1, *SIZE)), velocity)


def test_doubt_is_the_unsure_share_of_each_shape_that_was_found():
    p = torch.tensor([[[0.0, 1.0, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0]], [[0.001] * 4, [0.6, 0.4, 0.4, 0.4]]]).view(2, 2, 2, 2)
    assert_close(uncertain_fraction(p), torch.tensor([[1 / 2, 0.0], [0.0, 0.5]]).view(2, 2, 1, 1))
    assert_close(uncertain_fraction(p[:, :, None]), uncertain_fraction(p)[..., None])
    few = torch.cat([torch.full((1, 1, 9, 9), 1e-3), torch.ones(1, 1, 9, 9)], dim=3)
    assert_close(uncertain_fraction(few), torch.full((1, 1, 1, 1), 4e-3 * 0.999))
    assert uncertain_fraction(few.double()).dtype == torch.float64
    many = torch.full((1, 1, 300, 300), 0.95)
    assert_close(uncertain_fraction(many.half()).float(), uncertain_fraction(many), atol=2e-3, rtol=0)


def test_what_is_in_doubt_is_shown_to_the_registration_as_inside_outside_training():
    sure, unsure = torch.full(SIZE, -20.0), torch.full(SIZE, -20.0)
    sure[10:30, 10:30] = unsure[10:30, 10:30] = 20.0
    unsure[10:30, 30:33] = -1.0
    looks = Sees(torch.zeros(1, 4, 12, 12))
    backbone = SegmentThenRegister(Says(torch.stack([sure, unsure])[None]), looks, uncertainty_bias=12.0)
    net = network(backbone, pieces=2, control_size=4)
    image = torch.ones(2, 1, *SIZE)
    image[1] = -1.0  # inside and outside exchanged
    net.segment(image)
    seen, direct = looks.seen[:, :2], net.read(image)[1]
    assert_close(seen[0, 0], torch.sigmoid(sure), msg="nothing in doubt")
    share = uncertain_fraction(torch.sigmoid(unsure)[None, None]).item()
    assert 0.1 < share < 0.13 and (seen[0, 1, 10:30, 30:33] > 0.5).all() and (seen[0, 1, :, 33:] < 1e-6).all()
    assert_close(seen[0, 1], torch.sigmoid(unsure + 12 * share))
    assert torch.equal(direct[0, 1], unsure), "the direct answer itself stays"
    assert_close(seen[1], torch.sigmoid(add_uncertainty_bias(direct, 12.0))[1])
    net.segment(image[:1])
    assert torch.equal(looks.seen[0, :2], seen[0]), "whatever else is in the batch"
    net.train()
    net(image)
    assert torch.equal(looks.seen[:, :2], torch.sigmoid(direct))


@pytest.mark.parametrize("pieces", [(2, 2), (1, 3), (3, 1), (1, 1, 1, 1)])
def test_what_a_pass_has_found_is_integrated_once(pieces, monkeypatch):
    torch.manual_seed(0)
    passes = [Says(torch.randn(1, 2 * t, 12, 12)) for t in pieces]
    net = network(
        SegmentThenRegister(Says(torch.randn(1, 2, *SIZE)), passes), pieces=4, control_size=(4, 4, 6, 12), limit=0.05, gain=1.0
    )
    image, asked = torch.rand(2, 1, *SIZE), []
    monkeypatch.setattr(transformer, "exp", lambda v, steps: asked.append(len(v)) or exp(v, steps))
    result = net.segment(image)
    assert asked == [2 * t for t in pieces] and (result.factor == 1).all()
    assert_close(result.ddf, net.integrate(result.velocity))
    image[0] = math.nan
    assert_close(net.segment(image).ddf[1], result.ddf[1])
    net.order = 2  # a sum of velocities has no such parts
    assert_close(net.segment(image[1:]).ddf, net.integrate(result.velocity[1:]))


def test_a_later_pass_teaches_those_before_it():
    torch.manual_seed(0)
    backbone = SegmentThenRegister(
        UNet(2, 1, 2, (4, 8), (2,)), [UNet(2, 4, 4, (4, 8), (2,), norm=None), UNet(2, 4, 2, (4, 8), (2,), norm=None)]
    )
    net = network(backbone, pieces=3, gain=1.0).train()
    net.velocities(torch.rand(2, 1, *SIZE))[:, 2].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in backbone.registration[0].parameters() if p.ndim > 1)


def test_the_outline_of_the_moved_shapes_is_where_their_log_odds_are_zero():
    net = network(wild(2, scale=1.0), limit=0.3, gain=0.1, flow_size=64, steps=7)
    image = torch.linspace(0.3, 1, 2).view(2, 1, 1, 1).expand(2, 1, *SIZE)
    velocity = net.velocities(image)
    points = net.outline(velocity, SIZE, 90)
    assert points.shape == (2, 2, 2, 90)
    odds = net.warp_prior(net.integrate(velocity), SIZE)
    steep = torch.stack(torch.gradient(odds, dim=(2, 3))).norm(dim=0)
    for shape in range(2):
        at, slope = (sample(f[:, shape : shape + 1], points[:, shape, :, :, None])[:, 0, :, 0] for f in (odds, steep))
        assert (at.abs() / slope).max() < 0.35  # voxels
        assert (points[:, shape] - net.outline(torch.zeros_like(velocity), SIZE, 90)[:, shape]).norm(dim=1).max() > 1.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(net.outline(velocity, SIZE, 90), points)
    with pytest.raises(ValueError, match="no inverse"):
        network(wild(2), diffeomorphic=False).outline(velocity, SIZE)


@pytest.mark.parametrize("dims", [2, 3])
def test_where_no_cell_breaks_no_voxel_folds(dims):
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randn(400, dims, *[4] * dims, generator=draw) * torch.linspace(0.02, 1.2, 400).view(-1, *[1] * (dims + 1))
    fields = nn.functional.interpolate(
        coarse, size=[7] * dims, mode="bilinear" if dims == 2 else "trilinear", align_corners=True
    )
    broken = nonpositive_cell_fraction(fields)
    assert 40 < (broken == 0).sum() < 360 and torch.equal(_folding(fields, broken), folding_fraction(fields))
    assert _folding(fields, broken).max() > 0


def test_agreement_is_one_where_the_direct_answer_is_the_template_and_falls_as_they_part():
    whole = torch.where(lungs()(SIZE) > 0.5, 5.0, -5.0)

    def agreement(direct):
        backbone = SegmentThenRegister(Says(direct), UNet(2, 4, 4, (8, 16), (2,)))
        return network(backbone, gain=1e-9).segment(torch.ones(1, 1, *SIZE)).agreement.item()

    half = whole.clone()
    half[:, 0] = -5.0  # one lung is missing
    assert agreement(whole) == 1.0 and 0.6 < agreement(half) < 0.75 and agreement(-5 * torch.ones_like(whole)) == 0.0
    assert agreement(whole.flip(1)) < 0.1  # left taken for right


def test_an_image_that_is_not_finite_gets_the_prior_and_the_others_their_answer(caplog):
    net = network(gain=1.0)
    image = torch.rand(2, 1, *SIZE)
    with torch.no_grad():
        alone = net.segment(image[:1]).log_odds
        image[1, 0, 5, 5] = float("nan")
        result = net.segment(image)
    assert [r.getMessage() for r in caplog.records if "image 2 of 2: the velocities are not finite" in r.getMessage()]
    assert_close(result.log_odds[:1], alone, atol=1e-3, rtol=1e-3)
    assert (
        torch.equal(result.log_odds[1] > 0, lungs()(SIZE)[0] > 0.5) and result.factor.tolist()[1] == 0 and result.intact.all()
    )


def test_a_prior_that_is_written_into_is_looked_at_again():
    net = network()
    image = torch.rand(1, 1, *SIZE)
    with torch.no_grad():
        before = net._shown_prior(SIZE)
        net(image)
        net.prior.mean.data.add_(0.1)
        assert (net._shown_prior(SIZE) - before).abs().max() > 0.1
