"""Continuous piecewise-affine velocity fields, and their flows."""

from monai_diffeo.families.cpa.basis import BOUNDARIES, CPASpace, cpa_space
from monai_diffeo.families.cpa.flow import cpa_displacement, cpa_flow, cpa_jacobian, cpa_velocity
from monai_diffeo.families.cpa.prior import CPAPrior
from monai_diffeo.families.cpa.tessellation import Tessellation, grid_tessellation

__all__ = [
    "BOUNDARIES",
    "CPAPrior",
    "CPASpace",
    "Tessellation",
    "cpa_displacement",
    "cpa_flow",
    "cpa_jacobian",
    "cpa_space",
    "cpa_velocity",
    "grid_tessellation",
]
