"""Masks beside films: where they go and how they keep the geometry of the film's file."""

from __future__ import annotations

import gzip
import io
import os
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from monai.utils import optional_import

from monai_diffeo.errors import FilmError, ShapeError
from monai_diffeo.radiograph.paths import format_of_name, is_plain, split_name

__all__ = ["figure_path", "mask_path", "mask_path_beside", "mask_paths", "write_mask"]

_PICTURES = ("png", "jpeg")


def mask_path(
    film_path: str | os.PathLike, root: str | os.PathLike, output_dir: str | os.PathLike, postfix: str = "lungs"
) -> Path:
    """Where the mask of a film goes: the folders below `root` are kept, the suffix gives way to the postfix.

    Args:
        film_path: the film, at or below `root`.
        root: the folder that was read, or the film itself.
        output_dir: folder of the masks.
        postfix: what is added to the name.

    Returns:
        ``output_dir/a/b_lungs.nii.gz``, with ``.png`` for PNG and JPEG films.

    Raises:
        FilmError: ``UnsupportedFile`` if the film is not below `root` or the name would leave `output_dir`.

    Example:
        >>> mask_path("in/a/b.dcm", "in", "out").as_posix()
        'out/a/b_lungs.nii.gz'
    """
    return _mask_path(Path(film_path), Path(root), Path(output_dir), postfix, with_suffix=False)


def mask_paths(
    films: Sequence[str | os.PathLike],
    root: str | os.PathLike,
    output_dir: str | os.PathLike,
    postfix: str = "lungs",
) -> dict[Path, Path]:
    """Mask paths of many films, no two alike; only films that would collide get their suffix in the name.

    Args:
        films: the films, at or below `root`.
        root: the folder that was read, or the film itself.
        output_dir: folder of the masks.
        postfix: what is added to the name.

    Returns:
        Film to mask, in the order of `films`; ``b.dcm`` beside ``b.nii`` gives ``b_dcm_lungs.nii.gz``.

    Raises:
        FilmError: as `mask_path`, or ``UnsupportedFile`` if two names collide with their suffixes too.
    """
    films, root, output_dir = [Path(film) for film in films], Path(root), Path(output_dir)
    plain = set(films)
    while True:
        paths = {film: _mask_path(film, root, output_dir, postfix, film not in plain) for film in films}
        count = Counter(path for film, path in paths.items() if format_of_name(film.name) is not None)
        clashing = {film for film in films if count[paths[film]] > 1}
        if not clashing & plain:
            break
        plain -= clashing
    if clashing:
        raise FilmError("UnsupportedFile", "Two films would write the same mask. Rename one of them.")
    return paths


def mask_path_beside(
    film_path: str | os.PathLike, root: str | os.PathLike, output_dir: str | os.PathLike, postfix: str = "lungs"
) -> Path:
    """Mask path of one film, the same that `mask_paths` gives it among all files of its folder.

    Args:
        film_path: the film, at or below `root`.
        root: the folder that was read, or the film itself.
        output_dir: folder of the masks.
        postfix: what is added to the name.

    Raises:
        FilmError: as `mask_paths`.
    """
    film = Path(film_path)
    if film == Path(root) or not film.parent.is_dir():
        return mask_path(film, root, output_dir, postfix)
    stem = split_name(film.name)[0]
    names = [name for name in os.listdir(film.parent) if _may_clash(split_name(name)[0], stem)]
    siblings = [film.parent / name for name in names if name != film.name and is_plain(film.parent, name)]
    return mask_paths([film, *siblings], root, output_dir, postfix)[film]


def _may_clash(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _mask_path(film: Path, root: Path, output_dir: Path, postfix: str, with_suffix: bool) -> Path:
    if Path(postfix).name != postfix:
        raise FilmError("UnsupportedFile", "The postfix is one word without folders.")
    folder = Path() if film == root else _folder_below(film, root)
    stem, suffix = split_name(film.name)
    word = f"_{suffix[1:].replace('.', '_')}" if with_suffix and suffix else ""
    ending = ".png" if format_of_name(film.name) in _PICTURES else ".nii.gz"
    return output_dir / folder / f"{stem}{word}_{postfix}{ending}"


def _folder_below(film: Path, root: Path) -> Path:
    film, root = Path(os.path.abspath(film)), Path(os.path.abspath(root))
    if not film.is_relative_to(root):
        raise FilmError("UnsupportedFile", "The film is not below the root folder. Give the folder that holds it.")
    return film.relative_to(root).parent


def figure_path(mask_path: Path) -> Path:
    """Where the figure of a film goes: beside its mask, named after it.

    Example:
        >>> figure_path(Path("out/b_dcm_lungs.nii.gz")).as_posix()
        'out/b_dcm_lungs_report.png'
    """
    return mask_path.with_name(split_name(mask_path.name)[0] + "_report.png")


def write_mask(
    mask: np.ndarray,
    film_format: str,
    affine: np.ndarray,
    path: str | os.PathLike,
    file_shape: tuple[int, ...] | None = None,
    file_affine: np.ndarray | None = None,
) -> Path:
    """Write a mask in the frame of its film's file; the file appears whole or not at all.

    Args:
        mask: shape ``(H, W)``, rows x columns of the film; 0 is background, everything else is inside.
        film_format: ``"dicom"``, ``"nifti"``, ``"png"`` or ``"jpeg"``. Pictures give a PNG of 0 and 255. DICOM gives
            NIfTI indexed [row, column] with `affine`; NIfTI gives NIfTI indexed [x, y] as the film's own file.
        affine: the film's affine, 4x4, (row, column) to RAS millimetres.
        path: where to write; missing folders are made.
        file_shape: NIfTI films only: shape of the file's array, with its axes of length 1. Default: ``(W, H)``.
        file_affine: NIfTI films only: the file's own affine. Default: `affine` with its first two columns swapped.

    Returns:
        The path.

    Raises:
        ShapeError: if `mask` has other than two axes or does not fit `file_shape`.
        FilmError: ``UnsupportedFile`` for another `film_format` or a missing library.
    """
    if mask.ndim != 2:
        raise ShapeError("write_mask()", "mask", "(H, W)", mask.shape, "Remove batch and channel axes: mask[0].")
    inside = np.asarray(mask) != 0
    if film_format in _PICTURES:
        return _atomically(Path(path), _png_bytes(inside))
    if film_format == "dicom":
        return _atomically(Path(path), _nifti_bytes(inside, np.asarray(affine, np.float64)))
    if film_format != "nifti":
        raise FilmError("UnsupportedFile", "write_mask() writes for films of format dicom, nifti, png or jpeg.")
    shape = inside.shape[::-1] if file_shape is None else tuple(file_shape)
    if shape != inside.shape[::-1] + (1,) * (len(shape) - 2):
        raise ShapeError("write_mask()", "mask", f"(H, W) of the film file {shape}", mask.shape)
    own = np.asarray(affine)[:, [1, 0, 2, 3]] if file_affine is None else np.asarray(file_affine)
    return _atomically(Path(path), _nifti_bytes(inside.T.reshape(shape), own.astype(np.float64)))


def _png_bytes(inside: np.ndarray) -> bytes:
    image_module, found = optional_import("PIL.Image")
    if not found:
        raise FilmError("UnsupportedFile", "Writing PNG needs Pillow: pip install pillow.")
    stream = io.BytesIO()
    image_module.fromarray(inside.astype(np.uint8) * 255).save(stream, format="PNG")
    return stream.getvalue()


def _nifti_bytes(inside: np.ndarray, affine: np.ndarray) -> bytes:
    nibabel, found = optional_import("nibabel")
    if not found:
        raise FilmError("UnsupportedFile", "Writing NIfTI needs nibabel: pip install nibabel.")
    image = nibabel.Nifti1Image(inside.astype(np.uint8), None)
    image.header.set_sform(affine, code="scanner")  # the sform also takes a singular affine, which the qform cannot
    image.header.set_xyzt_units("mm")
    edges = np.linalg.norm(affine[:3, :3], axis=0)[: inside.ndim]
    image.header["pixdim"][1 : 1 + len(edges)] = np.where(edges > 0, edges, 1.0)
    return gzip.compress(image.to_bytes(), mtime=0)


def _atomically(path: Path, content: bytes) -> Path:
    """Write beside the target, then rename: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".mask_{uuid.uuid4().hex}"
    try:
        with open(temporary, "xb") as stream:
            stream.write(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
