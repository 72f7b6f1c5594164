"""SEG, structured report and secondary capture of one film, read back as an archive or a viewer reads them."""

import shutil
import subprocess

import numpy as np
import pytest

for package in ("highdicom", "PIL"):
    pytest.importorskip(package)

import highdicom as hd  # noqa: E402
import pydicom  # noqa: E402
from PIL import Image  # noqa: E402

from monai_diffeo.dicom_output import LUNG, Algorithm, Findings, Segment, mask_segmentation, new_uid  # noqa: E402
from monai_diffeo.dicom_output.source import source_of_film  # noqa: E402
from monai_diffeo.dicom_output.writer import write_dicom_results  # noqa: E402
from monai_diffeo.errors import FilmError, ShapeError  # noqa: E402
from tests.dicom_output.films import SIZE, film, lungs  # noqa: E402

CASES = [(modality, frame) for modality in ("CR", "DX") for frame in (False, True)]
FOUND = Findings("canonicalized", 0.973)
ALGORITHM = Algorithm("0.2.0", "ab" * 32, {"weights": "cd" * 32, "mode": None})
DE_IDENTIFIED = dict.fromkeys(
    ("PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber ReferringPhysicianName "
     "Manufacturer BodyPartExamined ViewPosition PatientOrientation InstanceNumber SeriesNumber SpecificCharacterSet").split()
)  # fmt: skip
DAMAGED = {"PixelSpacing": [0.0, 0.0], "FrameOfReferenceUID": "", "ImagePositionPatient": [0.0, 0.0, 0.0], "Laterality": "L"}
TIMES = set(
    "ContentDate ContentTime InstanceCreationDate InstanceCreationTime ContributionDateTime DateOfSecondaryCapture "
    "TimeOfSecondaryCapture".split()
)


def segments():
    right, left = lungs()
    return [Segment("Right lung", right, LUNG, "right"), Segment("Left lung", left, LUNG, "left")]


def results(folder, some=None, findings=FOUND, algorithm=ALGORITHM, **settings):
    """The three results of a film, read from their files, by modality."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(folder / "picture.png")
    path, picture = film(folder / "a.dcm", **settings), folder / "picture.png"
    files = write_dicom_results(path, folder / "a_lungs.nii.gz", some or segments(), findings, algorithm, picture, "Lungs")
    assert [file.name for file in files] == ["a_lungs.seg.dcm", "a_lungs.sr.dcm", "a_lungs.sc.dcm"]
    return {dataset.Modality: dataset for dataset in map(pydicom.dcmread, files)}, files


def errors_of(path):
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=60)
    said = (done.stdout + done.stderr).splitlines()
    assert any(line in ("Segmentation", "ComprehensiveSR", "SCImage", "DeformableSpatialRegistration") for line in said), said
    return [line for line in said if "Error" in line] + ([f"exit status {done.returncode}"] if done.returncode else [])


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy: apt-get install dicom3tools")
@pytest.mark.parametrize("settings", [*({"modality": m, "frame_of_reference": f} for m, f in CASES), DE_IDENTIFIED, DAMAGED])
def test_a_validator_finds_no_error(tmp_path, settings):
    everything = [*segments(), Segment("Lung, other parts", np.zeros(SIZE, bool), LUNG)]
    for some in (None, [Segment("Lungs", np.zeros(SIZE, bool), LUNG, "both")], everything):
        for path in results(tmp_path, some, **settings)[1]:
            assert errors_of(path) == [], path.name


@pytest.mark.parametrize("modality, frame", CASES)
def test_the_mask_is_read_back_bit_for_bit(tmp_path, modality, frame):
    _, files = results(tmp_path, modality=modality, frame_of_reference=frame)
    seg, source = hd.seg.segread(files[0]), pydicom.dcmread(tmp_path / "a.dcm")
    pixels = seg.get_pixels_by_source_instance([source.SOPInstanceUID], ignore_spatial_locations=True)
    assert np.array_equal(pixels[0], np.stack(lungs(), axis=-1)) and (seg.Rows, seg.Columns) == SIZE
    assert [seg.get_segment_description(n).segment_label for n in (1, 2)] == ["Right lung", "Left lung"]
    sides = [d.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0] for d in seg.SegmentSequence]
    assert [side.CodeMeaning for side in sides] == ["Right", "Left"]
    about = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (about.AlgorithmName, about.AlgorithmVersion) == ("monai_diffeo", "0.2.0") and "cd" * 32 in about.AlgorithmParameters


def test_each_frame_of_a_seg_begins_with_a_byte_because_viewers_draw_others_askew(tmp_path):
    size = (47, 63)
    mask = np.random.default_rng(0).random(size) > 0.5
    one, two = Segment("Lungs", mask, LUNG, "both"), Segment("Lung, other parts", ~mask, LUNG)
    for parts, kind in (([one], "BINARY"), ([one, two], "FRACTIONAL")):
        _, files = results(tmp_path, parts, pixels=np.zeros(size, np.uint16))
        seg, source = hd.seg.segread(files[0]), pydicom.dcmread(tmp_path / "a.dcm")
        pixels = seg.get_pixels_by_source_instance([source.SOPInstanceUID], ignore_spatial_locations=True)
        assert seg.SegmentationType == kind
        assert np.array_equal(pixels[0], np.stack([part.mask for part in parts], axis=-1))
        assert shutil.which("dciodvfy") is None or errors_of(files[0]) == []


@pytest.mark.parametrize("spacing", [{"ImagerPixelSpacing": [0.2, 0.3]}, {"ImagerPixelSpacing": None}])
@pytest.mark.parametrize("frame", [False, True])
def test_the_seg_states_the_plane_in_which_viewers_draw_the_film(tmp_path, frame, spacing):
    (shared,) = results(tmp_path, frame_of_reference=frame, **spacing)[0]["SEG"].SharedFunctionalGroupsSequence
    drawn = spacing["ImagerPixelSpacing"] or [1, 1]  # as ITK
    assert shared.PixelMeasuresSequence[0].PixelSpacing == drawn
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
    assert shared.PlanePositionSequence[0].ImagePositionPatient == [0, 0, 0]


def test_segments_that_overlap_keep_all_their_pixels(tmp_path):
    right, left = lungs()
    whole = right | left
    _, files = results(tmp_path, [Segment("Right lung", right, LUNG), Segment("Lungs", whole, LUNG)])
    source = pydicom.dcmread(tmp_path / "a.dcm")
    pixels = hd.seg.segread(files[0]).get_pixels_by_source_instance([source.SOPInstanceUID], ignore_spatial_locations=True)
    assert np.array_equal(pixels[0], np.stack([right, whole], axis=-1))


def test_an_empty_part_has_a_frame_too(tmp_path):
    some = [*segments(), Segment("Lung, other parts", np.zeros(SIZE, bool), LUNG)]
    for parts in (some, some[2:]):
        seg = hd.seg.segread(results(tmp_path, parts)[1][0])
        assert seg.NumberOfFrames == len(parts) and np.array_equal(seg.pixel_array.reshape(-1, *SIZE)[-1], some[2].mask)


def test_results_belong_to_the_patient_and_study_and_each_has_a_series_of_its_own(tmp_path):
    made, _ = results(tmp_path)
    source = pydicom.dcmread(tmp_path / "a.dcm")
    for dataset in made.values():
        for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "AccessionNumber", "StudyID"):
            assert dataset[keyword].value == source[keyword].value, keyword
        makers = [item.Manufacturer for item in dataset.ContributingEquipmentSequence]
        assert "monai_diffeo" in makers
    assert len({source.SeriesInstanceUID, *(dataset.SeriesInstanceUID for dataset in made.values())}) == 4
    (series,) = made["SEG"].ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert "FrameOfReferenceUID" not in made["SEG"]  # none is made up


def test_made_again_they_have_the_same_uids_and_differ_in_times_alone(tmp_path):
    def told(dataset):
        return [str(e) for e in dataset.iterall() if e.VR != "SQ" and e.keyword not in TIMES]

    uids = {key: new_uid("film", key) for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
    one, two = (results(tmp_path / name, **uids)[0] for name in ("one", "two"))
    assert {modality: told(dataset) for modality, dataset in one.items()} == {m: told(dataset) for m, dataset in two.items()}
    other, _ = results(tmp_path / "other", algorithm=Algorithm("0.2.0", "ef" * 32), **uids)
    next_film, _ = results(tmp_path / "next", **{**uids, "SOPInstanceUID": new_uid("next")})
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        sets = [{str(dataset[keyword].value) for dataset in made.values()} for made in (one, other, next_film)]
        assert len(set().union(*sets)) == 9


def measured(report):
    """Value and unit by tracking identifier, and terms by concept, of a report as highdicom reads it."""
    content = hd.sr.srread(report).content
    areas = {}
    for group in content.get_planar_roi_measurement_groups():
        (area,) = group.get_measurements()
        areas[group.tracking_identifier] = (area.value, area.unit.value)
    (whole,) = content.get_image_measurement_groups()
    return areas, {said.name.meaning: said.value.meaning for said in whole.get_qualitative_evaluations()}, content


def test_the_report_measures_in_percent_of_the_film_where_the_spacing_is_that_of_the_detector(tmp_path):
    made, files = results(tmp_path)
    areas, said, content = measured(files[1])
    share = [round(100 * lung.mean(), 4) for lung in lungs()]
    assert {name: (round(value, 4), unit) for name, (value, unit) in areas.items()} == {
        "Right lung": (share[0], "%"),
        "Left lung": (share[1], "%"),
    }
    assert said == {"Status of canonicalization": "canonicalized", "Agreement of predictions": "97.3 %"}
    group = content.get_planar_roi_measurement_groups()[1]
    assert group.reference_type == hd.sr.CodedConcept("121214", "DCM", "Referenced Segmentation Frame")
    referred = group.referenced_segmentation_frame
    assert referred.referenced_sop_instance_uid == made["SEG"].SOPInstanceUID and referred.referenced_segment_numbers == [2]
    assert group.finding_sites[0].laterality.meaning == "Left"


@pytest.mark.parametrize(
    "elements, factor",
    [
        ({"PixelSpacing": [4.0, 3.0]}, 12.0),  # another one than the detector's
        ({"PixelSpacing": [5.0, 5.0]}, None),  # that of the detector
        ({"PixelSpacing": [5.0, 5.0], "PixelSpacingCalibrationType": "FIDUCIAL"}, 25.0),
        ({"PixelSpacing": [4.0, 3.0], "ImagerPixelSpacing": None}, None),  # nothing says that it is calibrated
        ({"PixelSpacing": [0.0, 0.0], "PixelSpacingCalibrationType": "FIDUCIAL"}, None),
        ({"PixelSpacing": [400.0, 300.0]}, None),  # no film is so large
    ],
)
def test_the_report_measures_in_square_millimetres_where_the_spacing_is_calibrated(tmp_path, elements, factor):
    areas, _, _ = measured(results(tmp_path, **elements)[1][1])
    expected = [(lung.sum() * factor, "mm2") if factor else (pytest.approx(100 * lung.mean()), "%") for lung in lungs()]
    assert list(areas.values()) == expected


def test_the_capture_is_the_picture(tmp_path):
    made, _ = results(tmp_path)
    assert np.array_equal(made["OT"].pixel_array, np.asarray(Image.open(tmp_path / "picture.png")))
    assert made["OT"].BurnedInAnnotation == "YES"


def test_a_long_status_and_no_agreement(tmp_path):
    _, said, _ = measured(results(tmp_path, findings=Findings("left alone: " + "x" * 99))[1][1])
    assert list(said) == ["Status of canonicalization"] and said["Status of canonicalization"].startswith("left alone: xxx")


@pytest.mark.parametrize(
    "elements, code",
    [
        ({"StudyInstanceUID": None}, "MissingElement"),
        ({"SOPInstanceUID": "../../tmp/x"}, "MissingElement"),
        ({"Modality": None}, "MissingElement"),
        ({"NumberOfFrames": 2}, "MultiFrame"),
    ],
)
def test_films_whose_header_does_not_allow_results_are_refused_and_nothing_is_written(tmp_path, elements, code):
    with pytest.raises(FilmError) as error:
        results(tmp_path, **elements)
    assert error.value.code == code and sorted(path.name for path in tmp_path.iterdir()) == ["a.dcm", "picture.png"]
    assert "tmp" not in error.value.sentence


def test_a_picture_is_no_dicom_film(tmp_path):
    with pytest.raises(FilmError, match="no DICOM file"):
        source_of_film(tmp_path / "a.png")


def test_a_mask_of_another_size_is_refused(tmp_path):
    with pytest.raises(ShapeError, match="that of the film"):
        mask_segmentation(source_of_film(film(tmp_path / "a.dcm")), [Segment("Mask", np.zeros((64, 48), bool))], ALGORITHM)


def test_a_name_in_another_character_set_and_damaged_values_are_kept_or_refused_quietly(tmp_path, capfd):
    made, _ = results(tmp_path)
    assert str(made["SEG"].PatientName) == "Müller^Jörg"
    raw = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "b.dcm").write_bytes(raw.replace(b"19500101", b"1950-0-1").replace(b"CS\x02\x00M ", b"CS\x02\x00Q "))
    (seg, *_) = write_dicom_results(tmp_path / "b.dcm", tmp_path / "b.png", segments(), Findings("rejected"), ALGORITHM)
    again = pydicom.dcmread(seg)
    assert again.SOPInstanceUID == made["SEG"].SOPInstanceUID and not again.PatientBirthDate and not again.PatientSex
    assert "1950-0-1" not in "".join(capfd.readouterr())
