"""Synthetic CR and DX films with a patient, with and without a frame of reference, and masks of two lungs."""

import numpy as np
from pydicom.uid import generate_uid

from tests.radiograph.dicom_factory import corner_film, save

CLASSES = {"CR": "1.2.840.10008.5.1.4.1.1.1", "DX": "1.2.840.10008.5.1.4.1.1.1.1"}
SIZE = (48, 64)
UID_KEYWORDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def film(path, modality="CR", frame_of_reference=False, pixels=None, **elements):
    """Write a film, of 48 x 64 pixels without ``pixels``, of 5 mm, posterior-anterior, and give its path.

    An element given as None is left out.
    """
    stated = {
        "SOPClassUID": CLASSES[modality],
        "Modality": modality,
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientName": "Müller^Jörg",
        "PatientID": "4711",
        "PatientBirthDate": "19500101",
        "PatientSex": "M",
        "StudyDate": "20240102",
        "StudyTime": "101112",
        "StudyID": "7",
        "AccessionNumber": "8",
        "ReferringPhysicianName": "",
        "Manufacturer": "Acme",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PatientOrientation": ["L", "F"],
        "InstanceNumber": 1,
        "SeriesNumber": 2,
        "ImagerPixelSpacing": [5.0, 5.0],
        **{keyword: generate_uid(entropy_srcs=[keyword, str(path)]) for keyword in UID_KEYWORDS},
    }
    if frame_of_reference:
        stated |= {"FrameOfReferenceUID": generate_uid(entropy_srcs=["frame"]), "PositionReferenceIndicator": ""}
    return save(path, corner_film(*SIZE) if pixels is None else pixels, **stated | elements)


def lungs():
    """The lung at the left of the film and the one at its right, each ``(H, W)`` bool, of 300 and 200 pixels."""
    left, right = np.zeros((2, *SIZE), dtype=bool)
    left[10:30, 5:20] = right[12:32, 40:50] = True
    return left, right
