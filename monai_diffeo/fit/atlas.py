"""The atlas of a fitted canonicaliser."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from monai_diffeo.fit.parts import ATLAS, atlas_settings
from monai_diffeo.fit.settings import read_settings, write_settings
from monai_diffeo.networks import ImageAtlas, save_weights

__all__ = ["fit_atlas"]


def fit_atlas(folder: str | Path, images: Iterable[Tensor]) -> None:
    """Write the mean of images as ``atlas.pt``; the mode ``refine`` of the folder then moves images towards it.

    Args:
        folder: of a canonicaliser that :func:`fit_canonicalizer` wrote.
        images: training images ``(C, *S)`` in [0, 1], undeformed.
    """
    folder = Path(folder)
    settings = atlas_settings(read_settings(folder))
    shape = {name: value for name, value in settings["networks"][ATLAS].items() if name != "_target_"}
    save_weights(ImageAtlas(**shape).measure(images), folder / settings["weights"][ATLAS])
    write_settings(folder, settings)
