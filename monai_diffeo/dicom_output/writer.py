"""All DICOM results of one film, written beside its mask."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_diffeo.dicom_output.capture import picture_capture
from monai_diffeo.dicom_output.measurements import Findings, measurement_report
from monai_diffeo.dicom_output.segmentation import Algorithm, Segment, mask_segmentation
from monai_diffeo.dicom_output.source import source_of_film
from monai_diffeo.files import write_atomically
from monai_diffeo.radiograph.film import quiet
from monai_diffeo.radiograph.mask_writer import dicom_path

__all__ = ["write_dicom", "write_dicom_results"]


def write_dicom(dataset: Any, path: str | os.PathLike[str]) -> Path:
    """Write a DICOM object whole or not at all; gives the path. OutputError if it cannot be written."""
    stream = io.BytesIO()
    with quiet():
        dataset.save_as(stream, enforce_file_format=True)
    return write_atomically(path, stream.getvalue())


def write_dicom_results(
    film: str | os.PathLike[str],
    mask_path: str | os.PathLike[str],
    segments: Sequence[Segment],
    findings: Findings,
    algorithm: Algorithm,
    picture: str | os.PathLike[str] | None = None,
    name: str = "Mask",
) -> list[Path]:
    """Write the SEG, the report and, of a picture, the capture of a DICOM film: ``b_lungs.seg.dcm``, ``.sr.dcm``, ``.sc.dcm``.

    They hold the patient's data, as the film does. Nothing is written where one of them cannot be made.

    Args:
        film: path of the film.
        mask_path: of its mask, after which they are named.
        segments: parts of the mask, on the film's rows and columns.
        findings: about the film as a whole.
        algorithm: what made all this.
        picture: path of the report's picture, None without.
        name: of the series, such as ``"Lungs"``.

    Raises:
        FilmError: as :func:`source_of_film`; ``UnsupportedFile`` without highdicom.
        OutputError: if a file cannot be written.
    """
    source = source_of_film(film)
    with quiet():
        seg = mask_segmentation(source, segments, algorithm, name)
        made = {"seg": seg, "sr": measurement_report(source, seg, segments, findings, algorithm, name)}
        if picture is not None:
            made["sc"] = picture_capture(source, picture, algorithm, name)
    return [write_dicom(dataset, dicom_path(mask_path, kind)) for kind, dataset in made.items()]
