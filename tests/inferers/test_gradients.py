"""Gradients through a wrapped network: the deformation is a constant, everything else is differentiated."""

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SaliencyInferer, SlidingWindowInferer
from monai.networks.nets import DenseNet, UNet
from monai.visualize import GradCAM, SmoothGrad, VanillaGrad
from torch.testing import assert_close

from monai_diffeo.flow import rotate_axes
from monai_diffeo.inferers import DiffeoInferer
from tests.canonicalize.test_working_size import OBLONG, Turned, anatomy, build
from tests.helpers import blob, tiny_canonicalizer


class Wrapped(torch.nn.Module):
    """All that a module of a wrapped network needs, as the inferer's page shows it."""

    def __init__(self, network, inferer):
        super().__init__()
        self.network, self.inferer = network, inferer

    def forward(self, x):
        return self.inferer(x, self.network)


class Held:
    """A canonicaliser that finds what it found on one image, applied to each image that comes."""

    def __init__(self, found):
        self.found = found

    def __call__(self, image):
        from dataclasses import replace

        with torch.no_grad():
            return replace(self.found, image=self.found.moved_image(image.detach()))


def segmenter(seed=0):
    torch.manual_seed(seed)
    return UNet(2, 1, 2, (4, 8), (2,), act="MISH", norm="BATCH").double().eval()


def classifier(seed=0):
    torch.manual_seed(seed)
    return DenseNet(2, 1, 3, 8, 4, (2, 2), bn_size=2).eval()


@pytest.mark.parametrize("poses", [1, 3, 4])
@pytest.mark.parametrize("windows", [False, True])
def test_the_gradient_is_that_of_finite_differences_with_the_deformation_held(poses, windows):
    image = (blob(2, (32, 32)) + 0.1 * torch.rand(2, 1, 32, 32)).double()
    inner = SlidingWindowInferer((16, 16), 4, overlap=0.5) if windows else None
    held = DiffeoInferer(Held(tiny_canonicalizer()(image)), inner, tta_samples=poses)
    weight, direction = torch.rand(2, 2, 32, 32).double(), torch.randn(2, 1, 32, 32).double()
    network = segmenter()

    def score(x):
        return (held(x, network) * weight).sum()

    leaf = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(leaf), leaf)
    with torch.no_grad():
        # images are moved in single precision, so that a step must be large; the network is smooth
        steps = [(score(image + h * direction) - score(image - h * direction)) / (2 * h) for h in (0.02, 0.01)]
    slope = (4 * steps[1] - steps[0]) / 3
    assert_close((gradient * direction).sum(), slope, rtol=2e-3, atol=0)
    free = DiffeoInferer(tiny_canonicalizer(), inner, tta_samples=poses)  # the real one, the same deformation
    (again,) = torch.autograd.grad((free(leaf, network) * weight).sum(), leaf)
    assert torch.equal(again, gradient)


@pytest.mark.parametrize("poses", [1, 3, 4])
@pytest.mark.parametrize("sampling", ["bilinear", "bicubic"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_values_are_the_same_bits_with_and_without_a_gradient(poses, sampling, dtype):
    images = torch.rand(3, 1, 32, 32).to(dtype)
    images[0] *= 0.1  # is left alone
    images[2, 0, 3, 3] = torch.nan  # is rejected
    inferer = DiffeoInferer(tiny_canonicalizer(skip_below=0.2, sampling=sampling), tta_samples=poses)
    seen = []
    out = inferer(images.clone().requires_grad_(), lambda x: seen.append(x) or x * 2)
    assert out.requires_grad and all(x.requires_grad for x in seen)
    asked = []
    with torch.no_grad():
        plain = inferer(images.clone().requires_grad_(), lambda x: asked.append(x) or x * 2)
    assert torch.equal(out.detach().nan_to_num(9), plain.nan_to_num(9)) and not plain.requires_grad
    assert all(torch.equal(a.detach().nan_to_num(9), b.nan_to_num(9)) for a, b in zip(seen, asked))
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(inferer(leaf, lambda x: x * 2).float().nan_to_num().sum(), leaf)
    assert gradient.isfinite().all() and torch.equal(gradient[0], torch.full_like(gradient[0], 2.0))


def test_the_result_that_is_reported_holds_no_graph():
    seen = []
    result = DiffeoInferer(tiny_canonicalizer(), on_result=seen.append).infer(blob(1).requires_grad_(), segmenter().float())
    assert result.prediction.requires_grad and not seen[0].image.requires_grad


def test_a_metatensor_and_an_image_on_another_frame_have_gradients_too():
    image = MetaTensor(rotate_axes(anatomy(OBLONG[2]), 1)).requires_grad_()
    DiffeoInferer(build(2, OBLONG[2], Turned(1, 4)))(image, lambda x: x * 3).sum().backward()
    assert image.grad.shape == image.shape and image.grad.abs().sum() > 0
    # each voxel's weight is about that of its share in the sum: 3 on the whole, less what leaves the frame
    assert 2 < image.grad.mean() < 4


def test_weights_and_a_second_image_have_gradients():
    network, prior = torch.nn.Conv2d(2, 1, 3, padding=1), torch.rand(1, 1, 32, 32, requires_grad=True)
    inferer = DiffeoInferer(tiny_canonicalizer(), images=["prior"], tta_samples=3)
    inferer(blob(1), lambda x, prior: network(torch.cat([x, prior], 1)), prior=prior).sum().backward()
    assert prior.grad.abs().sum() > 0 and network.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("poses", [1, 3])
def test_vanilla_and_smooth_gradients_of_monai_lie_on_the_input(poses):
    image, inferer = blob(1, (32, 32), shift=0.4), DiffeoInferer(tiny_canonicalizer(), tta_samples=poses)
    network = classifier()
    model = Wrapped(network, inferer).eval()
    map_of = VanillaGrad(model)(image.clone(), index=1)
    leaf = image.clone().requires_grad_()
    inferer(leaf, network)[:, 1].sum().backward()
    assert_close(map_of, leaf.grad)
    assert map_of.shape == image.shape and map_of.abs().sum() > 0
    smooth = SmoothGrad(model, n_samples=2, verbose=False)(image.clone(), index=1)
    assert smooth.shape == image.shape and smooth.isfinite().all() and smooth.abs().sum() > 0


class Bright(torch.nn.Module):
    """Two classes; the second is how bright the image is. Its activation map is the image."""

    def __init__(self):
        super().__init__()
        self.features, self.pool, self.fc = (
            torch.nn.Conv2d(1, 2, 1, bias=False),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Linear(2, 2),
        )
        with torch.no_grad():
            self.features.weight.copy_(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
            self.fc.weight.copy_(torch.eye(2))
            self.fc.bias.zero_()

    def forward(self, x):
        return self.fc(self.pool(self.features(x)).flatten(1))


@pytest.mark.parametrize("name", ["GradCAM", "GradCAMpp", "CAM"])
@pytest.mark.parametrize("poses", [1, 3])
def test_an_activation_map_as_the_inner_inferer_lies_on_the_input(name, poses):
    """MONAI's SaliencyInferer hooks the network at the canonical pose; the map comes back to where the blob is."""
    image, options = blob(1, (32, 32), shift=0.4), {"fc_layers": "fc"} if name == "CAM" else {"class_idx": 1}
    inner = SaliencyInferer(name, "features", postprocessing=lambda x: x, **options)
    inferer = DiffeoInferer(tiny_canonicalizer(), inner, tta_samples=poses)
    found = inferer(image, Bright())
    assert found.shape == image.shape
    where = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij"))
    centre = [(where * x / x.sum()).sum((-2, -1)) for x in (found[0].detach(), image[0], tiny_canonicalizer()(image).image[0])]
    assert torch.dist(centre[0], centre[1]) < 0.35 * torch.dist(centre[2], centre[1])


def test_hooks_on_a_wrapped_module_see_the_canonical_pose():
    """Why activation maps belong inside: outside, MONAI's hooks give the map of the canonical image."""
    image, model = blob(1, (32, 32), shift=0.4), Wrapped(Bright(), DiffeoInferer(tiny_canonicalizer()))
    found = GradCAM(model, "network.features", postprocessing=lambda x: x)(image, class_idx=1)
    assert found.shape == image.shape
    assert_close(found / found.max(), (lambda x: x / x.max())(tiny_canonicalizer()(image).image), atol=1e-3, rtol=0)
