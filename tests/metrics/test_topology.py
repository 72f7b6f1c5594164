import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import euler_number

from monai_diffeo.metrics import (
    BettiNumberMetric,
    betti_numbers,
    components_in_place,
    connected_components,
    euler_characteristic,
    largest_components,
    shape_topology,
    shapes_intact,
    topology,
)


def box(size, *corners):
    mask = np.zeros(size, dtype=bool)
    for low, high in corners:
        mask[tuple(slice(a, b) for a, b in zip(low, high))] = True
    return mask


RING = box((7, 7), ((1, 1), (6, 6))) & ~box((7, 7), ((2, 2), (5, 5)))
SHELL = box((7, 7, 7), ((1, 1, 1), (6, 6, 6))) & ~box((7, 7, 7), ((2, 2, 2), (5, 5, 5)))
TORUS = np.repeat(RING[..., None], 3, axis=2) & box((7, 7, 3), ((0, 0, 1), (7, 7, 2)))


@pytest.mark.parametrize(
    "mask, expected",
    [
        (np.zeros((4, 5)), (0, 0)),
        (np.ones((4, 5)), (1, 0)),
        (RING, (1, 1)),
        (RING | box((7, 7), ((3, 3), (4, 4))), (2, 1)),
        (np.zeros((3, 4, 5)), (0, 0, 0)),
        (np.ones((3, 4, 5)), (1, 0, 0)),
        (SHELL, (1, 0, 1)),
        (TORUS, (1, 1, 0)),
        (box((6, 6, 6), ((0, 0, 0), (2, 2, 2)), ((4, 4, 4), (6, 6, 6))), (2, 0, 0)),
    ],
)
@pytest.mark.parametrize("connectivity", ["face", "full"])
def test_known_shapes(mask, expected, connectivity):
    assert betti_numbers(mask, connectivity) == expected


@pytest.mark.parametrize(
    "mask, face, full",
    [
        (np.eye(2), (2, 0), (1, 0)),
        (np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]), (4, 0), (1, 1)),
        (1 - np.eye(3)[::-1], (2, 0), (1, 1)),
    ],
)
def test_corners_join_full_neighbours_alone(mask, face, full):
    assert betti_numbers(mask, "face") == face and betti_numbers(mask, "full") == full


@given(st.sampled_from([(6, 7), (4, 5, 4)]).flatmap(lambda size: arrays(bool, size)))
def test_the_euler_characteristic_is_that_of_scikit_image_and_complements_are_dual(mask):
    dims = mask.ndim
    assert euler_characteristic(mask, "full") == euler_number(mask, connectivity=dims)
    assert euler_characteristic(mask, "face") == euler_number(mask, connectivity=1)
    outside = np.pad(~mask, 1, constant_values=True)  # Alexander duality in a ball: holes of one are parts of the other
    for own, other in (("face", "full"), ("full", "face")):
        inside, around = betti_numbers(mask, own), betti_numbers(outside, other)
        assert inside[-1] == around[0] - 1 and inside[0] == around[-1]
        assert all(b >= 0 for b in inside)


@given(st.sampled_from([(6, 7), (4, 5, 4)]).flatmap(lambda size: arrays(bool, size)))
def test_the_euler_characteristic_counts_cells(mask):
    """Voxels as vertices of a cubical complex: the alternating sum of its vertices, edges, squares and cubes."""
    cells, total = {(): mask}, int(mask.sum())
    for axes in [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]:
        if axes[-1] < mask.ndim:
            below = np.moveaxis(cells[axes[:-1]], axes[-1], 0)
            cells[axes] = np.moveaxis(below[1:] & below[:-1], 0, axes[-1])
            total += (-1) ** len(axes) * int(cells[axes].sum())
    assert euler_characteristic(mask, "face") == total


def test_the_largest_parts_in_order_of_size_then_of_scanning():
    mask = np.array([[1, 0, 1, 1, 0, 1, 1], [0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0]])
    face = [[0, 0, 2, 2, 0, 3, 3], [0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0]]
    assert largest_components(mask, 3).tolist() == face
    assert largest_components(mask, 1).tolist() == (np.array(face) == 1).astype(int).tolist()
    full = [[1, 0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 2, 2, 2, 0]]
    assert largest_components(mask, 2, "full").tolist() == full
    assert largest_components(mask, 9).max() == 5 and np.issubdtype(largest_components(mask, 1).dtype, np.integer)
    assert largest_components(np.zeros((3, 4, 5)), 2).tolist() == np.zeros((3, 4, 5), int).tolist()
    with pytest.raises(ValueError, match="'count' must be at least 1, got 0"):
        largest_components(mask, 0)


@pytest.mark.parametrize("room, name", [("_has_scipy", "scipy"), ("_has_skimage", "scikit-image")])
def test_what_is_not_installed_is_named(room, name, monkeypatch):
    monkeypatch.setattr(topology, room, False)
    with pytest.raises(ImportError, match=f"needs {name}: pip install {name}"):
        betti_numbers(RING)


def test_intact_shapes_are_one_part_each_without_holes_and_apart():
    left, right = box((9, 12), ((2, 1), (7, 4))), box((9, 12), ((2, 7), (7, 10)))
    assert shapes_intact(np.stack([left, right]))
    two_parts = left | box((9, 12), ((8, 1), (9, 3)))
    corner = left | box((9, 12), ((7, 4), (8, 5)))
    hole = left & ~box((9, 12), ((4, 2), (5, 3)))
    touching = box((9, 12), ((2, 4), (7, 7)))
    diagonal = box((9, 12), ((7, 4), (9, 6)))
    for bad in (two_parts, corner, hole, touching | left, np.zeros_like(left)):
        assert not shapes_intact(np.stack([bad, right]))
    assert not shapes_intact(np.stack([left, touching])) and not shapes_intact(np.stack([left, diagonal]))
    swapped = np.stack([left | right & box((9, 12), ((0, 0), (4, 12))), right & ~box((9, 12), ((0, 0), (4, 12)))])
    assert not shapes_intact(swapped)  # two parts in all, and yet the first shape is torn
    assert not shapes_intact(np.stack([left | right, left & right]))


def test_a_hole_that_only_a_corner_closes_is_a_hole():
    mask = np.array([list(row) for row in (".......", ".####..", ".#..#..", ".#...#.", ".#...#.", ".#####.", ".......")]) == "#"
    assert betti_numbers(mask, "face") == (1, 0) and betti_numbers(mask, "full") == (1, 1)
    assert not shapes_intact(mask[None])


@given(arrays(bool, (1, 4, 4)) | arrays(bool, (2, 3, 5)) | arrays(bool, (1, 3, 3, 3)))
def test_intact_shapes_are_those_with_the_topology_of_balls_apart(masks):
    size = (9, 12) if masks.ndim == 3 else (5, 5, 9)
    balls = np.stack(
        [box(size, ([1] * (len(size) - 1) + [1 + 5 * k], [4] * (len(size) - 1) + [4 + 5 * k])) for k in range(len(masks))]
    )
    assert shapes_intact(balls)
    assert shapes_intact(masks) == (shape_topology(masks) == shape_topology(balls))


@pytest.mark.parametrize(
    "mask, intact", [(box((7, 7, 7), ((2, 2, 2), (5, 5, 5))), True), (SHELL, False), (np.repeat(TORUS, 2, 2), False)]
)
def test_tunnels_and_cavities_break_a_ball(mask, intact):
    assert shapes_intact(mask[None]) == intact


def test_the_metric_averages_over_images_and_channels_and_compares_with_labels():
    masks = torch.from_numpy(
        np.stack([np.stack([RING, RING]), np.stack([RING | box((7, 7), ((3, 3), (4, 4))), np.zeros((7, 7))])])
    ).float()
    parts, holes = BettiNumberMetric(0), BettiNumberMetric(1)
    assert parts(masks).tolist() == [[1, 1], [2, 0]] and holes(masks).tolist() == [[1, 1], [1, 0]]
    parts(masks[:1])
    assert parts.aggregate().item() == pytest.approx(6 / 6)
    parts.reset()
    parts(masks, masks.flip(0))
    assert parts.aggregate().item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="nothing was measured"):
        BettiNumberMetric().aggregate()


def test_wrong_arguments_are_said():
    with pytest.raises(ValueError, match="'face' or 'full', got 8"):
        connected_components(RING, 8)
    for count in (betti_numbers, euler_characteristic):
        with pytest.raises(ValueError, match="2 or 3 axes, got 4"):
            count(np.zeros((1, 1, 4, 4)))
        with pytest.raises(ValueError, match=f"{count.__name__}.*'face' or 'full', got 'corner'"):
            count(RING, "corner")


@given(arrays(bool, st.tuples(*[st.integers(1, 9)] * 2)), st.integers(1, 4))
def test_in_a_place_that_is_the_same_everywhere_the_parts_with_most_of_it_are_the_largest(mask, count):
    kept = components_in_place(mask, np.full(mask.shape, 0.5), count)
    assert np.array_equal(kept, largest_components(mask, count, "full") > 0)


@given(arrays(bool, (6, 7)), arrays(float, (6, 7), elements=st.floats(0, 1)), st.integers(1, 3))
def test_no_part_that_is_left_out_has_more_of_the_place_than_one_that_is_kept(mask, place, count):
    kept = components_in_place(mask, place, count)
    labels, found = connected_components(mask, "full")
    shares = [(place[labels == i].sum(), kept[labels == i]) for i in range(1, found + 1)]
    assert all(part.all() or not part.any() for _, part in shares) and not (kept & ~mask).any()
    inside, outside = ([share for share, part in shares if part.all() == wanted] for wanted in (True, False))
    assert len(inside) == min(count, found) and max(outside, default=0) <= min(inside, default=0) + 1e-9


def test_a_count_of_parts_below_one_is_refused():
    with pytest.raises(ValueError, match=r"components_in_place\(\): 'count' must be at least 1, got 0"):
        components_in_place(RING, RING.astype(float), 0)


def test_of_parts_with_as_much_of_a_place_the_largest_is_kept_and_a_place_of_another_shape_is_refused():
    kept = components_in_place(np.array([[1, 0, 1, 1, 1, 0, 1]]), np.zeros((1, 7)), 1)
    assert kept.astype(int).tolist() == [[0, 0, 1, 1, 1, 0, 0]]
    with pytest.raises(ValueError, match=r"'place' must have the mask's shape \(7, 7\), got \(49,\)"):
        components_in_place(RING, np.zeros(49), 1)
