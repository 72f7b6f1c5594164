"""The mask of a DICOM film lies on its film in SimpleITK, and the report says what the header states."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_diffeo.radiograph.film import in_plane_affine
from monai_diffeo.radiograph.mask_writer import write_mask
from monai_diffeo.radiograph.reader import read_film

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

from pydicom.dataset import Dataset  # noqa: E402

from tests.radiograph.dicom_factory import corner_film, dataset  # noqa: E402

FILM = corner_film(120, 110)
P, D, N = "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"
POSITION, ORIENTATION, DEPTH = "ImagePositionPatient", "ImageOrientationPatient", "SpacingBetweenSlices"
IMAGE = "1.2.840.10008.5.1.4.1.1."
PROJECTIONS = ["1", "1.1", "1.1.1", "12.1", "12.2", "12.3"]
SECONDARY, ENHANCED_XA, ENHANCED_XRF, FRAMES = "7", "12.1.1", "12.2.1", "7.3"
CORONAL = r"1\0\0\0\0\-1"


def saved(path, kind="1", **texts):
    """A film of a kind with elements as the text given, whatever pydicom thinks of it."""
    film = dataset(FILM, SOPClassUID=IMAGE + kind)
    raw = {}
    for keyword, text in texts.items():
        if isinstance(text, str) and pydicom.datadict.dictionary_VR(keyword) == "DS":
            tag = pydicom.tag.Tag(keyword)
            film.add_new(tag, "LO", text)
            raw |= {struct.pack("<HH", tag.group, tag.element) + b"LO": struct.pack("<HH", tag.group, tag.element) + b"DS"}
        else:
            setattr(film, keyword, text)
    film.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    for wrong, right in raw.items():
        assert content.count(wrong) == 1
        content = content.replace(wrong, right)
    path.write_bytes(content)
    return path


def assert_on_film(film_path, folder):
    """Size, spacing, origin, direction and corners of the mask are those of the film in SimpleITK; the film as we read it."""
    sitk = pytest.importorskip("SimpleITK")
    film = read_film(film_path)
    mask_path = write_mask(film.pixels > 1500, "dicom", film.affine, folder / "m.nii.gz", unit=film.details["affine_unit"])
    theirs, mask = sitk.ReadImage(str(film_path)), sitk.ReadImage(str(mask_path))
    assert theirs.GetSize() == mask.GetSize() == (110, 120, 1)
    np.testing.assert_allclose(mask.GetSpacing(), theirs.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(mask.GetOrigin(), theirs.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(mask.GetDirection(), theirs.GetDirection(), atol=1e-5)
    ours = nibabel.load(mask_path).affine
    for corner in [(0, 0, 0), (109, 0, 0), (0, 119, 0), (109, 119, 0)]:
        place = theirs.TransformIndexToPhysicalPoint(corner)
        np.testing.assert_allclose(mask.TransformIndexToPhysicalPoint(corner), place, atol=0.01)
        np.testing.assert_allclose((ours @ [*corner, 1])[:3] * [-1, -1, 1], place, atol=0.01)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask)[0], film.pixels > 1500)
    return film


def oblique(angle, tilt):
    """Direction cosines along a row and a column, six decimals as devices write them."""
    row = [math.cos(angle), math.sin(angle), 0.0]
    column = [math.sin(angle) * math.sin(tilt), -math.cos(angle) * math.sin(tilt), -math.cos(tilt)]
    return "\\".join(f"{value:.6f}" for value in row + column)


# ---- place ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["1", "1.1", "12.1", SECONDARY, ENHANCED_XA])
@pytest.mark.parametrize(
    "place",
    [
        {},
        {POSITION: r"-150\-20\180", ORIENTATION: CORONAL},
        {POSITION: r"-150\-20\1688.5"},
        {ORIENTATION: CORONAL},
        {POSITION: r"-150\-20\180", ORIENTATION: oblique(0.4, 0.3)},
        {POSITION: r"1\2\3", ORIENTATION: oblique(2.7, -0.2)},
        {POSITION: r"1\2\3", ORIENTATION: r"0.57\0.82\0\0\0\-1"},  # not of length 1
        {POSITION: r"1\2\3", ORIENTATION: r"2\0\0\0\0\-3"},
        {POSITION: r"1\2\3", ORIENTATION: r"1\0\0\0.0009\0\-1"},  # nearly a right angle
        {POSITION: r"1\2\3", ORIENTATION: r"1\0\0\0.01\0\-1"},  # none
        {POSITION: r"1\2\3", ORIENTATION: r"0\0\0\0\0\0"},
        {POSITION: r"1\2\3", ORIENTATION: r"1\0\0\1\0\0"},
        {POSITION: r"1\2\3", ORIENTATION: r"1\0\0\0\0"},
        {POSITION: r"1\2\3", ORIENTATION: r"a\b\c\d\e\f"},
        {POSITION: r"1\2", ORIENTATION: CORONAL},
        {POSITION: r"-150,5\-20,5\180", ORIENTATION: CORONAL},
        {POSITION: "", ORIENTATION: ""},
        {POSITION: r"1\2\3", ORIENTATION: CORONAL, DEPTH: "3"},
        {POSITION: r"1\2\3", ORIENTATION: CORONAL, DEPTH: "-3"},
        {POSITION: r"1\2\3", ORIENTATION: r"-1\0\0\0\0\-1"},
    ],
)
def test_place(tmp_path, kind, place):
    if kind == ENHANCED_XA and DEPTH in place:
        pytest.skip("ITK takes no thickness of these, which says nothing in the plane")
    film = assert_on_film(saved(tmp_path / "a.dcm", kind, **{D: r"0.5\0.4", P: r"0.5\0.4"}, **place), tmp_path)
    assert film.spacing == (0.5, 0.4)


@settings(max_examples=40)
@given(
    st.floats(-math.pi, math.pi),
    st.floats(-1.5, 1.5),
    st.tuples(*[st.floats(-2000, 2000)] * 3),
    st.tuples(*[st.floats(0.05, 1)] * 2),
)
def test_any_oblique_film(tmp_path_factory, angle, tilt, position, spacing):
    folder = tmp_path_factory.mktemp("oblique")
    texts = {POSITION: "\\".join(f"{x:.3f}" for x in position), D: "\\".join(f"{x:.5f}" for x in spacing)}
    assert_on_film(saved(folder / "a.dcm", **texts, **{ORIENTATION: oblique(angle, tilt)}), folder)


# ---- spacing -------------------------------------------------------------------------------------------------------

ALL = {P: r"0.3\0.2", D: r"0.5\0.4", N: r"0.7\0.6"}
ITK = "viewers that read with ITK and the mask take"


@pytest.mark.parametrize("which", [(), (P,), (D,), (N,), (P, D), (P, N), (D, N), (P, D, N)])
@pytest.mark.parametrize("kind", [*PROJECTIONS, SECONDARY, ENHANCED_XA])
def test_kinds(tmp_path, kind, which):
    """Radiographs: viewers take the size on the detector; secondary captures: PixelSpacing, then the scanned film's."""
    film = assert_on_film(saved(tmp_path / "a.dcm", kind, **{keyword: ALL[keyword] for keyword in which}), tmp_path)
    order = (D, P, N) if kind in PROJECTIONS else (N, D) if kind == SECONDARY and N in which and P not in which else (P, D, N)
    source = next((keyword for keyword in order if keyword in which), "unknown")
    taken = source == D if kind in PROJECTIONS else source in (P, N) if kind == SECONDARY else False
    assert film.spacing_source == source
    assert film.spacing == {P: (0.3, 0.2), D: (0.5, 0.4), N: (0.7, 0.6), "unknown": (1, 1)}[source]
    assert film.details["affine_unit"] == ("mm" if taken else "unknown")
    assert (ITK in film.details["spacing_doubt"]) == (bool(which) and not taken)
    assert (" states 0." in film.details["spacing_doubt"]) == ({P, D} <= set(which))


def test_a_kind_that_itk_does_not_read(tmp_path):
    film = read_film(saved(tmp_path / "b.dcm", ENHANCED_XRF, **{D: ALL[D]}))
    assert (film.spacing, film.details["affine_unit"]) == ((0.5, 0.4), "mm")
    np.testing.assert_array_equal(film.affine, in_plane_affine((0.5, 0.4)))


@pytest.mark.parametrize("modality, source", [("CR", D), ("DX", D), ("RF", D), ("XA", D), ("OT", P), (None, P)])
def test_a_film_without_a_class_goes_by_its_modality(tmp_path, modality, source):
    film = dataset(FILM, Modality=modality, PixelSpacing=[0.3, 0.2], ImagerPixelSpacing=[0.5, 0.4])
    del film.SOPClassUID, film.file_meta.MediaStorageSOPClassUID
    film.preamble = bytes(128)
    film.save_as(tmp_path / "a.dcm", enforce_file_format=False, implicit_vr=False, little_endian=True)
    assert assert_on_film(tmp_path / "a.dcm", tmp_path).spacing_source == source


@pytest.mark.parametrize(
    "text, spacing, doubt",
    [
        (r"0.5\0.4", (0.5, 0.4), ""),
        (r" 0.60 \ +5E-1 ", (0.6, 0.5), ""),
        (r"0.5\0.4\0.3", (0.5, 0.4), "has 3 values instead of 2"),
        ("0.6", (0.6, 0.6), "has 1 value instead of 2"),
        (r"0,6\0,5", (0.6, 0.5), f"is written with decimal commas; {ITK} 1 x 6 mm"),
        (r"0\0", None, "is not two lengths"),
        (r"0.000\0.5", None, "is not two lengths"),
        (r"-0.5\0.4", None, "is not two lengths"),
        (r"-0.5\-0.4", None, "is not two lengths"),
        (r"0.6mm\0.5mm", None, "is not two lengths"),
        ("0.6,0.5", None, "is not two lengths"),
        ("0.6/0.5", None, "is not two lengths"),
        ("abc", None, "is not two lengths"),
        ("", None, None),
    ],
)
@pytest.mark.parametrize("kind, keyword", [("1.1", D), (SECONDARY, P)])
def test_texts(tmp_path, kind, keyword, text, spacing, doubt):
    """ITK reads damaged numbers in its own way, and the mask lies on its film all the same."""
    film = assert_on_film(saved(tmp_path / "a.dcm", kind, **{keyword: text}), tmp_path)
    assert film.spacing_source == (keyword if spacing else "unknown") and film.spacing == (spacing or (1, 1))
    expected = "no element states the spacing" if doubt is None else doubt and f"{keyword} {doubt}"
    assert film.details["spacing_doubt"] == expected
    assert film.details["affine_unit"] == ("mm" if spacing and ITK not in expected else "unknown")


@pytest.mark.parametrize("text", [r"nan\nan", r"inf\inf", r"1e-9\1e-9", r"1e9\1e9", r"abc\def", "0.6\\", "\\0.6"])
def test_texts_that_are_no_lengths_for_anyone(tmp_path, text):
    film = read_film(saved(tmp_path / "a.dcm", **{D: text, P: r"0.3\0.2"}))
    assert (film.spacing, film.spacing_source, film.details["affine_unit"]) == ((0.3, 0.2), P, "unknown")
    assert film.details["spacing_doubt"].startswith(f"{D} is not two lengths; {ITK}")


@pytest.mark.parametrize(
    "elements, doubt",
    [
        ({P: r"0.3\0.2"}, f"{P} states 0.3 x 0.2 mm"),
        ({P: r"0.3\0.2", "PixelSpacingCalibrationType": "GEOMETRY"}, f"{P} states 0.3 x 0.2 mm, calibrated by geometry"),
        ({P: r"0.3\0.2", "PixelSpacingCalibrationType": "FIDUCIAL"}, f"{P} states 0.3 x 0.2 mm, calibrated by fiducial"),
        ({P: r"0.3\0.2", "PixelSpacingCalibrationType": "MILLER"}, f"{P} states 0.3 x 0.2 mm"),  # free text stays out
        ({P: r"0.5\0.4"}, ""),
        ({"EstimatedRadiographicMagnificationFactor": "1.1"}, "the size on the detector, 1.1 times that in the patient"),
        ({"EstimatedRadiographicMagnificationFactor": "1"}, ""),
        ({P: r"0\0"}, f"{P} is not two lengths"),
    ],
)
def test_calibrated_against_detector_spacing(tmp_path, elements, doubt):
    film = read_film(saved(tmp_path / "a.dcm", **{D: r"0.5\0.4"}, **elements))
    assert (film.spacing, film.spacing_source, film.details["affine_unit"]) == ((0.5, 0.4), D, "mm")
    assert film.details["spacing_doubt"] == doubt


def test_only_the_shape_of_a_pixel(tmp_path):
    film = assert_on_film(saved(tmp_path / "a.dcm", PixelAspectRatio=[2, 1]), tmp_path)
    assert (film.spacing, film.spacing_source, film.details["affine_unit"]) == ((1, 1), "unknown", "unknown")
    assert film.details["spacing_doubt"] == "only the shape of a pixel is stated, 2 to 1, not its size"


@pytest.mark.parametrize("text, size", [(r"10\10", "1200 x 1100"), (r"0.1\0.1", "12 x 11")])
def test_implausible_films(tmp_path, text, size):
    film = assert_on_film(saved(tmp_path / "a.dcm", **{D: text}), tmp_path)
    assert film.details["spacing_doubt"] == f"a film of {size} mm is implausible" and film.spacing_source == D


def groups(**macros):
    """One item of functional groups; each macro is a sequence of one item."""
    item = Dataset()
    for keyword, elements in macros.items():
        inner = Dataset()
        for name, value in elements.items():
            setattr(inner, name, value)
        setattr(item, keyword, [inner])
    return [item]


MEASURES = {"PixelMeasuresSequence": {P: [0.3, 0.2]}}
PLACES = {
    "PlanePositionSequence": {POSITION: [-150, -20, 180]},
    "PlaneOrientationSequence": {ORIENTATION: [1, 0, 0, 0, 0, -1]},
}
SHARED, OF_FRAMES = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"


@pytest.mark.parametrize(
    "shared, frames, taken",
    [
        (MEASURES, PLACES, True),
        (None, MEASURES | PLACES, True),
        (MEASURES | PLACES, {}, True),
        (MEASURES | PLACES, None, False),  # which no object should be, and ITK takes 1 mm
    ],
)
def test_functional_groups(tmp_path, shared, frames, taken):
    elements = {SHARED: None if shared is None else groups(**shared), OF_FRAMES: None if frames is None else groups(**frames)}
    elements = {keyword: value for keyword, value in elements.items() if value is not None}
    film = assert_on_film(saved(tmp_path / "a.dcm", FRAMES, NumberOfFrames=1, **elements), tmp_path)
    assert (film.spacing, film.spacing_source) == ((0.3, 0.2), P)
    assert (film.details["affine_unit"] == "mm") == taken and (ITK in film.details["spacing_doubt"]) != taken


def test_functional_groups_that_itk_does_not_look_into(tmp_path):
    for kind in (ENHANCED_XA, "1.1"):
        properties = groups(FramePixelDataPropertiesSequence={D: [0.5, 0.4]})
        film = assert_on_film(saved(tmp_path / "a.dcm", kind, NumberOfFrames=1, **{SHARED: properties}), tmp_path)
        assert (film.spacing, film.spacing_source, film.details["affine_unit"]) == ((0.5, 0.4), D, "unknown")
