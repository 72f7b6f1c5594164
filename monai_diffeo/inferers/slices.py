"""A canonicaliser of 2D images for each slice of volumes, around MONAI's ``SliceInferer``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from monai.inferers import SliceInferer
from torch import Tensor

from monai_diffeo.canonicalize.answers import map_parts
from monai_diffeo.canonicalize.result import NO_RESULT, OK, REJECTED, REVIEW
from monai_diffeo.inferers.record import Record, like_input

__all__ = ["ask_slices", "is_slicewise", "slices_of", "summaries", "volumes_of"]


def is_slicewise(inferer: Any, inputs: Tensor, canonicalizer: Any) -> bool:
    """Whether volumes ``(B, C, H, W, D)`` meet a ``SliceInferer`` and a canonicaliser of 2D images."""
    dims = getattr(getattr(canonicalizer, "family", None), "spatial_dims", None)
    return isinstance(inferer, SliceInferer) and inputs.ndim == 5 and dims == 2


def slices_of(inferer: SliceInferer, volumes: Tensor, kwargs: dict[str, Any]) -> list[tuple[Tensor, dict[str, Any]]]:
    """Batches of whole slices ``(N, C, H, W)``, each with its part of the arguments that are volumes of the same size."""

    def split(volume: Tensor) -> tuple[Tensor, ...]:
        plain = volume.as_tensor() if hasattr(volume, "as_tensor") else volume
        return plain.movedim(inferer.spatial_dim + 2, 1).flatten(0, 1).split(inferer.sw_batch_size)

    named = {k: split(v) for k, v in kwargs.items() if isinstance(v, Tensor) and v.shape[2:] == volumes.shape[2:]}
    return [(part, {**kwargs, **{k: parts[i] for k, parts in named.items()}}) for i, part in enumerate(split(volumes))]


def ask_slices(inferer: SliceInferer, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a ``SliceInferer`` gives for slices ``(N, C, H, W)``, whole, before it cuts windows."""
    axis = inferer.spatial_dim + 2
    kwargs = {key: part.unsqueeze(axis) if _is_image(part) else part for key, part in kwargs.items()}
    own = copy.copy(inferer)  # MONAI writes roi_size into it at each call
    return map_parts(own(inputs.unsqueeze(axis), network, *args, **kwargs), lambda part, *_: part.squeeze(axis))


def volumes_of(answer: Any, inferer: SliceInferer, volumes: Tensor) -> Any:
    """An answer about the slices, ``(B * D, K, H, W)``, as one about the volumes."""

    def stack(part: Any, *_: Any) -> Any:
        whole = part.unflatten(0, (len(volumes), -1)).movedim(1, inferer.spatial_dim + 2) if _is_image(part) else part
        return like_input(whole, volumes)

    return map_parts(answer, stack)


def summaries(slices: Sequence[Record], batch: int) -> tuple[Record, ...]:
    """One record a volume: means of its slices' numbers, the largest displacement, and how many slices were moved."""
    count = len(slices) // batch
    return tuple(_summary(slices[i * count : (i + 1) * count]) for i in range(batch))


def _summary(slices: Sequence[Record]) -> Record:
    words, record = ("status", "notes", "decision"), dict(slices[0])
    record |= {k: sum(s[k] for s in slices) / len(slices) for k in record if k not in words}
    kinds = [s["status"] for s in slices]
    if len(set(kinds)) > 1:
        order = sorted(set(kinds), key=lambda kind: (REJECTED in kind, kind))
        record["status"] = "; ".join(f"{kinds.count(kind)} slices {kind}" for kind in order)
    record["notes"] = "; ".join(dict.fromkeys(s["notes"] for s in slices if s["notes"]))
    if "decision" in record:  # the worst
        record["decision"] = max(
            (s["decision"] for s in slices), key=lambda text: (OK, REVIEW, NO_RESULT).index(text.split(":")[0])
        )
    return {**record, "largest_displacement": max(s["largest_displacement"] for s in slices)}


def _is_image(part: Any) -> bool:
    return isinstance(part, Tensor) and part.ndim == 4
