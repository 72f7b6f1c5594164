"""A mask as DICOM Segmentation (SEG): one binary segment a part, on the film's own rows and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monai_diffeo.dicom_output.source import highdicom, new_uid
from monai_diffeo.errors import ShapeError
from monai_diffeo.radiograph.dicom_geometry import film_geometry

__all__ = ["Algorithm", "LUNG", "Segment", "TISSUE", "mask_segmentation"]

Code = tuple[str, str, str]
"""Value, scheme and meaning of a coded term."""

LUNG, TISSUE = ("39607008", "SCT", "Lung"), ("85756007", "SCT", "Tissue")
SIDES = {"right": ("24028007", "SCT", "Right"), "left": ("7771000", "SCT", "Left")}
SIDES |= {"both": ("51440002", "SCT", "Right and left")}
_STRUCTURE = ("123037004", "SCT", "Anatomical Structure")
_FAMILY = ("123109", "DCM", "Artificial Intelligence")
_COLOURS = (76, 201, 240), (255, 201, 77), (255, 255, 255)  # of the right lung, the left lung and islands in the picture too


@dataclass(frozen=True)
class Segment:
    """A part of a mask.

    Args:
        label: its name for readers, at most 64 characters.
        mask: shape ``(H, W)``, bool, rows x columns of the film.
        kind: code of the organ.
        side: of the patient: ``"right"``, ``"left"``, ``"both"``, or empty where it is unknown.
    """

    label: str
    mask: np.ndarray
    kind: Code = TISSUE
    side: str = ""


@dataclass(frozen=True)
class Algorithm:
    """What made a result.

    Args:
        version: of the software.
        identity: text that differs where results may differ: a hash of weights and settings. UIDs follow from it.
        parameters: what to state of it, by name; entries of None are left out.
    """

    version: str
    identity: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> dict[str, str]:
        """The parameters as texts."""
        return {name: str(value) for name, value in self.parameters.items() if value is not None}

    def instance(self, source: Any, kind: str, number: int) -> dict[str, Any]:
        """Arguments that every object of highdicom takes: UIDs that follow from the film, equipment, texts."""
        hd, film = highdicom(), str(source.SOPInstanceUID)
        about = {"manufacturer": "monai_diffeo", "manufacturer_model_name": "monai_diffeo", "software_versions": self.version}
        purpose = hd.sr.CodedConcept("109103", "DCM", "Modifying Equipment")
        return {
            "series_instance_uid": new_uid(film, kind, self.identity, "series"),
            "series_number": number,
            "sop_instance_uid": new_uid(film, kind, self.identity),
            "instance_number": 1,
            "device_serial_number": self.identity[:16] or "none",
            "contributing_equipment": [hd.ContributingEquipment(purpose_of_reference=purpose, **about)],
            **about,
        }


def mask_segmentation(source: Any, segments: Sequence[Segment], algorithm: Algorithm, name: str = "Mask") -> Any:
    """A SEG of one film in a series of its own, one frame a segment, also where a segment is empty.

    Its type is BINARY, of one bit a pixel. Where a frame does not end with a byte, OHIF 3.13 draws the next one askew, or none:
    there it is FRACTIONAL, of one byte a pixel, without other values than none and all.

    Args:
        source: header of the film, of :func:`source_of_film`; a frame of reference is not needed.
        segments: at least one.
        algorithm: what made them.
        name: of the series.

    Returns:
        A ``highdicom.seg.Segmentation``. The same arguments give the same UIDs and the same pixels.

    Raises:
        ShapeError: if a mask has another size than the film.
        FilmError: ``UnsupportedFile`` without highdicom.
    """
    hd, size = highdicom(), (int(source.Rows), int(source.Columns))
    for segment in segments:
        if segment.mask.shape != size:
            raise ShapeError("mask_segmentation()", "mask", f"{size}, that of the film", segment.mask.shape)
    about = hd.AlgorithmIdentificationSequence(
        "monai_diffeo", hd.sr.CodedConcept(*_FAMILY), algorithm.version, parameters=algorithm.texts or None
    )
    described = [_description(hd, number, segment, about, source) for number, segment in enumerate(segments, 1)]
    seg = hd.seg.Segmentation(
        source_images=[source],
        pixel_array=_pixels([segment.mask for segment in segments])[None],
        segmentation_type="FRACTIONAL" if size[0] * size[1] % 8 and len(segments) > 1 else "BINARY",
        fractional_type="OCCUPANCY",
        segment_descriptions=described,
        omit_empty_frames=False,
        series_description=f"{name} (monai_diffeo)",
        content_label="SEGMENTATION",
        content_description=name,
        **algorithm.instance(source, "seg", 9001),
    )
    _complete(seg, source)
    return seg


def _pixels(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers of the segments ``(H, W)``, which highdicom checks sooner; where segments overlap, their masks ``(H, W, K)``."""
    numbers = np.zeros(masks[0].shape, np.uint8)
    for number, mask in enumerate(masks, 1):
        numbers[mask] = number
    apart = np.count_nonzero(numbers) == sum(map(np.count_nonzero, masks)) and len(masks) < 256
    return numbers if apart else np.stack(masks, axis=-1).astype(np.uint8)


def _description(hd: Any, number: int, segment: Segment, about: Any, source: Any) -> Any:
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.label,
        segmented_property_category=hd.sr.CodedConcept(*_STRUCTURE),
        segmented_property_type=hd.sr.CodedConcept(*segment.kind),
        algorithm_type="AUTOMATIC",
        algorithm_identification=about,
        tracking_uid=new_uid(str(source.SOPInstanceUID), "segment", segment.label),
        tracking_id=segment.label,
        display_color=hd.color.CIELabColor.from_rgb(*_COLOURS[(number - 1) % 3]),
    )
    if segment.side:
        kind = described.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept(*SIDES[segment.side])]
    return described


def _complete(seg: Any, source: Any) -> None:
    """What highdicom leaves out or draws at random."""
    seg.PatientOrientation = source.get("PatientOrientation") or []
    uid = new_uid(str(seg.SOPInstanceUID), "dimensions")
    for item in [*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence]:
        item.DimensionOrganizationUID = uid
    # The plane in which viewers draw a film that has no place in space. OHIF 3.13 shows no SEG that states none.
    hd, shared = highdicom(), seg.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence = hd.PixelMeasuresSequence(film_geometry(source).spacing, slice_thickness=1.0)
    shared.PlaneOrientationSequence = hd.PlaneOrientationSequence("PATIENT", (1, 0, 0, 0, 1, 0))
    shared.PlanePositionSequence = hd.PlanePositionSequence("PATIENT", (0, 0, 0))
