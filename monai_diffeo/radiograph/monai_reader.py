"""Films for MONAI's own `LoadImage`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import ensure_tuple

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.film import Film
from monai_diffeo.radiograph.paths import format_of_name
from monai_diffeo.radiograph.reader import film_meta, read_film

__all__ = ["FilmReader", "NamedFilm"]


class NamedFilm(NamedTuple):
    """A film and the path it was read from."""

    path: str
    film: Film


class FilmReader(ImageReader):
    """MONAI reader for films: array ``(H, W)``, rows x columns (other MONAI readers give columns x rows).

    `monai.transforms.LoadImage` tries its other readers when this one refuses a file; `LoadImageFilm` does not.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether every one of the names promises a film."""
        return all(format_of_name(Path(name).name) is not None for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs) -> NamedFilm:
        """Read one file; further arguments are not used.

        Raises:
            FilmError: if the file is no film, or ``MultiFrame`` for more than one path.
        """
        paths = ensure_tuple(data)
        if len(paths) != 1:
            raise FilmError("MultiFrame", f"FilmReader reads one file an image, got {len(paths)}.")
        return NamedFilm(str(paths[0]), read_film(paths[0]))

    def get_data(self, img: NamedFilm) -> tuple[np.ndarray, dict]:
        """Pixels, float32 ``(H, W)``, and metadata (`film_meta`) of what `read` returned."""
        return img.film.pixels, film_meta(img.film, img.path)
