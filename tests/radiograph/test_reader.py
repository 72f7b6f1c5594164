"""Reading films: the same picture whatever the file says about its grey scale, and a code for what is none."""

import contextlib
import gzip
import io
import logging
import os
import pickle
import subprocess
import sys
import traceback
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph import dicom
from monai_diffeo.radiograph.dicom_file import dataset_of_file
from monai_diffeo.radiograph.film import DETAILS
from monai_diffeo.radiograph.monai_reader import FilmReader
from monai_diffeo.radiograph.packaged import packaged_film
from monai_diffeo.radiograph.reader import film_meta, format_of_name, in_plane_affine, list_films, read_film

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
image_module = pytest.importorskip("PIL.Image")

from tests.radiograph.dicom_factory import corner_film, dataset, lut_item, save  # noqa: E402

IMPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"
BIG, RLE = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5"
REAL = sorted((Path(__file__).parents[3] / "shared" / "data" / "dicom").glob("*.dcm"))
FILM = corner_film()
TWIN = 4095 - FILM  # the same picture stored as MONOCHROME1


def sample():
    try:
        return packaged_film()
    except FilmError:
        pytest.skip("pydicom-data is not installed")


def code_of(path):
    with pytest.raises(FilmError) as caught:
        read_film(path)
    return caught.value.code


def rank_correlation(one, other):
    stats = pytest.importorskip("scipy.stats")
    return stats.spearmanr(one.ravel(), other.ravel()).statistic


# ---- grey scale of DICOM -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "photometric, shape, stored, inverted",
    [
        ("MONOCHROME2", None, FILM, False),
        ("MONOCHROME2", "IDENTITY", FILM, False),
        ("MONOCHROME2", "INVERSE", TWIN, True),
        ("MONOCHROME1", None, TWIN, True),
        ("MONOCHROME1", "IDENTITY", TWIN, True),
        ("MONOCHROME1", "INVERSE", TWIN, True),
    ],
)
def test_grey_scale_is_flipped_once(tmp_path, photometric, shape, stored, inverted):
    path = save(tmp_path / "a.dcm", stored, PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    film = read_film(path)
    np.testing.assert_array_equal(film.pixels, FILM)
    assert film.pixels.dtype == np.float32 and film.details["inverted"] is inverted


@pytest.mark.parametrize("rescale", [(2.0, -100.0), (-1.0, 4095.0), (0.5, 0.0)])
@pytest.mark.parametrize("windowed", [False, True])
def test_twins_agree_through_rescale_and_window(tmp_path, rescale, windowed):
    """A MONOCHROME1 file of 4095 - x with the mirrored window shows what the MONOCHROME2 file of x shows."""
    slope, intercept = rescale
    window = {"WindowCenter": 230 * slope + intercept, "WindowWidth": 240 * abs(slope)} if windowed else {}
    direct = {"RescaleSlope": slope, "RescaleIntercept": intercept, **window}
    ends = 2 * intercept + 4095 * slope
    mirrored = dict(direct, VOILUTFunction="LINEAR_EXACT", PhotometricInterpretation="MONOCHROME1")
    if window:
        mirrored["WindowCenter"] = ends - window["WindowCenter"]
    one = read_film(save(tmp_path / "2.dcm", FILM, **direct, VOILUTFunction="LINEAR_EXACT"))
    other = read_film(save(tmp_path / "1.dcm", TWIN, **mirrored))
    np.testing.assert_allclose(other.pixels, one.pixels, atol=2e-3)
    assert one.details["voi"] == other.details["voi"] == ("window" if window else "none")


def test_negative_slope_darkens_what_was_bright(tmp_path):
    options = {"RescaleSlope": -1, "RescaleIntercept": 4095}
    for window in ({}, {"WindowCenter": 2048, "WindowWidth": 4096}):
        film = read_film(save(tmp_path / "a.dcm", FILM, **options, **window))
        assert rank_correlation(film.pixels, FILM) == pytest.approx(-1)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("bits, stored", [(12, FILM), (8, corner_film(bits=8))])
def test_window_equals_pydicom(tmp_path, function, bits, stored):
    options = {"bits": bits, "WindowCenter": [180, 7], "WindowWidth": [380, 9], "VOILUTFunction": function}
    film = read_film(save(tmp_path / "a.dcm", stored, **options))
    expected = pydicom.pixels.apply_voi_lut(stored, dataset(stored, **options))
    np.testing.assert_allclose(film.pixels, expected, rtol=1e-6)
    assert film.details["voi"] == "window" and not film.details["voi_refused"]


@pytest.mark.parametrize("syntax", [IMPLICIT, "1.2.840.10008.1.2.1"])
@pytest.mark.parametrize("first", [0, 110])
def test_voi_table(tmp_path, syntax, first):
    table = np.sqrt(np.arange(4096)) * 60
    film = read_film(save(tmp_path / "a.dcm", FILM, syntax=syntax, VOILUTSequence=lut_item(table, first)))
    index = np.clip(FILM.astype(int) - first, 0, 4095)
    np.testing.assert_array_equal(film.pixels, table.astype(np.uint16)[index])
    assert film.details["voi"] == "lut"


def test_table_of_bytes_does_not_wrap(tmp_path):
    """4096 entries of 8 bits: the index exceeds what the entries can hold."""
    film = read_film(save(tmp_path / "a.dcm", FILM, VOILUTSequence=lut_item(np.arange(4096) // 16, bits=8)))
    np.testing.assert_array_equal(film.pixels, FILM // 16)


@pytest.mark.parametrize("first", [-2048, 65536 - 2048])  # the second as a file with the wrong sign has it
def test_table_that_begins_below_zero(tmp_path, first):
    signed = FILM.astype(np.int16) - 2048
    film = read_film(save(tmp_path / "a.dcm", signed, VOILUTSequence=lut_item(np.arange(4096), first)))
    np.testing.assert_array_equal(film.pixels, FILM)


def test_table_goes_before_window_and_after_rescale(tmp_path):
    options = {"RescaleSlope": 2, "RescaleIntercept": -200, "WindowCenter": 50, "WindowWidth": 10}
    film = read_film(save(tmp_path / "a.dcm", FILM, VOILUTSequence=lut_item(np.arange(8192)[::-1], bits=13), **options))
    np.testing.assert_array_equal(film.pixels, 8191 - np.clip(2.0 * FILM - 200, 0, 8191))


def test_modality_table(tmp_path):
    table = np.arange(4096)[::-1]
    film = read_film(save(tmp_path / "a.dcm", FILM, ModalityLUTSequence=lut_item(table)))
    np.testing.assert_array_equal(film.pixels, TWIN)


@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": 100, "WindowWidth": 0},
        {"WindowCenter": 100, "WindowWidth": -5},
        {"WindowCenter": 60000, "WindowWidth": 10},
        {"WindowCenter": 100, "WindowWidth": 50, "VOILUTFunction": "CUBIC"},
        {"VOILUTSequence": lut_item(np.full(4096, 7))},
        {"VOILUTSequence": lut_item(np.arange(4096)[:0])},
    ],
)
def test_unusable_window_is_left_out_and_recorded(tmp_path, window):
    film = read_film(save(tmp_path / "a.dcm", FILM, **window))
    np.testing.assert_array_equal(film.pixels, FILM)
    assert film.details["voi"] == "none" and film.details["voi_refused"] is True


def test_signed_values(tmp_path):
    signed = (FILM.astype(np.int16) - 2048).astype(np.int16)
    film = read_film(save(tmp_path / "a.dcm", signed))
    np.testing.assert_array_equal(film.pixels, signed)
    film = read_film(save(tmp_path / "b.dcm", signed, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(film.pixels, -1.0 - signed)  # the scale runs from -2048 to 2047


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 300, "WindowWidth": 500}])
def test_padding_is_dark_and_changes_no_other_pixel(tmp_path, photometric, window):
    options = {"PhotometricInterpretation": photometric, **window}
    padded = FILM.copy()
    padded[-6:] = 4095
    with_padding = read_film(save(tmp_path / "a.dcm", padded, PixelPaddingValue=4095, **options))
    without = read_film(save(tmp_path / "b.dcm", FILM, **options))
    np.testing.assert_array_equal(with_padding.pixels[:-6], without.pixels[:-6])
    assert set(with_padding.pixels[-6:].ravel()) == {without.pixels[:-6].min()}
    assert with_padding.details["padding_pixels"] == 6 * FILM.shape[1]


def test_padding_range_and_wrong_sign(tmp_path):
    signed = FILM.astype(np.int16) - 2048
    signed[:2], signed[2:4] = -2000, -1990
    ds = dataset(signed)
    ds.add_new("PixelPaddingValue", "US", 65536 - 2000)
    ds.add_new("PixelPaddingRangeLimit", "SS", -1990)
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert read_film(tmp_path / "a.dcm").details["padding_pixels"] == 4 * FILM.shape[1]
    unsigned = FILM.copy()
    unsigned[:2] = 65535
    ds = dataset(unsigned, bits=16)
    ds.add_new("PixelPaddingValue", "SS", -1)
    ds.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert read_film(tmp_path / "b.dcm").details["padding_pixels"] == 2 * FILM.shape[1]


@pytest.mark.parametrize("syntax", [IMPLICIT, DEFLATED])
def test_encodings_do_not_matter(tmp_path, syntax):
    np.testing.assert_array_equal(read_film(save(tmp_path / "a.dcm", FILM, syntax=syntax)).pixels, FILM)


def test_big_endian(tmp_path):
    path = save(tmp_path / "a.dcm", FILM, syntax=BIG, PixelData=FILM.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_film(path).pixels, FILM)


@pytest.mark.parametrize("syntax", [RLE, "1.2.840.10008.1.2.4.90"])
def test_compressed(tmp_path, syntax):
    encoder = pydicom.pixels.get_encoder(syntax)
    if not encoder.is_available:
        pytest.skip("no encoder: " + syntax)
    stored = np.tile(FILM, (5, 4))
    film = read_film(save(tmp_path / "a.dcm", stored, compress=syntax))
    np.testing.assert_array_equal(film.pixels, stored)
    assert film.details["transfer_syntax"] == syntax


# ---- statements of the header ---------------------------------------------------------------------------------------


def test_details_take_defined_terms_only(tmp_path):
    stated = read_film(
        save(
            tmp_path / "a.dcm",
            FILM,
            ViewPosition="PA",
            ImageLaterality="U",
            PatientOrientation=["L", "F"],
            EstimatedRadiographicMagnificationFactor=1.1,
            BurnedInAnnotation="NO",
        )
    ).details
    assert (stated["view"], stated["laterality"], stated["patient_orientation"]) == ("PA", "U", "L\\F")
    assert (stated["magnification"], stated["burned_in_annotation"]) == (1.1, "NO")
    free = read_film(save(tmp_path / "b.dcm", FILM, ViewPosition="MILLER", Laterality="JOHN", Modality="SMITH")).details
    assert (free["view"], free["laterality"], free["modality"]) == ("", "", "")
    assert set(stated) == set(DETAILS) and all(type(stated[k]) is type(DETAILS[k]) for k in DETAILS)


# ---- other readers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 2, "RescaleIntercept": -100}])
def test_values_equal_simpleitk(tmp_path, photometric, rescale):
    """ITK flips MONOCHROME1 about the same scale; it ignores windows, so there is none here."""
    sitk = pytest.importorskip("SimpleITK")
    options = {"PhotometricInterpretation": photometric, "ImagerPixelSpacing": [0.3, 0.15], **rescale}
    path = save(tmp_path / "a.dcm", FILM, **options)
    film, itk = read_film(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(film.pixels, sitk.GetArrayFromImage(itk)[0])
    assert film.spacing == pytest.approx(itk.GetSpacing()[1::-1])


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in REAL] or [None])
def test_real_films_rank_as_simpleitk(path):
    """Windows are monotone and merge ranks only where they clip: compare inside. JPEG decoders round apart."""
    if path is None:
        pytest.skip("../shared/data/dicom is not here")
    sitk = pytest.importorskip("SimpleITK")
    film, itk = read_film(path), sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
    assert film.pixels.shape == itk.shape
    shown, itk = film.pixels[::7, ::5], itk[::7, ::5]
    inside = (shown > shown.min()) & (shown < shown.max())
    lossy = film.details["transfer_syntax"].startswith("1.2.840.10008.1.2.4.5")
    assert rank_correlation(shown[inside], itk[inside]) > 1 - (2e-5 if lossy else 1e-9)


def test_sample_film():
    film = read_film(sample())
    assert film.pixels.shape == (1955, 1841) and film.details["inverted"] and film.details["view"] == "PA"
    assert film.spacing_source == "unknown"  # the file says 0.000
    lungs, spine = film.pixels[800:1000, 450:600].mean(), film.pixels[800:1000, 880:960].mean()
    assert spine > 1.2 * lungs  # bone is white
    if sitk := pytest.importorskip("SimpleITK"):
        itk = sitk.GetArrayFromImage(sitk.ReadImage(str(sample())))[0]
        assert rank_correlation(film.pixels[::20, ::20], itk[::20, ::20]) > 1 - 1e-9


# ---- NIfTI, PNG, JPEG ----------------------------------------------------------------------------------------------

DOWN = np.array([[-0.2, 0, 0, 5], [0, -0.3, 0, -7], [0, 0, 1, 3], [0, 0, 0, 1.0]])
UNPLACED = np.diag([-0.2, 0.3, 1, 1.0])


@pytest.mark.parametrize("affine", [np.eye(4), UNPLACED, DOWN])
@pytest.mark.parametrize("tail", [(), (1,), (1, 1)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
def test_nifti_is_transposed(tmp_path, affine, tail, suffix):
    path = tmp_path / "a"
    data = FILM.T.reshape(*FILM.T.shape, *tail).astype(np.int16)
    content = nibabel.Nifti1Image(data, affine).to_bytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.lower().endswith(".gz") else content)
    film = read_film(path)
    np.testing.assert_array_equal(film.pixels, FILM)
    np.testing.assert_allclose(film.affine @ [3, 2, 0, 1], affine @ [2, 3, 0, 1], atol=1e-5)
    assert film.spacing == pytest.approx((np.linalg.norm(affine[:3, 1]), np.linalg.norm(affine[:3, 0])), rel=1e-6)
    assert film.details["file_axes"] == "x,y" and film.details["notes"] == ""


def test_nifti_slope_second_version_and_units(tmp_path):
    image = nibabel.Nifti2Image(FILM.T, np.diag([0.0002, 0.0003, 1, 1]))
    image.header.set_slope_inter(2, -100)
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "a.nii")
    film = read_film(tmp_path / "a.nii")
    np.testing.assert_array_equal(film.pixels, nibabel.load(tmp_path / "a.nii").get_fdata().T)
    assert film.spacing == pytest.approx((0.3, 0.2))


def test_nifti_without_usable_affine(tmp_path):
    image = nibabel.Nifti1Image(FILM.T, None)
    image.header.set_sform(np.diag([0, 0.3, 1, 1]), code=1)
    nibabel.save(image, tmp_path / "a.nii")
    film = read_film(tmp_path / "a.nii")
    assert (film.spacing, film.spacing_source) == ((1.0, 1.0), "unknown")
    np.testing.assert_array_equal(film.affine, in_plane_affine((1, 1)))
    assert film.details["spacing_doubt"] == "the affine is singular"


@pytest.mark.parametrize("mode, dtype", [("L", np.uint8), ("I;16", np.uint16)])
def test_png(tmp_path, mode, dtype):
    pixels = corner_film(bits=8 * dtype().itemsize).astype(dtype)
    image_module.fromarray(pixels).save(tmp_path / "a.PNG", format="PNG")
    film = read_film(tmp_path / "a.PNG")
    np.testing.assert_array_equal(film.pixels, pixels)
    assert (film.format, film.spacing_source, film.details["photometric"]) == ("png", "unknown", mode)


def test_two_level_png_and_constant_alpha(tmp_path):
    film = corner_film(bits=8)
    image_module.fromarray(film > 150).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_film(tmp_path / "a.png").pixels, film > 150)
    grey = image_module.fromarray(film).convert("LA")
    grey.save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_film(tmp_path / "b.png").pixels, film)
    grey.putpixel((3, 3), (5, 100))
    grey.save(tmp_path / "c.png")
    assert code_of(tmp_path / "c.png") == "ColourImage"


def test_jpeg_is_not_turned_by_exif(tmp_path):
    film = np.kron(corner_film(bits=8)[::8, ::8], np.ones((8, 8), np.uint8))
    exif = image_module.Exif()
    exif[274] = 6
    image_module.fromarray(film).save(tmp_path / "a.jpeg", quality=100, exif=exif)
    read = read_film(tmp_path / "a.jpeg")
    assert np.abs(read.pixels - film).max() <= 2 and read.details["exif_orientation"] == 6


@given(st.integers(2, 21), st.integers(2, 21), st.sampled_from(["dcm", "nii", "png"]))
def test_every_size(tmp_path_factory, rows, columns, kind):
    pixels = np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns)
    path = tmp_path_factory.mktemp("sizes") / f"a.{kind}"
    if kind == "dcm":
        save(path, pixels)
    elif kind == "nii":
        nibabel.save(nibabel.Nifti1Image(pixels.T, np.eye(4)), path)
    else:
        image_module.fromarray(pixels).save(path)
    np.testing.assert_array_equal(read_film(path).pixels, pixels)


# ---- what is refused -----------------------------------------------------------------------------------------------


def png_bytes(pixels, mode=None):
    stream = io.BytesIO()
    image_module.fromarray(pixels, mode).save(stream, "PNG")
    return stream.getvalue()


def nifti_bytes(data, affine=None):
    return nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine).to_bytes()


def dicom_bytes(pixels=FILM, **options):
    stream = io.BytesIO()
    dataset(pixels, **options).save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def patched(content, at, value):
    return content[:at] + value + content[at + len(value) :]


def bomb():
    """Header of a deflated DICOM file and zeros without end."""
    head = dicom_bytes(syntax=DEFLATED)
    start = 144 + pydicom.dcmread(io.BytesIO(head)).file_meta.FileMetaInformationGroupLength
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return head[:start] + b"".join(squeeze.compress(bytes(2**20)) for _ in range(40)) + squeeze.flush()


def rle(**options):
    ds = dataset(FILM, **options)
    ds.compress(RLE, generate_instance_uid=False)
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def jpeg_bytes(pixels, **options):
    stream = io.BytesIO()
    image_module.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


def lying_jpeg():
    """A DICOM film of 8 x 8 pixels around a JPEG of 64 x 64."""
    frame = pydicom.encaps.encapsulate([jpeg_bytes(np.tile(corner_film(8, 8, 8), (8, 8)))])
    return dicom_bytes(np.zeros((8, 8), np.uint8), syntax="1.2.840.10008.1.2.4.50", bits=8, PixelData=frame)


GREY = corner_film(bits=8)
VOLUME = np.arange(5 * 6 * 4, dtype=np.int16).reshape(5, 6, 4)
NIFTI = nifti_bytes(FILM.T.astype(np.float32))
NOISE = np.random.default_rng(0).integers(0, 255, (99, 99), np.uint8)
NOT_RLE = pydicom.encaps.encapsulate([b"SECRET" * 20])
COLOUR = np.stack([GREY] * 3, -1)
COLOUR[8:12, 8:12, 0] = 0  # a small annotation
RGB16 = np.zeros((5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
BAD = {
    "empty.dcm": (lambda: b"", "EmptyFile"),
    "empty.png": (lambda: b"", "EmptyFile"),
    "text.dcm": (lambda: b"Dear colleague, please find the film enclosed.", "NotAFilm"),
    "text": (lambda: b"x", "NotAFilm"),
    "text.nii.gz": (lambda: gzip.compress(b"hello" * 100), "NotAFilm"),
    "notes.txt": (lambda: b"hello", "UnsupportedFile"),
    "film.mha": (lambda: b"ObjectType = Image", "UnsupportedFile"),
    "png_named.dcm": (lambda: png_bytes(GREY), "UnsupportedFile"),
    "dicom_named.png": (lambda: dicom_bytes(), "UnsupportedFile"),
    "png_named.jpg": (lambda: png_bytes(GREY), "UnsupportedFile"),
    # DICOM
    "cut_pixels.dcm": (lambda: dicom_bytes()[:-200], "TruncatedPixels"),
    "short_pixels.dcm": (lambda: dicom_bytes(PixelData=FILM.tobytes()[:-100]), "TruncatedPixels"),
    "cut_header.dcm": (lambda: dicom_bytes()[:500], "NoPixelData"),
    "cut_meta.dcm": (lambda: dicom_bytes()[:150], "MissingElement"),
    "cut_rle.dcm": (lambda: rle()[:-60], "TruncatedPixels"),
    "no_pixels.dcm": (lambda: dicom_bytes(PixelData=None), "NoPixelData"),
    "empty_pixels.dcm": (lambda: dicom_bytes(PixelData=b""), "NoPixelData"),
    "no_rows.dcm": (lambda: dicom_bytes(Rows=None), "MissingElement"),
    "no_photometric.dcm": (lambda: dicom_bytes(PhotometricInterpretation=None), "MissingElement"),
    "no_bits.dcm": (lambda: dicom_bytes(BitsStored=None), "MissingElement"),
    "zero_rows.dcm": (lambda: dicom_bytes(Rows=0), "TooSmall"),
    "one_row.dcm": (lambda: dicom_bytes(FILM[:1]), "TooSmall"),
    "huge.dcm": (lambda: dicom_bytes(Rows=65535, Columns=65535), "TooLarge"),
    "wide.dcm": (lambda: dicom_bytes(Rows=2, Columns=30000), "TooLarge"),
    "bits.dcm": (lambda: dicom_bytes(BitsStored=20), "DamagedFile"),
    "high_bit.dcm": (lambda: dicom_bytes(HighBit=15), "DamagedFile"),
    "frames.dcm": (lambda: dicom_bytes(np.stack([FILM] * 3), NumberOfFrames=3), "MultiFrame"),
    "rgb.dcm": (
        lambda: dicom_bytes(COLOUR[None], SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0),
        "ColourImage",
    ),
    "palette.dcm": (lambda: dicom_bytes(PhotometricInterpretation="PALETTE COLOR"), "MissingElement"),
    "samples.dcm": (lambda: dicom_bytes(PhotometricInterpretation="RGB"), "UnsupportedFile"),
    "photometric.dcm": (lambda: dicom_bytes(PhotometricInterpretation="MONOCHROME"), "UnsupportedFile"),
    "two_rows.dcm": (lambda: dicom_bytes(Rows=[24, 24]), "DamagedFile"),
    "sign.dcm": (lambda: dicom_bytes(PixelRepresentation=7), "DamagedFile"),
    "float.dcm": (lambda: dicom_bytes(PixelData=None, FloatPixelData=bytes(4 * FILM.size)), "UnsupportedFile"),
    "not_rle.dcm": (lambda: dicom_bytes(syntax=RLE, PixelData=NOT_RLE), "UnreadablePixels"),
    "unknown_syntax.dcm": (lambda: dicom_bytes().replace(b"10008.1.2.1\0", b"10008.1.2.77"), "UnreadablePixels"),
    "lying_jpeg.dcm": (lying_jpeg, "DamagedFile"),
    "black.dcm": (lambda: dicom_bytes(np.zeros((9, 9), np.uint16)), "ConstantImage"),
    "all_but_padding.dcm": (
        lambda: dicom_bytes(np.where(FILM > 4000, 4095, 9).astype("u2"), PixelPaddingValue=4095),
        "ConstantImage",
    ),
    # NIfTI
    "nan.nii": (lambda: nifti_bytes(np.where(FILM.T > 4000, np.nan, FILM.T).astype(np.float32)), "NotFinite"),
    "inf.nii.gz": (lambda: gzip.compress(nifti_bytes(np.where(FILM.T > 4000, np.inf, 1.0))), "NotFinite"),
    "cut.nii": (lambda: NIFTI[:-100], "TruncatedPixels"),
    "cut_header.nii": (lambda: NIFTI[:200], "NotAFilm"),
    "cut.nii.gz": (lambda: gzip.compress(NIFTI)[:-100], "TruncatedPixels"),
    "checksum.nii.gz": (lambda: patched(gzip.compress(NIFTI), len(gzip.compress(NIFTI)) - 8, b"abcd"), "DamagedFile"),
    "volume.nii": (lambda: nifti_bytes(VOLUME), "VolumeNotFilm"),
    "sagittal.nii": (lambda: nifti_bytes(VOLUME[:1]), "VolumeNotFilm"),
    "one_axis.nii": (lambda: patched(NIFTI, 40, np.array([1, 9, 1], "<i2").tobytes()), "VolumeNotFilm"),
    "thin.nii": (lambda: nifti_bytes(VOLUME[:1, :, 0]), "TooSmall"),
    "huge.nii": (lambda: patched(NIFTI, 42, np.array([32767, 32767], "<i2").tobytes()), "TooLarge"),
    "negative.nii": (lambda: patched(NIFTI, 42, np.array([-5], "<i2").tobytes()), "DamagedFile"),
    "offset.nii": (lambda: patched(NIFTI, 108, np.array([1e12], "<f4").tobytes()), "DamagedFile"),
    "dtype.nii": (lambda: patched(NIFTI, 70, np.array([999], "<i2").tobytes()), "DamagedFile"),
    "rgb.nii": (lambda: nifti_bytes(RGB16), "ColourImage"),
    "complex.nii": (lambda: nifti_bytes(FILM.T.astype(np.complex64)), "UnsupportedFile"),
    "white.nii": (lambda: nifti_bytes(np.ones((5, 6), np.uint8)), "ConstantImage"),
    # pictures
    "rgb.png": (lambda: png_bytes(COLOUR), "ColourImage"),
    "palette.png": (lambda: coloured_palette(GREY), "ColourImage"),
    "rgb.jpg": (lambda: jpeg_bytes(COLOUR), "ColourImage"),
    "cut.png": (lambda: png_bytes(NOISE)[:5000], "TruncatedPixels"),
    "cut.jpg": (lambda: jpeg_bytes(NOISE)[:3000], "TruncatedPixels"),
    "frames.png": (lambda: animated(GREY), "MultiFrame"),
    "damaged.png": (lambda: patched(png_bytes(GREY), 20, b"\xff" * 40), None),
    "huge.png": (lambda: png_header(60000, 60000), "TooLarge"),
    "large.png": (lambda: png_header(15000, 15000), "TooLarge"),
    "one_row.png": (lambda: png_bytes(GREY[:1]), "TooSmall"),
    "black.png": (lambda: png_bytes(np.zeros((9, 9), np.uint8)), "ConstantImage"),
}


def coloured_palette(pixels):
    picture, stream = image_module.fromarray(pixels, "P"), io.BytesIO()
    picture.putpalette([value for grey in range(256) for value in (grey, grey, 0)])
    picture.save(stream, "PNG")
    return stream.getvalue()


def animated(pixels):
    stream = io.BytesIO()
    frames = [image_module.fromarray(frame) for frame in (pixels, 255 - pixels)]
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def png_header(width, height):
    body = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\0\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + b"\0\0\0\x0d" + body + zlib.crc32(body).to_bytes(4, "big") + png_bytes(GREY)[33:]


@pytest.mark.parametrize("name", BAD)
def test_bad_files_have_a_code(tmp_path, name, recwarn, capfd):
    make, expected = BAD[name]
    content = make()
    recwarn.clear()
    (tmp_path / name).write_bytes(content)
    code = code_of(tmp_path / name)
    assert code == expected if expected else code in ("DamagedFile", "UnreadablePixels", "TruncatedPixels")
    assert not recwarn.list and capfd.readouterr() == ("", "")


def test_bomb_is_stopped_before_pydicom_inflates_it(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_diffeo.radiograph.dicom_file.MAX_FILE_BYTES", 2**24)
    (tmp_path / "a.dcm").write_bytes(bomb())
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: pytest.fail("pydicom read the bomb"))
    assert code_of(tmp_path / "a.dcm") == "TooLarge"


def test_file_size_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_diffeo.radiograph.reader.MAX_FILE_BYTES", 100)
    assert code_of(save(tmp_path / "a.dcm", FILM)) == "TooLarge"


@pytest.mark.parametrize("path", [".", "absent.dcm"])
def test_what_cannot_be_opened(tmp_path, path):
    assert code_of(tmp_path / path) == "FileNotReadable"


def test_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.dcm")
    assert code_of(tmp_path / "a.dcm") == "FileNotReadable"


@given(st.binary(max_size=300), st.integers(0, 900), st.sampled_from(["dcm", "nii", "nii.gz", "png", "jpg"]))
def test_damage_anywhere_gives_a_film_or_a_film_error(tmp_path_factory, noise, at, suffix):
    whole = {"dcm": dicom_bytes(), "png": png_bytes(GREY), "jpg": jpeg_bytes(GREY), "nii": NIFTI}
    whole = whole.get(suffix) or gzip.compress(NIFTI)
    path = tmp_path_factory.mktemp("damage") / f"a.{suffix}"
    path.write_bytes(patched(whole, at, noise))
    with contextlib.suppress(FilmError):
        assert read_film(path).pixels.ndim == 2


# ---- no patient data -----------------------------------------------------------------------------------------------


def secretive(path, **options):
    """A valid film with a name wherever text fits."""
    names = ["PatientName", "PatientID", "ImageComments", "StudyDescription", "ViewPosition", "Laterality"]
    ds = dataset(FILM, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in [*names, "PatientBirthDate", "StudyInstanceUID", "SpecificCharacterSet"]:
            setattr(ds, name, "SECRET^NAME")
        ds.file_meta.MediaStorageSOPInstanceUID = "../../SECRET"
        ds.WindowCenter = ds.WindowWidth = None
        ds.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    assert content.count(b"SECRET") > 8
    return path


@pytest.mark.parametrize(
    "options", [{}, {"BitsStored": 20}, {"Rows": 999}, {"Rows": None}, {"syntax": RLE, "PixelData": NOT_RLE}]
)
def test_no_patient_data_leaves_the_file(tmp_path, options, capfd, recwarn, caplog):
    caplog.set_level(logging.DEBUG)
    path = secretive(tmp_path / "a.dcm", **options)
    recwarn.clear()
    caplog.clear()
    said = ""
    try:
        film = read_film(path)
        said = repr(film.details) + repr(film_meta(film))
    except FilmError as error:
        said = "".join(traceback.format_exception(error)) + repr(pickle.loads(pickle.dumps(error)).args)
    heard = said + "".join(capfd.readouterr()) + caplog.text + "".join(str(w.message) for w in recwarn.list)
    assert said and "SECRET" not in heard.replace(str(path), "")
    assert (options == {}) == ("film_format" in said)


def test_elements_about_the_patient_are_not_even_parsed(tmp_path):
    parsed = dataset_of_file(pydicom, secretive(tmp_path / "a.dcm"), dicom._TAGS)
    assert "Rows" in parsed and "PatientName" not in parsed and "StudyDescription" not in parsed


def test_warnings_of_others_still_work_afterwards(tmp_path):
    read_film(save(tmp_path / "a.dcm", FILM))
    with pytest.warns(UserWarning, match="still here"):
        warnings.warn("still here", stacklevel=1)
    assert not logging.getLogger("pydicom").disabled


# ---- names, lists, the MONAI reader --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a.dcm", "dicom"), ("a.DICOM", "dicom"), ("IM0001", "dicom"), ("1.2.840.5", "dicom"), ("CR.1.84", "dicom"),
        ("a.nii", "nifti"), ("a.Nii.Gz", "nifti"), ("a.png", "png"), ("a.JPG", "jpeg"), ("a.jpeg", "jpeg"),
        ("a.txt", None), ("a.gz", None), ("a.nii.zip", None), ("a.dcm.bak", None),
    ],
)  # fmt: skip
def test_format_of_name(name, expected):
    assert format_of_name(name) == expected
    assert FilmReader().verify_suffix(["x.dcm", name]) is (expected is not None)


def test_list_films(tmp_path):
    listed = ["a.nii.gz", "b/1.dcm", "b/2.png", "b/out/1.dcm", "link.dcm", "lost.dcm", "note.txt", "pipe-link.dcm", "pipe.dcm"]
    for name in (
        *(n for n in reversed(listed) if not n.startswith(("link", "lost", "pipe"))),
        ".hidden.dcm",
        ".git/x.dcm",
        "out/m.nii.gz",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link.dcm").symlink_to(tmp_path / "a.nii.gz")
    (tmp_path / "lost.dcm").symlink_to(tmp_path / "nowhere")
    (tmp_path / "pipe-link.dcm").symlink_to(tmp_path / "pipe.dcm")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.dcm")
    found = list_films(tmp_path, exclude=[tmp_path / "b" / ".." / "out"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == listed
    assert list_films(tmp_path / "b" / "1.dcm") == [tmp_path / "b" / "1.dcm"]
    with pytest.raises(FilmError, match="FileNotReadable"):
        list_films(tmp_path / "absent")


def test_reader_speaks_monai(tmp_path):
    path = save(tmp_path / "a.dcm", FILM, PixelSpacing=[0.2, 0.1])
    reader = FilmReader()
    array, meta = reader.get_data(reader.read(path))
    assert array.shape == FILM.shape == tuple(meta["spatial_shape"])
    assert np.isnan(meta["original_channel_dim"]) and meta["space"] == "RAS" and meta["filename_or_obj"] == str(path)
    assert all(isinstance(meta[k], (str, int, float)) for k in meta if k.startswith("film_"))
    with pytest.raises(FilmError, match="MultiFrame"):
        reader.read([path, path])


def test_monais_load_image_takes_the_reader(tmp_path):
    from monai.transforms import LoadImage

    film = LoadImage(reader=FilmReader(), ensure_channel_first=True)(save(tmp_path / "a.dcm", FILM))
    np.testing.assert_array_equal(film[0].numpy(), FILM)


def test_import_needs_no_reader_library():
    script = "import sys\nfor m in ('pydicom', 'nibabel', 'PIL'): sys.modules[m] = None\nfrom monai_diffeo.radiograph import *"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr


def test_sample_film_names_the_remedy(monkeypatch):
    from importlib import metadata

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    with pytest.raises(FilmError, match=r"pip install monai-diffeo\[demo\]"):
        packaged_film()
