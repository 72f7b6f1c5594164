"""Reports of lungs on chest radiographs."""

from monai_diffeo.report.cxr.lungs import LungAnatomy, LungReporter
from monai_diffeo.report.cxr.template_reporter import TemplateReporter

__all__ = ["LungAnatomy", "LungReporter", "TemplateReporter"]
