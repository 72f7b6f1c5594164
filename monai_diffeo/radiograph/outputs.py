"""Which files an earlier run wrote, by its own records."""

from __future__ import annotations

import json
from functools import partial
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from monai.utils import ensure_tuple

from monai_diffeo.radiograph.mask_writer import DICOM_KINDS
from monai_diffeo.radiograph.paths import split_name
from monai_diffeo.radiograph.pseudonyms import PSEUDONYMS_NAME, is_pseudonym_table

__all__ = ["AUDIT_NAME", "LOG_NAME", "PAGE_NAME", "REPORT_NAME", "TABLE_NAME", "film_lines", "recorded_outputs"]

REPORT_NAME, AUDIT_NAME, LOG_NAME = "report.jsonl", "audit.jsonl", "run.log"
PAGE_NAME, TABLE_NAME = "report.html", "report.csv"
"""Names beside the masks of a run: the report, the audit and the log; the page and the table that are made of the report."""

PAGE_BEGIN = b"<!DOCTYPE html><!-- monai-diffeo report -->"
TABLE_BEGIN = b"input,decision,status,"
_ENDS = (".nii.gz", ".png", *(f".{kind}.dcm" for kind in DICOM_KINDS))


def recorded_outputs(report: str | PathLike[str]) -> dict[str, list[Path]]:
    """Files that the run behind a report wrote and that still exist, by the name of the input that each belongs to.

    A name counts only if it is what a run would have given: in the folder of its input, below the report, beginning with the
    input's name without suffix and ``_``, a PNG, NIfTI (``.nii.gz``) or DICOM result. So no record hides a file that a run did
    not name.
    A table of pseudonyms, a page and a table beside a report with films belong to their own names.

    Args:
        report: a ``report.jsonl``. A file that is none of ours, or is missing, has no records; a line cut short is passed.
    """
    report, found = Path(report), dict[str, list[Path]]()
    for record in film_lines(report):
        mask, film = record.get("mask"), PurePosixPath(record["input"])
        names = [*ensure_tuple(mask), record.get("figure"), record.get("uncertainty"), *ensure_tuple(record.get("dicom"))]
        paths = [report.parent / name for name in names if isinstance(name, str) and _is_output_of(film, PurePosixPath(name))]
        found.setdefault(record["input"], []).extend(path for path in paths if path.is_file())
    ours = {PSEUDONYMS_NAME: is_pseudonym_table}
    ours |= {name: partial(_begins, begin=begin) for name, begin in ((PAGE_NAME, PAGE_BEGIN), (TABLE_NAME, TABLE_BEGIN))}
    for name, is_ours in ours.items():
        if found and is_ours(report.parent / name):
            found[name] = [*found.get(name, ()), report.parent / name]
    return found


def film_lines(report: str | PathLike[str]) -> list[dict[str, Any]]:
    """The records of films in a report; what is none of ours, or was cut short, is passed."""
    try:
        lines = Path(report).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("schema"), int) and isinstance(record.get("input"), str):
            records.append(record)
    return records


def _begins(path: Path, begin: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(begin)) == begin
    except OSError:
        return False


def _is_output_of(film: PurePosixPath, output: PurePosixPath) -> bool:
    named = output.name.startswith(f"{split_name(film.name)[0]}_") and output.name.endswith(_ENDS)
    return named and output.parent == film.parent and not output.is_absolute() and ".." not in output.parts
