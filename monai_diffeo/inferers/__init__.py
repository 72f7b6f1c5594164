"""Inferers."""

from monai_diffeo.command_line import parse_switch
from monai_diffeo.inferers.diffeo import DiffeoInferer, DiffeoResult
from monai_diffeo.inferers.overlay import overlaid_inferer, overlay_path
from monai_diffeo.inferers.template import TemplateInferer
from monai_diffeo.inferers.uncertainty import uncertainty_map

__all__ = ["DiffeoInferer", "DiffeoResult", "TemplateInferer", "overlaid_inferer", "overlay_path", "parse_switch"]
__all__ += ["uncertainty_map"]
