"""What the header of a DICOM object excludes is refused by name; what speaks against a frontal chest film is noted."""

import pytest

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.reader import read_film

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import UID_dictionary  # noqa: E402

from tests.radiograph.dicom_factory import corner_film, dataset, save  # noqa: E402

FILM = corner_film()
ROOT = "1.2.840.10008.5.1.4.1.1."
FILMS = {"1", "1.1", "1.1.1", "7", "7.2", "7.3", "7.4", "12.1", "12.1.1", "12.2", "12.2.1", "12.3"}
"""SOP classes of projection radiographs and of what may be a capture of one."""
STORED = sorted(uid for uid in UID_dictionary if uid.startswith(ROOT) and "Storage" in UID_dictionary[uid][0])
OTHER_PART = "header names another body part"


def notes_of(tmp_path, **elements):
    text = read_film(save(tmp_path / "a.dcm", FILM, **elements)).details["notes"]
    assert isinstance(text, str)
    return text.split("; ") if text else []


def refusal(tmp_path, made):
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(FilmError) as caught:
        read_film(tmp_path / "a.dcm")
    return caught.value


def concept(code, scheme="SCT", meaning="MILLER"):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, scheme, meaning
    return item


# ---- what is no radiograph -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", STORED)
def test_each_storage_class_of_the_standard_is_a_film_or_refused(tmp_path, uid):
    made = dataset(FILM, SOPClassUID=uid)
    if uid.removeprefix(ROOT) in FILMS:
        made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        assert read_film(tmp_path / "a.dcm").pixels.shape == FILM.shape
    else:
        error = refusal(tmp_path, made)
        assert error.code == "NotARadiograph" and f"SOPClassUID names {UID_dictionary[uid][0]}." in str(error)


@pytest.mark.parametrize("modality", "CT MR NM PT US MG IO PX RTDOSE RTIMAGE SEG OP ES mr".split())
def test_a_modality_of_something_else_is_refused(tmp_path, modality):
    """Also in a secondary capture, which may hold anything."""
    for uid in ("1", "7"):
        error = refusal(tmp_path, dataset(FILM, Modality=modality, SOPClassUID=ROOT + uid))
        assert error.code == "NotARadiograph" and f"Modality is {modality.upper()}." in str(error)


def test_kind_is_told_before_frames_colour_and_missing_pixels(tmp_path):
    for options in ({"NumberOfFrames": 3}, {"SamplesPerPixel": 3}, {"PixelData": None, "Rows": None}):
        assert refusal(tmp_path, dataset(FILM, SOPClassUID=ROOT + "4", **options)).code == "NotARadiograph"


def test_the_meta_header_names_the_class_where_the_dataset_does_not(tmp_path):
    made = dataset(FILM, SOPClassUID=None)
    made.file_meta.MediaStorageSOPClassUID = ROOT + "2"
    assert refusal(tmp_path, made).code == "NotARadiograph"


@pytest.mark.parametrize(
    "elements, expected",
    [
        ({}, []),
        ({"Modality": "DX", "SOPClassUID": ROOT + "1.1", "PresentationIntentType": "FOR PRESENTATION"}, []),
        ({"SOPClassUID": ROOT + "7"}, ["header names a secondary capture"]),
        ({"Modality": "OT"}, ["header names no modality of X-ray films"]),
        ({"Modality": None}, ["header names no known modality"]),
        ({"Modality": "SMITH"}, ["header names no known modality"]),
        ({"Modality": "XA", "SOPClassUID": ROOT + "12.1"}, ["header names angiography or fluoroscopy"]),
        ({"Modality": "RF"}, ["header names angiography or fluoroscopy"]),
        ({"SOPClassUID": "1.3.46.670589.2.3"}, ["header names no known SOP class"]),
        ({"SOPClassUID": ROOT + "1.1.1"}, ["header names an image for processing, not for presentation"]),
        ({"PresentationIntentType": "FOR PROCESSING"}, ["header names an image for processing, not for presentation"]),
        ({"BurnedInAnnotation": "YES"}, ["header says that text is burnt in"]),
        ({"BurnedInAnnotation": "NO", "LossyImageCompression": "01"}, []),
    ],
)
def test_doubts_about_the_kind_are_noted(tmp_path, elements, expected):
    assert notes_of(tmp_path, **elements) == expected


# ---- body part and view (entry 27 of the catalogue) ----------------------------------------------------------------


@pytest.mark.parametrize("part", "KNEE HAND SKULL ABDOMEN EXTREMITY LSPINE HIPS BREAST Left_Foot THORACIC_SPINE".split())
def test_another_body_part_is_noted(tmp_path, part):
    assert notes_of(tmp_path, BodyPartExamined=part) == [OTHER_PART]


@pytest.mark.parametrize(
    "part", ["CHEST", "THORAX", "LUNG", "chest 2vw", "CHESTABDOMEN", "RIB", "TORAX", "WHOLEBODY", "", None]
)
def test_a_chest_has_no_note(tmp_path, part):
    assert notes_of(tmp_path, BodyPartExamined=part) == []


def test_free_text_is_never_printed(tmp_path):
    region = concept("51185008", meaning="SMITH")
    said = notes_of(tmp_path, BodyPartExamined="MILLER", ViewPosition="JOHN", AnatomicRegionSequence=region)
    assert said == ["header names a body part by no defined term"]
    assert notes_of(tmp_path, AnatomicRegionSequence=concept("MILLER"), ViewCodeSequence=concept("SMITH")) == [
        OTHER_PART,
        "header names another view",
    ]


@pytest.mark.parametrize(
    "code, chest", [("816094009", True), ("51185008", True), ("T-D3000", True), ("72696002", False), ("T-D9200", False)]
)
def test_body_part_by_code(tmp_path, code, chest):
    assert notes_of(tmp_path, AnatomicRegionSequence=concept(code)) == [] if chest else [OTHER_PART]
    frame, group = Dataset(), Dataset()
    frame.AnatomicRegionSequence = Sequence([concept(code)])
    group.FrameAnatomySequence = Sequence([frame])
    assert notes_of(tmp_path, SharedFunctionalGroupsSequence=group) == ([] if chest else [OTHER_PART])


@pytest.mark.parametrize(
    "elements, view",
    [
        ({"ViewPosition": "PA"}, None),
        ({"ViewPosition": "LL"}, "a lateral"),
        ({"ViewPosition": "RL"}, "a lateral"),
        ({"ViewPosition": "Lateral"}, "a lateral"),
        ({"ViewPosition": "LLD"}, "a decubitus"),
        ({"ViewPosition": "RLO"}, "an oblique"),
        ({"ViewPosition": "LAO"}, "an oblique"),
        ({"ViewPosition": "L DECUB"}, "a decubitus"),
        ({"ViewPosition": "RLAT"}, "a lateral"),
        ({"ViewCodeSequence": concept("399348003")}, None),
        ({"ViewCodeSequence": concept("272479007")}, None),
        ({"ViewCodeSequence": concept("R-10206", "SRT")}, None),
        ({"ViewCodeSequence": concept("399173006")}, "a lateral"),
        ({"ViewCodeSequence": concept("R-10232", "SRT")}, "a lateral"),
        ({"ViewCodeSequence": concept("399236003")}, "another"),
        ({"ViewCodeSequence": concept("399061009")}, "another"),
        ({"PatientOrientation": ["L", "F"]}, None),
        ({"PatientOrientation": ["R", "H"]}, None),
        ({"PatientOrientation": ["F", "L"]}, None),
        ({"PatientOrientation": ["A", "F"]}, "a lateral"),
        ({"PatientOrientation": ["P", "F"]}, "a lateral"),
        ({"PatientOrientation": ["H", "P"]}, "a lateral"),
        ({"PatientOrientation": ["AL", "F"]}, "a lateral"),
        ({"PatientOrientation": ["LA", "F"]}, "an oblique"),
        ({"PatientOrientation": ["L", "P"]}, "an axial"),
        ({"ViewPosition": "LL", "PatientOrientation": ["A", "F"]}, "a lateral"),
    ],
)
def test_views_that_are_not_frontal_are_noted(tmp_path, elements, view):
    assert notes_of(tmp_path, **elements) == ([f"header names {view} view"] if view else [])


# ---- true sentences ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "elements, code, sentence",
    [
        ({"Rows": [24, 24]}, "DamagedFile", "The DICOM element Rows is not one whole number."),
        ({"BitsStored": 0, "HighBit": 0}, "DamagedFile", "BitsStored must lie between 1 and BitsAllocated."),
        ({"BitsStored": 20}, "DamagedFile", "BitsStored must lie between 1 and BitsAllocated."),
        ({"HighBit": 15}, "DamagedFile", "HighBit must be BitsStored - 1."),
        ({"PixelRepresentation": 2}, "DamagedFile", "PixelRepresentation must be 0 or 1."),
        ({"BitsAllocated": 12}, "UnsupportedFile", "A film has 8, 16 or 32 bits allocated, got 12."),
        (
            {"PixelData": None, "FloatPixelData": bytes(4 * FILM.size)},
            "UnsupportedFile",
            "pixels of floating point",
        ),
        ({"PhotometricInterpretation": "CMYK"}, "UnsupportedFile", "PhotometricInterpretation is another"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "MissingElement", "RedPaletteColorLookupTableDescriptor is missing."),
        ({"PhotometricInterpretation": None}, "MissingElement", "PhotometricInterpretation is missing or empty."),
    ],
)
def test_trouble_of_the_header_is_told_truly(tmp_path, elements, code, sentence):
    error = refusal(tmp_path, dataset(FILM, **elements))
    assert error.code == code and sentence in str(error)


def test_a_number_of_frames_that_is_none(tmp_path):
    path = save(tmp_path / "a.dcm", FILM, NumberOfFrames=1)
    content = path.read_bytes().replace(b"\x28\x00\x08\x00IS\x02\x001 ", b"\x28\x00\x08\x00IS\x02\x001A")
    path.write_bytes(content)
    with pytest.raises(FilmError, match=r"DamagedFile: The DICOM element NumberOfFrames is not one whole number\."):
        read_film(path)
