"""Spatial transforms: random diffeomorphisms and canonicalisation, as arrays and as dictionaries."""

from monai_diffeo.transforms.spatial.array import Canonicalize, RandDiffeomorphism
from monai_diffeo.transforms.spatial.dictionary import (
    CanonicalizeD,
    Canonicalized,
    CanonicalizeDict,
    RandDiffeomorphismD,
    RandDiffeomorphismd,
    RandDiffeomorphismDict,
)

__all__ = [
    "Canonicalize", "CanonicalizeD", "CanonicalizeDict", "Canonicalized", "RandDiffeomorphism", "RandDiffeomorphismD",
    "RandDiffeomorphismDict", "RandDiffeomorphismd",
]  # fmt: skip
