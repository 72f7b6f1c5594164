"""Which files an earlier run wrote, by its own records."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path

__all__ = ["REPORT_NAME", "recorded_outputs"]

REPORT_NAME = "report.jsonl"


def recorded_outputs(report: str | PathLike[str]) -> dict[str, list[Path]]:
    """Files that the run behind a report wrote, by the input that each belongs to.

    Args:
        report: a ``report.jsonl``. A file that is none of ours, or is missing, has no records; a line that a crash cut short is passed.

    Returns:
        Input name to the paths of its mask and figure, those that exist.
    """
    report, found = Path(report), {}
    try:
        lines = report.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not (isinstance(record, dict) and isinstance(record.get("schema"), int) and isinstance(record.get("input"), str)):
            continue
        names = [record[key] for key in ("mask", "figure") if isinstance(record.get(key), str)]
        paths = [report.parent / name for name in names if ".." not in Path(name).parts and not Path(name).is_absolute()]
        found.setdefault(record["input"], []).extend(path for path in paths if path.is_file())
    return found
