import pytest
import scipy.linalg
import torch
from torch.testing import assert_close

from monai_diffeo.families import CPAB, AffineCPAB, AffineMatrix, DiffeomorphicAffine
from monai_diffeo.flow import warp
from monai_diffeo.flow.grid import centered_grid
from tests.flow.flows import interior, smooth_image

SIZES = [(32, 32), (24, 40), (12, 10, 14)]


def sample(family, batch=3, size=0.3, seed=0):
    return family.sample(batch, size, torch.Generator().manual_seed(seed)).double()


def in_halves(spatial_size):
    half = torch.tensor([(n - 1) / 2 for n in spatial_size], dtype=torch.float64)
    return half, centered_grid(spatial_size, dtype=torch.float64).flatten(1) / half[:, None]


@pytest.mark.parametrize("size", SIZES)
def test_the_exponential_is_scipys(size):
    dims = len(size)
    theta = sample(DiffeomorphicAffine(dims), size=0.6)
    half, x = in_halves(size)
    for row, ddf in zip(theta, DiffeomorphicAffine(dims)(theta, size).ddf(size)):
        square = torch.zeros(dims + 1, dims + 1, dtype=torch.float64)
        square[:dims] = row.view(dims, dims + 1)
        whole = torch.from_numpy(scipy.linalg.expm(square.numpy()))
        wanted = whole[:dims, :dims] @ x + whole[:dims, dims:]
        assert_close(ddf.flatten(1), (wanted - x) * half[:, None], atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_the_matrix_is_the_identity_plus_theta_in_halves_of_the_frame(size):
    dims = len(size)
    theta = sample(AffineMatrix(dims))
    half, x = in_halves(size)
    moved = theta.view(-1, dims, dims + 1)
    wanted = (moved[..., :-1] @ x + moved[..., -1:]) * half[:, None]
    assert_close(AffineMatrix(dims)(theta, size).ddf(size).flatten(2), wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_flows_of_one_generator_are_a_group_and_never_flip(dims):
    family, size = DiffeomorphicAffine(dims), (10,) * dims
    theta = sample(family, 100, 2.0)
    assert torch.linalg.det(family(theta, size).matrix[..., :-1]).min() > 0
    theta = theta[:5] / 4
    halves = family(theta / 2, size).after(family(theta / 2, size))
    assert_close(halves.matrix, family(theta, size).matrix)
    both = family(theta, size).after(family.inverse(theta, size))
    assert_close(both.matrix, torch.eye(dims, dims + 1, dtype=torch.float64).expand(5, -1, -1), atol=1e-10, rtol=0)


def test_a_matrix_may_flip_and_a_flat_one_has_no_inverse():
    family = AffineMatrix(2)
    mirror = torch.tensor([[-2.0, 0, 0, 0, 0, 0]])
    assert family.jacobian(mirror, (4, 4))[0, 0, 0].max() == -1
    image = torch.rand(1, 1, 8, 8)
    assert_close(warp(image, family(mirror, (8, 8)).ddf((8, 8))), image.flip(2))
    assert_close(family.inverse(mirror, (8, 8)).matrix, family(mirror, (8, 8)).matrix)
    flat = family.inverse(torch.tensor([[-1.0, 0, 0, 0, 0, 0]]), (8, 8)).matrix
    assert not torch.isfinite(flat).all()


@pytest.mark.parametrize("diffeomorphic", [True, False])
def test_affine_after_cpab_moves_an_image_first_as_a_whole_then_in_detail(diffeomorphic):
    family, size = AffineCPAB((3, 3), diffeomorphic=diffeomorphic), (96, 96)
    theta = sample(family, 2, 0.15).float()
    affine, cpab = theta[:, :6], theta[:, 6:]
    image = smooth_image(size, batch=2)
    first = warp(image, family.affine(affine, size).ddf(size))
    second = warp(first, CPAB((3, 3))(cpab, size).ddf(size))
    assert (
        interior(second - warp(image, family(theta, size).ddf(size)), 24).abs().max() < 0.05
    )  # the image spans 4; two interpolations
    assert (second - first).abs().max() > 0.1


@pytest.mark.parametrize("boundary", ["linear", "slide"])
def test_the_inverse_of_affine_and_cpab_is_exact_at_the_voxels(boundary):
    family, size = AffineCPAB((4, 4), boundary), (20, 24)
    theta = sample(family, 2, 0.3)
    half, x = in_halves(size)
    back = family.inverse(theta, size).ddf(size) + centered_grid(size, dtype=torch.float64)
    points = (back.flatten(2) / half[:, None] + 1).transpose(1, 2) / 2
    moved = family.cpab.transform_points(theta[:, 6:], points) * 2 - 1
    matrix = family.affine(theta[:, :6], size).matrix
    voxels = matrix[..., :-1] @ (moved.transpose(1, 2) * half[:, None]) + matrix[..., -1:]
    assert_close(voxels, (x * half[:, None]).expand(2, -1, -1), atol=1e-9, rtol=0)
