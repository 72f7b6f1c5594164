"""How far an image is from the training images, and what a deformation costs."""

from monai_diffeo.energies.atlas import AtlasEnergy
from monai_diffeo.energies.base import Energy, FunctionEnergy
from monai_diffeo.energies.combine import StandardizedEnergy, WeightedEnergy
from monai_diffeo.energies.learned import CriticEnergy, ResidualDeformationEnergy, VAEEnergy
from monai_diffeo.energies.regularizers import DeformationRegularizer, folding_penalty, smoothness

__all__ = [
    "AtlasEnergy", "CriticEnergy", "DeformationRegularizer", "Energy", "FunctionEnergy", "ResidualDeformationEnergy",
    "StandardizedEnergy", "VAEEnergy", "WeightedEnergy", "folding_penalty", "smoothness",
]  # fmt: skip
