"""Networks that this package adds: the predictor, the energies' networks, spatial transformers, template transformers."""

from monai_diffeo.networks.atlas import ImageAtlas
from monai_diffeo.networks.critic import EnergyCritic
from monai_diffeo.networks.orientation import ImageOrientation, orient_images
from monai_diffeo.networks.outlier import OutlierDetector
from monai_diffeo.networks.precision import mixed_precision
from monai_diffeo.networks.predictor import DeformationPredictor, standardize_image
from monai_diffeo.networks.stn import (
    CNNLocalizer,
    FCNLocalizer,
    RegressorLocalizer,
    SpatialTransformerChain,
    SpatialTransformerLayer,
    zero_init_last_layer_,
)
from monai_diffeo.networks.template import (
    AtlasPrior,
    SegmentThenRegister,
    ShapePrior,
    TemplatePrior,
    TemplateTransformer,
    WarpedTemplate,
    compress_logits,
)
from monai_diffeo.networks.vae import EnergyVAE
from monai_diffeo.networks.weights import load_weights, mean_weights, save_weights

__all__ = [
    "AtlasPrior", "CNNLocalizer", "DeformationPredictor", "EnergyCritic", "EnergyVAE", "FCNLocalizer", "ImageAtlas",
    "ImageOrientation", "OutlierDetector", "RegressorLocalizer", "SegmentThenRegister", "ShapePrior", "SpatialTransformerChain",
    "SpatialTransformerLayer", "TemplatePrior", "TemplateTransformer", "WarpedTemplate", "compress_logits", "load_weights",
    "mean_weights", "mixed_precision", "orient_images", "save_weights", "standardize_image", "zero_init_last_layer_",
]  # fmt: skip
