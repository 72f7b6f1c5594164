"""Spatial transforms: random diffeomorphisms and canonicalisation, as arrays and as dictionaries."""

from monai_diffeo.transforms.spatial import array, dictionary
from monai_diffeo.transforms.spatial.array import *  # noqa: F403
from monai_diffeo.transforms.spatial.dictionary import *  # noqa: F403

__all__ = array.__all__ + dictionary.__all__
