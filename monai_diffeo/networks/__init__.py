"""Networks that this package adds: the predictor and the energies' networks. Those under test come from anywhere."""

from monai_diffeo.networks.critic import EnergyCritic
from monai_diffeo.networks.orientation import FilmOrientation, turn_generator, turn_image
from monai_diffeo.networks.predictor import DeformationPredictor, standardize_image
from monai_diffeo.networks.shape_prior import AtlasPrior, ShapePrior, TemplatePrior, tame_log_odds
from monai_diffeo.networks.template_transformer import TemplateTransformer, WarpedTemplate
from monai_diffeo.networks.vae import EnergyVAE
from monai_diffeo.networks.weights import load_weights

__all__ = [
    "AtlasPrior",
    "DeformationPredictor",
    "EnergyCritic",
    "EnergyVAE",
    "FilmOrientation",
    "ShapePrior",
    "TemplatePrior",
    "TemplateTransformer",
    "WarpedTemplate",
    "load_weights",
    "standardize_image",
    "tame_log_odds",
    "turn_generator",
    "turn_image",
]
