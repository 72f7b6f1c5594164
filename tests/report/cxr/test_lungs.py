import numpy as np
import pytest

from monai_diffeo.report import patient_sides
from monai_diffeo.report.cxr import LungAnatomy

USUAL, MIRRORED = (patient_sides(None, orientation=word) for word in ("L\\F", "R\\F"))
LUNGS = LungAnatomy()


def mask():
    """112 voxels at the image's left, 84 at its right and an island of 1, of 600."""
    lungs = np.zeros((20, 30), bool)
    lungs[2:18, 3:10] = lungs[4:18, 19:25] = lungs[0, 14] = True
    return lungs


@pytest.mark.parametrize("sides, right, left", [(USUAL, 112, 84), (MIRRORED, 84, 112), (None, None, None)])
def test_areas_are_those_of_the_patients_sides(sides, right, left):
    areas = LUNGS.areas(mask(), sides)
    share = {side: None if count is None else count / 600 for side, count in (("right", right), ("left", left))}
    assert areas == pytest.approx({"total": 197 / 600, **share})


def test_the_colours_name_the_sides_and_one_colour_says_that_they_are_unknown():
    def colour_at(row, column, sides):
        (found,) = [part.colour for part in LUNGS.parts(mask(), sides) if part.mask[row, column]]
        return found

    blue, yellow = colour_at(10, 5, USUAL), colour_at(10, 20, USUAL)
    assert (colour_at(10, 5, MIRRORED), colour_at(10, 20, MIRRORED)) == (yellow, blue) and blue != yellow
    assert colour_at(10, 5, None) == colour_at(10, 20, None) not in (blue, yellow)
    assert len({colour_at(0, 14, sides) for sides in (USUAL, MIRRORED, None)} - {blue, yellow}) == 1


def test_captions_name_sides_only_where_they_are_known():
    assert LUNGS.caption(mask(), USUAL) == "right lung blue, left lung yellow, islands white"
    assert LUNGS.caption(mask(), None) == "the patient's sides are unknown, islands white"
    assert LUNGS.caption(mask() & False, USUAL) == "the mask is empty"


def test_one_lung_and_a_speck_have_no_sides():
    lungs = mask()
    lungs[:, 19:25] = False
    areas = LUNGS.areas(lungs, USUAL)
    assert areas == {"total": pytest.approx(113 / 600), "right": None, "left": None}
    assert LUNGS.caption(lungs, USUAL) == "the mask does not part into two lungs"
    assert LUNGS.rows(areas) == [("Lung area, right / left", "–")]


def test_areas_of_a_native_film_are_those_of_a_small_one():
    lungs = np.zeros((2000, 1600), bool)
    lungs[200:1800, 200:700] = lungs[200:1800, 900:1400] = True
    areas = LUNGS.areas(lungs, USUAL)
    assert areas == pytest.approx({"total": 0.5, "right": 0.25, "left": 0.25}, rel=0.02)
    assert LUNGS.rows({"right": 0.25, "left": 0.125}) == [("Lung area, right / left", "25.0% / 12.5% of film")]
