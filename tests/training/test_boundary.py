import math

import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from torch.testing import assert_close

from monai_diffeo.training.boundary import boundary_distance

SIZE = (64, 64)


def circle(center=(32.0, 30.0), radius=15.0, count=400):
    angle = torch.arange(count) * (2 * math.pi / count)
    return torch.stack([center[0] + radius * angle.sin(), center[1] + radius * angle.cos()])


def disc(center=(32.0, 30.0), radius=15.0, size=SIZE):
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij")
    return (((y - center[0]) ** 2 + (x - center[1]) ** 2) <= radius**2).float()


def test_an_outline_lies_within_a_voxel_of_its_own_mask():
    assert boundary_distance(circle()[None, None], disc()[None, None]).item() < 1.0


@pytest.mark.parametrize("shift", [3.0, 6.0])
def test_a_shift_is_its_own_distance_and_powers_come_near_to_the_hausdorff_distance(shift):
    points, mask = circle((32.0 + shift, 30.0))[None, None], disc()[None, None]
    powers = [boundary_distance(points, mask, p).item() for p in (1.0, 2.0, 8.0, 40.0, 400.0)]
    assert powers == sorted(powers) and powers[0] < 0.8 * shift
    exact = compute_hausdorff_distance(disc((32.0 + shift, 30.0))[None, None], mask, include_background=True).item()
    assert abs(exact - shift) < 0.5 and abs(powers[-1] - exact) < 1.0


@pytest.mark.parametrize("power", [1.0, 2.0, 8.0])
def test_it_is_the_power_mean_of_two_sets_that_count_alike(power):
    """Points 3 and 4 voxels from the only voxel, which is 3 from the nearest of them; 0.1 is the least distance."""
    mask = torch.zeros(1, 1, 9, 11)
    mask[..., 4, 5] = 1
    points = torch.tensor([[4.0, 8.0], [2.0, 5.0]]).view(1, 1, 2, 2)
    from_points, from_edge = (3.0**power + 4.0**power) / 2, 9.01 ** (power / 2)
    expected = ((from_points + from_edge) / 2 + 0.1**power) ** (1 / power)
    assert boundary_distance(points, mask, power).item() == pytest.approx(expected, rel=1e-5)
    two = boundary_distance(torch.cat([points, points + 1], 1), mask.expand(1, 2, 9, 11), power).item()
    near, far = math.hypot(5 - 4, 3 - 5), math.hypot(9 - 4 - 1, 6 - 5)  # the second shape's points, clamped to the frame
    from_points, from_edge = (near**power + far**power) / 2, (near**2 + 0.01) ** (power / 2)
    sets = [(3.0**power + 4.0**power) / 2, 9.01 ** (power / 2), from_points, from_edge]
    assert two == pytest.approx((sum(sets) / 4 + 0.1**power) ** (1 / power), rel=1e-5)


def test_both_directions_count():
    both, one = disc() + disc((10.0, 54.0), 5.0), disc()
    far = math.hypot(32 - 10, 30 - 54) - 15
    assert boundary_distance(circle()[None, None], both[None, None], 200.0).item() > far  # an edge without points
    points = torch.cat([circle(), circle((10.0, 54.0), 5.0)], 1)
    assert boundary_distance(points[None, None], one[None, None], 200.0).item() > far  # points without an edge


def test_its_gradient_pulls_the_outline_to_the_mask():
    center = torch.tensor([[38.0], [26.0]], requires_grad=True)
    optimizer = torch.optim.Adam([center], 0.5)
    for _ in range(25):
        optimizer.zero_grad()
        boundary_distance((center + circle((0.0, 0.0)))[None, None], disc()[None, None]).sum().backward()
        optimizer.step()
    assert_close(center.detach(), torch.tensor([[32.0], [30.0]]), atol=0.6, rtol=0)


def test_a_batch_gives_what_its_images_give_and_empty_masks_do_not_count():
    points = torch.stack(
        [torch.stack([circle(), circle((20.0, 40.0), 8.0)]), torch.stack([circle((30.0, 30.0)), circle((22.0, 40.0), 9.0)])]
    )
    masks = torch.stack([torch.stack([disc(), disc((24.0, 40.0), 8.0)]), torch.stack([disc(), torch.zeros(SIZE)])])
    together = boundary_distance(points, masks)
    assert_close(together, torch.cat([boundary_distance(p[None], m[None]) for p, m in zip(points, masks)]))
    assert_close(together[1:], boundary_distance(points[1:, :1], masks[1:, :1]))
    assert boundary_distance(points, torch.zeros_like(masks)).tolist() == [0.0, 0.0]


def test_outside_the_frame_means_on_its_border_and_space_has_it_too():
    cut = disc((32.0, 60.0), 15.0)
    assert boundary_distance(circle((32.0, 60.0))[None, None], cut[None, None]).item() < 1.0
    z, y, x = torch.meshgrid(*(torch.arange(20.0),) * 3, indexing="ij")
    ball = ((z - 10) ** 2 + (y - 9) ** 2 + (x - 10) ** 2 <= 36).float()
    turn = torch.arange(500.0)
    height, angle = 1 - (2 * turn + 1) / 500, turn * (math.pi * (3 - math.sqrt(5)))
    ring = (1 - height**2).sqrt()
    points = torch.stack([10 + 6 * height, 9 + 6 * ring * angle.sin(), 10 + 6 * ring * angle.cos()])
    assert boundary_distance(points[None, None], ball[None, None]).item() < 1.2
    assert boundary_distance(points[None, None] + 3, ball[None, None]).item() > 2
