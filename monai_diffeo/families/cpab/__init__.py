"""CPAB: continuous piecewise-affine velocity fields, their flows, and the families made of them."""

from monai_diffeo.families.cpab.basis import BOUNDARIES, CPASpace, cpa_space
from monai_diffeo.families.cpab.family import CPAB, AffineCPAB, Whitened
from monai_diffeo.families.cpab.flow import cpa_displacement, cpa_flow, cpa_jacobian, cpa_velocity
from monai_diffeo.families.cpab.prior import CPAPrior
from monai_diffeo.families.cpab.tessellation import Tessellation, grid_tessellation

__all__ = [
    "AffineCPAB", "CPAB", "BOUNDARIES", "CPAPrior", "CPASpace", "Tessellation", "Whitened", "cpa_displacement", "cpa_flow",
    "cpa_jacobian", "cpa_space", "cpa_velocity", "grid_tessellation",
]  # fmt: skip
