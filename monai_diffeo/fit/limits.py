"""The limits of a canonicaliser that was fitted earlier, from further images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_diffeo.bundles import canonicalizer_folder
from monai_diffeo.canonicalize import load_canonicalizer
from monai_diffeo.canonicalize.folder import read_settings
from monai_diffeo.canonicalize.limits import SignLimits
from monai_diffeo.fit.outcome import asked_with_signs, twin_deformations
from monai_diffeo.flow import warp
from monai_diffeo.inferers import DiffeoInferer

__all__ = ["fit_limits"]


def fit_limits(
    folder: str | Path, images: Iterable[Tensor], network: nn.Module, mode: str | None = None, seed: int = 0
) -> SignLimits:
    """Measure what is usual of images, as they are and deformed, and write ``limits.json`` into the folder; of a mode that is
    not the default one ``limits_`` and its name.

    Args:
        folder: as for :func:`load_canonicalizer`.
        images: batches ``(B, C, *S)`` that neither canonicaliser nor network was trained on.
        network: whose answers count; it is left in evaluation mode.
        mode: of the canonicaliser; limits are for this one; None takes the default mode.
        seed: of the deformations.
    """
    folder = canonicalizer_folder(folder, "fit_limits()")
    default = read_settings(folder)["default_mode"]
    mode = default if mode is None else mode
    inferer, signs = DiffeoInferer(load_canonicalizer(folder, mode)), list[dict[str, float]]()
    network.eval()
    for number, batch in enumerate(images):
        plain = torch.Tensor.as_subclass(batch, Tensor)
        ddf = twin_deformations(len(plain), plain.shape[2:], seed + number).to(plain)
        for shown in (plain, warp(plain, ddf, padding_mode="zeros")):
            with torch.no_grad():
                asked_with_signs(inferer, signs, shown, network)
    limits = SignLimits.of(mode, signs)
    limits.save(folder, further=mode != default)
    return limits
