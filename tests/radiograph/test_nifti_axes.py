"""A NIfTI film is shown upright by an affine that somebody chose, and its mask lies in the order of the file."""

import itertools

import numpy as np
import pytest
from monai.transforms import LoadImage, Orientation, SaveImage

from monai_diffeo.radiograph.mask_writer import write_mask
from monai_diffeo.radiograph.nifti import file_of_film, film_of_file
from monai_diffeo.radiograph.reader import read_film

nibabel = pytest.importorskip("nibabel")

from tests.radiograph.dicom_factory import corner_film  # noqa: E402

FILM = corner_film(80, 120)
LAST_FIRST, UP, TURNED, MIRRORED = "the last row is stored first", "go up", "exchanged", "right"


def saved(path, array, affine, qcode=1, scode=1, unit="mm"):
    image = nibabel.Nifti1Image(np.ascontiguousarray(array).astype(np.int16), None)
    image.header["pixdim"][1:3] = np.linalg.norm(np.asarray(affine)[:3, :2], axis=0)
    image.set_qform(affine, qcode)
    image.set_sform(affine, scode)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


def affine(steps, origin=(0, 0, 0)):
    """4x4 from the steps of the first two axes."""
    first, second = np.array(steps, float)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([first, second, np.cross(first, second) / np.linalg.norm(np.cross(first, second))], 1)
    matrix[:3, 3] = origin
    return matrix


def assert_shown(path, *notes):
    """The film as displayed, each pixel where the file has it, a mask in the order of the file."""
    film, original = read_film(path), nibabel.load(path)
    np.testing.assert_array_equal(film.pixels, FILM)
    for row, column in [(0, 0), (0, 119), (79, 0), (11, 17)]:  # by its value, a pixel is found in the file
        marked = np.zeros_like(FILM)
        marked[row, column] = 1
        mask = nibabel.load(write_mask(marked, "nifti", film.affine, path.parent / "m.nii.gz", film.details["file_frame"]))
        index = np.argwhere(np.asarray(mask.dataobj))[0]
        assert np.asarray(original.dataobj)[tuple(index)] == FILM[row, column]
        there = original.affine @ [*index[:2], 0, 1]
        np.testing.assert_allclose(film.affine @ [row, column, 0, 1], there, atol=1e-4)
    assert film.details["notes"].count(";") == max(len(notes) - 1, 0) and bool(film.details["notes"]) == bool(notes)
    assert all(note in film.details["notes"] for note in notes)
    return film


PLACED = (31, -47, 12)


@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1), (2, 0), (2, 2), (0, 2)])
@pytest.mark.parametrize("head", [1, 2], ids=["in the axial plane", "in the coronal plane"])
@pytest.mark.parametrize("order", list(itertools.product([False, True], [-1, 1], [-1, 1])))
def test_every_order_of_a_placed_film(tmp_path, codes, head, order):
    """Rows lead away from the head and columns to the patient's left, however the file stores them."""
    turned, columns, rows = order
    along_columns, along_rows = np.zeros(3), np.zeros(3)
    along_columns[0], along_rows[head] = -0.2 * columns, -0.3 * rows
    array = FILM[::rows, ::columns]
    array, steps = (array, (along_rows, along_columns)) if turned else (array.T, (along_columns, along_rows))
    path = saved(tmp_path / "a.nii", array, affine(steps, PLACED), *codes)
    film = assert_shown(path, *[TURNED] * turned, *[UP] * (rows < 0), *[MIRRORED] * (columns < 0))
    assert film.spacing == pytest.approx((0.3, 0.2))


@pytest.mark.parametrize("angle", [-0.6, 0.4])
def test_a_tilted_film(tmp_path, angle):
    down = [0, 0.3 * np.sin(angle), 0.3 * np.cos(angle)]
    assert_shown(saved(tmp_path / "a.nii", FILM.T[:, ::-1], affine(([-0.2, 0, 0], down), PLACED)), UP)


def test_columns_are_not_reversed_by_an_affine_without_origin(tmp_path):
    """It says which way up, since somebody gave it a code, but nobody placed the film."""
    assert_shown(saved(tmp_path / "a.nii", FILM.T[:, ::-1], np.diag([0.6, 0.6, 1, 1])), UP)
    assert_shown(saved(tmp_path / "b.nii", FILM.T, np.diag([0.6, -0.6, 1, 1])))


@pytest.mark.parametrize("unit", ["mm", "unknown"])
@pytest.mark.parametrize("codes", [(0, 0), (0, 2), (1, 1), (2, 2)])
@pytest.mark.parametrize("step", [(1, 1), (-1, 1), (-1, -1)])
def test_affines_that_nobody_chose(tmp_path, codes, step, unit):
    """The identity of MONAI and of nibabel, the centre of nibabel, LPS of ITK: the film is stored as displayed."""
    identity = np.diag([*step, 1, 1])
    origins = [(0, 0, 0), (-59.5 * step[0], -39.5 * step[1], 0)]
    for name, origin in zip("ab", origins if step != (1, 1) else origins[:1]):
        if step == (-1, 1) and codes in ((1, 1), (2, 2)) and origin == (0, 0, 0):
            continue  # nobody writes this one
        film = assert_shown(saved(tmp_path / f"{name}.nii", FILM.T, affine(identity[:2, :3], origin), *codes, unit=unit))
        assert (film.spacing, film.spacing_source) == ((1, 1), "unknown") and film.details["spacing_doubt"]


@pytest.mark.parametrize("step", [(0.2, 0.3), (-0.2, 0.3), (-0.2, -0.3), (0.2, -0.3)])
def test_nibabels_codes_with_a_spacing_and_no_origin(tmp_path, step):
    nibabel.save(nibabel.Nifti1Image(FILM.T, np.diag([*step, 1, 1])), tmp_path / "a.nii")
    film = assert_shown(tmp_path / "a.nii")
    assert film.spacing == pytest.approx((0.3, 0.2))
    assert film.details["spacing_doubt"] == "no unit is stated, millimetres are assumed"


def test_no_codes_say_nothing_and_the_trace_of_dcm2niix_does(tmp_path):
    array = np.ascontiguousarray(FILM.T).astype(np.int16)
    for name, step, start, pixels, notes in [
        ("a", -0.6, 0, array, []),
        ("b", 0.6, 0, array, []),
        ("c", 0.6, 24, array, []),
        ("d", 1, -79, array[:, ::-1], [LAST_FIRST]),
        ("e", 0.3, -79 * 0.3, array[:, ::-1], [LAST_FIRST]),
    ]:
        image = nibabel.Nifti1Image(pixels, None)
        image.header["srow_y"] = 0, step, 0, start
        image.header["pixdim"][1:3] = 0.2, 0.3
        nibabel.save(image, tmp_path / f"{name}.nii")
        assert assert_shown(tmp_path / f"{name}.nii", *notes).spacing == pytest.approx((0.3, 0.2))


def test_simpleitk_writes_what_it_displays(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    for image in (sitk.GetImageFromArray(FILM), sitk.GetImageFromArray(FILM[None])):
        image.SetSpacing((0.2, 0.3, 1)[: image.GetDimension()])
        sitk.WriteImage(image, str(tmp_path / "a.nii"))
        assert assert_shown(tmp_path / "a.nii").spacing == pytest.approx((0.3, 0.2))
    nibabel.save(nibabel.as_closest_canonical(nibabel.load(tmp_path / "a.nii")), tmp_path / "b.nii")
    assert_shown(tmp_path / "b.nii", UP, MIRRORED)


def test_monai_writes_what_it_displays(tmp_path):
    """Films of MONAI's reader of pictures, and a placed one that was brought to RAS."""
    save = SaveImage(tmp_path, output_postfix="m", separate_folder=False, resample=False, print_log=False)
    pytest.importorskip("PIL.Image").fromarray(FILM).save(tmp_path / "a.png")
    save(LoadImage(reader="PILReader", ensure_channel_first=True)(tmp_path / "a.png"))
    assert_shown(tmp_path / "a_m.nii.gz")
    path = saved(tmp_path / "b.nii", FILM.T[..., None], affine([(-0.2, 0, 0), (0, -0.3, 0)], PLACED))
    save(Orientation(axcodes="RAS")(LoadImage(ensure_channel_first=True)(path)))
    assert_shown(tmp_path / "b_m.nii.gz", UP, MIRRORED)


@pytest.mark.parametrize("axes", [f"{a}{c},{b}{r}" for a in ("", "-") for b in ("", "-") for c, r in ("xy", "yx")])
def test_a_film_goes_back_into_its_file(axes):
    array = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(file_of_film(film_of_file(array, axes), axes), array)


@pytest.mark.parametrize("unit, factor", [("meter", 1000), ("micron", 0.001)])
def test_a_unit_that_makes_a_film_implausible_is_doubted(tmp_path, unit, factor):
    film = read_film(saved(tmp_path / "a.nii", FILM.T, np.diag([-0.2, -0.3, 1, 1]), unit=unit))
    assert film.spacing == pytest.approx((0.3 * factor, 0.2 * factor)) and "implausible" in film.details["spacing_doubt"]
