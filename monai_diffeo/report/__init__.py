"""What happened to each film: one line of JSON and one figure a film, and the exit status of the run.

It serves any segmentation of films; :mod:`monai_diffeo.report.cxr` is for chest radiographs. Nothing here writes patient
data: names are relative paths, errors are a class and a sentence of ours, titles are the caller's.
"""

from monai_diffeo.files import sha256_of
from monai_diffeo.report.anatomy import Anatomy, Part
from monai_diffeo.report.figure import film_figure
from monai_diffeo.report.record import FAILED, SCHEMA, SWITCHED_OFF, failure_record, film_record, versions
from monai_diffeo.report.reporter import FilmReporter
from monai_diffeo.report.run_folder import FolderInUseError, RunFolder
from monai_diffeo.report.sides import PatientSides, patient_sides
from monai_diffeo.report.volumes import VolumeReporter
from monai_diffeo.report.writer import ALL_WRITTEN, FINISHED_WITH_FAILURES, NOTHING_WRITTEN, ReportWriter

__all__ = ["ALL_WRITTEN", "Anatomy", "FAILED", "FINISHED_WITH_FAILURES", "FilmReporter", "FolderInUseError", "NOTHING_WRITTEN"]
__all__ += ["Part", "PatientSides", "ReportWriter", "RunFolder", "SCHEMA", "SWITCHED_OFF", "failure_record", "film_figure"]
__all__ += ["VolumeReporter", "film_record", "patient_sides", "sha256_of", "versions"]
