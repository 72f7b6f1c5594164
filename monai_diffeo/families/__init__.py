"""Parameters to diffeomorphisms."""

from monai_diffeo.families.affine import AffineMatrix, DiffeomorphicAffine
from monai_diffeo.families.base import Family, VelocityFamily
from monai_diffeo.families.coarse_sampling import CoarseSampling
from monai_diffeo.families.control_grid import ControlGrid
from monai_diffeo.families.cpab import CPAB, AffineCPAB, Whitened
from monai_diffeo.families.homography import Homography
from monai_diffeo.families.piecewise_stationary import PiecewiseStationary
from monai_diffeo.families.siren import Siren
from monai_diffeo.families.thin_plate import ThinPlateSpline

__all__ = [
    "AffineCPAB", "AffineMatrix", "CPAB", "CoarseSampling", "ControlGrid", "DiffeomorphicAffine", "Family", "Homography",
    "Siren", "ThinPlateSpline", "PiecewiseStationary", "VelocityFamily", "Whitened",
]  # fmt: skip
