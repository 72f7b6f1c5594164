"""Inferers."""

from monai_diffeo.inferers.diffeo import DiffeoInferer, overlay_path, parse_switch

__all__ = ["DiffeoInferer", "overlay_path", "parse_switch"]
