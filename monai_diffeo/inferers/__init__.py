"""Inferers."""

from monai_diffeo.inferers.diffeo import DiffeoInferer, parse_switch

__all__ = ["DiffeoInferer", "parse_switch"]
