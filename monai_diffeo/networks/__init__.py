"""Networks that this package adds: the predictor and the energies' networks. Those under test come from anywhere."""

from monai_diffeo.networks.critic import EnergyCritic
from monai_diffeo.networks.localizers import CNNLocalizer, FCNLocalizer, RegressorLocalizer, start_at_identity
from monai_diffeo.networks.orientation import FilmOrientation, turn_generator, turn_image
from monai_diffeo.networks.predictor import DeformationPredictor, standardize_image
from monai_diffeo.networks.shape_prior import AtlasPrior, ShapePrior, TemplatePrior, tame_log_odds
from monai_diffeo.networks.template_backbone import SegmentThenRegister
from monai_diffeo.networks.template_transformer import TemplateTransformer, WarpedTemplate
from monai_diffeo.networks.transformers import SpatialTransformerChain, SpatialTransformerLayer
from monai_diffeo.networks.vae import EnergyVAE
from monai_diffeo.networks.weights import load_weights, mean_weights

__all__ = [
    "AtlasPrior",
    "CNNLocalizer",
    "DeformationPredictor",
    "EnergyCritic",
    "EnergyVAE",
    "FCNLocalizer",
    "FilmOrientation",
    "RegressorLocalizer",
    "SegmentThenRegister",
    "ShapePrior",
    "SpatialTransformerChain",
    "SpatialTransformerLayer",
    "TemplatePrior",
    "TemplateTransformer",
    "WarpedTemplate",
    "load_weights",
    "mean_weights",
    "standardize_image",
    "start_at_identity",
    "tame_log_odds",
    "turn_generator",
    "turn_image",
]
