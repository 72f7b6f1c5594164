"""How each network of a bundle is trained: steps for MONAI's ``SupervisedTrainer``."""

from monai_diffeo.training.iteration import LossCurve, TrainingIteration
from monai_diffeo.training.steps import (
    AddAnswerd,
    ClassificationStep,
    CriticStep,
    OrientationStep,
    PredictorStep,
    SegmentationStep,
    VAEStep,
)

__all__ = [
    "AddAnswerd",
    "ClassificationStep",
    "CriticStep",
    "LossCurve",
    "OrientationStep",
    "PredictorStep",
    "SegmentationStep",
    "TrainingIteration",
    "VAEStep",
]
