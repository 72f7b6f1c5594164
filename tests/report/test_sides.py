"""The patient has the right side bright: wherever a film turns it, the report must find it."""

import numpy as np
import pytest
import torch

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.energies import DeformationRegularizer
from monai_diffeo.families import ControlGrid
from monai_diffeo.networks import orient_images
from monai_diffeo.report import film_figure, patient_sides
from monai_diffeo.report.cxr import LungAnatomy
from monai_diffeo.report.sheet import Panel
from tests.helpers import Brightness, FixedTheta

N = 33
EXIF = {  # stored pixels of an upright picture, by EXIF orientation
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.T,
    6: lambda p: np.rot90(p, 1),
    7: lambda p: np.rot90(p, 2).T,
    8: lambda p: np.rot90(p, -1),
}


class KnowsPose(torch.nn.Module):
    """An orientation network that is told how the film lies."""

    def __init__(self, turns, mirrored):
        super().__init__()
        self.turns, self.mirrored = turns, mirrored

    def probabilities(self, image):
        return torch.eye(4)[[self.turns]], torch.tensor([float(self.mirrored)])


def upright():
    """A patient: right lung (1) at the image's left, left lung (2) at its right, a little lower."""
    lungs = np.zeros((N, N))
    lungs[8:20, 5:13], lungs[10:22, 20:28] = 1, 2
    return lungs


def pose_of(film):
    """Quarter turns and mirroring of a film of the patient, by trying all eight."""
    given = torch.from_numpy(upright())[None, None]
    for mirrored in (False, True):
        for turns in range(4):
            if np.array_equal(orient_images(given, torch.tensor([turns]), torch.tensor([mirrored]))[0, 0].numpy(), film):
                return turns, mirrored
    raise AssertionError("not a film of the patient")


def canonicalized(film, sees_mirrors=True, **settings):
    turns, mirrored = pose_of(film)
    family = ControlGrid(2, 4)
    predictor = FixedTheta(torch.zeros(1, family.num_parameters))
    orientation = KnowsPose(turns, mirrored and sees_mirrors)
    settings = {"max_energy_increase": None, **settings}
    canonicalizer = Canonicalizer(Brightness(), family, DeformationRegularizer(), predictor, orientation, **settings)
    return canonicalizer(torch.from_numpy(film.copy()).float()[None, None])


def right_is_right(film, sides):
    """Whether the patient's right lung is told from the left one, by parts and by the letters; None if sides are unknown."""
    if sides is None:
        return None
    place = {lung: sides.leftness(film == lung) for lung in (1, 2)}
    centre = {lung: np.argwhere(film == lung).mean(0) for lung in (1, 2)}
    along_film = np.dot(centre[2] - centre[1], sides.film)
    assert (place[1] < place[2]) == (along_film > 0)
    return place[1] < place[2]


@pytest.mark.parametrize("turns", range(4))
def test_a_turned_film_keeps_its_sides(turns):
    film = np.rot90(upright(), turns)
    result = canonicalized(film)
    assert result.status == ("canonicalized",)
    sides = patient_sides(result)
    assert right_is_right(film, sides) and sides.canonical == (0, 1)
    assert sides.film == [(0, 1), (-1, 0), (0, -1), (1, 0)][turns]


@pytest.mark.parametrize("code", EXIF)
@pytest.mark.parametrize("sees_mirrors", [True, False])
def test_pixels_that_exif_turns_or_mirrors_keep_their_sides(code, sees_mirrors):
    film = EXIF[code](upright())
    result = canonicalized(film, sees_mirrors)
    sides = patient_sides(result, exif=code)
    assert right_is_right(film, sides) and sides.canonical == (0, -1 if code in (2, 4, 5, 7) else 1)
    assert right_is_right(result.image[0, 0].numpy().round(), sides.along(sides.canonical))


def letters(film, result, sides, monkeypatch, tmp_path):
    """Where R and L stand, as (row, column), from the middle, on the film and on the canonical film of a picture."""
    places = {}

    def note(axes, x, y, text, *args, **style):
        if text in ("R", "L"):
            places.setdefault(text, []).append((0.5 - y, x - 0.5))
        words(axes, x, y, text, *args, **style)

    words = Panel.words
    monkeypatch.setattr(Panel, "words", note)
    canonical, ddf = result.image[0, 0], result.ddf[0]
    masks = {"plain_mask": None, "mask": film > 0.5, "canonical_mask": canonical > 0.5}
    film_figure(
        tmp_path / "x.png", film.copy(), canonical, ddf, title="", numbers={}, anatomy=LungAnatomy(), sides=sides, **masks
    )
    monkeypatch.undo()
    return {letter: (seen[0], seen[3]) for letter, seen in places.items()}  # drawn on film, change, grid, then canonical


FILMS = [*((np.rot90(upright(), turns), {}, True) for turns in range(4)), (upright()[:, ::-1], {}, False)]
FILMS += [(EXIF[code](upright()), {"exif": code}, True) for code in EXIF]
FILMS += [
    (np.rot90(upright()[:, ::-1], turns), {"orientation": tag}, True)
    for turns, tag in enumerate(("R\\F", "F\\L", "L\\H", "H\\R"))
]
FILMS += [
    (np.rot90(upright(), turns), {"orientation": tag}, True) for turns, tag in enumerate(("L\\F", "F\\R", "R\\H", "H\\L"))
]
FILMS += [(np.rot90(upright()), {"orientation": "L\\F"}, False), (upright(), {"orientation": "A\\F"}, False)]


@pytest.mark.parametrize("film, stated, known", FILMS)
def test_the_letters_on_the_picture_stand_beside_the_lungs_that_they_name(film, stated, known, monkeypatch, tmp_path):
    result = canonicalized(film)
    found = letters(film, result, patient_sides(result, **stated), monkeypatch, tmp_path)
    assert set(found) == ({"R", "L"} if known else set())
    if known:
        for number, image in enumerate((film, result.image[0, 0].numpy().round())):
            right, left = (np.argwhere(image == lung).mean(0) for lung in (1, 2))
            to_right, to_left = (np.dot(found[letter][number], right - left) for letter in "RL")
            assert to_right > 0.9 * 0.475 * np.abs(right - left).max() and to_left == pytest.approx(-to_right)


TAGS = {(0, False): "L\\F", (1, False): "F\\R", (2, False): "R\\H", (3, False): "H\\L"}
TAGS |= {(0, True): "R\\F", (1, True): "F\\L", (2, True): "L\\H", (3, True): "H\\R"}


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_patient_orientation_tells_sides_with_a_pose_and_without(turns, mirrored):
    film = np.rot90(upright()[:, ::-1] if mirrored else upright(), turns)
    tag = TAGS[turns, mirrored]
    rejected = canonicalized(film, max_energy_increase=-9.0)
    for result in (canonicalized(film), canonicalized(film, sees_mirrors=False), rejected, None):
        assert right_is_right(film, patient_sides(result, orientation=tag))
    sides = patient_sides(rejected, orientation=tag)
    assert rejected.status[0].startswith("rejected") and sides.canonical == sides.film


def test_a_mirrored_film_whose_file_does_not_say_so_has_no_sides():
    film = upright()[:, ::-1]
    result = canonicalized(film)
    assert "mirrored" in result.notes[0] and patient_sides(result) is None
    assert patient_sides(result, orientation="L\\F") is None  # looks mirrored against its tag
    assert patient_sides(result, exif=3) is None  # a turn mirrors nothing


def test_without_a_pose_and_without_a_tag_sides_are_unknown():
    film = upright()
    assert patient_sides(None) is None and all(patient_sides(None, exif=code) is None for code in EXIF)
    rejected = canonicalized(film, max_energy_increase=-9.0)
    assert patient_sides(rejected) is None and patient_sides(rejected, exif=2) is None


def test_a_film_left_alone_because_it_looks_like_training_is_in_canonical_pose():
    result = canonicalized(upright(), skip_below=9.0)
    assert result.status[0].startswith("left alone")
    assert right_is_right(upright(), patient_sides(result)) and patient_sides(result).film == (0, 1)
    assert patient_sides(result, orientation="F\\R") is None  # the tag says that it is turned


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_tag_that_contradicts_the_pose_gives_no_sides(turns):
    result = canonicalized(np.rot90(upright(), turns))
    assert patient_sides(result, orientation="L\\F") is None
    if turns != 2:
        assert patient_sides(result, exif=2) is None


@pytest.mark.parametrize("orientation", ["A\\F", "P\\F", "L\\P", "L\\R", "F\\H", "L", "X\\Y"])
def test_a_view_that_is_not_frontal_has_no_sides(orientation):
    assert patient_sides(None, orientation=orientation) is None
    assert patient_sides(canonicalized(upright()), orientation=orientation) is None


def test_oblique_words_count_by_their_first_letter_and_each_row_has_its_own_sides():
    assert patient_sides(None, orientation="LF\\FR").film == (0, 1)
    films = [upright(), np.rot90(upright(), 2)]
    canonicalizer = Canonicalizer(
        Brightness(), ControlGrid(2, 4), DeformationRegularizer(), orientation=KnowsBoth(), steps=1, max_energy_increase=None
    )
    result = canonicalizer(torch.from_numpy(np.stack(films).copy()).float()[:, None])
    assert [patient_sides(result, i).film for i in range(2)] == [(0, 1), (0, -1)]


class KnowsBoth(torch.nn.Module):
    def probabilities(self, image):
        return torch.eye(4)[[0, 2]], torch.zeros(2)
