"""How unlike an atlas an image is."""

from __future__ import annotations

import copy

from monai.losses import LocalNormalizedCrossCorrelationLoss
from torch import Tensor

from monai_diffeo.energies.base import Energy
from monai_diffeo.networks import ImageAtlas, standardize_image
from monai_diffeo.networks.predictor import check_image, resample_image

__all__ = ["AtlasEnergy"]


class AtlasEnergy(Energy):
    """1 minus the mean squared local correlation with an atlas, at its size.

    A window counts 0 where grey values agree but for scale and shift, and 1 where the image or the atlas is even.

    The similarity of Avants et al., Medical Image Analysis 12, 2008, by MONAI's ``LocalNormalizedCrossCorrelationLoss``.

    Args:
        atlas: mean of the training images, of which a frozen copy is kept.
        window: edge of the local window, in voxels of the atlas, an odd number.
        contrast: spread of grey values in a window, as share of that in the whole image, below which they count as noise.

    Raises:
        ValueError: for a window or a contrast that measures nothing.
    """

    computes_double = True

    def __init__(self, atlas: ImageAtlas, window: int = 5, contrast: float = 0.2) -> None:
        super().__init__()
        odd = isinstance(window, int) and window > 0 and window % 2 == 1
        if not odd or not 0 < contrast < float("inf"):
            raise ValueError(
                f"AtlasEnergy: 'window' must be odd and 'contrast' larger than 0, got {window!r} and {contrast!r}. "
                "Leave them out for 5 and 0.2."
            )
        self.atlas = copy.deepcopy(atlas)
        dims = len(atlas.image_size)
        settings = {"kernel_size": window, "reduction": "none", "smooth_dr": window**dims * contrast**2}
        self.correlation = LocalNormalizedCrossCorrelationLoss(dims, **settings)
        self.freeze()

    def forward(self, image: Tensor) -> Tensor:
        check_image(self, image, len(self.atlas.image_size), self.atlas.image.shape[1])
        image = standardize_image(resample_image(image, self.atlas.image_size))
        return 1 + self.correlation(image, standardize_image(self.atlas(len(image)))).flatten(1).mean(1)
