"""How a canonicaliser is fitted to images: one function, which the command ``monai-diffeo fit`` calls."""

from monai_diffeo.fit.atlas import fit_atlas
from monai_diffeo.fit.fitting import fit_canonicalizer
from monai_diffeo.fit.limits import fit_limits
from monai_diffeo.fit.network import NetworkUnderTest
from monai_diffeo.fit.outcome import FitOutcome

__all__ = ["FitOutcome", "NetworkUnderTest", "fit_atlas", "fit_canonicalizer", "fit_limits"]
