"""MONAI transforms for films of any loader: to rows x columns, and answers back to the array that the loader gave."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_tensor

from monai_diffeo.errors import ShapeError
from monai_diffeo.radiograph.axes import FILM_AXES, affine_rows_first, film_axes, from_rows_first, to_rows_first

__all__ = ["EnsureRowsFirst", "EnsureRowsFirstD", "EnsureRowsFirstDict", "EnsureRowsFirstd"]
__all__ += ["RestoreAxesD", "RestoreAxesDict", "RestoreAxesd"]

_SHAPE = "film_loaded_shape"
_log = logging.getLogger(__name__)


class EnsureRowsFirst(Transform):
    """A film of any loader as ``(1, H, W)``, rows x columns, float32; one of `LoadImageFilm` stays as it is, bit for bit.

    MONAI's ``LoadImage`` and MONAI Deploy give films as columns x rows, with or without a channel and a depth of 1. Their
    metadata say so, see `monai_diffeo.radiograph.axes.film_axes`. Where they do not, the array is taken as rows x columns, and
    a warning is logged.
    """

    backend = [TransformBackends.TORCH]

    def __call__(self, img: Any) -> Any:
        """The film; ``film_axes`` of its metadata are the axes that it had.

        Raises:
            ShapeError: if ``img`` has more than two axes longer than 1.
        """
        axes = film_axes(img)
        if axes == "":
            return img
        film = convert_to_tensor(img, dtype=torch.float32, track_meta=True)
        spatial = tuple(film.shape[1:]) if film.ndim == 4 or (film.ndim == 3 and film.shape[0] == 1) else tuple(film.shape)
        plane = film.squeeze()
        if plane.ndim != 2:
            remedy = "Give one slice of one grey channel."
            raise ShapeError("EnsureRowsFirst", "img", "(H, W), (1, H, W) or (H, W, 1)", tuple(film.shape), remedy)
        if axes is None:
            _log.warning("EnsureRowsFirst: the metadata do not say how the film's axes lie; it is taken as rows x columns.")
        axes = "y,x" if axes is None else axes
        out = MetaTensor(to_rows_first(plane.as_tensor(), axes)[None])
        out.copy_meta_from(film)
        out.affine = affine_rows_first(film.affine, axes, (out.shape[1], out.shape[2]))
        out.meta = {**out.meta, FILM_AXES: axes, _SHAPE: ",".join(map(str, spatial))}
        return out


class EnsureRowsFirstd(MapTransform):
    """Dictionary version of `EnsureRowsFirst`."""

    backend = EnsureRowsFirst.backend

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ensure = EnsureRowsFirst()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each film."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.ensure(out[key])
        return out


class RestoreAxesd(MapTransform):
    """The inverse of `EnsureRowsFirstd` for maps ``(K, H, W)`` whose metadata `Invertd` copied from the film.

    What that left as it was stays as it is. ``Invertd`` itself does not exchange axes: connected components and holes are
    looked for in the plane, and after that the map goes back.
    """

    backend = [TransformBackends.TORCH]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each map by one with the axes that its film had, ``(K, *S)``."""
        out = dict(data)
        for key in self.key_iterator(out):
            meta = getattr(out[key], "meta", {})
            if FILM_AXES in meta:
                mask, axes = out[key], meta[FILM_AXES]
                back = from_rows_first(mask.as_tensor(), axes)
                back = MetaTensor(back.reshape(len(back), *map(int, meta[_SHAPE].split(","))))
                back.copy_meta_from(mask)
                back.affine = affine_rows_first(mask.affine, axes, tuple(mask.shape[1:]), back=True)
                back.meta = {name: value for name, value in back.meta.items() if name not in (FILM_AXES, _SHAPE)}
                out[key] = back
        return out


EnsureRowsFirstD = EnsureRowsFirstDict = EnsureRowsFirstd
RestoreAxesD = RestoreAxesDict = RestoreAxesd
