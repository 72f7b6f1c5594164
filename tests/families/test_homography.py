import numpy as np
import pytest
import torch
from skimage.transform import ProjectiveTransform
from skimage.transform import warp as skimage_warp
from torch.testing import assert_close

from monai_diffeo.families import Homography
from monai_diffeo.flow import warp
from monai_diffeo.flow.grid import centered_grid

SIZE = (40, 56)


def sample(batch=2, spread=0.15, seed=0):
    return Homography().sample(batch, spread, torch.Generator().manual_seed(seed)).double()


def in_pixels(matrix, size):
    """The same map on pixel coordinates with x first, as scikit-image has it."""
    half = np.array([(n - 1) / 2 for n in size])
    from_pixels = np.array([[0, 1 / half[0], -1], [1 / half[1], 0, -1], [0, 0, 1]])
    return np.linalg.inv(from_pixels) @ matrix.numpy() @ from_pixels


@pytest.mark.parametrize("exponential", [False, True])
def test_points_go_where_scikit_image_sends_them(exponential):
    family, theta = Homography(exponential), sample()
    grid = centered_grid(SIZE, dtype=torch.float64) + torch.tensor([(n - 1) / 2 for n in SIZE]).view(2, 1, 1)
    moved = family(theta, SIZE).ddf(SIZE) + grid
    for row, matrix in zip(moved, family.matrix(theta)):
        theirs = ProjectiveTransform(in_pixels(matrix, SIZE))(grid.flatten(1).T.flip(1).numpy())
        assert_close(row.flatten(1).T.flip(1), torch.from_numpy(theirs), atol=1e-9, rtol=0)
    assert (moved - grid).abs().max() > 2


def test_images_look_as_scikit_image_warps_them():
    image = torch.rand(1, 1, *SIZE, dtype=torch.float64)
    theta = sample(1, 0.1)
    matrix = in_pixels(Homography().matrix(theta)[0], SIZE)
    theirs = skimage_warp(image[0, 0].numpy(), ProjectiveTransform(matrix), order=1, mode="edge")
    ours = warp(image, Homography()(theta, SIZE).ddf(SIZE))[0, 0]
    assert_close(ours, torch.from_numpy(theirs), atol=1e-9, rtol=0)


@pytest.mark.parametrize("exponential", [False, True])
def test_the_inverse_matrix_takes_points_back(exponential):
    family, theta = Homography(exponential), sample()
    there, back = family.matrix(theta), family.matrix(-theta) if exponential else torch.linalg.inv(family.matrix(theta))
    both = there @ back
    assert_close(both / both[:, 2:, 2:], torch.eye(3, dtype=torch.float64).expand(2, 3, 3), atol=1e-12, rtol=0)
    half = torch.tensor([(n - 1) / 2 for n in SIZE], dtype=torch.float64)
    moved = (family.inverse(theta, SIZE).ddf(SIZE) + centered_grid(SIZE, dtype=torch.float64)).flatten(2) / half[:, None]
    raised = there[..., :2] @ moved + there[..., 2:]
    assert_close(
        raised[:, :2] / raised[:, 2:] * half[:, None], centered_grid(SIZE, dtype=torch.float64).flatten(1).expand(2, -1, -1)
    )


def test_the_exponential_is_a_group_and_keeps_its_determinant():
    family, theta = Homography(exponential=True), sample(50, 0.5)
    matrix = family.matrix(theta)
    assert_close(torch.linalg.det(matrix), torch.ones(50, dtype=torch.float64))
    assert_close(family.matrix(theta / 2) @ family.matrix(theta / 2), matrix)


def test_behind_the_horizon_points_stay_far_outside_without_a_jump_or_an_infinite_gradient():
    theta = torch.zeros(1, 8, dtype=torch.float64)
    theta[0, 6] = -2.0  # w = 1 - 2 x vanishes at a quarter of the frame from the lower edge
    theta.requires_grad_()
    family, size = Homography(horizon=0.05), (201, 5)
    ddf = family(theta, size).ddf(size)
    row = ddf[0, 0, :, 2] + centered_grid(size, dtype=torch.float64)[0, :, 2]
    assert torch.isfinite(row).all() and row.diff().min() > 0  # no point comes back from behind
    assert row[150:].min() > 5 * 100  # more than five halves of the frame away
    ddf.sum().backward()
    assert torch.isfinite(theta.grad).all() and theta.grad.abs().max() > 0


def test_outside_the_frame_it_goes_on_along_the_tangent_at_the_centre():
    theta = sample(1)
    flow = Homography()(theta, (41, 41))
    slopes = Homography().jacobian(theta, (41, 41))
    assert_close(flow.matrix[..., :-1], slopes[..., 20, 20])
    assert flow.residual[..., 20, 20].abs().max() < 1e-12
