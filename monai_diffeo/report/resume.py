"""Which lines of an earlier report a run that resumes may keep."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from monai_diffeo.errors import FilmError
from monai_diffeo.files import sha256_or_none
from monai_diffeo.radiograph.outputs import film_lines
from monai_diffeo.report.record import FAILED, SCHEMA, json_safe
from monai_diffeo.trust.decision import NO_RESULT, kind_of_decision

CHANGED = "FileChanged"  # code of a film whose file changed while it was read

__all__ = ["lines_that_hold", "outputs_of", "settings_sha256", "sha256_as_read"]


def settings_sha256(settings: Any) -> str:
    """SHA-256 of settings, of types that JSON knows; others count by their text."""
    return hashlib.sha256(json.dumps(json_safe(settings), sort_keys=True, default=str).encode()).hexdigest()


def lines_that_hold(
    report: str | PathLike[str],
    films: Mapping[str, str],
    outputs: Callable[[str], tuple[Sequence[str], str | None, Sequence[str] | None]],
    settings: str,
) -> dict[str, dict[str, Any]]:
    """Lines of a report that a new run would write again, by input and in the order of the films.

    A line holds if its film did not fail, has the same content and was made with the same settings, and if its outputs have the
    names that they would get now and are still there. Where no figure and no DICOM results are asked for, the line says so.

    Args:
        report: a ``report.jsonl``.
        films: path of each film by its input name.
        outputs: names of the masks, of the figure and of the DICOM results that an input may have, relative to the report; None
            for what is not asked for.
        settings: :func:`settings_sha256` of the new run.
    """
    earlier, kept = {line["input"]: line for line in film_lines(report)}, {}
    folder = Path(report).parent
    for name, film in films.items():
        line = earlier.get(name, {})
        if line.get("schema") != SCHEMA or line.get("status", FAILED) == FAILED or line.get("settings") != settings:
            continue
        masks, figure, dicom = outputs(film)
        if withheld := kind_of_decision(line.get("decision")) == NO_RESULT:
            figure = None
        same = line.get("mask") == (masks[0] if len(masks) == 1 else list(masks)) and figure in (None, line.get("figure"))
        if not (withheld or same) or (dicom is not None and not isinstance(line.get("dicom"), list)):
            continue
        new = {**line, "figure": figure, **({} if dicom is None else {"dicom": [n for n in line["dicom"] if n in dicom]})}
        if dicom is None:
            new.pop("dicom", None)
        if line.get("sha256") and all((folder / output).is_file() for output in outputs_of(new)):
            kept[name] = new
    with ThreadPoolExecutor() as pool:  # of many films, reading takes longest
        hashes = pool.map(sha256_or_none, [films[name] for name in kept])
        return {name: line for (name, line), found in zip(kept.items(), hashes) if line["sha256"] == found}


def outputs_of(line: Mapping[str, Any]) -> list[str]:
    """Names of all files that a line of the report records, relative to the report."""
    names = [*ensure_tuple(line.get("mask")), line.get("figure"), line.get("uncertainty"), *line.get("dicom", ())]
    return [name for name in names if name]


def sha256_as_read(path: str | PathLike[str], batch: Mapping[str, Any]) -> str | None:
    """SHA-256 of a film as :class:`FailSafeDataset` read it into a batch of one, None if it is not known.

    Raises:
        FilmError: if the file holds something else by now.
    """
    (read,), now = ensure_tuple(batch.get("sha256", "")), sha256_or_none(path)
    if read and now not in (None, read):
        raise FilmError(CHANGED, "The file changed while it was read. Run again when nothing writes to it.")
    return read or now
