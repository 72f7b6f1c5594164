"""Networks that this package adds: the predictor and the energies' networks. Those under test come from anywhere."""

from monai_diffeo.networks.critic import EnergyCritic
from monai_diffeo.networks.orientation import FilmOrientation, turn_generator, turn_image
from monai_diffeo.networks.predictor import DeformationPredictor, standardize_image
from monai_diffeo.networks.vae import EnergyVAE
from monai_diffeo.networks.weights import load_weights

__all__ = ["DeformationPredictor", "EnergyCritic", "EnergyVAE", "FilmOrientation", "load_weights", "standardize_image", "turn_generator", "turn_image"]
