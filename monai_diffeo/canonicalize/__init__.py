"""The search for the canonical pose."""

from monai_diffeo.canonicalize.canonicalizer import Canonicalizer
from monai_diffeo.canonicalize.energy_search import EnergySearch
from monai_diffeo.canonicalize.folder import fit_statistics, load_canonicalizer
from monai_diffeo.canonicalize.result import CANONICALIZED, LEFT_ALONE, REJECTED, Canonicalization
from monai_diffeo.canonicalize.search import SearchObjective

__all__ = [
    "CANONICALIZED", "Canonicalization", "Canonicalizer", "EnergySearch", "LEFT_ALONE", "REJECTED", "SearchObjective",
    "fit_statistics", "load_canonicalizer",
]  # fmt: skip
