"""Bits above BitsStored: an overlay, which is left out, or grey values that the header cut off, which make a film useless."""

from __future__ import annotations

import numpy as np

from monai_diffeo.errors import FilmError

__all__ = ["spare_bits_note"]


def spare_bits_note(dataset, raw: np.ndarray) -> str:
    """Note on bits above BitsStored that are set, empty if none is; of unsigned grey pixels that are not compressed.

    ``raw``, shape ``(H, W)``, is what is left of the pixels below these bits.

    Raises:
        FilmError: ``DamagedFile`` if the picture is smoother with the bits than without: they belong to the grey values.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated or dataset.PixelRepresentation or raw.ndim != 2 or dataset.BitsStored == dataset.BitsAllocated:
        return ""
    packed = np.dtype(f"{'<' if syntax.is_little_endian else '>'}u{dataset.BitsAllocated // 8}")
    whole = np.frombuffer(dataset.PixelData, packed, raw.size).reshape(raw.shape)
    if int(whole.max()) < 2 ** int(dataset.BitsStored):
        return ""
    if _roughness(whole) < _roughness(whole & packed.type(2 ** int(dataset.BitsStored) - 1)):
        raise FilmError("DamagedFile", "The grey values use more bits than BitsStored declares. Export the film again.")
    return "bits above BitsStored were left out"


def _roughness(pixels: np.ndarray) -> float:
    """Mean difference of neighbours."""
    return sum(float(np.abs(np.diff(pixels.astype(np.int64), axis=axis)).mean()) for axis in (0, 1))
