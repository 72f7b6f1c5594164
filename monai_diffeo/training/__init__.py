"""How each network of a bundle is trained: steps for MONAI's ``SupervisedTrainer``."""

from monai_diffeo.training.answers import AddAnswerd, answer_activation
from monai_diffeo.training.boundary import boundary_distance
from monai_diffeo.training.iteration import LossCurve, TrainedWeights, TrainingIteration
from monai_diffeo.training.steps import (
    ClassificationStep,
    CriticStep,
    OrientationStep,
    OutlierStep,
    PredictorStep,
    SegmentationStep,
    VAEStep,
)
from monai_diffeo.training.templates import TemplateStep

__all__ = [
    "AddAnswerd", "ClassificationStep", "CriticStep", "LossCurve", "OrientationStep", "OutlierStep", "PredictorStep",
    "SegmentationStep", "TemplateStep", "TrainedWeights", "TrainingIteration", "VAEStep", "answer_activation",
    "boundary_distance",
]  # fmt: skip
