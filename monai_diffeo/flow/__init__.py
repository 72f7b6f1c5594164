"""The mathematics: pure functions on velocities, displacements and images."""

from monai_diffeo.flow.bch import bch, bch_sequence
from monai_diffeo.flow.bracket import lie_bracket
from monai_diffeo.flow.chain import dense_velocity, exp_chain, inverse_chain
from monai_diffeo.flow.compose import compose, inverse, inverse_error, invert
from monai_diffeo.flow.deformation import Deformation
from monai_diffeo.flow.exponential import affine_deformation, exp, exp_affine
from monai_diffeo.flow.jacobian import folding, jacobian, jacobian_determinant
from monai_diffeo.flow.sequence import compose_sequence, exp_sequence
from monai_diffeo.flow.simplices import breaks, cell_determinants, simplex_determinants
from monai_diffeo.flow.thin_plate import thin_plate_slopes, thin_plate_spline
from monai_diffeo.flow.warp import warp, warp_points

__all__ = [
    "Deformation",
    "affine_deformation",
    "bch",
    "bch_sequence",
    "breaks",
    "cell_determinants",
    "compose",
    "compose_sequence",
    "dense_velocity",
    "exp",
    "exp_affine",
    "exp_chain",
    "exp_sequence",
    "folding",
    "inverse",
    "inverse_chain",
    "inverse_error",
    "invert",
    "jacobian",
    "jacobian_determinant",
    "lie_bracket",
    "simplex_determinants",
    "thin_plate_slopes",
    "thin_plate_spline",
    "warp",
    "warp_points",
]
