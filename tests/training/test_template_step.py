import pytest
import torch
from monai.networks.nets import UNet
from torch.testing import assert_close

from monai_diffeo.flow import nonpositive_cell_fraction
from monai_diffeo.networks import SegmentThenRegister, ShapePrior, TemplatePrior, TemplateTransformer, compress_logits
from monai_diffeo.training import TemplateStep
from monai_diffeo.training.boundary import boundary_distance

SIZE = (32, 32)


def network(**settings):
    torch.manual_seed(0)
    prior = ShapePrior([[0.0, -0.45], [0.0, 0.45]], [[0.6, 0.3], [0.6, 0.3]], 4.0, "full", ["mean", "covariance", "beta"])
    settings = {"pieces": 2, "control_size": 8, "flow_size": 24, "steps": 4, "limit": 0.3, "gain": 0.1, **settings}
    return TemplateTransformer(UNet(2, 3, 4, (8, 16), (2,)), prior, **settings)


def films(count=4):
    shift = torch.linspace(-0.1, 0.1, count)
    priors = [ShapePrior([[s, -0.4 + s], [-s, 0.4 + s]], [[0.5, 0.25], [0.55, 0.2]]) for s in shift.tolist()]
    label = torch.cat([(p(SIZE) > 0.5).float() for p in priors])
    return {"image": 0.2 + 0.6 * label.amax(1, keepdim=True), "label": label}


def loss_of(step, net, batch):
    return float(sum(step(net, batch).values()).detach())


def test_training_lowers_the_loss():
    net, step = network(), TemplateStep()
    before = loss_of(step, net, films())
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(15):
        optimizer.zero_grad()
        sum(step(net, films()).values()).backward()
        optimizer.step()
    assert loss_of(step, net, films()) < 0.75 * before


@pytest.mark.parametrize(
    "settings", [{"strength": 1.0}, {"intensity": 1.0}, {"strength": 1.0, "framing_share": 1.0}, {"opacities": 1.0}]
)
def test_the_seed_decides_the_random_numbers(settings):
    net = network().eval()
    first, same, other = (loss_of(TemplateStep(seed=s, **settings), net, films()) for s in (0, 0, 1))
    assert first == same != other
    assert loss_of(TemplateStep(), net, films()) == loss_of(TemplateStep(seed=1), net, films())


def test_both_lungs_are_deformed_with_the_film():
    """At a deformation that moves everything the same way, the loss of a network that follows it stays what it was."""
    seen = []

    class Spy(TemplateTransformer):
        def read(self, image):
            seen.append(image)
            return super().read(image)

    net = network()
    net.__class__ = Spy
    step = TemplateStep(strength=1.0)
    labels = []
    step.loss = lambda odds, label: labels.append(label) or odds.sum() * 0
    step(net, films())
    inside = (seen[0] > 0.5).float()
    assert ((inside - labels[0].amax(1, keepdim=True)).abs().mean()) < 0.05 and labels[0].shape == (4, 2, *SIZE)
    assert (labels[0] - films()["label"]).abs().mean() > 0.02 and set(labels[0].unique().tolist()) == {0.0, 1.0}


def test_folding_costs_and_only_folding():
    calm, wild = network(gain=1e-6), network(limit=2.0, gain=30.0)
    assert TemplateStep()(calm, films())["folding"].item() == 0
    assert TemplateStep()(wild, films())["folding"].item() > 0
    assert nonpositive_cell_fraction(wild.integrate(wild.velocities(films()["image"]))).max() > 0
    assert set(TemplateStep(folding=0.0)(wild, films())) == {"segmentation"}


def test_distant_outlines_cost_and_the_price_teaches():
    net, batch = network(), films()
    with pytest.raises(TypeError, match="TemplatePrior has no outline"):
        TemplatePrior().outline(16)
    assert "outline" not in TemplateStep()(net, batch)
    step = TemplateStep(outline=1.0)
    first = step(net, batch)["outline"]
    assert_close(TemplateStep(outline=2.0)(net, batch)["outline"], 2 * first)
    velocity = net.velocities(batch["image"])
    assert_close(first, boundary_distance(net.outline(velocity, SIZE), batch["label"]).mean() / 15.5)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(12):
        optimizer.zero_grad()
        step(net, batch)["outline"].backward()
        optimizer.step()
    assert step(net, batch)["outline"] < 0.8 * first


def test_a_direct_answer_is_trained_too():
    net = network()
    net.backbone = SegmentThenRegister(UNet(2, 4, 2, (8, 16), (2,)), UNet(2, 4, 4, (8, 16), (2,)), in_channels=4)
    net.unshuffle = 2
    batch = films()
    losses, without = TemplateStep()(net, batch), TemplateStep(direct=0.0)(net, batch)
    assert "direct" not in without
    _, odds = net.read(batch["image"])
    smaller = (torch.nn.functional.avg_pool2d(batch["label"], 2) > 0.5).float()
    assert_close(losses["direct"], TemplateStep().loss(odds, smaller))
    losses["direct"].backward()
    assert all(p.grad is None for p in net.backbone.registration.parameters())
    assert all(p.grad.abs().max() > 0 for p in net.backbone.segmentation.parameters() if p.ndim > 1)


def test_tame_log_odds_keep_sign_order_and_slope_at_the_edge():
    odds = torch.tensor([-4000.0, -3.0, -1e-3, 0.0, 1e-3, 3.0, 20.0], requires_grad=True)
    tame = compress_logits(odds)
    assert (tame.sign() == odds.sign()).all() and (tame.diff() > 0).all() and tame.abs().max() < 30
    assert_close(tame[2:5], odds[2:5], rtol=1e-3, atol=1e-6)
    tame.sum().backward()
    assert (odds.grad[[0, 1, 2, 4, 5, 6]] > 0).all()
