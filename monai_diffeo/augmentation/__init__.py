"""Random deformations, intensities and opacities for training and tests."""

from monai_diffeo.augmentation.deformations import random_elastic, random_homography, random_svf, tps_protocol
from monai_diffeo.augmentation.faults import random_faults
from monai_diffeo.augmentation.intensity import random_intensity, value_range
from monai_diffeo.augmentation.opacities import random_opacities
from monai_diffeo.augmentation.outliers import random_outliers
from monai_diffeo.augmentation.training import random_framing, random_strength_tps, random_training_deformation, varied_films

__all__ = [
    "random_elastic", "random_faults", "random_framing", "random_homography", "random_intensity", "random_opacities",
    "random_outliers", "random_strength_tps", "random_svf", "random_training_deformation", "tps_protocol", "value_range",
    "varied_films",
]  # fmt: skip
