"""MONAI transforms that read films and write masks; the work is done in `monai_diffeo.radiograph`."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.transforms import MapTransform, SaveImaged, Transform
from monai.utils import TransformBackends, convert_to_numpy, convert_to_tensor

from monai_diffeo.errors import FilmError, ShapeError
from monai_diffeo.radiograph.isolation import IsolatedReader
from monai_diffeo.radiograph.mask_writer import MaskNames, mask_path_beside, write_mask
from monai_diffeo.radiograph.monai_reader import FilmReader, NamedFilm

__all__ = ["LoadImageFilm", "LoadImageFilmD", "LoadImageFilmDict", "LoadImageFilmd"]
__all__ += ["SaveFilmMaskD", "SaveFilmMaskDict", "SaveFilmMaskd"]
__all__ += ["SaveImageFilmMaskD", "SaveImageFilmMaskDict", "SaveImageFilmMaskd"]

_META = "filename_or_obj", "film_format", "film_file_frame", "film_affine_unit"


class LoadImageFilm(Transform):
    """Read one film as a channel-first MetaTensor, rows x columns, bone white.

    Args:
        isolate: read in a process of its own, so that no film can end, fill or hold up this one; see
            `monai_diffeo.radiograph.isolation.IsolatedReader`.

    Example:
        >>> from monai_diffeo.radiograph.packaged import packaged_film
        >>> LoadImageFilm()(packaged_film()).shape
        torch.Size([1, 1955, 1841])
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, isolate: bool = False) -> None:
        self.reader, self.isolated = FilmReader(), IsolatedReader() if isolate else None
        if self.isolated is not None:
            self.isolated.start()

    def __call__(self, img: str | os.PathLike) -> torch.Tensor:
        """The film at the path ``img``, float32 ``(1, H, W)`` with the metadata of `film_meta`; errors as `read_film`."""
        read = self.reader.read(img) if self.isolated is None else NamedFilm(str(img), self.isolated(img))
        pixels, meta = self.reader.get_data(read)
        film = MetaTensor(torch.from_numpy(pixels)[None], meta=meta)
        return convert_to_tensor(film, track_meta=get_track_meta())


class LoadImageFilmd(MapTransform):
    """Dictionary version of `LoadImageFilm`; ``keys`` are those of paths, absent ones raise unless ``allow_missing_keys``.

    Args:
        keys, allow_missing_keys: of ``MapTransform``.
        isolate: of `LoadImageFilm`.
    """

    backend = LoadImageFilm.backend

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, isolate: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.loader = LoadImageFilm(isolate)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each path by its film, float32 ``(1, H, W)``."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.loader(out[key])
        return out


@SaveImaged.register  # MONAI Label drops what is one of these, MONAI Deploy what has its name in its own
class SaveImageFilmMaskd(MapTransform):
    """Write a mask in the native frame of its film, named after the film, and record where.

    MONAI Deploy and MONAI Label leave it out, as ``SaveImaged``: they hand on masks themselves.

    Two films never share a mask file: see `monai_diffeo.radiograph.mask_writer.MaskNames`. Labels keep their values:
    see `monai_diffeo.radiograph.mask_writer.write_mask`.

    Args:
        keys: masks, shape ``(1, H, W)`` or ``(H, W)`` of whole labels, 0 is background; or ``(K, H, W)``, see `channels`.
            The path goes to ``<key>_path`` as a string, several paths as a list.
        output_dir: folder of the masks.
        root: the folder that holds the films; its sub-folders are kept. Or the one film itself.
        postfix: what is added to the name of the film.
        film_key: key of the film whose metadata is used; None uses the metadata of the mask, which `Invertd` copies
            from the film.
        allow_missing_keys: leave absent keys alone.
        channels: what to do with K > 1 channels. ``"labels"`` writes one file, each pixel the index of its highest channel
            (channel 0 is background). ``"files"`` writes a file a channel, named ``<postfix>_<index>``, index from 0.
            ``"refuse"`` raises.
        films: paths of all films of the run, from which names are given once. None looks into each film's folder.

    Raises:
        ValueError: for another ``channels``.
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
        channels: str = "refuse",
        films: Sequence[str | os.PathLike] | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if channels not in ("refuse", "labels", "files"):
            raise ValueError(f"SaveImageFilmMaskd: 'channels' must be 'refuse', 'labels' or 'files', got {channels!r}.")
        self.output_dir, self.root, self.postfix, self.film_key = output_dir, root, postfix, film_key
        self.channels, self.films = channels, films
        self._names: dict[str, MaskNames] = {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the masks.

        Raises:
            FilmError: ``MissingElement`` if the metadata is not that of a film; ``UnsupportedLabels`` as `write_mask`, or if
                channels of zeros and ones do not give each pixel one label.
            ShapeError: if a mask does not have the size of its film, or has several channels that are refused.
        """
        out = dict(data)
        for key in self.key_iterator(out):
            meta = getattr(out[key if self.film_key is None else self.film_key], "meta", {})
            if "film_format" not in meta:
                remedy = "name the film by film_key, keep tracking on."
                raise FilmError("MissingElement", f"SaveImageFilmMaskd needs the metadata that LoadImageFilmd gave: {remedy}")
            planes = self._planes(out[key], (int(meta["film_rows"]), int(meta["film_columns"])))
            paths = [self._write(plane, meta, postfix) for postfix, plane in planes.items()]
            out[f"{key}_path"] = paths[0] if len(paths) == 1 else paths
        return out

    def _planes(self, mask, film_shape: tuple[int, int]) -> dict[str, np.ndarray]:
        """What to write, by postfix."""
        planes = np.asarray(convert_to_numpy(mask))
        planes = planes[None] if planes.ndim == 2 else planes
        if planes.ndim != 3 or planes.shape[1:] != film_shape or not len(planes):
            expected = f"(K, H, W) or (H, W) with H, W = {film_shape}"
            raise ShapeError("SaveImageFilmMaskd", "mask", expected, np.shape(mask), "Undo the preprocessing first: Invertd.")
        if len(planes) == 1:
            return {self.postfix: planes[0]}
        if self.channels == "refuse":
            remedy = "Say channels='labels' for one label map (channel 0 is background) or 'files' for a file a channel."
            raise ShapeError(
                "SaveImageFilmMaskd", "mask", f"(1, H, W) or (H, W) with H, W = {film_shape}", planes.shape, remedy
            )
        if self.channels == "files":
            return {f"{self.postfix}_{k}": plane for k, plane in enumerate(planes)}
        if ((planes == 0) | (planes == 1)).all() and (planes.sum(0) != 1).any():
            expected = "SaveImageFilmMaskd: channels='labels' needs one channel a pixel, channel 0 for background."
            raise FilmError("UnsupportedLabels", f"{expected} Say channels='files'.")
        return {self.postfix: planes.argmax(0)}

    def _write(self, plane: np.ndarray, meta: Mapping, postfix: str) -> str:
        film, kind, frame, unit = (str(meta[key]) for key in _META)
        affine = convert_to_numpy(meta["original_affine"])
        return str(write_mask(plane, kind, affine, self._path(film, postfix), frame, unit))

    def _path(self, film: str, postfix: str) -> Path:
        if self.films is None:
            return mask_path_beside(film, self.root, self.output_dir, postfix)
        if postfix not in self._names:
            self._names[postfix] = MaskNames(self.films, self.root, self.output_dir, postfix)
        return self._names[postfix](film)


LoadImageFilmD = LoadImageFilmDict = LoadImageFilmd
SaveImageFilmMaskD = SaveImageFilmMaskDict = SaveImageFilmMaskd
SaveFilmMaskD = SaveFilmMaskDict = SaveFilmMaskd = SaveImageFilmMaskd  # the name of version 0.2; it goes with the next one
