"""No image at all, and frames with an axis of one voxel: every family and every function of ``flow``. And what is saved."""

import copy
import io
import pickle

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo import flow
from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.energies import DeformationRegularizer
from monai_diffeo.families import (
    CPAB,
    AffineCPAB,
    AffineMatrix,
    CoarseSampling,
    ControlGrid,
    DiffeomorphicAffine,
    Homography,
    PiecewiseStationary,
    Siren,
    ThinPlateSpline,
    Whitened,
)
from monai_diffeo.flow.warp import resize_ddf
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.networks import DeformationPredictor, RegressorLocalizer, SpatialTransformerLayer
from tests.helpers import Brightness, FixedTheta, some_theta, tiny_canonicalizer


def families(dims):
    grid = ControlGrid(dims, controls=4)
    found = {
        "affine matrix": AffineMatrix(dims),
        "affine": DiffeomorphicAffine(dims),
        "control grid": grid,
        "coarse": CoarseSampling(CPAB((2,) * dims), 2),
        "coarse grid": ControlGrid(dims, controls=3, spacing=2),
        "cpab": CPAB((2,) * dims),
        "affine cpab": AffineCPAB((2,) * dims),
        "whitened": Whitened(CPAB((2,) * dims)),
        "siren": Siren(dims, hidden=8, layers=2),
        "thin plate": ThinPlateSpline(dims, 3),
        "pieces": PiecewiseStationary(grid, 2),
        "series": PiecewiseStationary(grid, 2, order=2),
    }
    return found | ({"homography": Homography(), "exponential homography": Homography(True)} if dims == 2 else {})


EVERY = pytest.mark.parametrize(
    ("dims", "family"), [pytest.param(d, f, id=f"{name} {d}D") for d in (2, 3) for name, f in families(d).items()]
)
THIN = {2: [(9, 1), (1, 8), (1, 1)], 3: [(9, 8, 1), (9, 1, 7), (1, 1, 1)]}


@EVERY
def test_no_parameters_give_no_deformation(dims, family):
    size, theta = (9, 8, 7)[:dims], family.identity(0)
    for row in (theta, family.sample(0), family.scaled(theta, torch.ones(0))):
        assert row.shape == (0, family.num_parameters)
    for maps in (family(theta, size), family.inverse(theta, size)):
        assert maps.ddf(size).shape == (0, dims, *size) and maps.ddf(size).dtype == torch.float32
    assert family.jacobian(theta, size).shape == (0, dims, dims, *size)
    leaf = theta.clone().requires_grad_()
    family(leaf, size).ddf(size).sum().backward()
    assert leaf.grad is None or leaf.grad.shape == leaf.shape
    assert family(theta.double(), size).ddf(size).dtype == torch.float64


@EVERY
def test_an_axis_of_one_voxel_is_deformed_along_the_others(dims, family):
    theta = family.sample(2, 0.05, torch.Generator().manual_seed(0))
    for size in THIN[dims]:
        forward, inverse = family(theta, size).ddf(size), family.inverse(theta, size).ddf(size)
        assert forward.shape == (2, dims, *size) and forward.isfinite().all() and inverse.isfinite().all()
        slopes = family.jacobian(theta, size)
        assert slopes.isfinite().all() and (flow.folding_fraction(forward) == 0).all()
        if max(size) > 1:
            assert forward.abs().max() > 1e-3 or isinstance(family, Siren)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_middle_of_a_thick_frame_moves_as_a_frame_of_one_voxel(dims):
    """The motion within the plane is that of the middle of three voxels, whatever moves across it."""
    family = ControlGrid(dims, controls=4, margin=0.0)
    theta = some_theta(family, 0.05)
    theta[:, : family.num_affine] = 0
    field = family.velocity(theta, (9, 8, 1)[:dims] if dims == 3 else (9, 1))[1]
    thick = family.velocity(theta, (9, 8, 3)[:dims] if dims == 3 else (9, 3))[1]
    assert_close(field[:, :-1, ..., 0], thick[:, :-1, ..., 1])


def calls(dims, batch, size):
    draw = torch.Generator().manual_seed(0)
    v, w = torch.randn(2, batch, dims, *size, generator=draw) * 0.3
    g, image = torch.randn(batch, dims, dims + 1, generator=draw) * 0.1, torch.rand(batch, 1, *size, generator=draw)
    both, pair = torch.stack([v, w], 1), torch.stack([g, g], 1)
    control, targets = torch.rand(6, dims, generator=draw), torch.rand(batch, 6, dims, generator=draw)
    cells = tuple(max(n - 1, 1) for n in size)
    field, matrices = (batch, dims, *size), (batch, dims, dims, *size)
    return {
        "exp": (lambda: flow.exp(v), field),
        "inverse": (lambda: flow.inverse(v), field),
        "invert": (lambda: flow.invert(v), field),
        "compose": (lambda: flow.compose(v, w), field),
        "inverse_error": (lambda: flow.inverse_error(v, w), (batch, *size)),
        "warp": (lambda: flow.warp(image, v), (batch, 1, *size)),
        "warp labels": (lambda: flow.warp(image.long(), v, "nearest"), (batch, 1, *size)),
        "warp_points": (lambda: flow.warp_points(torch.rand(batch, 3, dims), v), (batch, 3, dims)),
        "no points": (lambda: flow.warp_points(torch.rand(batch, 0, dims), v), (batch, 0, dims)),
        "resize_ddf": (lambda: resize_ddf(v, tuple(n + 1 for n in size)), (batch, dims, *[n + 1 for n in size])),
        "exp_affine": (lambda: flow.exp_affine(g, v).ddf(), field),
        "affine_deformation": (lambda: flow.affine_deformation(g, size).ddf(), field),
        "jacobian": (lambda: flow.jacobian(v), matrices),
        "jacobian_determinant": (lambda: flow.jacobian_determinant(v), (batch, *size)),
        "folding_fraction": (lambda: flow.folding_fraction(v), (batch,)),
        "simplex_determinants": (lambda: flow.simplex_determinants(v), (batch, {2: 4, 3: 6}[dims], *cells)),
        "cell_determinants": (lambda: flow.cell_determinants(v), (batch, {2: 4, 3: 27}[dims], *cells)),
        "nonpositive_cell_fraction": (lambda: flow.nonpositive_cell_fraction(v), (batch,)),
        "lie_bracket": (lambda: flow.lie_bracket(v, w), field),
        "bch": (lambda: flow.bch(v, w, 4), field),
        "bch_sequence": (lambda: flow.bch_sequence(both), field),
        "compose_sequence": (lambda: flow.compose_sequence(both), field),
        "exp_sequence": (lambda: flow.exp_sequence(both), field),
        "exp_affine_sequence": (lambda: flow.exp_affine_sequence(pair, both).ddf(), field),
        "inverse_affine_sequence": (lambda: flow.inverse_affine_sequence(pair, both).ddf(), field),
        "dense_velocity": (lambda: flow.dense_velocity(pair, both, size), (batch, 2, dims, *size)),
        "mirror": (lambda: flow.mirror(image), (batch, 1, *size)),
        "rotate_axes": (lambda: flow.rotate_axes(image, 2), (batch, 1, *size)),
        "thin_plate_spline": (lambda: flow.thin_plate_spline(control, targets, control[:4]), (batch, 4, dims)),
        "thin_plate_slopes": (lambda: flow.thin_plate_slopes(control, targets, control[:4]), (batch, 4, dims, dims)),
    }


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("size", [(6, 5), *THIN[2], (6, 5, 4), *THIN[3]], ids=str)
def test_every_function_of_flow(batch, size):
    done = calls(len(size), batch, size)
    public = {name for name in flow.__all__ if name.islower()} - {"axis_rotations"}
    assert public <= set(done), "call the new function here too"
    for name, (call, shape) in done.items():
        found = call()
        assert tuple(found.shape) == shape and found.isfinite().all(), name


@pytest.mark.parametrize("size", [(12, 16, 1), (1, 16, 12), (16, 1)])
def test_a_flat_volume_goes_through_the_inferer_and_back(size):
    dims = len(size)
    family = ControlGrid(dims, controls=4)
    canonicalizer = Canonicalizer(
        Brightness(), family, DeformationRegularizer(), FixedTheta(some_theta(family, 0.04)), max_energy_increase=None, steps=2
    )
    result = DiffeoInferer(canonicalizer, tta_samples=2).infer(torch.rand(2, 1, *size), lambda x: x)
    assert result.canonicalization.status == ("canonicalized",) * 2
    assert result.prediction.shape == (2, 1, *size) and result.prediction.isfinite().all()


def test_an_empty_batch_goes_to_the_network_as_it_is():
    network, images = torch.nn.Conv2d(1, 3, 3, padding=1), torch.empty(0, 1, 16, 16)
    result = DiffeoInferer(tiny_canonicalizer(), tta_samples=3).infer(images, network, plain=True)
    assert result.prediction.shape == (0, 3, 16, 16) and result.prediction.dtype == torch.float32
    assert result.canonicalization is None and result.plain is result.prediction


def saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@EVERY
def test_a_family_can_be_saved_copied_and_loaded(dims, family):
    theta, size = family.sample(1, 0.1, torch.Generator().manual_seed(0)), (9, 8, 7)[:dims]
    expected = family(theta, size).ddf(size)
    other = copy.deepcopy(family)
    other.load_state_dict(family.state_dict())
    for copied in (pickle.loads(pickle.dumps(family)), other, saved(family)):
        assert torch.equal(copied(theta, size).ddf(size), expected)
        assert torch.equal(copied.inverse(theta, size).ddf(size), family.inverse(theta, size).ddf(size))


@pytest.mark.parametrize(("name", "dims"), [*((name, 2) for name in families(2)), ("control grid", 3)])
def test_a_canonicalizer_and_a_layer_of_any_family_can_be_saved_copied_and_loaded(name, dims):
    torch.manual_seed(0)
    family, size = families(dims)[name], (8, 12, 8)[:dims]
    predictor = DeformationPredictor(family.num_parameters, dims, image_size=size, channels=(8, 8))
    torch.nn.init.normal_(predictor.head[-1].weight, std=0.01)
    canonicalizer = Canonicalizer(Brightness(), family, predictor=predictor, max_energy_increase=None, max_halvings=0)
    layer = SpatialTransformerLayer(RegressorLocalizer(family.num_parameters, dims), family).eval()
    image = torch.rand(1, 1, *size)
    expected, moved = canonicalizer(image), layer(image)
    assert not torch.equal(expected.image, image)
    for copied in (pickle.loads(pickle.dumps(canonicalizer)), copy.deepcopy(canonicalizer), saved(canonicalizer)):
        assert torch.equal(copied(image).image, expected.image)
        assert copied.state_dict().keys() == canonicalizer.state_dict().keys()
    torch.manual_seed(1)
    fresh = SpatialTransformerLayer(RegressorLocalizer(family.num_parameters, dims), family).eval()
    fresh.load_state_dict(layer.state_dict())
    for copied in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), saved(layer), fresh):
        assert torch.equal(copied(image), moved)
