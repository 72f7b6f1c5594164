"""Is a DICOM object a radiograph of a chest? What its header excludes is refused, what speaks against it is noted."""

from __future__ import annotations

import re

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.dicom_groups import macro

__all__ = ["KIND_TAGS", "kind_notes", "stated_modality", "stated_orientation"]

KIND_TAGS = ["SOPClassUID", "Modality", "PresentationIntentType", "BurnedInAnnotation", "BodyPartExamined"]
KIND_TAGS += ["AnatomicRegionSequence", "ViewPosition", "ViewCodeSequence", "PatientOrientation"]

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_STANDARD = "1.2.840.10008."
_CAPTURE, _MOVIE = "header names a secondary capture", "header names angiography or fluoroscopy"
_RAW = "header names an image for processing, not for presentation"
_CLASSES = {"1": "", "1.1": "", "1.1.1": _RAW, "7": _CAPTURE, "7.2": _CAPTURE, "7.3": _CAPTURE, "7.4": _CAPTURE}
_CLASSES |= dict.fromkeys(("12.1", "12.1.1", "12.2", "12.2.1", "12.3"), _MOVIE)
"""SOP classes that may hold a film, without their common root, and the note on each; every other of the standard is refused."""

_MODALITIES = {"CR": "", "DX": "", "DR": "", "RG": "", "XA": _MOVIE, "RF": _MOVIE, "DF": _MOVIE}
_MODALITIES |= dict.fromkeys(("OT", "SC", "HC"), "header names no modality of X-ray films")
"""Modalities that may be a film, and the note on each."""

_NO_FILM = set("""
ANN AR ASMT AU BDUS BI BMD CD CFM CP CS CT CTPROTOCOL DD DG DM DMS DOC DS EC ECG EEG EM EMG EOG EPS ES FA FID FS GM HD IO IOL
IVOCT IVUS KER KO LEN LP LS M3D MA MG MR MRI MS NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS PA PET PLAN POS PR PT PX REG
RESP RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT SEG SM SMR SR SRF ST STAIN TEXTUREMAP TG US VA VF
XAPROTOCOL XC
""".split())  # fmt: skip

_CHEST = re.compile(r"CHEST|THORAX|T[OÓ]RAX|TORACE|LUNG|PULMO|POUMON|HEART|MEDIASTIN|BRONCH|\bRIBS?\b|STERNUM|WHOLE ?BODY")
_OTHER = re.compile(r"""(?x)\b(
 ABDOMEN|ABDOMENPELVIS|ACJOINT|ADRENAL|ANKLE|ANUS|ARM|AXILLA|BACK|BLADDER|BRAIN|BREAST|BUTTOCK|
 CALCANEUS|CALF|CAROTID|CEREBELLUM|CERVIX|CHEEK|CLAVICLE|COCCYX|COLON|CSPINE|CTSPINE|DUODENUM|EAR|
 ELBOW|ESOPHAGUS|EXTREMITY|EYE|EYELID|FACE|FACIALBONES|FEMUR|FIBULA|FINGER|FOOT|FOREARM|GALLBLADDER|
 HAND|HEAD|HEADNECK|HIP|HUMERUS|IAC|ILEUM|ILIUM|JAW|JAWREGION|JEJUNUM|KIDNEY|KNEE|LARYNX|LEG|
 LIVER|LOWERLEG|LOWERLIMB|LSPINE|LSSPINE|MANDIBLE|MASTOID|MAXILLA|MOUTH|NASALBONE|NECK|NOSE|
 OPTICCANAL|ORBIT|OVARY|PANCREAS|PAROTID|PATELLA|PELVIS|PENIS|PHANTOM|PHARYNX|PROSTATE|RADIUS|
 RADIUSULNA|RECTUM|SCALP|SCAPULA|SCROTUM|SELLA|SHOULDER|SIJOINT|SINUS|SKULL|SPINE|SPLEEN|SSPINE|
 STOMACH|TESTIS|THIGH|THUMB|THYMUS|THYROID|TIBIA|TIBIAFIBULA|TLSPINE|TMJ|TOE|TONGUE|TOOTH|TEETH|
 TSPINE|ULNA|UPPERARM|UPPERLIMB|URETER|URETHRA|UTERUS|WRIST|ZYGOMA)S?\b""")  # fmt: skip
"""Body parts: defined terms of PS3.16 annex L, and for the chest also the words of other languages."""

_CHEST_CODES = set("""
816094009 51185008 T-D3000 39607008 T-28000 86598002 T-280A0 78904004 T-D3050 43799004 T-D3200 80891009 T-32000 72410000
T-D3300 955009 T-26000 113197003 T-11300 56873002 T-11210 38266002 T-D0010 417437006 R-FAB52 416152001 R-FAB53 416319003
R-FAB54 416550000 R-FAB55 416775004 R-FAB56 416949008 R-FAB57
""".split())  # fmt: skip
_FRONTAL_CODES = set("399348003 R-10206 272479007 R-10214 R-40888 399033003 R-10202".split())
_LATERAL_CODES = set("""
399067008 R-102CD 399173006 R-10236 399198007 R-10232 399260004 R-10224 399352003 R-10228 30730003 G-A145
""".split())  # fmt: skip
_VIEWS = {r"^[LR]LD$|DECUB": "a decubitus", r"^[LR][LAP]O$|OBL": "an oblique", r"^[LR]L$|LAT|SAGIT|SEITL|PROFIL": "a lateral"}


def kind_notes(dataset) -> list[str]:
    """What in the header speaks against an ordinary frontal chest film, one clause each, in defined terms.

    Raises:
        FilmError: ``NotARadiograph`` if the SOP class or the modality is none of projection radiography.
    """
    from pydicom.uid import UID_dictionary

    uid, modality = _class(dataset), stated_modality(dataset)
    said = "A film is a projection radiograph (CR, DX or a capture of one)"
    if uid.startswith(_STANDARD) and uid.removeprefix(_STORAGE) not in _CLASSES:
        name = UID_dictionary[uid][0] if uid in UID_dictionary else "another kind"
        raise FilmError("NotARadiograph", f"{said}, SOPClassUID names {name}. Leave it out.")
    if modality in _NO_FILM:
        raise FilmError("NotARadiograph", f"{said}, Modality is {modality}. Leave it out.")
    notes = [_CLASSES.get(uid.removeprefix(_STORAGE), "header names no known SOP class")]
    notes.append(_MODALITIES.get(modality, "header names no known modality"))
    notes.append(_RAW if _text(dataset, "PresentationIntentType") == "FOR PROCESSING" else "")
    notes.append("header says that text is burnt in" if _text(dataset, "BurnedInAnnotation") == "YES" else "")
    notes.append(_body_part(dataset))
    views = (_named_view(dataset), _coded_view(dataset), _oriented_view(dataset))
    return list(dict.fromkeys(filter(None, notes + [f"header names {view} view" for view in views if view])))


def stated_modality(dataset) -> str:
    """Modality of the header if it is a defined term, else empty."""
    modality = _text(dataset, "Modality")
    return modality if modality in _MODALITIES or modality in _NO_FILM else ""


def _class(dataset) -> str:
    return str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "").strip()


def _text(dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip().upper()


def _code(source, keyword: str) -> str:
    """Code of the first item of a sequence of coded concepts."""
    items = source.get(keyword) if source is not None else None
    return str((items[0].get("CodeValue") or items[0].get("LongCodeValue") or "") if items else "").strip()


def _body_part(dataset) -> str:
    part = _text(dataset, "BodyPartExamined").replace("_", " ")
    code = _code(dataset, "AnatomicRegionSequence") or _code(macro(dataset, "FrameAnatomySequence"), "AnatomicRegionSequence")
    chest = bool(_CHEST.search(part))
    if (code and code not in _CHEST_CODES) or (_OTHER.search(part) and not chest):
        return "header names another body part"
    return "header names a body part by no defined term" if part and not chest else ""


def _named_view(dataset) -> str:
    view = _text(dataset, "ViewPosition")
    return next((name for words, name in _VIEWS.items() if re.search(words, view)), "")


def _coded_view(dataset) -> str:
    code = _code(dataset, "ViewCodeSequence")
    return "a lateral" if code in _LATERAL_CODES else "another" if code and code not in _FRONTAL_CODES else ""


def _oriented_view(dataset) -> str:
    """By the directions of rows and columns: in a frontal film these are left or right, and head or foot."""
    rows, _, columns = stated_orientation(dataset).partition("\\")
    first = rows[:1] + columns[:1]
    if set(first) & set("AP"):
        return "a lateral" if set(first) & set("HF") else "an axial"
    return "an oblique" if set(rows) & set("AP") else ""


def stated_orientation(dataset) -> str:
    """PatientOrientation, such as ``"L\\F"``, if it is made of defined terms, else empty."""
    value = dataset.get("PatientOrientation") or ()
    text = value if isinstance(value, str) else "\\".join(map(str, value))
    return text if re.fullmatch(r"[APRLHF]{1,3}\\[APRLHF]{1,3}", text) else ""
