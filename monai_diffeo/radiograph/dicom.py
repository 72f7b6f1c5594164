"""Films as DICOM: one frame, one grey sample a pixel. Header, pixels, grey scale and geometry have modules of their own."""

from __future__ import annotations

from pathlib import Path

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.colour import COLOUR_TAGS, grey_of_colour
from monai_diffeo.radiograph.dicom_file import dataset_of_file
from monai_diffeo.radiograph.dicom_geometry import GEOMETRY_TAGS, film_geometry
from monai_diffeo.radiograph.dicom_groups import GROUP_TAGS
from monai_diffeo.radiograph.dicom_header import HEADER_TAGS, check_header, stated_details
from monai_diffeo.radiograph.dicom_kind import KIND_TAGS, kind_notes
from monai_diffeo.radiograph.dicom_pixels import CUT, PIXEL_TAGS, check_pixel_data, check_pixels_exist, stored_values
from monai_diffeo.radiograph.film import DETAILS, EXPORT, PASSED, Film, check_values, joined_notes, library
from monai_diffeo.radiograph.grayscale import GREY_TAGS, displayed

__all__ = ["read_dicom"]

_TAGS = [*KIND_TAGS, *HEADER_TAGS, *GEOMETRY_TAGS, *GREY_TAGS, *COLOUR_TAGS, *GROUP_TAGS, *PIXEL_TAGS]
"""Only these are read: no element about the patient is ever parsed."""


def read_dicom(path: Path) -> Film:
    """Read a DICOM radiograph as displayed: rescale, window or table, then one flip where the file asks for it.

    The file is DICOM part 10, with or without preamble; its place and spacing are those of `film_geometry`. Errors are those of
    `monai_diffeo.radiograph.reader.read_film`.
    """
    pydicom = library("pydicom", "Reading DICOM needs pydicom: pip install 'pydicom>=3.0.2'.")
    try:
        dataset = dataset_of_file(pydicom, path, _TAGS)
        remarks = kind_notes(dataset)
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
        raw, spare = stored_values(pydicom, dataset)
        check_values(raw)
        show = displayed if dataset.PhotometricInterpretation.startswith("MONOCHROME") else grey_of_colour
        pixels, grey, notes = show(dataset, raw)
        check_values(pixels)
        where = film_geometry(dataset)
        details = DETAILS | grey | stated_details(dataset) | {"notes": joined_notes(*remarks, spare, *notes)}
        details |= {"spacing_doubt": where.doubt, "affine_unit": where.unit}
        return Film(pixels, where.affine, where.spacing, where.source, "dicom", details)
    except PASSED:
        raise
    except Exception:
        raise FilmError("UnreadablePixels", f"The pixels do not fit their DICOM header. {EXPORT}") from None
