"""monai_diffeo: make any trained network robust to deformation of the anatomy, without retraining it.

Each image is moved by a diffeomorphism to where the network was trained, the network runs there, and its answer is moved back by
the exact inverse. Start with :class:`DiffeoInferer`.
"""

from monai_diffeo.canonicalize import Canonicalization, Canonicalizer, load_canonicalizer
from monai_diffeo.families import ControlGrid, Siren
from monai_diffeo.flow import compose, exp, folding_fraction, inverse, jacobian_determinant, warp
from monai_diffeo.inferers import DiffeoInferer

__version__ = "0.2.0"

__all__ = [
    "Canonicalization",
    "Canonicalizer",
    "ControlGrid",
    "DiffeoInferer",
    "Siren",
    "compose",
    "exp",
    "folding_fraction",
    "inverse",
    "jacobian_determinant",
    "load_canonicalizer",
    "warp",
]
