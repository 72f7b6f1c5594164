"""monai_diffeo: make any trained network robust to deformation of the anatomy, without retraining it.

A diffeomorphism moves each image to where the network was trained, the network runs there, and the exact inverse maps its
answer back. Start with :class:`DiffeoInferer`. Transforms, training steps and reports are in their rooms.
"""

from monai_diffeo.canonicalize import Canonicalization, Canonicalizer, load_canonicalizer
from monai_diffeo.families import (
    CPAB,
    AffineCPAB,
    AffineMatrix,
    ControlGrid,
    DiffeomorphicAffine,
    Homography,
    Siren,
    ThinPlateSpline,
)
from monai_diffeo.flow import compose, exp, folding_fraction, inverse, jacobian_determinant, warp, warp_points
from monai_diffeo.inferers import DiffeoInferer, TemplateInferer
from monai_diffeo.networks import SpatialTransformerLayer, TemplateTransformer
from monai_diffeo.renamed import renamed_names

__version__ = "0.2.0"

__all__ = [
    "AffineCPAB", "AffineMatrix", "CPAB", "Canonicalization", "Canonicalizer", "ControlGrid", "DiffeoInferer",
    "DiffeomorphicAffine", "Homography", "Siren", "SpatialTransformerLayer", "TemplateInferer", "TemplateTransformer",
    "ThinPlateSpline", "compose", "exp", "folding_fraction",
    "inverse", "jacobian_determinant", "load_canonicalizer", "warp", "warp_points",
]  # fmt: skip

__getattr__ = renamed_names(__name__, folding="folding_fraction")
