"""What was measured and found on a film, as DICOM structured report: template TID 1500."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_diffeo.dicom_output.segmentation import SIDES, Algorithm, Segment
from monai_diffeo.dicom_output.source import highdicom, new_uid
from monai_diffeo.radiograph.dicom_geometry import calibrated_spacing

__all__ = ["Findings", "measurement_report"]

_OURS = "99MONAIDIFFEO"  # scheme of our own terms
_AREA, _SQUARE_MM = ("42798000", "SCT", "Area"), ("mm2", "UCUM", "square millimeter")
_SHARE, _PERCENT = ("AREA_SHARE", _OURS, "Share of the film's area"), ("%", "UCUM", "percent")
_STATUS, _AGREEMENT = ("STATUS", _OURS, "Status of canonicalization"), ("AGREEMENT", _OURS, "Agreement of predictions")
_PROCEDURE = ("363680008", "SCT", "Radiographic imaging procedure")
_PART = ("91723000", "SCT", "Anatomical structure")
_LONGEST = 64  # characters of a term


@dataclass(frozen=True)
class Findings:
    """What a report says of a film as a whole.

    Args:
        status: of canonicalisation, as in a line of the report: ``"rejected: reason"``.
        agreement: of the predictions of test-time augmentation, 0 to 1; None where there was one.
    """

    status: str
    agreement: float | None = None


def measurement_report(
    source: Any, seg: Any, segments: Sequence[Segment], findings: Findings, algorithm: Algorithm, name: str = "Mask"
) -> Any:
    """A report of one film in a series of its own: the area of each segment, the status and the agreement.

    Areas are in square millimetres where the spacing is calibrated to the body, see
    :func:`monai_diffeo.radiograph.dicom_geometry.calibrated_spacing`; else in percent of the film. The agreement is a term too,
    in percent: it qualifies the result and measures nothing of the patient.

    Args:
        source: header of the film, of :func:`source_of_film`.
        seg, segments: of :func:`mask_segmentation`; the report refers to it.
        findings: about the film.
        algorithm: what made them.
        name: of the series.

    Returns:
        A ``highdicom.sr.ComprehensiveSR``. The same arguments give the same UIDs and the same content.
    """
    hd = highdicom()
    sr, film = hd.sr, str(source.SOPInstanceUID)
    texts = [f"{key}={value}" for key, value in algorithm.texts.items()]
    made_by = sr.AlgorithmIdentification("monai_diffeo", algorithm.version, parameters=texts or None)
    spacing = calibrated_spacing(source)
    pictured = sr.SourceImageForSegmentation(source.SOPClassUID, source.SOPInstanceUID)
    groups = []
    for number, segment in enumerate(segments, 1):
        side = sr.CodedConcept(*SIDES[segment.side]) if segment.side else None
        groups.append(
            sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(new_uid(film, "segment", segment.label), segment.label),
                referenced_segment=sr.ReferencedSegmentationFrame(  # by its segment alone: PS3.3 forbids to name the frame too
                    seg.SOPClassUID, seg.SOPInstanceUID, None, number, pictured
                ),
                finding_type=sr.CodedConcept(*_PART),
                finding_sites=[sr.FindingSite(sr.CodedConcept(*segment.kind), laterality=side)],
                algorithm_id=made_by,
                measurements=[_area(sr, segment, spacing)],
            )
        )
    kind, _, _ = findings.status.partition(":")
    said = [_term(sr, _STATUS, kind.upper().replace(" ", "_"), findings.status)]
    if findings.agreement is not None:
        percent = f"{100 * findings.agreement:.1f}"
        said.append(_term(sr, _AGREEMENT, f"PERCENT_{percent}", f"{percent} %"))
    groups.append(
        sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(new_uid(film, "film"), "Film"),
            algorithm_id=made_by,
            source_images=[sr.SourceImageForMeasurementGroup.from_source_image(source)],
            qualitative_evaluations=said,
        )
    )
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=new_uid("monai_diffeo", algorithm.version), name="monai_diffeo", model_name=f"monai_diffeo {algorithm.version}"
    )
    observer = sr.ObserverContext(sr.CodedConcept("121007", "DCM", "Device"), device)
    content = sr.MeasurementReport(
        sr.ObservationContext(observer_device_context=observer), sr.CodedConcept(*_PROCEDURE), groups
    )
    return sr.ComprehensiveSR(
        evidence=[source, seg],
        content=content[0],
        is_complete=True,
        series_description=f"{name}: measurements (monai_diffeo)",
        **algorithm.instance(source, "sr", 9002),
    )


def _area(sr: Any, segment: Segment, spacing: tuple[float, float] | None) -> Any:
    voxels = np.count_nonzero(segment.mask)
    if spacing is None:
        value, concept, unit = 100 * voxels / segment.mask.size, _SHARE, _PERCENT
    else:
        value, concept, unit = voxels * spacing[0] * spacing[1], _AREA, _SQUARE_MM
    return sr.Measurement(sr.CodedConcept(*concept), float(f"{value:.7g}"), sr.CodedConcept(*unit))


def _term(sr: Any, concept: tuple[str, str, str], value: str, meaning: str) -> Any:
    return sr.QualitativeEvaluation(sr.CodedConcept(*concept), sr.CodedConcept(value[:16], _OURS, meaning[:_LONGEST]))
