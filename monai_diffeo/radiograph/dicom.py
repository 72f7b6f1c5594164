"""Films as DICOM: one frame, one grey sample a pixel. Header, pixels, grey scale and geometry have modules of their own."""

from __future__ import annotations

from pathlib import Path

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.dicom_file import dataset_of_file
from monai_diffeo.radiograph.dicom_geometry import GEOMETRY_TAGS, pixel_spacing
from monai_diffeo.radiograph.dicom_header import HEADER_TAGS, check_header, stated_details
from monai_diffeo.radiograph.dicom_pixels import CUT, PIXEL_TAGS, check_pixel_data, check_pixels_exist, stored_values
from monai_diffeo.radiograph.film import DETAILS, EXPORT, PASSED, Film, check_values, in_plane_affine, joined_notes, library
from monai_diffeo.radiograph.grayscale import GREY_TAGS, displayed

__all__ = ["read_dicom"]

_TAGS = [*HEADER_TAGS, *GEOMETRY_TAGS, *GREY_TAGS, *PIXEL_TAGS]
"""Only these are read: no element about the patient is ever parsed."""


def read_dicom(path: Path) -> Film:
    """Read a DICOM radiograph as displayed: rescale, window or table, then one flip where the file asks for it.

    The preamble may be missing. The spacing is the first usable one of PixelSpacing, ImagerPixelSpacing and
    NominalScannedPixelSpacing. Errors are those of `monai_diffeo.radiograph.reader.read_film`.
    """
    pydicom = library("pydicom", "Reading DICOM needs pydicom: pip install 'pydicom>=3.0.2'.")
    try:
        dataset = dataset_of_file(pydicom, path, _TAGS)
        check_pixels_exist(dataset, path)
        check_header(dataset)
        check_pixel_data(pydicom, dataset)
    except PASSED:
        raise
    except EOFError:
        raise FilmError("TruncatedPixels", CUT) from None
    except Exception:
        raise FilmError("DamagedFile", f"The DICOM header is damaged or was cut. {EXPORT}") from None
    try:
        raw, note = stored_values(pydicom, dataset)
        check_values(raw)
        pixels, grey = displayed(dataset, raw)
        check_values(pixels)
        spacing, source = pixel_spacing(dataset)
        details = DETAILS | grey | stated_details(dataset) | {"notes": joined_notes(note)}
        return Film(pixels, in_plane_affine(spacing), spacing, source, "dicom", details)
    except PASSED:
        raise
    except Exception:
        raise FilmError("UnreadablePixels", f"The pixels do not fit their DICOM header. {EXPORT}") from None
