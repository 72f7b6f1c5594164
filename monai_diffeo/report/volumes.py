"""One line for each volume of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import convert_to_numpy

from monai_diffeo.inferers import DiffeoResult
from monai_diffeo.radiograph.film import joined_notes
from monai_diffeo.report.record import film_record
from monai_diffeo.report.reporter import FilmReporter, decided
from monai_diffeo.report.resume import sha256_as_read

__all__ = ["VolumeReporter"]


class VolumeReporter(FilmReporter):
    """:class:`FilmReporter` for 3D volumes: no picture, and ``areas`` are the classes' shares of the volume.

    The labels are written by MONAI's ``SaveImaged`` with ``savepath_in_metadict=True`` and the postfix of this reporter.

    Args:
        output_dir, root: as for :class:`FilmReporter`.
        classes: names of the labels 1, 2, ...
        postfix: of the labels' names.
        settings: further arguments of :class:`FilmReporter`.
    """

    def __init__(
        self, output_dir: str | Path, root: str | Path, classes: Sequence[str], postfix: str = "labels", **settings: Any
    ) -> None:
        super().__init__(output_dir, root, figures=False, dicom=False, postfix=postfix, **settings)
        self.classes = tuple(classes)

    def done(
        self, path: str, batch: Mapping[str, Any], output: Mapping[str, Any], result: DiffeoResult, seconds: float
    ) -> None:
        """A volume that was segmented; ``output["pred"]`` are its labels ``(1, *S)`` with the metadata of ``SaveImaged``."""
        super().done(path, batch, {**output, "pred_path": str(output["pred"].meta["saved_to"])}, result, seconds)

    def _report(self, path: str, masks: list[Path], figure, batch, output, result: DiffeoResult, seconds: float) -> None:
        labels = np.asarray(convert_to_numpy(output["pred"]))
        fields = {**self._fields(masks, None), "areas": {c: float((labels == i).mean()) for i, c in enumerate(self.classes, 1)}}
        record = film_record(self._name(path), sha256_as_read(path, batch), result.canonicalization, 0, seconds, **fields)
        empty = "" if labels.any() else "no label was found"
        record["notes"] = joined_notes(record["notes"] or "", empty) or record["notes"]
        self._write(record | self.more(output, result) | decided(result, empty), masks)
        self.folder.wrote(masks)
