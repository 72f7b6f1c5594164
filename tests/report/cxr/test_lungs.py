import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from monai_diffeo.report.cxr.lungs import lung_areas, split_lungs
from monai_diffeo.report.cxr.lungs import _components


@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_components_are_those_of_scipy(mask):
    labels, sizes = _components(mask)
    theirs, count = ndimage.label(mask)
    assert len(sizes) == count and sizes.tolist() == np.bincount(labels.ravel(), minlength=count + 1)[1:].tolist()
    assert len(set(zip(labels.ravel(), theirs.ravel()))) == len(np.unique(theirs))  # a one-to-one renaming


def test_the_lung_at_the_images_left_is_the_patients_right():
    mask = np.zeros((20, 30))
    mask[2:18, 3:10] = mask[4:18, 19:25] = mask[0, 14] = 1
    right, left, rest = split_lungs(mask)
    assert right[:, :12].sum() == 112 and left[:, 16:].sum() == 84 and rest.sum() == 1
    assert not (right & left).any() and ((right | left | rest) == (mask > 0)).all()
    areas = lung_areas(mask)
    assert (areas["right"], areas["left"], areas["total"]) == pytest.approx((112 / 600, 84 / 600, 197 / 600))


@pytest.mark.parametrize("second", [0, 1])
def test_one_lung_and_a_speck_have_no_sides(second):
    mask = np.zeros((20, 30))
    mask[2:18, 3:10] = 1
    mask[5, 20] = second
    right, left, rest = split_lungs(mask)
    assert not right.any() and not left.any() and rest.sum() == 112 + second
    assert lung_areas(mask)["right"] is None and lung_areas(mask)["left"] is None


def test_areas_of_a_native_film_are_those_of_a_small_one():
    mask = np.zeros((2000, 1600))
    mask[200:1800, 200:700] = mask[200:1800, 900:1400] = 1
    assert lung_areas(mask) == pytest.approx({"total": 0.5, "right": 0.25, "left": 0.25}, rel=0.02)
