"""The header of a DICOM film, as far as results about it repeat it: patient, study, series and image."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from monai_diffeo.errors import ConfigError, FilmError
from monai_diffeo.radiograph.dicom_file import dataset_of_file
from monai_diffeo.radiograph.dicom_geometry import sound_spacing
from monai_diffeo.radiograph.film import EXPORT, PASSED, library, quiet
from monai_diffeo.radiograph.paths import format_of_name

__all__ = ["NEEDED", "check_library", "highdicom", "new_uid", "source_of_film"]

_PATIENT = ["PatientName", "PatientID", "PatientBirthDate", "PatientSex"]
_STUDY = ["StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"]
_MORE = ["IssuerOfPatientID", "OtherPatientIDsSequence", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription"]
_MORE += ["PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence", "SpecificCharacterSet"]
_UIDS = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
_IMAGE = ["Modality", "Rows", "Columns", "NumberOfFrames", "InstanceNumber", "SeriesNumber", "PatientOrientation", "ImageType"]
_FRAME = "FrameOfReferenceUID"
_IMAGE += [_FRAME, "PositionReferenceIndicator", "BodyPartExamined", "PixelSpacingCalibrationType"]
_IMAGE += ["LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"]
_EQUIPMENT = ["Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber", "InstitutionName"]
_EQUIPMENT += ["StationName"]
_SPACINGS = ["PixelSpacing", "ImagerPixelSpacing"]
_TAGS = [*_PATIENT, *_STUDY, *_MORE, *_UIDS, *_IMAGE, *_EQUIPMENT, *_SPACINGS]
NEEDED = 'DICOM results need highdicom. Install it: pip install "monai-diffeo[dicom_output]".'


def highdicom() -> Any:
    """The package highdicom; FilmError ``UnsupportedFile`` that names the extra where it is not installed."""
    return library("highdicom", NEEDED)


def check_library(who: str) -> None:
    """The same before any film: ConfigError."""
    try:
        highdicom()
    except FilmError as error:
        raise ConfigError(f"{who}: {error.sentence}") from None


def source_of_film(path: str | os.PathLike[str]) -> Any:
    """Header of a DICOM film as a pydicom dataset, without pixels; it holds patient data.

    Elements that results must have, empty or not, are empty where they are damaged or missing, as in de-identified films.
    The place in space is left out: a projection has none. A damaged spacing or frame of reference is left out too.

    Raises:
        FilmError: ``UnsupportedFile`` for a file of another format; ``MissingElement`` if a UID is missing or is none;
            ``MultiFrame`` for several frames; ``DamagedFile`` for a header that cannot be read.
    """
    if format_of_name(Path(path).name) != "dicom":
        raise FilmError("UnsupportedFile", "The film is no DICOM file.")
    pydicom = library("pydicom", NEEDED)
    try:
        with quiet():
            source = dataset_of_file(pydicom, Path(path), _TAGS)
            for keyword in (*_PATIENT, *_STUDY):
                if keyword not in source or not _is_sound(pydicom, source[keyword]):
                    setattr(source, keyword, "")
            unnamed = [keyword for keyword in _UIDS if not _is_uid(pydicom, source, keyword)]
            bad = [] if _is_uid(pydicom, source, _FRAME) else [_FRAME, "PositionReferenceIndicator"]
            for keyword in [*bad, *(keyword for keyword in _SPACINGS if sound_spacing(source, keyword) is None)]:
                source.pop(keyword, None)
            frames = int(source.get("NumberOfFrames") or 1)
    except PASSED:
        raise
    except Exception:
        raise FilmError("DamagedFile", f"The DICOM header cannot be read. {EXPORT}") from None
    if unnamed or "Modality" not in source:
        raise FilmError("MissingElement", f"The DICOM element {[*unnamed, 'Modality'][0]} is missing or no UID. {EXPORT}")
    if frames != 1:
        raise FilmError("MultiFrame", f"A film has one frame, got {frames}. Export one frame.")
    return source


def _is_uid(pydicom: Any, source: Any, keyword: str) -> bool:
    return bool(pydicom.uid.UID(str(source.get(keyword) or "")).is_valid)


def _is_sound(pydicom: Any, element: Any) -> bool:
    """Whether a date, a time or the sex of a patient is one."""
    try:
        if element.VR in ("DA", "TM"):
            getattr(pydicom.valuerep, element.VR)(element.value)
    except ValueError:
        return False
    return element.keyword != "PatientSex" or element.value in ("M", "F", "O")


def new_uid(*parts: str) -> str:
    """A UID that follows from texts and from nothing else: the same texts give the same UID (UUID of version 5, root 2.25).

    Example:
        >>> new_uid("1.2.3", "seg") == new_uid("1.2.3", "seg") != new_uid("1.2.3", "sr")
        True
    """
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(0).join(parts)).int}"
