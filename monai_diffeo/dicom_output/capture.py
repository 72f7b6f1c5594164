"""A picture as DICOM Secondary Capture (SC), for archives and viewers that cannot show a SEG."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from monai_diffeo.dicom_output.segmentation import Algorithm
from monai_diffeo.dicom_output.source import NEEDED, highdicom
from monai_diffeo.radiograph.film import library

__all__ = ["picture_capture"]


def picture_capture(source: Any, picture: str | os.PathLike[str], algorithm: Algorithm, name: str = "Mask") -> Any:
    """A picture, of any format that Pillow reads, in colours, in a series of its own of the film's study.

    The picture shows the film, which may hold text, so BurnedInAnnotation is YES.

    Args:
        source: header of the film, of :func:`source_of_film`.
        picture: path of the picture.
        algorithm: what made it.
        name: of the series.

    Returns:
        A ``highdicom.sc.SCImage``, uncompressed. The same arguments give the same UIDs and the same pixels.
    """
    with library("PIL.Image", "Reading a picture needs Pillow: pip install pillow.").open(picture) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    made = algorithm.instance(source, "sc", 9003)
    capture = highdicom().sc.SCImage.from_ref_dataset(
        ref_dataset=source,
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_description=f"{name}: picture (monai_diffeo)",
        **made,
    )
    capture.BurnedInAnnotation, capture.PatientOrientation = "YES", []  # it has several panels
    if part := source.get("BodyPartExamined"):
        capture.BodyPartExamined = part
    else:
        capture.Laterality = ""  # one of the two must be there
    reference = library("pydicom", NEEDED).Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    capture.SourceImageSequence = [reference]
    return capture
