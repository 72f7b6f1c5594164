"""Parameters to diffeomorphisms."""

from monai_diffeo.families.base import Family, VelocityFamily
from monai_diffeo.families.control_grid import ControlGrid
from monai_diffeo.families.siren import Siren
from monai_diffeo.families.time_dependent import TimeDependent

__all__ = ["ControlGrid", "Family", "Siren", "TimeDependent", "VelocityFamily"]
