"""What a CPU answers, a GPU answers too, to rounding. Skipped where there is none."""

import copy

import pytest
import torch
from monai.networks.nets import UNet
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.energies import DeformationRegularizer, VAEEnergy
from monai_diffeo.families import (
    CPAB,
    AffineCPAB,
    AffineMatrix,
    ControlGrid,
    DiffeomorphicAffine,
    Homography,
    ThinPlateSpline,
    Whitened,
)
from monai_diffeo.flow import bch, compose, exp, invert, warp
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.networks import CNNLocalizer, EnergyVAE, ShapePrior, SpatialTransformerLayer, TemplateTransformer
from tests.helpers import blob

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
FAMILIES = [
    AffineMatrix(),
    DiffeomorphicAffine(),
    Homography(),
    ThinPlateSpline(),
    CPAB((4, 4)),
    AffineCPAB((2, 2)),
    ControlGrid(2, 4),
    Whitened(CPAB((4, 4))),
]


def copied(module):
    """The same module on the GPU."""
    return copy.deepcopy(module).cuda()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_families_and_their_gradients(family):
    theta = family.sample(3, 0.1, torch.Generator().manual_seed(0))
    found = []
    for where, module in (("cpu", family), ("cuda", copied(family))):
        x = theta.detach().to(where).requires_grad_()
        there, back = module(x, (24, 31)).ddf((24, 31)), module.inverse(x, (24, 31)).ddf((24, 31))
        (there.square().sum() + back.sum()).backward()
        found.append([there.detach().cpu(), back.detach().cpu(), x.grad.cpu()])
        assert there.device.type == where
    for one, other in zip(*found):
        assert_close(one, other, atol=2e-3, rtol=2e-3)


def test_fields():
    draw = torch.Generator().manual_seed(0)
    v, w = (
        torch.nn.functional.interpolate(torch.randn(1, 2, 4, 4, generator=draw), (32, 32), mode="bicubic") for _ in range(2)
    )
    image = blob(1, (32, 32))
    for ask in (
        lambda a, b, i: exp(a, 6),
        lambda a, b, i: compose(exp(a, 6), exp(b, 6)),
        lambda a, b, i: bch(a, b, 4),
        lambda a, b, i: invert(exp(a, 6)),
        lambda a, b, i: warp(i, exp(a, 6)),
    ):
        assert_close(ask(v.cuda(), w.cuda(), image.cuda()).cpu(), ask(v, w, image), atol=2e-3, rtol=2e-3)


def test_a_transformer_layer_learns_there():
    family = CPAB((2, 2))
    layer = SpatialTransformerLayer(
        CNNLocalizer(family.num_parameters, (20, 20), channels=(4,), kernel_size=3, hidden=(8,)), family
    ).cuda()
    image = torch.rand(2, 1, 20, 20, device="cuda")
    assert_close(layer(image), image, atol=1e-4, rtol=0)
    layer(image).square().sum().backward()
    assert layer.localizer[-1].bias.grad.abs().max() > 0


def test_a_template_transformer():
    torch.manual_seed(0)
    prior = ShapePrior([[0.0, -0.45], [0.0, 0.45]], [[0.6, 0.3], [0.6, 0.3]], 3.0)
    network = TemplateTransformer(UNet(2, 3, 8, (8, 16), (2,)), prior, flow_size=32, control_size=8, gain=1.0).eval()
    image = torch.rand(2, 1, 48, 48)
    with torch.no_grad():
        one, other = network.segment(image), copied(network).segment(image.cuda())
    assert other.log_odds.is_cuda and other.intact.all()
    assert ((one.log_odds > 0) == (other.log_odds.cpu() > 0)).float().mean() > 0.995


def test_a_canonicaliser_and_its_inferer():
    torch.manual_seed(0)
    canonicalizer = Canonicalizer(
        VAEEnergy(EnergyVAE(in_channels=1, image_size=(32, 32), channels=(8, 16))),
        ControlGrid(2, 4),
        DeformationRegularizer(),
        steps=5,
    )
    image, network = blob(2, (32, 32)), UNet(2, 1, 1, (8, 16), (2,)).eval()
    with torch.no_grad():
        one = DiffeoInferer(canonicalizer)(image, network)
        other = DiffeoInferer(copied(canonicalizer))(image.cuda(), copied(network))
    assert other.is_cuda and other.shape == one.shape and torch.isfinite(other).all()
