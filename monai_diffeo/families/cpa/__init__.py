"""Continuous piecewise-affine velocity fields, and their flows."""

from monai_diffeo.families.cpa.basis import BOUNDARIES, CPASpace, cpa_space
from monai_diffeo.families.cpa.tessellation import Tessellation, grid_tessellation

__all__ = ["BOUNDARIES", "CPASpace", "Tessellation", "cpa_space", "grid_tessellation"]
