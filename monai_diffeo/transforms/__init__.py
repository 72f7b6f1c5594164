"""MONAI transforms: read films, write masks, deform at random and invert it, canonicalise and invert it."""

from monai_diffeo.transforms import io, shapes, spatial
from monai_diffeo.transforms.io import *  # noqa: F403
from monai_diffeo.transforms.shapes import *  # noqa: F403
from monai_diffeo.transforms.spatial import *  # noqa: F403

__all__ = io.__all__ + shapes.__all__ + spatial.__all__
