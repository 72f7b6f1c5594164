"""Diffeomorphic template transformers: prior shapes, backbones, and the guard that keeps the topology."""

from monai_diffeo.networks.template.backbone import SegmentThenRegister
from monai_diffeo.networks.template.guard import intact_level
from monai_diffeo.networks.template.prior import AtlasPrior, ShapePrior, TemplatePrior, compress_logits
from monai_diffeo.networks.template.transformer import TemplateTransformer, WarpedTemplate

__all__ = [
    "AtlasPrior", "SegmentThenRegister", "ShapePrior", "TemplatePrior", "TemplateTransformer", "WarpedTemplate",
    "compress_logits", "intact_level",
]  # fmt: skip
