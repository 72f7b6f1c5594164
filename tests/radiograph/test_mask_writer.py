"""Masks land beside their film, in the frame of the film's own file, and never on one another."""

import errno
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_diffeo.errors import FilmError, ShapeError
from monai_diffeo.radiograph import mask_writer
from monai_diffeo.radiograph.mask_writer import MaskNames, figure_path, mask_path, mask_path_beside, mask_paths, write_mask
from monai_diffeo.radiograph.paths import film_names, format_of_name, split_name
from monai_diffeo.radiograph.reader import in_plane_affine, list_films, read_film

nibabel = pytest.importorskip("nibabel")
image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("pydicom")

from tests.radiograph.dicom_factory import corner_film  # noqa: E402

FILM = corner_film(20, 30)
MASK = FILM > 1500  # the two corner markers
TILTED = np.array([[0.1, -0.3, 0.02, 5], [0.2, 0.05, 0, -7], [0, 0.01, 1, 3], [0, 0, 0, 1.0]])


# ---- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "film, expected",
    [
        ("a/b.dcm", "a/b_lungs.nii.gz"),
        ("a/b.c.nii.gz", "a/b.c_lungs.nii.gz"),
        ("b.NII", "b_lungs.nii.gz"),
        ("a/b.PNG", "a/b_lungs.png"),
        ("b.jpeg", "b_lungs.png"),
        ("1.2.840.123", "1.2.840.123_lungs.nii.gz"),
        ("IM0001", "IM0001_lungs.nii.gz"),
    ],
)
def test_mask_path(tmp_path, film, expected):
    assert mask_path(tmp_path / film, tmp_path, Path("out")) == Path("out") / expected


def test_mask_path_of_one_film():
    assert mask_path("x/y.png", "x/y.png", "out", "heart") == Path("out/y_heart.png")


@pytest.mark.parametrize("film, postfix", [("/else/b.dcm", "lungs"), ("in/../b.dcm", "lungs"), ("in/b.dcm", "../x")])
def test_masks_stay_in_the_output_folder(film, postfix):
    with pytest.raises(FilmError, match="UnsupportedFile"):
        mask_path(film, "in", "out", postfix)


def test_only_colliding_names_get_their_suffix():
    films = ["in/b.dcm", "in/b.nii.gz", "in/b", "in/c.dcm", "in/d/b.dcm", "in/b.png", "in/b.txt"]
    masks = {film.as_posix(): mask.as_posix() for film, mask in mask_paths(films, "in", "out").items()}
    assert masks == {
        "in/b.dcm": "out/b_dcm_lungs.nii.gz",
        "in/b.nii.gz": "out/b_nii_gz_lungs.nii.gz",
        "in/b": "out/b_lungs.nii.gz",
        "in/c.dcm": "out/c_lungs.nii.gz",
        "in/d/b.dcm": "out/d/b_lungs.nii.gz",
        "in/b.png": "out/b_png_lungs.png",
        "in/b.txt": "out/b_txt_lungs.nii.gz",
    }


def test_a_suffix_that_makes_a_new_collision():
    masks = mask_paths(["b.dcm", "b.nii", "b_dcm.dcm"], ".", "out")
    assert sorted(path.name for path in masks.values()) == [
        "b_dcm_dcm_lungs.nii.gz",
        "b_dcm_lungs.nii.gz",
        "b_nii_lungs.nii.gz",
    ]
    masks = mask_paths(["b.dcm", "b.nii", "b_dcm"], ".", "out")
    assert [path.name for path in masks.values()] == ["b_dcm_lungs.nii.gz", "b_nii_lungs.nii.gz", "b_dcm_dicom_lungs.nii.gz"]


def test_films_without_a_free_name_are_refused_and_the_others_are_not(tmp_path):
    films = ["b.dcm", "b.nii", "b_dcm", "b_dcm.dicom", "c.dcm"]
    with pytest.raises(FilmError, match="Rename"):
        mask_paths(films, ".", "out")
    names = MaskNames(films, ".", "out")
    assert names("c.dcm").name == "c_lungs.nii.gz" and names("b.nii").name == "b_nii_lungs.nii.gz"
    for film in films:
        (tmp_path / film).touch()
    assert mask_path_beside(tmp_path / "b.nii", tmp_path, "out").name == "b_nii_lungs.nii.gz"
    with pytest.raises(FilmError, match="Rename"):
        mask_path_beside(tmp_path / "b_dcm", tmp_path, "out")


@pytest.mark.parametrize(
    "films, masks",
    [
        ("b.dcm b.png", "b_dcm_lungs.nii.gz b_lungs.png"),
        ("b b.png", "b_lungs.nii.gz b_png_lungs.png"),
        ("b.jpg b.png", "b_jpg_lungs.png b_png_lungs.png"),
        ("a.png a_lungs.png", "a_png_lungs.png a_lungs_lungs.png"),  # the plain name is that of a film
        ("a.dcm a_lungs_report.png", "a_dcm_lungs.nii.gz a_lungs_report_lungs.png"),
        ("a.png x_a.png", "a_lungs.png x_a_lungs.png"),
    ],
)
def test_masks_and_figures_of_neighbours(films, masks):
    found = mask_paths([f"in/{name}" for name in films.split()], "in", "out")
    assert [path.name for path in found.values()] == masks.split()


def test_no_output_replaces_a_film_that_lies_in_the_output_folder(tmp_path):
    films = ["in/a.png", "in/out/a_lungs.png", "in/out/b_lungs_report.png", "in/b.dcm", "in/c.png"]
    masks = [path.as_posix() for path in mask_paths(films, "in", "in/out").values()]
    assert masks[0] == "in/out/a_png_lungs.png" and masks[3:] == ["in/out/b_dcm_lungs.nii.gz", "in/out/c_lungs.png"]
    assert masks[1:3] == ["in/out/out/a_lungs_lungs.png", "in/out/out/b_lungs_report_lungs.png"]
    (tmp_path / "res").mkdir()
    (tmp_path / "link").symlink_to("res")
    names = MaskNames([tmp_path / "a.png", tmp_path / "res" / "a_lungs.png"], tmp_path, tmp_path / "link")
    assert names(tmp_path / "a.png") == tmp_path / "link" / "a_png_lungs.png"


@pytest.mark.parametrize(
    "mask, figure",
    [
        ("out/a/b_dcm_lungs.nii.gz", "out/a/b_dcm_lungs_report.png"),
        ("b_lungs.png", "b_lungs_report.png"),
        ("a_heart.png", "a_heart_report.png"),
        ("1.2.840.9_lungs.nii.gz", "1.2.840.9_lungs_report.png"),
    ],
)
def test_a_figure_is_named_after_its_mask(mask, figure):
    assert figure_path(mask) == figure_path(Path(mask)) == Path(figure)


STEMS = st.sampled_from(["b", "b_dcm", "b_lungs", "b_png", "b_lungs_report", "b_png_lungs", "b.1", "b_dicom", "b_report"])
NAMES = st.tuples(STEMS, st.sampled_from(["", ".dcm", ".DCM", ".dicom", ".nii", ".nii.gz", ".png", ".jpg", ".jpeg"]))


@settings(max_examples=300)
@given(st.sets(NAMES.map("".join), min_size=1, max_size=12), st.sampled_from(["lungs", "heart", "report", "dcm_lungs"]))
def test_no_two_films_share_an_output_and_no_output_is_named_like_a_film(films, postfix):
    names, outputs = MaskNames([f"in/x/{film}" for film in films], "in", "out", postfix), []
    for film in sorted(films):
        try:
            mask = names(f"in/x/{film}")
        except FilmError:
            assert len(films) > 2  # two films never get in each other's way
            continue
        assert mask.parent == Path("out/x") and mask.name.startswith(split_name(film)[0] + "_")
        assert (mask.suffix == ".png") == (format_of_name(film) in ("png", "jpeg")) and postfix in mask.name
        outputs += [mask.name, figure_path(mask).name]
    assert len(set(outputs)) == len(outputs) and not set(outputs) & films


@given(st.permutations(["b.dcm", "b.nii", "b", "b.png", "b.jpg", "b_dcm.dcm", "b_lungs.png"]))
def test_names_do_not_depend_on_the_order_of_the_films(films):
    assert mask_paths(films, ".", "out") == mask_paths(sorted(films), ".", "out")


def test_a_run_looks_into_a_folder_once(tmp_path, monkeypatch):
    looked, split = [], []
    for i in range(40):
        (tmp_path / f"film{i}.dcm").touch()
    films = list_films(tmp_path)
    monkeypatch.setattr(mask_writer, "film_names", lambda folder: looked.append(folder) or film_names(folder))
    monkeypatch.setattr(mask_writer, "split_name", lambda name: split.append(name) or split_name(name))
    masks = [mask_path_beside(film, tmp_path, "out", "once") for film in films]
    assert len(looked) == 1 and len(set(masks)) == 40 and len(split) <= 10 * 40
    (tmp_path / "film3.nii").touch()
    os.utime(tmp_path, ns=(1, 1))  # a folder that has changed is looked into again
    assert mask_path_beside(films[0], tmp_path, "out", "once") == masks[0] and len(looked) == 2
    assert mask_path_beside(tmp_path / "film3.dcm", tmp_path, "out", "once").name == "film3_dcm_once.nii.gz"
    (tmp_path / "late.dcm").touch()
    os.utime(tmp_path, ns=(1, 1))  # a film that came without a trace
    assert mask_path_beside(tmp_path / "late.dcm", tmp_path, "out", "once").name == "late_once.nii.gz"


def test_many_names_take_seconds(tmp_path):
    for i in range(8000):
        (tmp_path / f"1.2.840.{i}").touch()
    began = time.process_time()
    films = list_films(tmp_path)
    masks = {mask_path_beside(film, tmp_path, "out") for film in films}
    assert len(masks | set(mask_paths(films, tmp_path, "out").values())) == 8000 and time.process_time() - began < 20


def test_one_film_alone_gets_the_name_it_has_among_all(tmp_path):
    names = ["b.dcm", "b.nii", "b_dcm.dcm", "b.png", "b.jpg", "c.dcm", "c.txt", "ca.dcm"]
    names += ["sub/b.dcm", "1.2.3", "1.2.34"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    films = list_films(tmp_path)
    together = mask_paths(films, tmp_path, "out")
    films = [film for film in films if film.suffix != ".txt"]
    assert len({together[film] for film in films}) == len(films) == len(names) - 1
    assert {film: mask_path_beside(film, tmp_path, "out") for film in films} == {film: together[film] for film in films}
    assert together[tmp_path / "c.dcm"].name == "c_lungs.nii.gz"


# ---- content -------------------------------------------------------------------------------------------------------


def write_for(film, path):
    details = film.details
    return write_mask(film.pixels > 1500, film.format, film.affine, path, details["file_frame"], details["affine_unit"])


PLACE = ["qform_code", "sform_code", "pixdim", "xyzt_units", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y"]
PLACE += ["qoffset_z", "srow_x", "srow_y", "srow_z", "dim"]


def assert_same_place(mask_path, film_path):
    mask, film = nibabel.load(mask_path), nibabel.load(film_path)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(film.dataobj) > 1500)
    for name in PLACE:
        np.testing.assert_array_equal(mask.header[name], film.header[name], name)
    np.testing.assert_array_equal(mask.affine, film.affine)
    assert type(mask) is type(film)


@pytest.mark.parametrize("tail", [(), (1,), (1, 1)])
@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-0.2, 0.3, 1, 1]), TILTED])
def test_nifti_mask_lies_on_its_file(tmp_path, tail, affine):
    original = nibabel.Nifti1Image(FILM.T.reshape(*FILM.T.shape, *tail), affine)
    nibabel.save(original, tmp_path / "a.nii")
    path = write_for(read_film(tmp_path / "a.nii"), tmp_path / "m.nii.gz")
    assert_same_place(path, tmp_path / "a.nii")
    assert nibabel.load(path).get_data_dtype() == np.uint8


OTHER = np.array([[-0.3, 0.05, 0, 9], [0.05, 0.3, 0, 8], [0, 0, -2, 7], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("image_class", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("unit", ["mm", "meter", "micron", "unknown"])
@pytest.mark.parametrize("qcode, scode", [(0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1), (1, 2), (4, 3)])
def test_nifti_mask_has_the_codes_affines_and_unit_of_its_film(tmp_path, qcode, scode, unit, image_class):
    original = image_class(FILM.T[..., None], None)
    original.header["pixdim"][1:5] = 0.7, 0.3, 2, 5
    original.set_qform(OTHER, qcode)
    original.set_sform(TILTED, scode)
    original.header.set_xyzt_units(unit, "sec")
    nibabel.save(original, tmp_path / "a.nii")
    assert_same_place(write_for(read_film(tmp_path / "a.nii"), tmp_path / "m.nii.gz"), tmp_path / "a.nii")


def test_nifti_mask_of_a_singular_file_keeps_its_affine(tmp_path):
    original = nibabel.Nifti1Image(FILM.T, None)
    original.header.set_sform(np.diag([0, 0.3, 1, 1]), code=1)
    nibabel.save(original, tmp_path / "a.nii")
    assert_same_place(write_for(read_film(tmp_path / "a.nii"), tmp_path / "m.nii.gz"), tmp_path / "a.nii")


@pytest.mark.parametrize("unit", ["mm", "unknown"])
def test_dicom_mask_is_columns_by_rows_by_one(tmp_path, unit):
    affine = np.array([[0.0, -2, 0, 5], [-3, 0, 0, 7], [0, 0, 4, 6], [0, 0, 0, 1]])
    mask = nibabel.load(write_mask(MASK, "dicom", affine, tmp_path / "m.nii.gz", unit=unit))
    np.testing.assert_array_equal(np.asarray(mask.dataobj), MASK.T[..., None])
    for row, column in [(0, 0), (3, 7), (19, 29)]:
        np.testing.assert_array_equal(mask.affine @ [column, row, 0, 1], affine @ [row, column, 0, 1])
    np.testing.assert_allclose(mask.get_qform(), mask.affine, atol=1e-6)
    assert mask.header.get_zooms() == (2, 3, 4) and mask.header.get_xyzt_units()[0] == unit
    assert (mask.header["qform_code"], mask.header["sform_code"]) == (1, 1)


@pytest.mark.parametrize("film_format, dtype", [("png", bool), ("jpeg", np.uint8), ("png", np.float32)])
def test_png_mask(tmp_path, film_format, dtype):
    path = write_mask(MASK.astype(dtype), film_format, in_plane_affine((1, 1)), tmp_path / "m.png")
    written = image_module.open(path)
    assert written.mode == "L"
    np.testing.assert_array_equal(np.asarray(written), MASK * 255)


@pytest.mark.parametrize(
    "labels, dtype",
    [
        ([0, 1, 2, 3], np.uint8),
        ([0, 255], np.uint8),
        ([0, 256], np.uint16),
        ([7, 65536], np.uint32),
        ([-1, 0, 4], np.int8),
        ([-1, 200], np.int16),
        ([0.0, 2.0], np.uint8),
        ([False, True], np.uint8),
    ],
)
@pytest.mark.parametrize("film_format", ["dicom", "nifti"])
def test_nifti_keeps_labels_in_the_smallest_type(tmp_path, labels, dtype, film_format):
    mask = np.resize(np.array(labels), (3, 4))
    written = nibabel.load(write_mask(mask, film_format, np.eye(4), tmp_path / "m.nii.gz"))
    values = np.asarray(written.dataobj)
    np.testing.assert_array_equal(values, mask.T[..., None])
    assert written.get_data_dtype() == dtype


@pytest.mark.parametrize(
    "labels, grey", [([0, 1], [0, 255]), ([0, 1, 2, 3], [0, 1, 2, 3]), ([0, 2], [0, 2]), ([0, 255], [0, 255])]
)
def test_png_keeps_labels_and_shows_one_class_white(tmp_path, labels, grey):
    mask = np.resize(np.array(labels, np.int64), (3, 4))
    written = image_module.open(write_mask(mask, "png", np.eye(4), tmp_path / "m.png"))
    assert written.mode == "L"
    np.testing.assert_array_equal(np.asarray(written), np.resize(grey, (3, 4)))


@pytest.mark.parametrize(
    "value, film_format",
    [(256, "png"), (-1, "png"), (0.5, "png"), (0.5, "nifti"), (np.nan, "dicom"), (np.inf, "png"), (2**32, "nifti")],
)
def test_what_is_no_label_is_refused(tmp_path, value, film_format):
    mask = np.zeros((3, 4))
    mask[1, 1] = value
    with pytest.raises(FilmError, match="UnsupportedLabels"):
        write_mask(mask, film_format, np.eye(4), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_empty_mask_is_written(tmp_path):
    path = write_mask(np.zeros((4, 5), np.uint8), "dicom", np.eye(4), tmp_path / "new" / "folder" / "m.nii.gz")
    assert nibabel.load(path).get_fdata().sum() == 0


def test_write_is_atomic_and_repeatable(tmp_path, monkeypatch):
    path = write_mask(MASK, "dicom", np.eye(4), tmp_path / "m.nii.gz")
    first = path.read_bytes()
    assert write_mask(MASK, "dicom", np.eye(4), path).read_bytes() == first

    def no_space(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("monai_diffeo.files.os.replace", no_space)
    with pytest.raises(OSError, match="The disk is full"):
        write_mask(~MASK, "dicom", np.eye(4), path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.nii.gz"] and path.read_bytes() == first


def test_wrong_masks_are_refused(tmp_path):
    with pytest.raises(ShapeError, match=r"\(H, W\)"):
        write_mask(MASK[None], "png", np.eye(4), tmp_path / "m.png")
    with pytest.raises(ShapeError, match="film file"):
        write_mask(MASK, "nifti", np.eye(4), tmp_path / "m.nii.gz", '{"shape": [20, 30], "axes": "x,y"}')
    with pytest.raises(FilmError, match="UnsupportedFile"):
        write_mask(MASK, "mha", np.eye(4), tmp_path / "m.mha")
    assert list(tmp_path.iterdir()) == []


def test_a_mask_of_a_nifti_film_lies_where_the_film_lies_when_only_its_affine_is_known(tmp_path):
    affine = np.array([[0.0, 3.0, 0.0, 5.0], [2.0, 0.0, 0.0, 7.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    mask = np.zeros((4, 6))
    mask[1, 2] = 1
    image = nibabel.load(write_mask(mask, "nifti", affine, tmp_path / "m.nii.gz"))
    (place,) = np.argwhere(np.asarray(image.dataobj))
    assert place.tolist() == [2, 1, 0]
    assert (image.affine @ [2, 1, 0, 1]).tolist() == (affine @ [1, 2, 0, 1]).tolist() == [11.0, 9.0, 0.0, 1.0]
    assert image.header.get_sform(coded=True)[1] == 1  # scanner coordinates


@pytest.mark.parametrize("kind", ["seg", "sr", "sc"])
def test_no_dicom_result_is_named_like_a_film(tmp_path, kind):
    films = [tmp_path / "b.dcm", tmp_path / f"b_lungs.{kind}.dcm"]
    names = MaskNames(films, tmp_path, tmp_path)
    assert names(films[0]) == tmp_path / "b_dcm_lungs.nii.gz"
    assert MaskNames(films[:1], tmp_path, tmp_path)(films[0]) == tmp_path / "b_lungs.nii.gz"
