"""Masks beside films: where they go and how they keep the geometry of the film's file."""

from __future__ import annotations

import io
import json
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike

from monai_diffeo.errors import FilmError, ShapeError
from monai_diffeo.files import write_atomically
from monai_diffeo.radiograph.film import library
from monai_diffeo.radiograph.nifti import file_of_film
from monai_diffeo.radiograph.paths import film_names, format_of_name, split_name

__all__ = ["DICOM_KINDS", "MaskNames", "dicom_path", "figure_path", "map_path", "mask_path", "mask_path_beside", "mask_paths"]
__all__ += ["write_map", "write_mask"]

_PICTURES = ("png", "jpeg")
DICOM_KINDS = ("seg", "sr", "sc")
"""DICOM results of a film: segmentation, structured report, secondary capture; each ends in ``.<kind>.dcm``."""
_LABELS: tuple[type[np.integer], ...] = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32)


def mask_path(film_path: PathLike, root: PathLike, output_dir: PathLike, postfix: str = "lungs") -> Path:
    """Where the mask of a film goes: the folders below `root` are kept, the suffix gives way to the postfix.

    PNG and JPEG films give ``.png``, others ``.nii.gz``.

    Args:
        film_path: the film, at or below `root`.
        root: the folder that was read, or the film itself.
        output_dir: folder of the masks.
        postfix: what is added to the name.

    Raises:
        FilmError: ``UnsupportedFile`` if the film is not below `root` or the name would leave `output_dir`.

    Example:
        >>> mask_path("in/a/b.dcm", "in", "out").as_posix()
        'out/a/b_lungs.nii.gz'
    """
    film = Path(film_path)
    return _folder_of(film, Path(root), Path(output_dir), postfix) / _mask_name(film.name, postfix, with_suffix=False)


def figure_path(mask_path: PathLike) -> Path:
    """Where the figure of a film goes: beside its mask and named after it, ``b_lungs.nii.gz`` gives ``b_lungs_report.png``."""
    return Path(mask_path).with_name(_figure_name(Path(mask_path).name))


def dicom_path(mask_path: PathLike, kind: str) -> Path:
    """Where a DICOM result of a film goes: beside its mask, ``b_lungs.nii.gz`` gives ``b_lungs.seg.dcm``."""
    return Path(mask_path).with_name(f"{split_name(Path(mask_path).name)[0]}.{kind}.dcm")


def map_path(mask_path: PathLike) -> Path:
    """Where the map of uncertainty of a film goes: beside its mask, ``b_lungs.png`` gives ``b_lungs_uncertainty.nii.gz``."""
    return Path(mask_path).with_name(_map_name(Path(mask_path).name))


class MaskNames:
    """Mask paths of the films of a run: no two films share a mask or a figure, and no output is named like a film.

    Only films that would collide get their suffix in the name: ``b.dcm`` beside ``b.nii`` gives ``b_dcm_lungs.nii.gz``. Beside
    ``b.png`` it does too, and the picture keeps ``b_lungs.png``. A film without suffix is the last to give way. Arguments are
    those of `mask_path`, for all films at once. Where `films` maps films to pseudonyms, masks are named after these and lie
    in `output_dir` itself.
    """

    def __init__(self, films: Iterable[PathLike], root: PathLike, output_dir: PathLike, postfix: str = "lungs") -> None:
        folders: dict[Path, list[Path]] = defaultdict(list)
        taken: dict[str, set[str]] = defaultdict(set)
        true_path = lru_cache(maxsize=None)(os.path.realpath)
        for film in map(Path, films):
            folders[_folder_of(film, Path(root), Path(output_dir), postfix)].append(film)
            taken[true_path(film.parent)].add(film.name)
        self.paths: dict[Path, Path | None] = {}
        if isinstance(films, Mapping):
            for film, pseudonym in films.items():
                name = _mask_name(f"{pseudonym}{split_name(Path(film).name)[1]}", postfix, with_suffix=False)
                free = taken[true_path(Path(output_dir))].isdisjoint([name, _figure_name(name), _map_name(name)])
                self.paths[Path(film)] = Path(output_dir) / name if free else None
            return
        for folder, some in folders.items():
            masks = _names_in_folder([film.name for film in some], taken[true_path(folder)], postfix)
            self.paths |= {film: folder / mask if (mask := masks[film.name]) else None for film in some}

    def __call__(self, film_path: PathLike) -> Path:
        """Path of one film's mask; FilmError ``UnsupportedFile`` if no name is free, KeyError if it is none of the films."""
        path = self.paths[Path(film_path)]
        if path is None:
            raise FilmError("UnsupportedFile", "Two films would write the same mask or picture. Rename one of them.")
        return path


def mask_paths(films: Sequence[PathLike], root: PathLike, output_dir: PathLike, postfix: str = "lungs") -> dict[Path, Path]:
    """Film to mask for many films, as `MaskNames` gives them and in their order; FilmError if one of them gets no name."""
    names = MaskNames(films, root, output_dir, postfix)
    return {Path(film): names(film) for film in films}


def mask_path_beside(film_path: PathLike, root: PathLike, output_dir: PathLike, postfix: str = "lungs") -> Path:
    """Mask path of one film, the same that `mask_paths` gives it among all files of its folder; arguments as `mask_path`.

    The names of a folder are kept until it changes, so that a run is linear. One `MaskNames` for a run is quicker still.
    """
    film = Path(film_path)
    if film == Path(root) or not film.parent.is_dir():
        return mask_path(film, root, output_dir, postfix)
    names = _names_beside(film.parent, os.stat(film.parent).st_mtime_ns, Path(root), Path(output_dir), postfix)
    if film not in names.paths:  # hidden, or put there since
        names = MaskNames([film, *(film.parent / name for name in film_names(film.parent))], root, output_dir, postfix)
    return names(film)


@lru_cache(maxsize=64)
def _names_beside(folder: Path, changed: int, root: Path, output_dir: Path, postfix: str) -> MaskNames:
    return MaskNames([folder / name for name in film_names(folder)], root, output_dir, postfix)


def _names_in_folder(films: list[str], taken: set[str], postfix: str) -> dict[str, str | None]:
    """Mask names of the films of one folder, None where none is free; ``taken`` are films that lie where the masks go."""
    plain = set(films)
    while True:
        masks = {film: _mask_name(film, postfix, film not in plain) for film in films}
        users: dict[str, list[str]] = defaultdict(list)
        for film, mask in masks.items():
            for name in (mask, _figure_name(mask), _map_name(mask), *(dicom_path(mask, kind).name for kind in DICOM_KINDS)):
                users[name].append(film)
        count = Counter(name for name, some in users.items() for film in some if format_of_name(film) is not None)
        count.update({*films, *taken})
        clashing = [some for name, some in users.items() if count[name] > 1]
        able = [plain.intersection(some) for some in clashing]
        moved = {film for some in able for film in some if _gives_way(film) == min(map(_gives_way, some))}
        if not moved:
            lost = {film for some in clashing for film in some}
            return {film: None if film in lost else mask for film, mask in masks.items()}
        plain -= moved


def _gives_way(name: str) -> int:
    """Rank among colliding films: files with a suffix first, then pictures, then files without suffix."""
    return 2 if not split_name(name)[1] else int(format_of_name(name) in _PICTURES)


def _mask_name(name: str, postfix: str, with_suffix: bool) -> str:
    stem, suffix = split_name(name)
    word = f"_{(suffix or '.dicom')[1:].replace('.', '_')}" if with_suffix else ""
    return f"{stem}{word}_{postfix}{'.png' if format_of_name(name) in _PICTURES else '.nii.gz'}"


def _figure_name(mask_name: str) -> str:
    return f"{split_name(mask_name)[0]}_report.png"


def _map_name(mask_name: str) -> str:
    return f"{split_name(mask_name)[0]}_uncertainty.nii.gz"


def _folder_of(film: Path, root: Path, output_dir: Path, postfix: str) -> Path:
    if Path(postfix).name != postfix:
        raise FilmError("UnsupportedFile", "The postfix is one word without folders.")
    if film == root:
        return output_dir
    film, root = Path(os.path.abspath(film)), Path(os.path.abspath(root))
    if not film.is_relative_to(root):
        raise FilmError("UnsupportedFile", "The film is not below the root folder. Give the folder that holds it.")
    return output_dir / film.relative_to(root).parent


def write_mask(
    mask: np.ndarray,
    film_format: str,
    affine: np.ndarray,
    path: PathLike,
    file_frame: str = "",
    unit: str = "mm",
) -> Path:
    """Write a mask in the frame of its film's file; the file appears whole or not at all.

    Args:
        mask: shape ``(H, W)``, rows x columns of the film; booleans or whole numbers, 0 is background.
        film_format: ``"dicom"``, ``"nifti"``, ``"png"`` or ``"jpeg"``. DICOM gives NIfTI of columns x rows x 1 with `affine`;
            NIfTI gives NIfTI indexed as the film's own file. Both keep the labels, in the smallest integer type that
            holds them. Pictures give a PNG of 8 bits: 255 for label 1 if there is no other, else the labels as they are.
        affine: the film's affine, 4x4, (row, column) to RAS millimetres.
        path: where to write; missing folders are made.
        file_frame: NIfTI films only: ``details["file_frame"]`` of the film, for the file's own shape, order, affines, codes and
            unit. Without it, the mask is of columns x rows x 1 with `affine`.
        unit: of `affine`, ``"mm"`` or ``"unknown"``.

    Returns:
        The path.

    Raises:
        ShapeError: if `mask` has other than two axes or does not fit `file_frame`.
        FilmError: ``UnsupportedLabels`` for labels that are not whole or do not fit the file; ``UnsupportedFile`` for another
            `film_format` or a missing library.
    """
    if mask.ndim != 2:
        raise ShapeError("write_mask()", "mask", "(H, W)", mask.shape, "Remove batch and channel axes: mask[0].")
    labels = _whole(np.asarray(mask))
    if film_format in _PICTURES:
        return write_atomically(path, _png_bytes(labels))
    if film_format not in ("dicom", "nifti"):
        raise FilmError("UnsupportedFile", "write_mask() writes for films of format dicom, nifti, png or jpeg.")
    return write_atomically(path, _nifti_bytes(labels, affine, file_frame, unit))


def write_map(values: np.ndarray, affine: np.ndarray, path: PathLike, file_frame: str = "", unit: str = "mm") -> Path:
    """Write numbers ``(H, W)`` that lie on a film as NIfTI, float32, with the geometry of a NIfTI mask, see `write_mask`."""
    if values.ndim != 2:
        raise ShapeError("write_map()", "values", "(H, W)", values.shape, "Remove batch and channel axes: values[0].")
    return write_atomically(path, _nifti_bytes(np.asarray(values, np.float32), affine, file_frame, unit))


def _nifti_bytes(values: np.ndarray, affine: np.ndarray, file_frame: str, unit: str) -> bytes:
    """A NIfTI file of what lies on a film, in the frame of the film's file if it is one itself."""
    if not file_frame:
        return _placed(values.T[..., None], np.asarray(affine, np.float64)[:, [1, 0, 2, 3]], unit)
    frame = json.loads(file_frame)
    array, shape = file_of_film(values, frame["axes"]), tuple(frame["shape"])
    if array.shape != shape[:2]:
        raise ShapeError("write_mask()", "mask", f"(H, W) of the film file {shape}", values.shape)
    return _framed(array.reshape(shape), frame)


def _whole(mask: np.ndarray) -> np.ndarray:
    """The labels in the smallest integer type that holds them all."""
    low, high = (mask.min(), mask.max()) if mask.size else (0, 0)
    kind = next((kind for kind in _LABELS if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max), None)
    labels = None if kind is None else mask.astype(kind)
    if labels is not None and (mask.dtype.kind in "biu" or (labels == mask).all()):
        return labels
    expected = f"write_mask() expects whole labels of at most 32 bits, got values from {low} to {high}."
    raise FilmError("UnsupportedLabels", f"{expected} Round or argmax first.")


def _png_bytes(labels: np.ndarray) -> bytes:
    image_module = library("PIL.Image", "Writing PNG needs Pillow: pip install pillow.")
    if labels.dtype != np.uint8:
        came = f"{labels.min()} to {labels.max()}. Use fewer classes, or NIfTI films."
        raise FilmError("UnsupportedLabels", f"A PNG mask holds labels 0 to 255, got {came}")
    stream = io.BytesIO()
    image_module.fromarray(labels * (255 if labels.max(initial=0) == 1 else 1)).save(stream, format="PNG")
    return stream.getvalue()


def _placed(array: np.ndarray, affine: np.ndarray, unit: str) -> bytes:
    """A NIfTI file with this affine, as sform and, where it is regular, as qform, which ITK takes for an oblique film."""
    nibabel = _nibabel()
    image = nibabel.Nifti1Image(array, None, dtype=array.dtype)
    image.header.set_xyzt_units(unit)
    if np.linalg.det(affine[:3, :3]):
        image.header.set_qform(affine, code="scanner")
    image.header.set_sform(affine, code="scanner")
    return _gzipped(image)


def _framed(array: np.ndarray, frame: dict[str, Any]) -> bytes:
    """A NIfTI file with the header fields of the film's own, to the last bit."""
    nibabel = _nibabel()
    image = (nibabel.Nifti2Image if frame["version"] == 2 else nibabel.Nifti1Image)(array, None, dtype=array.dtype)
    for name, value in frame["header"].items():
        image.header[name] = value
    return _gzipped(image)


def _gzipped(image: Any) -> bytes:
    """A file of gzip. Of labels only runs are looked for: as small, in half the time."""
    strategy = zlib.Z_RLE if image.get_data_dtype().kind in "iu" else zlib.Z_DEFAULT_STRATEGY
    stream = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return stream.compress(image.to_bytes()) + stream.flush()


def _nibabel() -> Any:
    return library("nibabel", "Writing NIfTI needs nibabel: pip install nibabel.")
