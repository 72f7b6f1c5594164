"""MONAI transforms that read films and write masks; the work is done in `monai_diffeo.radiograph`."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_numpy, convert_to_tensor

from monai_diffeo.errors import FilmError, ShapeError
from monai_diffeo.radiograph.mask_writer import mask_path_beside, write_mask
from monai_diffeo.radiograph.nifti import affine_of_text, shape_of_text
from monai_diffeo.radiograph.reader import FilmReader

__all__ = ["LoadImageFilm", "LoadImageFilmD", "LoadImageFilmDict", "LoadImageFilmd"]
__all__ += ["SaveFilmMaskD", "SaveFilmMaskDict", "SaveFilmMaskd"]


class LoadImageFilm(Transform):
    """Read one film as a channel-first MetaTensor, rows x columns, bone white.

    Example:
        >>> from monai_diffeo.radiograph.packaged import packaged_film
        >>> LoadImageFilm()(packaged_film()).shape
        torch.Size([1, 1955, 1841])
    """

    backend = [TransformBackends.TORCH]

    def __init__(self) -> None:
        self.reader = FilmReader()

    def __call__(self, img: str | os.PathLike) -> torch.Tensor:
        """Read a film.

        Args:
            img: path of a DICOM, NIfTI, PNG or JPEG file.

        Returns:
            float32, shape ``(1, H, W)``, with the metadata of `monai_diffeo.radiograph.reader.film_meta`.

        Raises:
            FilmError: if the file is no film.
        """
        pixels, meta = self.reader.get_data(self.reader.read(img))
        film = MetaTensor(torch.from_numpy(pixels)[None], meta=meta)
        return convert_to_tensor(film, track_meta=get_track_meta())


class LoadImageFilmd(MapTransform):
    """Dictionary version of `LoadImageFilm`.

    Args:
        keys: keys whose values are paths.
        allow_missing_keys: leave absent keys alone.
    """

    backend = LoadImageFilm.backend

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.loader = LoadImageFilm()

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Replace each path by its film, float32 ``(1, H, W)``."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.loader(out[key])
        return out


class SaveFilmMaskd(MapTransform):
    """Write a mask in the native frame of its film, named after the film, and record where.

    Two films of one folder never share a mask file: see `monai_diffeo.radiograph.mask_writer.mask_paths`.

    Args:
        keys: masks, shape ``(1, H, W)`` or ``(H, W)``, 0 is background; the path goes to ``<key>_path`` as a string.
        output_dir: folder of the masks.
        root: the folder that holds the films; its sub-folders are kept. Or the one film itself.
        postfix: what is added to the name of the film.
        film_key: key of the film whose metadata is used; None uses the metadata of the mask, which `Invertd` copies
            from the film.
        allow_missing_keys: leave absent keys alone.
    """

    backend = [TransformBackends.NUMPY]

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | os.PathLike,
        root: str | os.PathLike,
        postfix: str = "lungs",
        film_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir, self.root, self.postfix, self.film_key = output_dir, root, postfix, film_key

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Write the masks.

        Raises:
            FilmError: ``MissingElement`` if the metadata is not that of a film.
            ShapeError: if a mask does not have the size of its film.
        """
        out = dict(data)
        for key in self.key_iterator(out):
            film = out[key if self.film_key is None else self.film_key]
            out[f"{key}_path"] = self._write(out[key], _meta(film))
        return out

    def _write(self, mask, meta: Mapping) -> str:
        film_shape = int(meta["film_rows"]), int(meta["film_columns"])
        plane = _plane(mask, film_shape)
        file_shape, file_affine = str(meta["film_file_shape"]), str(meta["film_file_affine"])
        path = mask_path_beside(str(meta["filename_or_obj"]), self.root, self.output_dir, self.postfix)
        write_mask(
            plane,
            str(meta["film_format"]),
            convert_to_numpy(meta["original_affine"]),
            path,
            shape_of_text(file_shape) if file_shape else None,
            affine_of_text(file_affine) if file_affine else None,
        )
        return str(path)


def _meta(film) -> Mapping:
    meta = getattr(film, "meta", {})
    if "film_format" not in meta:
        raise FilmError(
            "MissingElement",
            "SaveFilmMaskd needs the metadata that LoadImageFilmd gave: name the film by film_key, keep tracking on.",
        )
    return meta


def _plane(mask, film_shape: tuple[int, int]) -> np.ndarray:
    plane = np.asarray(convert_to_numpy(mask))
    if plane.ndim == 3 and plane.shape[0] == 1:
        plane = plane[0]
    if plane.shape != film_shape:
        expected = f"(1, H, W) or (H, W) with H, W = {film_shape}"
        raise ShapeError("SaveFilmMaskd", "mask", expected, plane.shape, "Undo the preprocessing first: Invertd.")
    return plane


LoadImageFilmD = LoadImageFilmDict = LoadImageFilmd
SaveFilmMaskD = SaveFilmMaskDict = SaveFilmMaskd
