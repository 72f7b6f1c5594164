"""The mathematics: pure functions on velocities, displacements and images."""

from monai_diffeo.flow.axis_rotations import axis_rotations, mirror, rotate_axes
from monai_diffeo.flow.bch import bch, bch_sequence, lie_bracket
from monai_diffeo.flow.compose import compose, inverse, inverse_error, invert
from monai_diffeo.flow.deformation import Deformation
from monai_diffeo.flow.exponential import affine_deformation, exp, exp_affine
from monai_diffeo.flow.jacobian import (
    cell_determinants,
    folding_fraction,
    jacobian,
    jacobian_determinant,
    nonpositive_cell_fraction,
    simplex_determinants,
)
from monai_diffeo.flow.sequence import (
    compose_sequence,
    dense_velocity,
    exp_affine_sequence,
    exp_sequence,
    inverse_affine_sequence,
)
from monai_diffeo.flow.thin_plate import thin_plate_slopes, thin_plate_spline
from monai_diffeo.flow.warp import warp, warp_points

__all__ = [
    "Deformation", "affine_deformation", "axis_rotations", "bch", "bch_sequence", "nonpositive_cell_fraction",
    "cell_determinants", "compose", "compose_sequence", "dense_velocity", "exp", "exp_affine", "exp_affine_sequence",
    "exp_sequence", "folding_fraction", "inverse", "inverse_affine_sequence", "inverse_error", "invert", "jacobian",
    "jacobian_determinant", "lie_bracket", "mirror", "rotate_axes", "simplex_determinants", "thin_plate_slopes",
    "thin_plate_spline", "warp", "warp_points",
]  # fmt: skip
