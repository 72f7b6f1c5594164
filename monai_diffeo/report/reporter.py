"""One line and one picture for each film of a run."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.utils import convert_to_numpy, ensure_tuple
from torch import Tensor

from monai_diffeo.canonicalize.result import NO_RESULT, OK, REVIEW, resize_ddf
from monai_diffeo.dicom_output import Algorithm, Findings, check_library, write_dicom_results
from monai_diffeo.errors import ConfigError, FilmError, OutputError
from monai_diffeo.files import output_error, sha256_of, sha256_or_none
from monai_diffeo.flow import warp
from monai_diffeo.inferers import DiffeoResult, parse_switch, uncertainty_map
from monai_diffeo.radiograph.film import UNKNOWN, joined_notes
from monai_diffeo.radiograph.mask_writer import DICOM_KINDS, MaskNames, dicom_path, figure_path, map_path, write_map
from monai_diffeo.radiograph.outputs import LOG_NAME, PAGE_NAME, REPORT_NAME, TABLE_NAME, film_lines
from monai_diffeo.radiograph.pseudonyms import PSEUDONYMS_NAME, write_pseudonyms
from monai_diffeo.report.anatomy import Anatomy
from monai_diffeo.report.audit import AuditFile
from monai_diffeo.report.decision import decision_of
from monai_diffeo.report.figure import film_figure
from monai_diffeo.report.record import failure_record, film_record, json_safe, versions
from monai_diffeo.report.resume import CHANGED, lines_that_hold, outputs_of, settings_sha256, sha256_as_read
from monai_diffeo.report.run_folder import RunFolder
from monai_diffeo.report.run_log import RunLog
from monai_diffeo.report.sides import PatientSides, patient_sides
from monai_diffeo.report.writer import FINISHED_WITH_FAILURES, ReportWriter

__all__ = ["FilmReporter", "decided"]

_AFFINES = ("affine", "original_affine")  # of the network's image and of the film


class FilmReporter:
    """Writes ``report.jsonl``, ``audit.jsonl``, ``run.log`` and the figures of a run, for any segmentation of films.

    :class:`monai_diffeo.engines.FilmEvaluator` tells it of each film. For an anatomy of your own pass an :class:`Anatomy`;
    further fields and another picture come from :meth:`more` and :meth:`draw` of a subclass.

    Args:
        output_dir: folder of the report; one run at a time may write into it.
        root: folder below which inputs are named.
        mode: of the canonicaliser, for the record.
        device: for the record.
        weights: file of the network's weights, for its SHA-256 in the record.
        figures: draw a picture for each film, beside its mask.
        debug: print the traceback of every failure to stderr; it may quote the file.
        longest: longest side of the pictures' films, voxels.
        anatomy: areas, outlines and captions; :class:`Anatomy` by default.
        films: paths of all films of the run, in their order, or a mapping of them to pseudonyms. Names of the films then appear
            in the table of pseudonyms only.
        resume: keep what an earlier run has written and would be written again, see :meth:`missing`; needs ``films``.
        postfix: of the masks' names, of several masks a list.
        dicom: write DICOM results beside the mask of each DICOM film; they hold the patient's data, as the film does.
        threshold: probability above which one logit is foreground, as in the masks; for pictures.
        settings: all that decides the masks beside ``mode``, ``device``, ``weights`` and versions; of types that JSON knows.

    Attributes:
        stopped: why nothing more can be reported, None as long as it can.
        last: the record of the film that was reported last.

    Raises:
        ConfigError: for pseudonyms with ``debug`` or ``dicom``, which show names; for ``resume`` without ``films``; without
            highdicom, if ``dicom`` needs it.
    """

    def __init__(
        self,
        output_dir: str | Path,
        root: str | Path,
        mode: str | None = None,
        device: str | torch.device = "cpu",
        weights: str | Path | None = None,
        figures: bool | str = True,
        debug: bool | str = False,
        longest: int = 512,
        anatomy: Anatomy | None = None,
        films: Sequence[str] | Mapping[str, str] | None = None,
        resume: bool | str = False,
        postfix: str | Sequence[str] = "lungs",
        settings: Any = None,
        dicom: bool | str = False,
        threshold: float = 0.5,
    ) -> None:
        self.output_dir, self.root, self.mode, self.device = Path(output_dir), Path(root), mode, str(device)
        self.weights, self.longest, self.anatomy = weights, longest, Anatomy() if anatomy is None else anatomy
        self.wants_plain, self.debug, self.dicom = parse_switch(figures), parse_switch(debug), parse_switch(dicom)
        self.resume, self.postfix, self.settings = parse_switch(resume), ensure_tuple(postfix), settings
        self.threshold = threshold
        self.pseudonyms = films if isinstance(films, Mapping) else {}
        self.films: Sequence[str] | Mapping[str, str] = () if films is None else films
        self.kept: dict[str, dict[str, Any]] = {}
        self._locked: RunFolder | None = None
        self.stopped: str | None = None
        self.last: dict[str, Any] = {}
        if (self.pseudonyms and (self.debug or self.dicom)) or (self.resume and films is None):
            shown = "--debug true quotes" if self.debug else "--dicom_output true writes"
            refused = "'resume' needs 'films'" if films is None else f"{shown} names, which pseudonyms are to hide"
            raise ConfigError(f"{type(self).__name__}: {refused}. Leave one of the two out.")
        if self.dicom:
            check_library(type(self).__name__)

    @cached_property
    def weights_sha256(self) -> str | None:
        """Of the file of weights."""
        return None if self.weights is None else sha256_of(self.weights)

    @cached_property
    def settings_sha256(self) -> str:
        """Of all settings that decide the masks."""
        return settings_sha256([self.weights_sha256, self.mode, self.device, versions(), self.settings])

    def missing(self, items: Sequence[dict[str, Any]], key: str = "image") -> list[dict[str, Any]]:
        """The datalist items that the run has to do: all, or with ``resume`` those whose lines do not hold, see
        :func:`monai_diffeo.report.resume.lines_that_hold`.

        Raises:
            FolderInUseError: with ``resume``, if another run writes into the folder.
        """
        if not self.resume:
            return list(items)
        self._locked = self._run_folder()
        names = [MaskNames(self.films, self.root, self.output_dir, postfix) for postfix in self.postfix]

        def outputs(film: str) -> tuple[list[str], str | None, list[str] | None]:
            masks = [path for name in names if (path := name.paths[Path(film)]) is not None]
            figure = _below(figure_path(masks[0]), self.output_dir) if masks and self.wants_plain else None
            dicom = [_below(path, self.output_dir) for path in self._dicom_paths(masks)] if self.dicom else None
            return [_below(path, self.output_dir) for path in masks], figure, dicom

        films = {self._name(film): str(film) for film in self.films}
        self.kept = lines_that_hold(self.output_dir / REPORT_NAME, films, outputs, self.settings_sha256)
        return [item for item in items if self._name(item[key]) not in self.kept]

    def begin(self, films: int | None) -> None:
        """Start a new report, which begins with the lines that are kept. None: films come one by one, all lines are kept.

        Raises:
            FolderInUseError: if another run writes into the folder.
            ConfigError: with pseudonyms, if the folder holds outputs under the names of their films.
            OutputError: if the report cannot be written.
        """
        self.folder = self._locked or self._run_folder()
        if films is None:
            self.kept = {line["input"]: line for line in film_lines(self.output_dir / REPORT_NAME)}
            self.folder.wrote(self.output_dir / name for name in (PAGE_NAME, TABLE_NAME))  # they may be made meanwhile
        if self.pseudonyms:
            if self.folder.earlier and PSEUDONYMS_NAME not in self.folder.earlier:
                came = "but the folder holds outputs under the names of their films"
                raise ConfigError(f"FilmReporter: pseudonyms hide names, {came}. Give --output_dir another folder.")
            names = {name: _below(film, self.root) for film, name in self.pseudonyms.items()}
            self.folder.wrote([write_pseudonyms(self.output_dir / PSEUDONYMS_NAME, names)])
        hashes = {"weights_sha256": self.weights_sha256, "settings": self.settings_sha256}
        self.audit = AuditFile(self.output_dir, {**hashes, "device": self.device})
        self.writer = ReportWriter(self.output_dir / REPORT_NAME, kept=self.kept.values())
        self.log = RunLog(self.output_dir / LOG_NAME, films and films - len(self.kept), going_on=bool(self.kept))
        about = f"{len(self.kept)} kept; device {self.device}, mode {self.mode}, {hashes}"
        self.log.say(f"run of {films or 'new'} films begins, {about}")
        for line in self.kept.values():
            self.folder.wrote(self.output_dir / name for name in outputs_of(line))
        if films == 0:
            print("No film was found.", file=sys.stderr)

    def end(self) -> int:
        """Remove outputs of earlier runs that this run did not write again, close the report and print how it went.

        Gives the exit status, see :meth:`ReportWriter.exit_status`; :data:`FINISHED_WITH_FAILURES` if the report cannot be
        written to its end, and stderr says why.
        """
        removed = self.folder.removed
        if self.stopped is None:
            try:
                self.folder.remove()
                self.writer.close(removed, [self._name(film) for film in self.films] if self.kept else None)
            except OSError as error:
                self.stopped = str(output_error(error))
        self.folder.release(forget=self.stopped is None)
        self.audit.close()
        self.log.say(self.stopped or self.writer.summary().partition(" Report: ")[0])
        self.log.close()
        if self.stopped is not None:
            print(f"The report is not complete, and the run ends here. {self.stopped}", file=sys.stderr)
            return FINISHED_WITH_FAILURES
        kept = f" {len(self.kept)} lines of an earlier run kept." if self.kept else ""
        print(self.writer.summary() + kept + (f" {len(removed)} outputs of earlier runs removed." if removed else ""))
        return self.writer.exit_status()

    def failed(self, path: str, error: BaseException) -> None:
        """A film that could not be read or segmented; it keeps no outputs of an earlier run."""
        if self.debug:
            traceback.print_exception(error, file=sys.stderr)
        name = self._name(path)
        try:
            self.folder.remove(name)
            changed = getattr(error, "code", None) == CHANGED  # nobody has read what it holds now
            self._write(failure_record(name, error, None if changed else sha256_or_none(path)))
        except OSError as lost:
            self.stopped = str(output_error(lost))

    def done(
        self, path: str, batch: Mapping[str, Any], output: Mapping[str, Any], result: DiffeoResult, seconds: float
    ) -> None:
        """A film that was segmented in so many seconds.

        Args:
            path, batch: of the film, and the evaluator's batch of one: ``"image"``, or without it ``"film"``, has the film's
                metadata, and ``"film"`` is the native film, for pictures.
            output: its postprocessed output, with the native mask under ``"pred"``, its path or paths under ``"pred_path"``.
            result: of the inferer.
        """
        masks = [Path(name) for name in ensure_tuple(output["pred_path"])]
        figure = figure_path(masks[0]) if self.wants_plain else None
        try:
            self._report(path, masks, figure, batch, output, result, seconds)
        except BaseException:
            for file in [
                *masks,
                *map(map_path, masks[:1]),
                *([figure] if figure else []),
                *(self._dicom_paths(masks) if self.dicom else []),
            ]:
                file.unlink(missing_ok=True)  # a film without a line has no mask
            raise

    def withheld(self, path: str, batch: Mapping[str, Any], result: DiffeoResult, seconds: float) -> None:
        """A film that was segmented, but has no result by decision; arguments as for :meth:`done`, ``result`` has a verdict."""
        name, about = self._name(path), batch["image"] if "image" in batch else batch["film"]
        try:
            self.folder.remove(name)
            sha256 = sha256_as_read(path, batch)
            record = film_record(name, sha256, result.canonicalization, 0, seconds, **self._fields([], None))
            notes = joined_notes(_meta(about, "film_notes", ""), record["notes"] or "")
            record |= {"dicom": []} if self.dicom else {}
            self._write(record | {"notes": notes or record["notes"]} | _spacing(about) | decided(result))
        except FilmError as changed:
            self.failed(path, changed)
        except OSError as lost:
            self.stopped = str(output_error(lost))

    def _report(
        self, path: str, masks: list[Path], figure: Path | None, batch, output, result: DiffeoResult, seconds: float
    ) -> None:
        labels = np.asarray(convert_to_numpy(output["pred"]))
        mask = np.any(labels.reshape(-1, *labels.shape[-2:]) > 0.5, axis=0)
        about = batch["image"] if "image" in batch else batch["film"]
        sides = patient_sides(result.canonicalization, 0, *_stated(about))
        fields = self._fields(masks, figure) | {"areas": self.anatomy.areas(mask, sides)}
        record = film_record(self._name(path), None, result.canonicalization, 0, seconds, **fields)
        empty = "" if mask.any() else "the mask is empty"
        notes = joined_notes(_meta(about, "film_notes", ""), record["notes"] or "", empty)
        record["notes"] = notes or record["notes"]
        record |= _spacing(about)
        record["largest_displacement_mm"] = _displacement_mm(about, result, record["spacing"])
        record |= self.more(output, result) | decided(result, empty)
        if "uncertainty" in output:
            record["uncertainty"] = _below(_write_uncertainty(output["uncertainty"], map_path(masks[0])), self.output_dir)
        if figure is not None:
            try:
                timeless = record | ({"seconds": None} if self.dicom else {})  # an archive wants the same picture twice
                self.draw(figure, *self._shown(batch, mask), result, timeless, sides)
            except Exception as error:  # the mask is there: a picture that fails must not fail the film
                record["figure"] = None
                record["notes"] = joined_notes(record["notes"] or "", f"no picture: {type(error).__name__}")
        if self.dicom:
            record |= self._write_dicom(path, masks, mask, sides, record)
        record["sha256"] = sha256_as_read(path, batch)  # last: the DICOM results take from the file whose film it is
        self._write(record, masks, None if record["figure"] is None else figure)
        self.folder.wrote(self.output_dir / name for name in outputs_of(record))

    def _write(self, record: dict[str, Any], masks: Sequence[Path] = (), figure: Path | None = None) -> None:
        """A line of the audit, then of the report, then of the log, and a step of the bar."""
        record.setdefault("decision", decision_of(record))
        self.audit.append(record, masks, figure)
        self.writer.write(record)
        self.log.film(record)
        self.last = record

    def _write_dicom(
        self, path: str, masks: list[Path], mask: np.ndarray, sides: PatientSides | None, record: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write the DICOM results of a film: its fields ``dicom`` and ``notes``."""
        about = {"mode": self.mode, "weights": self.weights_sha256, "settings": self.settings_sha256}
        algorithm = Algorithm(versions()["monai_diffeo"], self.settings_sha256, about)
        picture = None if record["figure"] is None else self.output_dir / record["figure"]
        try:
            segments = self.anatomy.segments(mask, sides)
            found = Findings(record["status"], record["agreement"])
            made = write_dicom_results(path, masks[0], segments, found, algorithm, picture, self.anatomy.name)
        except OutputError:
            raise
        except Exception as error:  # as for a picture
            why = error.sentence.rstrip(".") if isinstance(error, FilmError) else type(error).__name__
            return {"dicom": [], "notes": joined_notes(record["notes"] or "", f"no DICOM results: {why}")}
        return {"dicom": [_below(name, self.output_dir) for name in made]}

    def _dicom_paths(self, masks: Sequence[Path]) -> list[Path]:
        """All DICOM results that a film may have."""
        kinds = DICOM_KINDS if self.wants_plain else DICOM_KINDS[:2]
        return [dicom_path(masks[0], kind) for kind in kinds] if masks else []

    def _fields(self, masks: Sequence[Path], figure: Path | None) -> dict[str, Any]:
        """Fields of a record that do not depend on what was found."""
        names = [_below(name, self.output_dir) for name in masks]
        fields: dict[str, Any] = {"mode": self.mode, "device": self.device, "weights_sha256": self.weights_sha256}
        fields["settings"] = self.settings_sha256
        return fields | {
            "mask": names[0] if len(names) == 1 else names or None,
            "figure": figure and _below(figure, self.output_dir),
        }

    def _run_folder(self) -> RunFolder:
        try:
            return RunFolder(self.output_dir)
        except OSError as error:
            raise output_error(error) from None

    def _name(self, path: str) -> str:
        """What a film is called in the report."""
        return self.pseudonyms.get(str(path)) or _below(path, self.root)

    def more(self, output: Mapping[str, Any], result: DiffeoResult) -> dict[str, Any]:
        """Further fields of a film's record, for subclasses; arguments as in :meth:`done`."""
        return {}

    def foreground(self, scores: Tensor) -> Tensor:
        """Mask ``(B, *S)`` of a prediction ``(B, K, *S)``: one logit, or one a class with the background first."""
        return torch.sigmoid(scores[:, 0]) > self.threshold if scores.shape[1] == 1 else scores.argmax(1) > 0

    def draw(
        self, path: Path, film: Tensor, mask: Tensor, result: DiffeoResult, record: dict[str, Any], sides: PatientSides | None
    ) -> None:
        """Write the picture of a film to ``path``, a PNG.

        ``film`` and ``mask`` have the size of the picture, ``(1, 1, H, W)``, and are on the CPU; ``sides`` is None if unknown.
        """
        size, found, plain = tuple(film.shape[2:]), result.canonicalization, None
        ddf = torch.zeros(1, 2, *size) if found is None else resize_ddf(found.ddf.cpu(), size)
        if found is not None and result.plain is not None:
            scores = torch.from_numpy(convert_to_numpy(result.plain)).float()
            plain = self.foreground(F.interpolate(scores, size, mode="bilinear"))[0]
        canonical, canonical_mask = (warp(image, ddf)[0, 0] for image in (film, mask))
        images = (film[0, 0], canonical, ddf[0], plain, mask[0, 0], canonical_mask)
        doubt = uncertainty_map(result) if record.get("uncertainty") else None
        doubt = None if doubt is None else F.interpolate(doubt.cpu(), size, mode="bilinear")[0, 0]
        film_figure(path, *images, record["input"], record, anatomy=self.anatomy, sides=sides, uncertainty=doubt)

    def _shown(self, batch: Mapping[str, Any], mask: np.ndarray) -> tuple[Tensor, Tensor]:
        """Film and mask at the picture's size."""
        film = batch["film"] if isinstance(batch["film"], Tensor) else batch["film"][0]
        film = torch.from_numpy(convert_to_numpy(film)).reshape(1, 1, *mask.shape).float()
        scale = min(1.0, self.longest / max(mask.shape))
        size = tuple(max(round(n * scale), 2) for n in mask.shape)
        film = F.interpolate(film, size, mode="bilinear", antialias=True, align_corners=False)
        return film, F.interpolate(torch.from_numpy(mask)[None, None].float(), size, mode="area")


def _below(path: str | Path, folder: Path) -> str:
    """Name of a file below a folder; its last part if it lies elsewhere."""
    return Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else Path(path).name


def decided(result: DiffeoResult, empty: str = "") -> dict[str, Any]:
    """Fields of a film that a judge decided on, or that is beyond the limits of a fit, or empty: it is to be reviewed."""
    fields: dict[str, Any] = {}
    if result.verdicts:
        verdict = result.verdicts[0]
        fields = {"decision": verdict.text, "predicted_dice": verdict.dice, "signs": verdict.signs}
        fields |= {"answer": verdict.answer} if verdict.answer else {}
    elif result.records and (decision := result.records[0].get("decision", OK)) != OK:
        fields = {"decision": decision.replace(NO_RESULT, REVIEW, 1)}  # limits of a fit add doubts to the remarks
    if empty and fields.get("decision", OK) == OK:
        fields["decision"] = f"{REVIEW}: {empty}"
    return json_safe(fields)


def _write_uncertainty(values: Any, path: Path) -> Path:
    """Write a map ``(1, H, W)`` with the metadata of its film."""
    affine, frame, unit = (values.meta[name] for name in ("original_affine", "film_file_frame", "film_affine_unit"))
    return write_map(convert_to_numpy(values)[0].clip(0, 1), convert_to_numpy(affine), path, str(frame), str(unit))


def _stated(film: Any) -> tuple[str, int]:
    """PatientOrientation and EXIF orientation of a batch of one film."""
    return str(_meta(film, "film_patient_orientation", "")), int(_meta(film, "film_exif_orientation", 0))


def _spacing(film: Any) -> dict[str, Any]:
    """Fields of a batch of one film: its spacing, what states it and what speaks against it."""
    source, doubt = str(_meta(film, "film_spacing_source", UNKNOWN)), str(_meta(film, "film_spacing_doubt", ""))
    spacing = [_meta(film, f"film_spacing_{axis}", None) for axis in ("row", "column")] if source != UNKNOWN else None
    return json_safe({"spacing": spacing, "spacing_source": source, "spacing_doubt": doubt or None})


def _displacement_mm(film: Any, result: DiffeoResult, spacing: Sequence[float] | None) -> float | None:
    """Largest displacement in mm of the film, along the axes of its frame; None if it or the film's spacing is unknown.

    The network's image has larger voxels than the film: how much larger, their affines say.
    """
    meta = getattr(film, "meta", {})
    if result.canonicalization is None or spacing is None or not set(_AFFINES) <= set(meta):
        return None
    sizes = [np.linalg.norm(np.reshape(convert_to_numpy(meta[key]), (-1, 4, 4))[0, :3, :2], axis=0) for key in _AFFINES]
    ddf = convert_to_numpy(result.canonicalization.ddf[0])
    length = float(np.linalg.norm(ddf * np.reshape(spacing * sizes[0] / sizes[1], (2, 1, 1)), axis=0).max())
    return json_safe(length)


def _meta(film: Any, key: str, default: Any) -> Any:
    """One entry of the metadata of a batch of one film."""
    return np.ravel(convert_to_numpy(getattr(film, "meta", {}).get(key, default)))[0].item()
