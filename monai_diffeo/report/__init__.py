"""What happened to each film: one line of JSON and one figure a film, and the exit status of the run.

Nothing here writes patient data: names are relative paths, errors are a class and a sentence of ours, titles are the
caller's.
"""

from monai_diffeo.report.figure import film_figure
from monai_diffeo.report.record import FAILED, SCHEMA, SWITCHED_OFF, failure_record, film_record, sha256_of, versions
from monai_diffeo.report.reporter import FilmReporter
from monai_diffeo.report.writer import ALL_WRITTEN, FINISHED_WITH_FAILURES, NOTHING_WRITTEN, ReportWriter

__all__ = [
    "ALL_WRITTEN",
    "FAILED",
    "FINISHED_WITH_FAILURES",
    "FilmReporter",
    "NOTHING_WRITTEN",
    "ReportWriter",
    "SCHEMA",
    "SWITCHED_OFF",
    "failure_record",
    "film_figure",
    "film_record",
    "sha256_of",
    "versions",
]
