import copy

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import DenseNet121
from torch import nn
from torch.testing import assert_close

from monai_diffeo.errors import ShapeError
from monai_diffeo.families import (
    CPAB,
    AffineCPAB,
    AffineMatrix,
    ControlGrid,
    DiffeomorphicAffine,
    Family,
    Homography,
    Siren,
    ThinPlateSpline,
)
from monai_diffeo.flow import Deformation, compose, warp
from monai_diffeo.networks import (
    CNNLocalizer,
    FCNLocalizer,
    RegressorLocalizer,
    SpatialTransformerChain,
    SpatialTransformerLayer,
    zero_init_last_layer_,
)
from tests.helpers import blob

FAMILIES_2D = [
    AffineMatrix(2),
    DiffeomorphicAffine(2),
    Homography(),
    ThinPlateSpline(2),
    CPAB((4, 4)),
    AffineCPAB((2, 2)),
    ControlGrid(2, 4),
    Siren(2, hidden=8, layers=1),
]
FAMILIES_3D = [AffineMatrix(3), DiffeomorphicAffine(3), ThinPlateSpline(3, 2), CPAB((1, 2, 1)), AffineCPAB((1, 1, 1))]


def small(family, size=(20, 20), channels=1):
    return CNNLocalizer(family.num_parameters, size, channels, channels=(4,), kernel_size=3, hidden=(8,))


def stirred(layer, scale=0.05, seed=0):
    """The layer as training leaves it: its last weights are not zero."""
    torch.manual_seed(seed)
    last = [m for m in layer.localizer.modules() if isinstance(m, nn.Linear)][-1]
    nn.init.normal_(last.weight, std=scale)
    nn.init.normal_(last.bias, std=scale)
    return layer


@pytest.mark.parametrize("family, size", [(f, (20, 20)) for f in FAMILIES_2D] + [(f, (10, 12, 9)) for f in FAMILIES_3D])
def test_it_begins_with_the_identity_and_its_localiser_learns(family, size):
    layer = SpatialTransformerLayer(small(family, size), family)
    image = torch.rand(2, 1, *size)
    moved = layer(image)
    assert moved.shape == image.shape
    assert_close(moved, image, atol=2e-3 if isinstance(family, Siren) else 1e-5, rtol=0)
    (moved * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    last = [m for m in layer.localizer.modules() if isinstance(m, nn.Linear)][-1]
    assert last.bias.grad.abs().max() > 0 and torch.isfinite(last.bias.grad).all()
    stirred(layer, 0.5 if isinstance(family, Siren) else 0.05)
    layer.zero_grad()
    layer(image).sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in layer.parameters())
    assert (layer(image) - image).abs().max() > 0.01


@pytest.mark.parametrize(
    "build",
    [
        lambda p: FCNLocalizer(p, (42, 42)),
        lambda p: CNNLocalizer(p, (42, 42)),
        lambda p: CNNLocalizer(p, (20, 20, 20), hidden=()),
        lambda p: RegressorLocalizer(p, 2, image_size=32),
        lambda p: RegressorLocalizer(p, 3, image_size=16, channels=(8, 8)),
        lambda p: zero_init_last_layer_(DenseNet121(2, 1, p)),
    ],
)
def test_localisers_give_zeros_at_the_start_whatever_they_see(build):
    network = build(58)
    size = (20, 20, 20) if any(isinstance(m, nn.Conv3d) for m in network.modules()) else (42, 42)
    for image in (torch.rand(2, 1, *size), 100 * torch.randn(2, 1, *size)):
        assert torch.equal(network(image), torch.zeros(2, 58))


def test_a_thumbnail_serves_images_of_any_size_and_precision():
    network = RegressorLocalizer(6, 2, image_size=32, channels=(8, 8))
    nn.init.normal_([m for m in network.modules() if isinstance(m, nn.Linear)][-1].weight)
    big = F.interpolate(blob(1, (16, 16)), (128, 96), mode="bicubic", align_corners=False)
    assert (network(big) - network(blob(1, (64, 64)))).abs().max() < 0.5 * network(big).abs().max()
    assert network(torch.rand(2, 1, 48, 40).double()).shape == (2, 6)
    assert network(torch.randint(0, 255, (2, 1, 48, 40))).shape == (2, 6)


class ShiftFromThree(Family):
    """A shift along the rows by ``theta - 3`` voxels: the identity is not 0."""

    spatial_dims, num_parameters = 2, 1

    def identity(self, batch_size, device="cpu", seed=0):
        return torch.full((batch_size, 1), 3.0, device=device)

    def forward(self, theta, spatial_size):
        still = Deformation.identity(len(theta), spatial_size)
        return Deformation(still.matrix + (theta - 3).view(-1, 1, 1) * torch.tensor([[0.0, 0, 1], [0, 0, 0]]), still.residual)


class Says(nn.Module):
    def __init__(self, theta):
        super().__init__()
        self.theta = torch.tensor(theta)

    def forward(self, image):
        return self.theta.expand(len(image), -1)


@pytest.mark.parametrize(
    "said, limit, moved", [(0.0, None, 0.0), (1.5, None, 1.5), (-2.0, None, -2.0), (1e6, 0.5, 0.5), (-1e6, 2.0, -2.0)]
)
def test_a_localiser_says_how_far_from_the_identity(said, limit, moved):
    layer = SpatialTransformerLayer(Says([[said]]), ShiftFromThree(), limit=limit)
    ddf = layer.deformation(torch.rand(2, 1, 6, 5)).ddf()
    assert_close(ddf, torch.tensor([moved, 0.0]).view(1, 2, 1, 1).expand(2, 2, 6, 5))


def test_only_the_last_layer_begins_with_zeros():
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.Tanh()
    )
    before = copy.deepcopy(network)
    assert zero_init_last_layer_(network) is network and (network[4].weight == 0).all()
    assert torch.equal(network[0].weight, before[0].weight) and torch.equal(network[2].bias, before[2].bias)


def test_fully_connected_layers_have_a_rectifier_between_and_none_at_the_end():
    network = FCNLocalizer(2, (1, 2), hidden=(3,))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, 0]]))
        network[1].bias.copy_(torch.tensor([0.0, -1, 0]))
        network[3].weight.copy_(torch.tensor([[1.0, 1, 1], [-1, -1, -2]]))
    assert_close(network(torch.tensor([[[[2.0, 3.0]]], [[[-4.0, 0.0]]]])), torch.tensor([[4.0, -4.0], [4.0, -8.0]]))


def test_a_thumbnail_does_not_show_brightness_and_contrast():
    network, image = RegressorLocalizer(6, 2, image_size=32, channels=(8, 8)), torch.rand(2, 1, 40, 48)
    nn.init.normal_([m for m in network.modules() if isinstance(m, nn.Linear)][-1].weight)
    assert_close(network(3 * image + 5), network(image), atol=1e-3, rtol=1e-3)


def test_it_learns_to_centre_what_is_shifted():
    torch.manual_seed(0)
    family = DiffeomorphicAffine(2)
    layer = SpatialTransformerLayer(small(family), family)
    optimizer = torch.optim.Adam(layer.parameters(), 0.01)
    draw = torch.Generator().manual_seed(0)
    target = blob(1, (20, 20))

    def loss():
        shifted = blob(16, (20, 20), shift=torch.rand(16, generator=draw) * 0.6 - 0.3)
        return (layer(shifted) - target).square().mean() / (shifted - target).square().mean()

    for _ in range(50):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss() < 0.4


@pytest.mark.parametrize("family", [CPAB((3, 3)), AffineCPAB((2, 2)), Homography()])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_field_stays_in_single_precision(family, dtype):
    layer = stirred(SpatialTransformerLayer(small(family), family))
    image = torch.rand(2, 1, 20, 20)
    with torch.autocast("cpu", dtype=dtype):
        theta, flow, moved = layer.localizer(image), layer.deformation(image), layer(image)
    assert theta.dtype == dtype and flow.residual.dtype == flow.matrix.dtype == torch.float32 and moved.dtype == torch.float32
    assert_close(moved, warp(image, family(theta.float(), (20, 20)).ddf((20, 20))), atol=1e-5, rtol=0)


def test_feature_maps_inside_a_network_are_moved_alike():
    family = CPAB((2, 2))
    layer = stirred(SpatialTransformerLayer(small(family, channels=5), family))
    features = torch.rand(2, 5, 20, 20)
    moved, ddf = layer(features), layer.deformation(features).ddf((20, 20))
    for c in range(5):
        assert_close(moved[:, c : c + 1], warp(features[:, c : c + 1], ddf))
    network = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), layer, nn.Conv2d(5, 2, 3))
    network(torch.rand(2, 1, 20, 20)).sum().backward()
    assert network[0].weight.grad.abs().max() > 0  # the gradient passes through the sampler


def test_modes_of_sampling_are_passed_on():
    family = AffineMatrix(2)
    layers = [SpatialTransformerLayer(small(family), family, padding_mode=mode) for mode in ("border", "zeros")]
    for layer in layers:
        layer.localizer[-1].bias.data = torch.tensor([0.0, 0, 0.5, 0, 0, 0])
    image = torch.ones(1, 1, 20, 20)
    assert layers[0](image).min() == 1 and layers[1](image).min() == 0
    labels = torch.randint(0, 3, (1, 1, 20, 20)).float()
    nearest = SpatialTransformerLayer(layers[0].localizer, family, mode="nearest")
    assert set(nearest(labels).unique().tolist()) <= {0.0, 1.0, 2.0}


def test_a_chain_looks_again_and_samples_once():
    affine, cpab = DiffeomorphicAffine(2), CPAB((3, 3), "slide")
    first, second = (stirred(SpatialTransformerLayer(small(f), f), seed=s) for s, f in enumerate((affine, cpab)))
    chain, image = SpatialTransformerChain(first, second), blob(2, (20, 20), shift=0.2)
    seen = first(image)
    whole = compose(first.deformation(image).ddf((20, 20)), second.deformation(seen).ddf((20, 20)))
    assert (chain(image) - warp(image, whole)).abs().max() < 0.02
    exact = first.deformation(image).after(second.deformation(seen)).ddf((20, 20))
    assert_close(chain(image), warp(image, exact))
    assert_close(chain(image), nn.Sequential(first, second)(image), atol=0.1, rtol=0)
    assert_close(SpatialTransformerChain(first)(image), first(image))
    chain(image).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in chain.parameters())


def test_a_layer_saves_its_weights_alone_and_survives_copying():
    family = CPAB((2, 2))
    layer = stirred(SpatialTransformerLayer(small(family), family))
    assert set(layer.state_dict()) == {f"localizer.{name}" for name in layer.localizer.state_dict()}
    image = torch.rand(1, 1, 20, 20)
    assert torch.equal(copy.deepcopy(layer)(image), layer(image))


def test_errors_say_what_to_do():
    family = CPAB((2, 2))
    layer = SpatialTransformerLayer(FCNLocalizer(7, (8, 8)), family)
    with pytest.raises(ShapeError, match=r"\(2, 20\).*num_parameters=family.num_parameters"):
        layer(torch.rand(2, 1, 8, 8))
    with pytest.raises(ShapeError, match=r"\(B, C, H, W\) as the family has it"):
        layer(torch.rand(2, 1, 8, 8, 8))
    with pytest.raises(ValueError, match="too small for 2 convolutions"):
        CNNLocalizer(6, (10, 10))
    with pytest.raises(ValueError, match="no linear layer"):
        zero_init_last_layer_(nn.ReLU())
    with pytest.raises(ValueError, match="at least one layer"):
        SpatialTransformerChain()


def test_a_chain_composes_the_later_map_inside_and_shows_it_the_first_result():
    """``first(second(x))`` of ``1.5 x`` and ``x + 1``: shifts by 1.5, where the other order shifts by 1."""

    class Rows(Family):
        spatial_dims, num_parameters = 2, 2

        def forward(self, theta, spatial_size):
            matrix = torch.eye(2, 3).repeat(len(theta), 1, 1)
            matrix[:, 0, [0, 2]] += theta
            return Deformation(matrix, torch.zeros(len(theta), 2, *spatial_size))

    seen = []

    class Looks(Says):
        def forward(self, image):
            seen.append(image)
            return super().forward(image)

    layers = [SpatialTransformerLayer(Looks([theta]), Rows()) for theta in ([0.5, 0.0], [0.0, 1.0])]
    image = torch.rand(1, 1, 9, 4)
    whole = SpatialTransformerChain(*layers).deformation(image)
    assert_close(whole.matrix, torch.tensor([[[1.5, 0, 1.5], [0, 1, 0]]]))
    assert torch.equal(seen[0], image) and torch.equal(seen[1], layers[0](image))


def test_a_limit_bounds_what_a_localiser_gone_astray_asks_for():
    family = CPAB((2, 2))
    layer = SpatialTransformerLayer(small(family), family, limit=0.5)
    image = torch.rand(2, 1, 20, 20)
    nn.init.constant_(layer.localizer[-1].bias, 1e6)
    assert_close(layer.deformation(image).ddf(), family(torch.full((2, family.num_parameters), 0.5), (20, 20)).ddf())
    nn.init.constant_(layer.localizer[-1].bias, 1e-3)
    free = SpatialTransformerLayer(layer.localizer, family)
    assert_close(layer.deformation(image).ddf(), free.deformation(image).ddf(), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="'limit' must be larger than 0 or None, got 0"):
        SpatialTransformerLayer(layer.localizer, family, limit=0)
