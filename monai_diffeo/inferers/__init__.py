"""Inferers."""

from monai_diffeo.command_line import parse_switch
from monai_diffeo.inferers.diffeo import DiffeoInferer, DiffeoResult
from monai_diffeo.inferers.overlay import overlaid_inferer, overlay_path
from monai_diffeo.inferers.parts import PartsInPlace
from monai_diffeo.inferers.template import TemplateInferer
from monai_diffeo.inferers.uncertainty import uncertainty_map

__all__ = ["DiffeoInferer", "DiffeoResult", "PartsInPlace", "TemplateInferer", "overlaid_inferer", "overlay_path"]
__all__ += ["parse_switch", "uncertainty_map"]
