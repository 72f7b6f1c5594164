"""The deformation of a film as Deformable Spatial Registration, for films that have a frame of reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from monai_diffeo.dicom_output.segmentation import Algorithm
from monai_diffeo.dicom_output.source import NEEDED, highdicom, new_uid
from monai_diffeo.errors import FilmError, ShapeError
from monai_diffeo.radiograph.film import library

__all__ = ["deformable_registration"]

_CLASS, _SYNTAX = "1.2.840.10008.5.1.4.1.1.66.3", "1.2.840.10008.1.2.1"


def deformable_registration(source: Any, ddf: np.ndarray, affine: np.ndarray, algorithm: Algorithm) -> Any:
    """A REG object: each point of the canonical film, in a frame of reference of its own, gets its place on the film.

    Args:
        source: header of the film, of :func:`source_of_film`.
        ddf: shape ``(2, H, W)``, voxels, pull-back: the canonical film shows at ``x`` what the film has at ``x + ddf(x)``.
        affine: 4x4, voxels ``(row, column, 0, 1)`` of ``ddf`` to RAS millimetres, such as ``Film.affine``.
        algorithm: what made it.

    Returns:
        A pydicom dataset, for :func:`write_dicom`. The same arguments give the same UIDs.

    Raises:
        FilmError: ``MissingElement`` if the film has no frame of reference; none is made up.
        ShapeError: for another shape.
    """
    if "FrameOfReferenceUID" not in source:
        remedy = "Write the displacement for ITK instead: save_displacement()."
        raise FilmError("MissingElement", f"A registration needs a film with a FrameOfReferenceUID. {remedy}")
    if ddf.ndim != 3 or len(ddf) != 2:
        raise ShapeError("deformable_registration()", "ddf", "(2, H, W)", ddf.shape, "Take one image: ddf[0].")
    hd, dataset = highdicom(), library("pydicom", NEEDED).Dataset
    made = algorithm.instance(source, "reg", 9004)
    equipment = made.pop("contributing_equipment")
    reg = hd.SOPClass(
        sop_class_uid=_CLASS,
        modality="REG",
        transfer_syntax_uid=_SYNTAX,
        specific_character_set=source.get("SpecificCharacterSet"),
        series_description="Deformation (monai_diffeo)",
        study_instance_uid=source.StudyInstanceUID,
        **made,
    )
    reg.copy_patient_and_study_information(source)
    reg.ContributingEquipmentSequence = equipment
    reg.ContentDate, reg.ContentTime = reg.InstanceCreationDate, reg.InstanceCreationTime
    reg.ContentLabel, reg.ContentDescription, reg.ContentCreatorName = "DEFORMATION", "Film to canonical film", ""
    if part := source.get("BodyPartExamined"):
        reg.BodyPartExamined = part
    else:
        reg.Laterality = ""
    reg.FrameOfReferenceUID, reg.PositionReferenceIndicator = new_uid(str(reg.SOPInstanceUID), "frame of reference"), ""
    image, series, item, matrix = dataset(), dataset(), dataset(), dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = source.SeriesInstanceUID, [image]
    matrix.FrameOfReferenceTransformationMatrix = np.eye(4).flatten().tolist()
    matrix.FrameOfReferenceTransformationMatrixType = "RIGID"
    item.SourceFrameOfReferenceUID, item.ReferencedImageSequence = source.FrameOfReferenceUID, [image]
    item.PreDeformationMatrixRegistrationSequence = item.PostDeformationMatrixRegistrationSequence = [matrix]
    item.RegistrationTypeCodeSequence = [hd.sr.CodedConcept("125024", "DCM", "Image Content-based Alignment")]
    item.DeformableRegistrationGridSequence = [_grid(dataset(), ddf, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)]
    reg.ReferencedSeriesSequence, reg.DeformableRegistrationSequence = [series], [item]
    return reg


def _grid(grid: Any, ddf: np.ndarray, affine: np.ndarray) -> Any:
    """The displacements in millimetres along LPS, columns fastest; ``affine`` gives LPS."""
    spacing = np.linalg.norm(affine[:3, :2], axis=0)
    down, right = (affine[:3, :2] / spacing).T
    grid.ImageOrientationPatient = [_number(value) for value in (*right, *down)]
    grid.ImagePositionPatient = [_number(value) for value in affine[:3, 3]]
    grid.GridDimensions = [ddf.shape[2], ddf.shape[1], 1]
    grid.GridResolution = [float(spacing[1]), float(spacing[0]), 1.0]
    grid.VectorGridData = np.tensordot(ddf, affine[:3, :2], (0, 1)).astype("<f4").tobytes()
    return grid


def _number(value: float) -> float:
    """A number whose text has at most 16 characters, as DICOM's decimal strings have."""
    return float(f"{value:.8g}") + 0.0
