"""The atlas of a fitted canonicaliser."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from monai_diffeo.bundles import canonicalizer_folder
from monai_diffeo.canonicalize.folder import read_settings
from monai_diffeo.fit.parts import ATLAS, atlas_settings, built
from monai_diffeo.fit.settings import write_settings
from monai_diffeo.networks import ImageAtlas, save_weights

__all__ = ["fit_atlas"]


def fit_atlas(folder: str | Path, images: Iterable[Tensor]) -> None:
    """Write the mean of images as ``atlas.pt``; the mode ``refine`` of the folder then moves images towards it.

    The default mode stays what it is.

    Args:
        folder: of a canonicaliser that :func:`fit_canonicalizer` wrote; as for :func:`load_canonicalizer`.
        images: training images ``(C, *S)`` in [0, 1], undeformed.

    Raises:
        WeightsError: if there is no such folder.
        ShapeError: for an image of other axes or channels.
        ValueError: without images.
    """
    folder = canonicalizer_folder(folder, "fit_atlas()")
    settings = atlas_settings(read_settings(folder))
    atlas: ImageAtlas = built(settings["networks"][ATLAS])
    save_weights(atlas.measure(images), folder / settings["weights"][ATLAS])
    write_settings(folder, settings)
