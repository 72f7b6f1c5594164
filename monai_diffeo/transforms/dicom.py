"""A MONAI transform that writes labels as DICOM Segmentation; the work is done in `monai_diffeo.dicom_output`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection

from monai_diffeo.dicom_output import TISSUE, Algorithm, Segment, check_library, mask_segmentation, source_of_film, write_dicom
from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.mask_writer import dicom_path
from monai_diffeo.transforms.io import SaveImageFilmMaskd

__all__ = ["SaveImageFilmDicomSegD", "SaveImageFilmDicomSegDict", "SaveImageFilmDicomSegd"]


class SaveImageFilmDicomSegd(SaveImageFilmMaskd):
    """Write labels as binary DICOM Segmentation of their DICOM film, in its rows and columns, and record where.

    Named as by :class:`SaveImageFilmMaskd`, with the suffix ``.seg.dcm``. It holds the patient's data, as the film does.

    Args:
        keys, output_dir, root: as for :class:`SaveImageFilmMaskd`; the film's file must still be there.
        segments: names of the labels 1, 2, ...
        sides: ``"right"``, ``"left"``, ``"both"`` of the patient or empty, one a label; none by default.
        kind: code of the organ: value, scheme and meaning.
        version: of what made the labels, for the reader.
        identity: text from which, with the film, UIDs follow: a hash of weights and settings. None takes the labels themselves.
        settings: further arguments of :class:`SaveImageFilmMaskd`.

    Raises:
        ConfigError: without highdicom.
        ValueError: if there are not as many sides as segments.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | os.PathLike,
        root: str | os.PathLike,
        segments: Sequence[str] = ("Mask",),
        sides: Sequence[str] = (),
        kind: Sequence[str] = TISSUE,
        version: str = "unknown",
        identity: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(keys, output_dir, root, **settings)
        check_library(type(self).__name__)
        self.segments, self.sides = tuple(segments), tuple(sides) or ("",) * len(segments)
        self.kind = kind[0], kind[1], kind[2]
        if len(self.sides) != len(self.segments):
            came = f"{len(self.sides)} for {len(self.segments)} segments"
            raise ValueError(f"SaveImageFilmDicomSegd: 'sides' must have one entry a segment, got {came}.")
        self.version, self.identity = version, identity

    def _write(self, plane: np.ndarray, meta: Mapping, postfix: str) -> str:
        numbers = range(1, len(self.segments) + 1)
        if not np.isin(plane, [0, *numbers]).all():
            expected = f"SaveImageFilmDicomSegd expects the labels 0 to {len(self.segments)}, one a name in 'segments'"
            raise FilmError("UnsupportedLabels", f"{expected}, got {plane.min():g} to {plane.max():g}. Name all of them.")
        film, labels = str(meta["filename_or_obj"]), plane.astype(np.uint16)
        made_by = hashlib.sha256(labels.tobytes()).hexdigest() if self.identity is None else self.identity
        made_by = hashlib.sha256(repr([made_by, postfix, self.segments, self.sides]).encode()).hexdigest()
        named = zip(self.segments, self.sides, numbers)
        parts = [Segment(name, labels == number, self.kind, side) for name, side, number in named]
        seg = mask_segmentation(source_of_film(film), parts, Algorithm(self.version, made_by), ", ".join(self.segments)[:40])
        return str(write_dicom(seg, dicom_path(self._path(film, postfix), "seg")))


SaveImageFilmDicomSegD = SaveImageFilmDicomSegDict = SaveImageFilmDicomSegd
