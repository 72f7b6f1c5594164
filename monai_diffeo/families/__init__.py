"""Parameters to diffeomorphisms."""

from monai_diffeo.families.affine import AffineMatrix, DiffeomorphicAffine
from monai_diffeo.families.base import Family, VelocityFamily
from monai_diffeo.families.coarse import Coarse
from monai_diffeo.families.control_grid import ControlGrid
from monai_diffeo.families.cpab import CPAB, AffineCPAB
from monai_diffeo.families.homography import Homography
from monai_diffeo.families.siren import Siren
from monai_diffeo.families.thin_plate import ThinPlateSpline
from monai_diffeo.families.time_dependent import TimeDependent
from monai_diffeo.families.whitened import Whitened

__all__ = [
    "AffineCPAB",
    "AffineMatrix",
    "CPAB",
    "Coarse",
    "ControlGrid",
    "DiffeomorphicAffine",
    "Family",
    "Homography",
    "Siren",
    "ThinPlateSpline",
    "TimeDependent",
    "VelocityFamily",
    "Whitened",
]
