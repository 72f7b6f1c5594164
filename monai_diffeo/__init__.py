"""monai_diffeo: make any trained network robust to deformation of the anatomy, without retraining it.

A diffeomorphism moves each image to where the network was trained, the network runs there, and the exact inverse maps its
answer back. Start with :class:`DiffeoInferer`. Transforms, training steps and reports are in their rooms.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

__version__ = "0.2.0"

__all__ = [
    "AffineCPAB", "AffineMatrix", "CPAB", "Canonicalization", "Canonicalizer", "ControlGrid", "DiffeoInferer",
    "DiffeomorphicAffine", "Homography", "Siren", "SpatialTransformerLayer", "TemplateInferer", "TemplateTransformer",
    "ThinPlateSpline", "compose", "exp", "folding_fraction",
    "inverse", "jacobian_determinant", "load_canonicalizer", "warp", "warp_points",
]  # fmt: skip

_ROOMS = ("flow", "families", "networks", "canonicalize", "inferers")  # that the names of __all__ come from
_MORE_ROOMS = (
    "augmentation", "bundles", "command_line", "energies", "engines", "errors", "files", "metrics", "radiograph", "report",
    "training", "transforms",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """Rooms come when they or their names are asked for, so that the command line answers ``--help`` without torch."""
    if name in (*_ROOMS, *_MORE_ROOMS):
        return importlib.import_module(f"{__name__}.{name}")
    if name in __all__:
        return next(getattr(room, name) for room in map(__getattr__, _ROOMS) if name in room.__all__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS, *_MORE_ROOMS})
